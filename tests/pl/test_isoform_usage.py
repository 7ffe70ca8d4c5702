from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from isd.pl import isoform_usage
from isd.pl._choose_genes import choose_genes
from isd.pl._isoform_usage import find_gene, usage_interval


def pooled(adata, rows, columns) -> np.ndarray:
    sums = np.asarray(adata[rows, columns].X.sum(axis=0)).ravel()
    return sums / sums.sum()


def test_bars_are_shares_of_pooled_counts_of_held_out_cells(pair):
    real, generated = pair
    ax = isoform_usage(real, generated, "g1.3", show=False)
    widths = [patch.get_width() for patch in ax.patches]
    held_out = real.obs["isd_split"] == "test"
    expected = []
    for label in ("b", "a"):
        # the more used isoform of real cells first, whatever the order of columns
        expected += list(pooled(real, held_out & (real.obs["leiden"] == label), ["t1", "t0"]))
        expected += list(pooled(generated, generated.obs["leiden"] == label, ["t1", "t0"]))
    total = np.asarray(real[held_out, ["t0", "t1"]].X.sum(axis=0)).ravel()
    if total[0] >= total[1]:
        expected = [expected[i ^ 1] for i in range(len(expected))]
    np.testing.assert_allclose(widths, expected, rtol=1e-6)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    assert {patch.get_hatch() for patch in ax.patches} == {None, "/////"}


def test_a_gene_has_three_names(pair):
    real, generated = pair
    for name in ("g1.3", "g1", "ONE"):
        positions, title = find_gene(real.var, name)
        assert positions.tolist() == [0, 1] and title == ("ONE (g1.3)")
    with pytest.raises(KeyError, match=r"did you mean \['ONE'\]"):
        isoform_usage(real, generated, "ONEE")
    with pytest.raises(ValueError, match=r"2 genes are called 'TWO': give one of \['g2.1', 'g3.1'\]"):
        isoform_usage(real, generated, "TWO")
    with pytest.raises(KeyError, match="annotate_genes"):
        find_gene(real.var[[]], "g1")


def test_too_few_counts_get_no_bar(pair):
    real, generated = pair
    ax = isoform_usage(real, generated, "g1", min_counts=1e6, show=False)
    assert not ax.patches
    assert sum("too few counts" in text.get_text() for text in ax.texts) == 4


def test_isoforms_that_one_label_switches_to_are_shown_before_the_rest(pair):
    real, generated = pair
    for data in pair:
        data.var["gene_id"] = "g"
    real.obs["leiden"] = real.obs["leiden"].cat.rename_categories({"a": "common"})
    generated.obs["leiden"] = generated.obs["leiden"].cat.rename_categories({"a": "common"})
    # t4 is rare over all, but nearly all that label "b" has
    counts = real.X.toarray()
    counts[(real.obs["leiden"] == "b").to_numpy()] = np.eye(65)[4] * 50
    counts[(real.obs["leiden"] == "common").to_numpy(), 5:] *= 100
    real.X = counts
    figure = isoform_usage(real, generated, "g", max_isoforms=2, return_fig=True)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "t4" in names and "other (63)" in names


def test_grouped_bars_have_intervals(pair, assert_readable):
    real, generated = pair
    axes = isoform_usage(real, generated, "g1", kind="grouped", show=False)
    assert len(axes) == 2 and [len(ax.patches) for ax in axes] == [4, 4]
    for ax in axes:
        for patch, line in zip(ax.patches, ax.lines, strict=True):
            low, high = line.get_xdata()
            assert low < patch.get_width() < high
    assert_readable(isoform_usage(real, generated, "g1", kind="grouped", return_fig=True))
    assert_readable(isoform_usage(real, generated, "g1", return_fig=True))


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        _, low, high = usage_interval(rng.poisson([3.0, 1.0], size=(60, 2)), rng)
        hits.append(low[0] <= 0.75 <= high[0])
    assert 0.88 <= np.mean(hits) <= 0.99


def test_without_labels_and_into_given_axes(pair):
    real, generated = pair
    del real.obs["leiden"]
    ax = Figure().subplots()
    assert isoform_usage(real, generated, "g1", ax=ax) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all cells"]
    with pytest.raises(ValueError, match="kind='stacked'"):
        isoform_usage(real, generated, "g1", kind="grouped", ax=ax)
    with pytest.raises(ValueError, match="kind='pie'"):
        isoform_usage(real, generated, "g1", kind="pie")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="groups"):
        isoform_usage(real, generated, "g1", groups=["a"])


def test_genes_are_chosen_by_rule(pair):
    real, generated = pair
    options = {"labels_key": None, "layer": None}
    # only g1 switches; usage in generated cells is right, until t2's counts are moved to t3
    found = choose_genes(real, generated, **options)
    assert found[0][0] == "g1.3" and "between labels" in found[0][1]
    wrong = generated.copy()
    moved = wrong.X.toarray()
    t2, t3 = (list(wrong.var_names).index(name) for name in ("t2", "t3"))
    moved[:, t3] += moved[:, t2]
    moved[:, t2] = 0
    wrong.X = moved
    found = choose_genes(real, wrong, n_switching=1, n_furthest=1, **options)
    assert [gene for gene, _ in found] == ["g1.3", "g2.1"]
    del real.var["gene_id"], real.var["gene_name"]
    assert choose_genes(real, generated, **options) == []
