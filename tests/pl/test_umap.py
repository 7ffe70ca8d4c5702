from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import isd.pl._umap as module
from isd.pl import umap_compare
from isd.pl._umap import density_levels
from isd.settings import settings

COLORS = ["#111111", "#22aa22", "#3333ff"]


def make(n_obs: int) -> AnnData:
    obs = pd.DataFrame(
        {"leiden": pd.Categorical.from_codes(np.arange(n_obs) % 3, ["0", "10", "2"])},
        index=[str(i) for i in range(n_obs)],
    )
    return AnnData(np.ones((n_obs, 2), dtype=np.float32), obs=obs)


@pytest.fixture
def cells() -> tuple[AnnData, AnnData, AnnData]:
    """Real, generated, and a made-up joint map: 90 real cells, 30 generated ones."""
    real, fake = make(90), make(30)
    joint = make(120)
    joint.obs["leiden"] = pd.Categorical(np.r_[real.obs["leiden"], fake.obs["leiden"]], categories=["0", "10", "2"])
    joint.obs["isd_source"] = pd.Categorical(["real"] * 90 + ["generated"] * 30, categories=["real", "generated"])
    joint.obsm["X_isd_umap"] = np.random.default_rng(0).normal(size=(120, 2))
    joint.uns["leiden_colors"] = COLORS
    return real, fake, joint


def offsets(ax) -> list[np.ndarray]:
    return [np.asarray(collection.get_offsets()) for collection in ax.collections]


def test_global_draws_equal_numbers_in_three_panels_of_the_same_limits(cells):
    real, fake, joint = cells
    axes = umap_compare(real, fake, joint=joint, show=False)
    assert [len(points) for points in offsets(axes[0])] == [30, 30]
    assert [ax.get_title() for ax in axes] == ["30 real, 30 generated", "real", "generated"]
    assert len({ax.get_xlim() for ax in axes}) == len({ax.get_ylim() for ax in axes}) == 1
    real_rows = {tuple(point) for point in joint.obsm["X_isd_umap"][:90].round(9)}
    first, second = ({tuple(p) for p in points.round(9)} for points in offsets(axes[0]))
    assert first <= real_rows and not second & real_rows
    assert all(collection.get_rasterized() for ax in axes for collection in ax.collections)


def test_labels_have_the_colours_of_uns_in_the_order_of_categories(cells):
    real, fake, joint = cells
    axes = umap_compare(real, fake, joint=joint, show=False)
    drawn = axes[2].collections[-1]
    by_point = dict(zip(map(tuple, np.asarray(drawn.get_offsets()).round(9)), drawn.get_facecolors(), strict=True))
    for row in range(90, 120):
        expected = to_rgba(COLORS[["0", "10", "2"].index(joint.obs["leiden"].iloc[row])])
        np.testing.assert_allclose(by_point[tuple(joint.obsm["X_isd_umap"][row].round(9))], expected)
    texts = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert texts == ["0", "10", "2"]


def test_per_label_and_combined_show_the_chosen_labels(cells):
    real, fake, joint = cells
    axes = umap_compare(real, fake, joint=joint, mode="per_label", show=False)
    assert [ax.get_title().split("\n")[0] for ax in axes] == ["0", "10", "2"]
    generated = [offsets(ax)[-1] for ax in axes]
    assert [len(points) for points in generated] == [10, 10, 10]
    axes = umap_compare(real, fake, joint=joint, groups=["10", "2"], show=False)
    assert len(offsets(axes[0])[-1]) == len(offsets(axes[2])[-1]) == 20
    only = umap_compare(real, fake, joint=joint, groups="2", mode="per_label", show=False)
    assert len(only) == 1


def test_into_given_axes_and_without_labels(cells):
    real, fake, joint = cells
    figure, ax = plt.subplots()
    assert umap_compare(real, fake, joint=joint, ax=ax, show=False) is ax
    assert len(figure.axes) == 1 and len(ax.collections) == 2
    plt.close(figure)
    ax = umap_compare(real, fake, joint=joint, color="isd_source", show=False)
    assert len(ax.figure.axes) == 1
    del real.obs["leiden"]
    assert len(umap_compare(real, fake, joint=joint, show=False).figure.axes) == 1


def test_saves_and_returns_as_asked_and_leaves_no_figure_open(cells, tmp_path, monkeypatch):
    real, fake, joint = cells
    monkeypatch.setattr(settings, "figdir", tmp_path / "figures")
    figure = umap_compare(real, fake, joint=joint, return_fig=True)
    assert isinstance(figure, Figure)
    umap_compare(real, fake, joint=joint, save=True)
    umap_compare(real, fake, joint=joint, save="mine.png")
    umap_compare(real, fake, joint=joint, save=str(tmp_path / "there" / "deep.pdf"))
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert written == {"figures/umap_compare.png", "figures/mine.png", "there/deep.pdf"}
    assert plt.get_fignums() == []


def test_text_does_not_overlap(cells):
    real, fake, joint = cells
    for mode in ("global", "per_label"):
        figure = umap_compare(real, fake, joint=joint, mode=mode, return_fig=True)
        figure.canvas.draw()
        boxes = [ax.get_window_extent() for ax in figure.axes]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        boxes += [ax.get_legend().get_window_extent() for ax in figure.axes if ax.get_legend()]
        boxes += [ax.title.get_window_extent() for ax in figure.axes]
        for i, one in enumerate(boxes):
            assert not any(one.padded(-1).overlaps(other.padded(-1)) for other in boxes[i + 1 :])
            assert figure.bbox.padded(1).containsx(one.x0) and figure.bbox.padded(1).containsx(one.x1)
            assert figure.bbox.padded(1).containsy(one.y0) and figure.bbox.padded(1).containsy(one.y1)


def test_many_labels_get_colours_of_their_own(cells):
    from isd.pl._figure import label_colors

    names = [str(i) for i in range(44)]
    assert len(set(label_colors(names).values())) == 44
    assert label_colors(["a", "b"], ["red", "blue", "green"]) == {"a": "red", "b": "blue"}


def test_map_is_computed_where_it_is_missing(cells, monkeypatch):
    real, fake, joint = cells
    import isd.tl._embed as embedding

    monkeypatch.setattr(embedding, "embed", lambda *args, **options: joint)
    assert len(umap_compare(real, fake, show=False)) == 3
    assert module.umap_compare is umap_compare


def test_bad_arguments_are_refused(cells):
    real, fake, joint = cells
    with pytest.raises(KeyError, match="color 'nope'"):
        umap_compare(real, fake, joint=joint, color="nope")
    with pytest.raises(KeyError, match=r"groups \['7'\]"):
        umap_compare(real, fake, joint=joint, groups="7")
    with pytest.raises(ValueError, match="mode='all'"):
        umap_compare(real, fake, joint=joint, mode="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs labels"):
        umap_compare(real, fake, joint=joint, color="isd_source", mode="per_label")
    with pytest.raises(KeyError, match="joint lacks"):
        umap_compare(real, fake, joint=real)
    with pytest.raises(ValueError, match="one panel"):
        umap_compare(real, fake, joint=joint, mode="per_label", ax=Figure().subplots())


def test_levels_of_density_hold_the_shares_that_they_say():
    points = np.random.default_rng(0).normal(size=(20_000, 2))
    (x, y), density, levels = density_levels(points, np.array([[-6.0, -6.0], [6.0, 6.0]]))
    assert (np.diff(levels) > 0).all()
    grid = np.hypot(*np.meshgrid(x, y))
    # a normal distribution's disc that holds a share p has radius sqrt(-2 log(1 - p))
    for level, share in zip(levels, (0.95, 0.8, 0.5), strict=True):
        assert density[density >= level].sum() / density.sum() == pytest.approx(share, abs=0.01)
        assert grid[density >= level].max() == pytest.approx(np.sqrt(-2 * np.log(1 - share)), rel=0.15)


def test_contours_replace_points_of_the_overlay(cells):
    real, fake, joint = cells
    axes = umap_compare(real, fake, joint=joint, contours=True, show=False)
    assert len({ax.get_xlim() for ax in axes}) == 1
    levels = [c.levels for c in axes[0].collections if hasattr(c, "levels")]
    assert [len(found) for found in levels] == [4, 3]  # real: three areas; generated: three lines
    # ten cells of a label are too few for a density: points, as without contours
    few = umap_compare(real, fake, joint=joint, contours=True, mode="per_label", show=False)
    assert not any(hasattr(c, "levels") for c in few[0].collections)
    assert [len(points) for points in offsets(few[0])][-1] == 10
