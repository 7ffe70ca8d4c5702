"""Observed against inferred usage, switches, and isoforms over a map: what is drawn is what the data say."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy import sparse

import isd


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    var = pd.DataFrame({"gene_id": ["g1"] * 3 + ["g2"] * 2 + ["g3"], "gene_name": ["A"] * 3 + ["B"] * 2 + ["C"]})
    var.index = [f"t{i}" for i in range(6)]
    counts = rng.poisson([8.0, 4, 0.2, 5, 5, 3], size=(80, 6)).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(counts), var=var, obs=pd.DataFrame(index=[f"c{i}" for i in range(80)]))
    adata.obs["leiden"] = pd.Categorical(np.resize(["a", "b"], 80))
    adata.obsm["X_umap"] = rng.normal(size=(80, 2))
    return adata


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "gene": ["g1", "g1", "g2", "g1"],
            "gene_name": ["A", "A", "B", "A"],
            "isoform": ["t0", "t1", "t3", "t2"],
            "usage1": [0.7, 0.2, 0.6, 0.1],
            "usage2": [0.1, 0.8, 0.4, 0.1],
            "effect": [0.6, -0.6, 0.2, 0.0],
            "proba_du": [1.0, 1.0, 0.9, 0.0],
            "is_du_fdr_0.05": [True, True, False, False],
            "group1": "a",
            "group2": "rest",
        }
    )


def test_points_are_the_pooled_usages_of_each_label(cells):
    other = cells[:, ::-1].copy()
    other.X = sparse.csr_matrix(np.random.default_rng(1).poisson(3.0, size=other.shape).astype(np.float32))
    ax = isd.pl.usage_scatter(cells, other, show=False)
    points = np.asarray(ax.collections[0].get_offsets())
    assert len(points) == 10  # five isoforms of two genes, two labels
    pooled = np.asarray(cells[cells.obs["leiden"] == "a"].X.sum(0)).ravel()
    np.testing.assert_allclose(points[0, 0], pooled[0] / pooled[:3].sum())
    theirs = np.asarray(other[other.obs["leiden"] == "a"].X.sum(0)).ravel()[::-1]
    np.testing.assert_allclose(points[0, 1], theirs[0] / theirs[:3].sum())
    assert "10 isoforms in 2 labels" in ax.texts[0].get_text()
    assert "r = 1.000\nmean |difference| = 0.000" in isd.pl.usage_scatter(cells, cells, show=False).texts[0].get_text()


def test_without_labels_all_cells_are_pooled_and_many_points_become_shades(cells, adata, tmp_path):
    del cells.obs["leiden"]
    assert len(isd.pl.usage_scatter(cells, cells, show=False).collections[0].get_offsets()) == 5
    isd.pl.usage_scatter(adata, adata, min_counts=5, save=tmp_path / "scatter.png")
    assert (tmp_path / "scatter.png").stat().st_size > 5000


def test_odd_input_of_the_scatter_is_named(cells):
    with pytest.raises(KeyError, match="gene_key 'nothing'"):
        isd.pl.usage_scatter(cells, cells, gene_key="nothing")
    with pytest.raises(KeyError, match="inferred lacks 2 of the 6 features"):
        isd.pl.usage_scatter(cells, cells[:, 2:].copy())
    with pytest.raises(ValueError, match="no gene with several isoforms has 1000000 counts"):
        isd.pl.usage_scatter(cells, cells, min_counts=1_000_000)
    with pytest.raises(KeyError, match=r"labels_key 'kind' is not in observed\.obs"):
        isd.pl.usage_scatter(cells, cells, labels_key="kind")


def test_a_switch_is_two_dots_and_a_line(table):
    ax = isd.pl.switches(table, show=False)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["t0", "t2", "t1", "t3"]
    lines = [line.get_xdata().tolist() for line in ax.lines if len(line.get_xdata()) == 2]
    assert lines == [[0.1, 0.7], [0.1, 0.1], [0.8, 0.2], [0.4, 0.6]]
    colors = [to_hex(c.get_facecolor()[0]) for c in ax.collections]
    # second group, first group; what is not called is grey
    assert colors[:2] == [to_hex("#d55e00"), to_hex("#0072b2")] and len(set(colors[2:4])) == 1
    assert [t.get_text() for t in ax.texts] == ["A", "B"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "rest", "not called"]


def test_genes_can_be_chosen(table):
    assert [t.get_text() for t in isd.pl.switches(table, genes=["B"], show=False).texts] == ["B"]
    few = isd.pl.switches(table, 1, max_isoforms=2, show=False)
    assert len(few.get_yticklabels()) == 2
    with pytest.raises(KeyError, match="'g9' is not in the table"):
        isd.pl.switches(table, genes=["g9"])
    with pytest.raises(KeyError, match=r"table lacks \['effect'\]"):
        isd.pl.switches(table.drop(columns="effect"))
    with pytest.raises(ValueError, match="has no rows"):
        isd.pl.switches(table[:0])


def test_usage_over_the_map_is_pooled_over_neighbours(cells):
    axes = isd.pl.umap_isoforms(cells, "A", smooth=1, show=False)
    assert [ax.get_title() for ax in axes] == ["counts of the gene", "t0", "t1", "t2"]
    counts = cells.X.toarray()[:, :3]
    expected = counts[:, 0] / counts.sum(1)
    drawn = axes[1].collections[1].get_array()
    np.testing.assert_allclose(np.sort(drawn), np.sort(expected[counts.sum(1) > 0]))
    whole = isd.pl.umap_isoforms(cells, "A", smooth=80, show=False)[1].collections[1].get_array()
    np.testing.assert_allclose(whole, counts[:, 0].sum() / counts.sum())


def test_cells_without_counts_are_grey_and_few_isoforms_are_shown(cells, tmp_path):
    cells.X = sparse.csr_matrix(cells.X.toarray() * (np.arange(80) < 30)[:, None])
    axes = isd.pl.umap_isoforms(cells, "g1", smooth=1, max_isoforms=1, show=False)
    assert len(axes) == 2
    assert len(axes[1].collections[0].get_offsets()) == 50 and len(axes[0].collections[0].get_offsets()) == 50
    isd.pl.umap_isoforms(cells, "g1", max_cells=20, save=tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 5000
    with pytest.raises(KeyError, match="basis 'X_tsne'"):
        isd.pl.umap_isoforms(cells, "g1", basis="X_tsne")
    with pytest.raises(ValueError, match="smooth=0 must be at least 1"):
        isd.pl.umap_isoforms(cells, "g1", smooth=0)
