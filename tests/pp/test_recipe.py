from __future__ import annotations

import os
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from isd.datasets import simulated
from isd.pp import recipe

QUALITY = [
    "n_genes_by_counts",
    "total_counts",
    *(f"pct_counts_in_top_{n}_genes" for n in (50, 100, 200, 500)),
    *(f"{what}_{family}" for family in ("mt", "ribo", "hb") for what in ("total_counts", "pct_counts")),
    "mt_outlier",
    "n_counts",
    "n_genes",
]


@pytest.fixture(scope="module")
def raw() -> ad.AnnData:
    adata = simulated(300, 700, 4)
    adata.obs["truth"] = adata.obs.pop("leiden")
    return adata


@pytest.fixture(scope="module")
def made(raw) -> ad.AnnData:
    return recipe(raw, copy=True)


def snapshot(adata: ad.AnnData) -> ad.AnnData:
    return adata.copy()


def assert_same(a: ad.AnnData, b: ad.AnnData) -> None:
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    for slot in ("layers", "obsm", "varm", "obsp", "uns"):
        assert list(getattr(a, slot)) == list(getattr(b, slot)), slot
    for x, y in [
        (a.X, b.X),
        *((a.layers[k], b.layers[k]) for k in a.layers),
        *((a.obsp[k], b.obsp[k]) for k in a.obsp),
    ]:
        assert type(x) is type(y) and x.dtype == y.dtype
        np.testing.assert_array_equal(sparse.csr_matrix(x).toarray(), sparse.csr_matrix(y).toarray())
    for key in a.obsm:
        np.testing.assert_array_equal(a.obsm[key], b.obsm[key])


def test_values_against_numpy(raw, made):
    counts = raw.X.toarray().astype(np.float64)
    assert isinstance(made.X, sparse.csr_matrix) and made.X.dtype == np.float32
    expected = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(made.X.toarray(), expected, rtol=1e-5)
    assert (made.layers["counts"] != raw.X).nnz == 0 and isinstance(made.layers["counts"], sparse.csr_matrix)
    assert not np.shares_memory(made.layers["counts"].data, made.X.data)
    assert made.uns["log1p"] == {"base": None}


def test_quality_columns(raw, made):
    counts = raw.X.toarray()
    assert set(QUALITY) <= set(made.obs)
    np.testing.assert_allclose(made.obs["total_counts"], counts.sum(axis=1))
    np.testing.assert_array_equal(made.obs["n_genes"], (counts > 0).sum(axis=1))
    top = np.sort(counts, axis=1)[:, ::-1][:, :50].sum(axis=1) / counts.sum(axis=1) * 100
    np.testing.assert_allclose(made.obs["pct_counts_in_top_50_genes"], top, rtol=1e-5)
    mt = raw.var["gene_name"].str.startswith("MT-").to_numpy()
    assert mt.any() and (made.var["mt"].to_numpy() == mt).all()
    np.testing.assert_allclose(made.obs["total_counts_mt"], counts[:, mt].sum(axis=1))
    share = counts[:, mt].sum(axis=1) / counts.sum(axis=1) * 100
    mad = np.median(np.abs(share - np.median(share)))
    outlier = (share > 8) | ((share - np.median(share) > 3 * 1.4826 * mad) & (mad > 0))
    np.testing.assert_array_equal(made.obs["mt_outlier"], outlier)
    np.testing.assert_array_equal(made.var["n_cells_by_counts"], (counts > 0).sum(axis=0))


def test_gene_families_by_name():
    names = ["MT-CO1", "mt-Nd1", "RPL3", "Rps6", "RPSA", "HBA1", "Hbb-bs", "HBE1", "HBEGF", "HBP1", "HBS1L", "MTOR"]
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, (20, len(names))).astype(np.float32) + 1
    adata = ad.AnnData(x, var=pd.DataFrame({"gene_name": [*names[:-1], np.nan]}, index=[f"t{i}" for i in range(12)]))
    recipe(adata)
    assert adata.var["mt"].tolist() == [True, True] + [False] * 10
    assert adata.var["ribo"].tolist() == [False, False, True, True] + [False] * 8
    assert adata.var["hb"].tolist() == [False] * 5 + [True, True, True] + [False] * 4
    unnamed = ad.AnnData(x, var=pd.DataFrame(index=[f"{n}-201" for n in names]))
    recipe(unnamed)
    assert unnamed.var["hb"].sum() == 3 and unnamed.var["mt"].sum() == 2


def test_clusters_are_the_labels(raw, made):
    from sklearn.metrics import adjusted_rand_score

    assert made.obsm["X_pca"].shape == (300, 50) and made.varm["PCs"].shape == (700, 50)
    assert {"distances", "connectivities"} <= set(made.obsp)
    assert made.obs["leiden"].dtype == "category"
    assert adjusted_rand_score(made.obs["leiden"], raw.obs["truth"]) > 0.8
    assert made.var["highly_variable"].sum() == (raw.X.sum(axis=0) > 0).sum()


def test_as_scanpy_does_it(raw, made):
    import scanpy as sc

    by_hand = raw.copy()
    sc.pp.normalize_total(by_hand, target_sum=1e4)
    sc.pp.log1p(by_hand)
    sc.pp.highly_variable_genes(by_hand, n_top_genes=200)
    sc.pp.pca(by_hand, n_comps=20, random_state=0)
    sc.pp.neighbors(by_hand, n_neighbors=10, random_state=0)
    sc.tl.leiden(by_hand, 0.5, flavor="igraph", n_iterations=2, directed=False, random_state=0)
    adata = recipe(raw, n_top_features=200, n_pcs=20, n_neighbors=10, resolution=0.5, copy=True)
    np.testing.assert_array_equal(adata.var["highly_variable"], by_hand.var["highly_variable"])
    np.testing.assert_allclose(np.abs(adata.obsm["X_pca"]), np.abs(by_hand.obsm["X_pca"]), atol=1e-3)
    assert (adata.obs["leiden"] == by_hand.obs["leiden"]).all()


def test_second_call_changes_nothing(made):
    again = recipe(made, copy=True)
    assert_same(again, made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe(again, seed=7, resolution=0.1)
    assert_same(again, made)


def test_what_is_there_is_used(raw, made):
    adata = made.copy()
    # an embedding of its own: neighbours and clusters follow it
    del adata.uns["neighbors"], adata.obsp["distances"], adata.obsp["connectivities"], adata.obs["leiden"]
    truth = adata.obs["truth"].cat.codes.to_numpy()
    adata.obsm["X_pca"] = np.eye(4)[truth] * 100 + np.random.default_rng(0).normal(size=(300, 4))
    kept = adata.obsm["X_pca"].copy()
    recipe(adata, resolution=0.01)
    np.testing.assert_array_equal(adata.obsm["X_pca"], kept)
    assert pd.crosstab(adata.obs["leiden"], adata.obs["truth"]).gt(0).sum().sum() == adata.obs["leiden"].nunique()
    # a label of its own is kept, and quality columns, too
    labelled = raw.copy()
    labelled.obs["leiden"] = pd.Categorical(["x"] * 300)
    labelled.obs["n_counts"] = -1.0
    recipe(labelled)
    assert (labelled.obs["leiden"] == "x").all() and (labelled.obs["n_counts"] == -1).all()
    assert (labelled.obs["total_counts"] > 0).all()
    # another resolution into another column, on the neighbours that are there
    graph = labelled.obsp["connectivities"].copy()
    recipe(labelled, key_added="coarse", resolution=0.1)
    assert labelled.obs["coarse"].nunique() <= 4 and (labelled.obsp["connectivities"] != graph).nnz == 0


@pytest.mark.parametrize(
    "make",
    [sparse.csc_matrix, sparse.csr_array, lambda m: m.toarray(), lambda m: m.astype("uint32")],
    ids=["csc", "array", "dense", "uint32"],
)
def test_matrices_of_all_kinds(raw, made, make):
    adata = ad.AnnData(make(raw.X), obs=raw.obs[["truth"]].copy(), var=raw.var.copy())
    recipe(adata)
    assert isinstance(adata.X, sparse.csr_matrix) and isinstance(adata.layers["counts"], sparse.csr_matrix)
    np.testing.assert_allclose(adata.X.toarray(), made.X.toarray(), rtol=1e-5)
    assert (adata.layers["counts"] != raw.X).nnz == 0
    assert (adata.obs["leiden"] == made.obs["leiden"]).all()


def test_counts_in_a_layer(raw, made):
    adata = raw.copy()
    adata.layers["raw"] = adata.X
    adata.X = None
    recipe(adata, layer="raw")
    np.testing.assert_allclose(adata.X.toarray(), made.X.toarray(), rtol=1e-5)
    assert not np.shares_memory(adata.layers["raw"].data, adata.layers["counts"].data)
    with pytest.raises(KeyError, match=r"is not in adata\.layers, which has"):
        recipe(adata, layer="none")
    adata.layers["raw"] = adata.layers["raw"] * 2
    with pytest.raises(ValueError, match="holds other values"):
        recipe(adata, layer="raw")
    # X is the counts once more: it is normalised
    adata.X = adata.layers["counts"].copy()
    recipe(adata)
    np.testing.assert_allclose(adata.X.toarray(), made.X.toarray(), rtol=1e-5)


def test_own_values_in_x_are_kept_with_a_warning(raw, made):
    adata = raw.copy()
    adata.layers["counts"] = raw.X.copy()
    scaled = np.asarray(made.X.toarray() - made.X.mean(axis=0))
    adata.X = scaled.copy()
    with pytest.warns(UserWarning, match="kept as it is") as caught:
        recipe(adata)
    assert len(caught) == 1
    np.testing.assert_array_equal(adata.X, scaled)
    assert (adata.obs["leiden"] == made.obs["leiden"]).all()  # from the counts


def test_copy_and_view(raw, made):
    before = snapshot(raw)
    copied = recipe(raw, copy=True)
    assert_same(raw, before)
    copied.layers["counts"].data[:] = 0
    assert_same(raw, before)
    view = raw[:100]
    recipe(view)
    assert view.n_obs == 100 and "X_pca" in view.obsm
    assert_same(raw, before)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 49])
def test_small_data(raw, n):
    adata = raw[:n].copy()
    recipe(adata)
    assert adata.obsm["X_pca"].shape == (n, n - 1)
    assert adata.obs["leiden"].notna().all()


def test_few_features(raw):
    order = np.argsort(-np.asarray(raw.X.sum(axis=0)).ravel())
    for n in (2, 3, 10):
        adata = raw[:, order[:n]].copy()
        recipe(adata)
        assert adata.obsm["X_pca"].shape == (300, n - 1)
    assert "pct_counts_in_top_50_genes" not in adata.obs


def fractional(raw: ad.AnnData) -> ad.AnnData:
    adata = raw.copy()
    rng = np.random.default_rng(0)
    # reads shared out: some values lose a part, none of the cells loses all
    adata.X.data = np.where(rng.random(adata.X.nnz) < 0.3, adata.X.data * 0.9, adata.X.data).astype(np.float32)
    return adata


def test_fractional_counts_are_rounded_once(raw):
    adata = fractional(raw)
    estimates = adata.X.copy()
    with pytest.warns(UserWarning, match=r"values \(29%\) were not whole.*estimated_counts") as caught:
        recipe(adata)
    assert len(caught) == 1
    assert (adata.layers["estimated_counts"] != estimates).nnz == 0
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), np.rint(estimates.toarray()))
    counts = adata.layers["counts"].toarray()
    np.testing.assert_allclose(
        adata.X.toarray(), np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4), rtol=1e-4, atol=1e-6
    )
    before = snapshot(adata)
    recipe(adata)  # no second warning: warnings are errors here
    assert_same(adata, before)


def test_fractional_counts_in_the_layer(raw):
    adata = fractional(raw)
    adata.layers["counts"] = adata.X.copy()
    with pytest.warns(UserWarning, match="holds estimated counts"):
        recipe(adata)
    assert (adata.layers["counts"].data == np.rint(adata.layers["counts"].data)).all()
    assert adata.X.max() <= np.log1p(1e4)


def test_fractional_counts_can_be_refused(raw):
    adata = fractional(raw)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=r"fractional \(estimated\) counts.*round_counts"):
        recipe(adata, fractional="error")
    assert_same(adata, before)
    adata.layers["estimated_counts"] = adata.X.copy()
    with pytest.raises(ValueError, match="would overwrite"):
        recipe(adata)


def test_empty_cells_are_named_and_the_advice_works(raw):
    adata = raw.copy()
    x = adata.X.tolil()
    x[[3, 8]] = 0
    adata.X = x.tocsr()
    before = snapshot(adata)
    with pytest.raises(ValueError, match=r"2 of 300 cells have no counts in adata\.X: 'cell_3', 'cell_8'") as error:
        recipe(adata)
    assert_same(adata, before)
    scope = {"adata": adata, "np": np}
    exec(str(error.value).split("drop them first: ")[1], scope)
    assert scope["adata"].n_obs == 298
    recipe(scope["adata"])


@pytest.mark.parametrize("make", [sparse.csr_matrix, lambda m: m.toarray()], ids=["sparse", "dense"])
def test_cells_that_rounding_empties(raw, make):
    adata = fractional(raw)
    x = adata.X.tolil()
    x[5] = 0
    x[5, 0] = 0.3
    adata.X = make(x.tocsr())
    with pytest.raises(ValueError, match="after rounding: 'cell_5'") as error:
        recipe(adata)
    scope = {"adata": adata, "np": np}
    exec(str(error.value).split("drop them first: ")[1], scope)
    assert scope["adata"].n_obs == 299 and "cell_5" not in scope["adata"].obs_names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * np.float32(-1), "negative"),
        (lambda x: x * np.float32(np.nan), "NaN"),
        (lambda x: (sparse.diags(1e4 / x.sum(axis=1).A1) @ x).tocsr().log1p(), "log-normalised"),
    ],
)
def test_what_is_no_counts_is_refused_and_nothing_changes(raw, change, message):
    adata = raw.copy()
    adata.X = change(raw.X)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=message):
        recipe(adata)
    assert_same(adata, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_pcs": 0}, "n_pcs is 0"),
        ({"n_neighbors": 1}, "n_neighbors is 1"),
        ({"n_top_features": 1}, "n_top_features is 1"),
        ({"resolution": 0}, "resolution is 0"),
        ({"fractional": "keep"}, "fractional is 'keep'"),
    ],
)
def test_arguments_are_checked(raw, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe(raw, **arguments)


def test_too_little_and_backed(raw, tmp_path):
    with pytest.raises(ValueError, match="has 1 cells"):
        recipe(raw[:1].copy())
    one = ad.AnnData(np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]], dtype=np.float32))
    with pytest.raises(ValueError, match="1 of 2 features have counts"):
        recipe(one)
    assert not one.layers and not len(one.uns)
    raw.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match="to_memory"):
        recipe(backed)
    backed.file.close()


def test_result_is_written_and_read(made, tmp_path):
    made.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    recipe(back)  # all there
    assert (back.X != made.X).nnz == 0 and list(back.uns) == list(ad.read_h5ad(tmp_path / "a.h5ad").uns)


@pytest.mark.skipif(not os.environ.get("ISD_DATA_DIR"), reason="ISD_DATA_DIR is unset")
@pytest.mark.parametrize(
    ("name", "whole"),
    [("sc_five_cell_lines_longread", True), ("sc_mouse_sperm_polya_sites_dev", True), ("bulk_lcl_chr19", False)],
)
def test_real_files(name, whole):
    from sklearn.metrics import adjusted_rand_score

    adata = ad.read_h5ad(Path(os.environ["ISD_DATA_DIR"]) / f"{name}.h5ad")
    before = adata.X.copy()
    if whole:
        recipe(adata)
        assert (adata.layers["counts"] != before).nnz == 0
    else:
        with pytest.warns(UserWarning, match="estimated counts"):
            recipe(adata)
        assert (adata.layers["estimated_counts"] != before).nnz == 0
    assert adata.obs["leiden"].nunique() >= 2
    if name.startswith("sc_five"):
        assert adjusted_rand_score(adata.obs["leiden"], adata.obs["cell_line"]) > 0.6
