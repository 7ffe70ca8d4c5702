from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure

from isd.pl import roc


def curve(space: str, group: str, source: str, power: float) -> pd.DataFrame:
    fpr = np.linspace(0, 1, 11)
    tpr = fpr**power
    return pd.DataFrame(
        {"space": space, "group": group, "source": source, "fpr": fpr, "tpr": tpr}
        | {"tpr_lower": np.clip(tpr - 0.1, 0, 1), "tpr_upper": np.clip(tpr + 0.1, 0, 1)}
    )


@pytest.fixture
def generated() -> AnnData:
    cells = AnnData(np.ones((3, 2), dtype=np.float32))
    rows, curves = [], []
    for space in ("features", "pcs"):
        for group, value in (("all", 0.75), ("T/NK", 0.9), ("small", np.nan)):
            numbers = {"value": value, "lower": value - 0.02, "upper": value + 0.03, "floor": value - 0.25}
            floor = {"floor_lower": 0.45, "floor_upper": 0.55, "n_real": 12}
            rows.append({"metric": "random_forest_auc", "space": space, "group": group} | numbers | floor)
            if group != "small":
                curves += [curve(space, group, "generated", 0.3), curve(space, group, "floor", 1.0)]
    cells.uns["isd"] = {"metrics": pd.DataFrame(rows), "roc": pd.concat(curves, ignore_index=True)}
    return cells


def legend(ax) -> list[str]:
    found = ax.get_legend() or ax.get_figure(root=False).legends[0]
    return [text.get_text() for text in found.get_texts()]


def test_one_group_shows_its_curve_and_the_floors_with_intervals(generated):
    axes = roc(generated, show=False)
    assert [ax.get_title() for ax in axes] == ["on features", "on principal components"]
    assert legend(axes[0]) == ["real against real 0.50 (0.45 to 0.55)", "generated 0.75 (0.73 to 0.78)"]
    drawn = {line.get_label(): line.get_xydata() for line in axes[0].lines}
    np.testing.assert_allclose(drawn["generated 0.75 (0.73 to 0.78)"][1:, 1], np.linspace(0, 1, 11) ** 0.3)
    assert len(axes[0].collections) == 2  # both bands


def test_several_groups_share_axes(generated):
    ax = roc(generated, space="pcs", groups=["all", "T/NK"], show=False)
    assert legend(ax) == ["all  0.75 (floor 0.50)", "T/NK  0.90 (floor 0.65)"]
    assert len({line.get_color() for line in ax.lines[1:]}) == 2


def test_what_is_too_small_says_so_instead_of_a_curve(generated):
    axes = roc(generated, groups="small", show=False)
    assert legend(axes[0]) == ["generated: n too small (12 real)"]
    assert not axes[0].collections


def test_into_given_axes(generated):
    ax = Figure().subplots()
    assert roc(generated, ax=ax) is ax
    assert ax.get_title() == "on features" and len(legend(ax)) == 2


def test_saved_picture_holds_all_text(generated, tmp_path):
    figure = roc(generated, groups=["all", "T/NK", "small"], return_fig=True, save=tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 5000
    figure.canvas.draw()
    for ax in figure.axes:
        home = ax.get_figure(root=False)
        boxes = [ax.get_tightbbox(), home.legends[0].get_window_extent()]
        assert not boxes[0].padded(-1).overlaps(boxes[1].padded(-1))
        for box in boxes:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1


def test_what_was_not_evaluated_is_refused(generated):
    with pytest.raises(KeyError, match=r"groups \['z'\] were not evaluated"):
        roc(generated, groups="z")
    with pytest.raises(KeyError, match=r"space \['latent'\]"):
        roc(generated, space="latent")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match=r"run isd\.metrics\.evaluate"):
        roc(AnnData(np.ones((2, 2), dtype=np.float32)))
    with pytest.raises(KeyError, match="mine_roc"):
        roc(generated, key="mine")


def test_one_panel_a_label_with_floor_and_interval(generated, assert_readable):
    axes = roc(generated, groups=True, mode="per_label", show=False)
    assert [ax.get_title() for ax in axes] == ["T/NK (n = 12)", "small (n = 12)"]
    first, second = axes
    assert len(first.collections) == 2 and len(first.lines) == 3
    assert first.texts[0].get_text() == "0.90 (0.88-0.93)\nfloor 0.65"
    assert not second.collections and second.texts[0].get_text() == "n too small"
    np.testing.assert_allclose(first.lines[2].get_ydata()[1:], np.linspace(0, 1, 11) ** 0.3)
    assert_readable(roc(generated, groups=["all", "T/NK", "small"], mode="per_label", return_fig=True))
    assert len(roc(generated, groups=True, show=False)) == 2  # together: one panel a space


def test_panels_and_modes_that_do_not_fit_are_refused(generated):
    with pytest.raises(ValueError, match="one panel"):
        roc(generated, groups=True, mode="per_label", ax=Figure().subplots())
    with pytest.raises(ValueError, match="mode='each'"):
        roc(generated, mode="each")  # type: ignore[arg-type]
