"""Data that are registered, prepared and split."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd
from isd.model import VAE

from .conftest import (
    LOSS,
    RECIPE,
    SAME_LOSS,
    SETUP,
    SMALL,
    SPLIT,
    Case,
    Given,
    check,
    edited,
    log_normalised,
    loss_of,
    renamed,
    sides,
    with_obs,
)

SIDES = {"train": 48, "validation": 8, "test": 24}


def without_counts(matrix: Any, row: int = 3) -> Any:
    matrix = matrix.tolil()
    matrix[row] = 0
    return matrix.tocsr()


def per_million(matrix: Any) -> Any:
    totals = np.asarray(matrix.sum(1)).ravel()
    return sparse.csr_matrix(sparse.diags(1e6 / totals) @ matrix).astype(np.float32)


def shuffled(matrix: Any) -> Any:
    """The same matrix, each row's entries stored backwards."""
    out = matrix.copy()
    for a, b in zip(out.indptr[:-1], out.indptr[1:], strict=True):
        out.indices[a:b], out.data[a:b] = out.indices[a:b][::-1].copy(), out.data[a:b][::-1].copy()
    out.has_sorted_indices = False
    return out


def stored_twice(matrix: Any) -> Any:
    """The same matrix, every value stored as two parts."""
    coo = matrix.tocoo()
    row, column = np.tile(coo.row, 2), np.tile(coo.col, 2)
    order = np.argsort(row, kind="stable")
    data = np.concatenate([coo.data - 1, np.ones_like(coo.data)])[order]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=matrix.shape[0]))])
    return sparse.csr_matrix((data, column[order], indptr), shape=matrix.shape)


def with_zeros(matrix: Any) -> Any:
    """The same matrix, some zeros stored."""
    dense = matrix.toarray()
    rows, columns = np.indices(dense.shape)
    keep = (dense > 0) | ((rows + columns) % 5 == 0)
    return sparse.csr_matrix((dense[keep], (rows[keep], columns[keep])), shape=dense.shape)


def long_indices(matrix: Any) -> Any:
    out = matrix.copy()
    out.indices, out.indptr = out.indices.astype(np.int64), out.indptr.astype(np.int64)
    return out


def backed(given: Given) -> ad.AnnData:
    given.cells.write_h5ad(given.tmp / "cells.h5ad")
    return ad.read_h5ad(given.tmp / "cells.h5ad", backed="r+")


def clusters(adata: ad.AnnData, **kwargs: Any) -> list[str]:
    # the simulated cells have leiden already, which the recipe would keep
    isd.pp.recipe(adata, n_top_features=20, n_pcs=5, key_added="found", **kwargs)
    return adata.obs["found"].tolist()


def _labels(adata: ad.AnnData) -> list[Any]:
    VAE.setup_anndata(adata)
    return VAE(adata, **SMALL).labels.tolist()


def _raw_only(given: Given) -> ad.AnnData:
    adata = given.adata
    adata.raw = adata
    adata.X = log_normalised(adata.X)
    return adata


def _from_raw(adata: ad.AnnData) -> ad.AnnData:
    adata.layers["counts"] = adata.raw[:, adata.var_names].X.copy()
    return adata


def _faint(matrix: Any) -> Any:
    matrix = matrix.tolil().astype(np.float32)
    matrix[3] = 0
    matrix[3, 0] = 0.3
    return matrix.tocsr()


def _estimated(given: Given) -> bool:
    adata = given.like(lambda x: edited(x, 0, 2.7))
    isd.pp.recipe(adata, n_top_features=20, n_pcs=5)
    return bool(adata.layers["counts"].data[0] == 3 and adata.layers["estimated_counts"].data[0] == np.float32(2.7))


def _recipe_on_view(given: Given) -> bool:
    whole = given.adata
    view = whole[:60]
    isd.pp.recipe(view, n_top_features=20, n_pcs=5, key_added="found")
    return not view.is_view and "found" in view.obs and "found" not in whole.obs


def _two_layers(given: Given) -> list[str]:
    adata = given.adata
    adata.layers["counts"], adata.layers["mine"] = adata.X, adata.X * 2
    return clusters(adata, layer="mine")


CASES = [
    # values
    Case("NaN in the counts", SETUP, "refused: holds NaN", lambda g: VAE.setup_anndata(g.like(lambda x: edited(x, 0, np.nan))), ValueError, "NaN or infinite"),
    Case("infinite counts", SETUP, "refused: holds infinite values", lambda g: VAE.setup_anndata(g.like(lambda x: edited(x, 3, np.inf))), ValueError, "NaN or infinite"),
    Case("negative counts", SETUP, "refused: raw counts were expected", lambda g: VAE.setup_anndata(g.like(lambda x: edited(x, 0, -2))), ValueError, "negative values.*give the layer"),
    Case("log-normalised values given as counts", SETUP, "refused: looks log-normalised", lambda g: VAE.setup_anndata(g.like(log_normalised)), ValueError, "looks log"),
    Case("counts per million", SETUP, "refused: every row adds up to 1e+06", lambda g: VAE.setup_anndata(g.like(per_million)), ValueError, "every row adds up to 1e.06"),
    Case("estimated counts with fractions", SETUP, "refused, with the function that rounds them", lambda g: VAE.setup_anndata(g.like(lambda x: x.astype(float) * 1.37)), ValueError, "isd.pp.round_counts"),
    Case("text in a dense matrix", SETUP, "refused: counts must be numbers", lambda g: VAE.setup_anndata(ad.AnnData(np.full((4, 3), "a", dtype=object)), labels_key=None), ValueError, "must be numbers"),
    Case("complex numbers", SETUP, "refused: counts must be numbers", lambda g: VAE.setup_anndata(g.like(lambda x: x.toarray().astype(complex))), ValueError, "must be numbers"),
    Case("a cell without counts", SETUP, "refused, with the names of such cells and the line that drops them", lambda g: VAE.setup_anndata(g.like(without_counts)), ValueError, r"1 cells have no counts.*cell_3.*Drop them"),
    Case("integers above 2^24", SETUP, "accepted", lambda g: np.isfinite(loss_of(g.like(lambda x: x.astype(np.int64) * 10_000_000))).all(), gives=True),
    Case("integers above 2^32", SETUP, "refused: larger than any count", lambda g: VAE.setup_anndata(g.like(lambda x: x.astype(np.int64) * 50_000_000)), ValueError, "larger than any count"),
    # matrices
    Case("csc matrix", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(sparse.csc_matrix)), gives=LOSS),
    Case("csr_array", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(sparse.csr_array)), gives=LOSS),
    Case("dense matrix", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.toarray())), gives=LOSS),
    Case("dense matrix in Fortran order", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: np.asfortranarray(x.toarray()))), gives=LOSS),
    Case("float16", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.toarray().astype(np.float16))), gives=LOSS),
    Case("float64", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.astype(np.float64))), gives=LOSS),
    Case("uint32", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.astype(np.uint32))), gives=LOSS),
    Case("int64", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.astype(np.int64))), gives=LOSS),
    Case("big-endian numbers", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.toarray().astype(">f4"))), gives=LOSS),
    Case("boolean matrix", SETUP, "accepted", lambda g: np.isfinite(loss_of(g.like(lambda x: x.astype(bool)))).all(), gives=True),
    Case("indices that are not sorted", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(shuffled)), gives=LOSS),
    Case("values stored as two parts", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(stored_twice)), gives=LOSS),
    Case("zeros that are stored", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(with_zeros)), gives=LOSS),
    Case("int64 indices", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(long_indices)), gives=LOSS),
    Case("data backed by a file", SETUP, "accepted", lambda g: np.isfinite(loss_of(backed(g))).all(), gives=True),
    Case("a view of other data", SETUP, "refused: make a copy first", lambda g: VAE.setup_anndata(g.cells[:50]), ValueError, r"adata\.copy\(\)"),
    Case("counts in raw only, X log-normalised", SETUP, "refused, with the line that copies them into a layer", lambda g: VAE.setup_anndata(_raw_only(g)), ValueError, r"looks log.*adata\.raw\[:, adata\.var_names\]"),
    Case("counts in raw, after that line", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(_from_raw(_raw_only(g))), gives=LOSS),
    Case("neither X nor a counts layer", SETUP, "refused: X is empty", lambda g: VAE.setup_anndata(ad.AnnData(obs=g.cells.obs.copy(), var=g.cells.var.copy())), ValueError, r"adata\.X is empty"),
    Case("a layer that is not there", SETUP, "refused, with the layers that are", lambda g: VAE.setup_anndata(g.adata, layer="nope"), KeyError, "nope.*not in adata.layers"),
    Case("a matrix in place of AnnData", SETUP, "refused: must be an AnnData", lambda g: VAE.setup_anndata(g.cells.X), TypeError, "must be an AnnData"),
    # shapes and names
    Case("one cell", SETUP, "refused: at least 2 are needed", lambda g: VAE.setup_anndata(g.cells[:1].copy()), ValueError, "1 cells; at least 2"),
    Case("no cells", SETUP, "refused: at least 2 are needed", lambda g: VAE.setup_anndata(g.cells[:0].copy()), ValueError, "0 cells; at least 2"),
    Case("one feature", SETUP, "refused: at least 2 are needed", lambda g: VAE.setup_anndata(g.cells[:, :1].copy()), ValueError, "1 features; at least 2"),
    Case("transcripts that share a name", SETUP, "refused, with their names", lambda g: VAE.setup_anndata(renamed(g.adata, ["same", "same", *g.cells.var_names[2:]])), ValueError, "not unique.*same"),
    Case("cells that share a name", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(renamed(g.adata, ["same", "same", *g.cells.obs_names[2:]], "obs")), gives=LOSS),
    Case("unicode names", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(renamed(g.adata, [f"τρ-{i} 転写" for i in range(40)])), gives=LOSS),
    # labels and covariates
    Case("labels_key that is not there", SETUP, "refused, with the columns that are", lambda g: VAE.setup_anndata(g.adata, labels_key="kind"), KeyError, "kind.* is not in adata.obs"),
    Case("labels that are all missing", SETUP, "refused: no labelled cell", lambda g: VAE.setup_anndata(with_obs(g.adata, leiden=np.nan)), ValueError, "no labelled cell"),
    Case("labels of which some are missing", SETUP, "accepted: these cells are unlabelled", lambda g: _labels(with_obs(g.adata, leiden=pd.Categorical(["a"] * 40 + [None] * 20 + ["b"] * 20))), gives=["a", "b"]),
    Case("one label only", SETUP, "accepted", lambda g: _labels(with_obs(g.adata, leiden="only")), gives=["only"]),
    Case("integer labels", SETUP, "accepted, and stay integers", lambda g: _labels(with_obs(g.adata, leiden=np.arange(80) % 11)), gives=list(range(11))),
    Case("categories that no cell has", SETUP, "accepted, and left out", lambda g: _labels(with_obs(g.adata, leiden=pd.Categorical(["b", "a"] * 40, categories=["b", "never", "a"]))), gives=["b", "a"]),
    Case("labels that are intervals", SETUP, "refused: labels must be text or numbers", lambda g: VAE.setup_anndata(with_obs(g.adata, leiden=pd.cut(np.arange(80), 3))), ValueError, r"Interval.*astype\(str\)"),
    Case("a batch that is missing for some cells", SETUP, "refused, with their number", lambda g: VAE.setup_anndata(with_obs(g.adata, donor=["d"] * 79 + [None]), batch_key="donor"), ValueError, "1 missing values"),
    Case("a continuous covariate with NaN", SETUP, "refused: must be finite", lambda g: VAE.setup_anndata(with_obs(g.adata, age=[np.nan] + [1.0] * 79), continuous_covariate_keys=["age"]), ValueError, "finite numbers"),
    Case("size factors of 0", SETUP, "refused: must be positive", lambda g: VAE.setup_anndata(with_obs(g.adata, size=0.0), size_factor_key="size"), ValueError, "positive numbers"),
    Case("gene_key that is not there", SETUP, "refused, with isd.pp.annotate_genes", lambda g: VAE.setup_anndata(g.adata, gene_key="gene"), KeyError, "annotate_genes"),
    # preparation
    Case("data backed by a file", RECIPE, "refused: read it into memory", lambda g: clusters(backed(g)), ValueError, "to_memory"),
    Case("a cell without counts", RECIPE, "refused, with the line that drops it", lambda g: clusters(g.like(without_counts)), ValueError, "drop them first"),
    Case("a cell that rounding leaves without counts", RECIPE, "refused, likewise", lambda g: clusters(g.like(lambda x: _faint(x))), ValueError, "no counts in adata.X after rounding"),
    Case("estimated counts with fractions", RECIPE, "accepted with a warning: rounded, the estimates kept", lambda g: _estimated(g), gives=True, warns="were not whole and were rounded"),
    Case("NaN in the counts", RECIPE, "refused: holds NaN", lambda g: clusters(g.like(lambda x: edited(x, 0, np.nan))), ValueError, "NaN or infinite"),
    Case("csc matrix of uint32", RECIPE, "accepted: the same clusters as from csr", lambda g: clusters(g.like(lambda x: sparse.csc_matrix(x.astype(np.uint32)))) == clusters(g.adata), gives=True),
    Case("dense float16", RECIPE, "accepted: the same clusters as from csr", lambda g: clusters(g.like(lambda x: x.toarray().astype(np.float16))) == clusters(g.adata), gives=True),
    Case("a view of other data", RECIPE, "accepted: the view becomes data of its own", lambda g: _recipe_on_view(g), gives=True),
    Case("one cell", RECIPE, "refused: at least 2 are needed", lambda g: clusters(g.cells[:1].copy()), ValueError, "1 cells; at least 2"),
    Case("one feature with counts", RECIPE, "refused: at least 2 are needed", lambda g: clusters(g.cells[:, :1][g.cells.X[:, 0].toarray().ravel() > 0].copy()), ValueError, "1 of 1 features have counts"),
    Case("a counts layer that differs from the layer given", RECIPE, "refused: rename or drop one", lambda g: _two_layers(g), ValueError, "holds other values"),
    Case("n_pcs of 0", RECIPE, "refused: at least 1", lambda g: isd.pp.recipe(g.adata, n_pcs=0), ValueError, "n_pcs is 0"),
    Case("test_size of 1.2", SPLIT, "refused: a share of the cells", lambda g: sides(g.adata, test_size=1.2), ValueError, "test_size is 1.2"),
    Case("sizes that leave nothing to train on", SPLIT, "refused", lambda g: sides(g.adata, test_size=0.6, validation_size=0.4), ValueError, "leave nothing to train on"),
    Case("one cell", SPLIT, "refused: at least 2 are needed", lambda g: sides(g.cells[:1].copy()), ValueError, "1 cells; at least 2"),
    Case("labels of which some are missing", SPLIT, "accepted: a stratum of their own", lambda g: sides(with_obs(g.adata, leiden=["a"] * 40 + [None] * 40)), gives=SIDES),
    Case("one label only", SPLIT, "accepted", lambda g: sides(with_obs(g.adata, leiden="only")), gives=SIDES),
    Case("a batch that is missing for some cells", SPLIT, "refused, with their number", lambda g: sides(with_obs(g.adata, donor=["d", "e"] * 39 + ["d", None]), batch_key="donor"), ValueError, "1 cells have no value"),
    Case("a single batch", SPLIT, "refused: one group cannot be divided", lambda g: sides(with_obs(g.adata, donor="d"), batch_key="donor"), ValueError, "one group only"),
    Case("data backed by a file", SPLIT, "accepted", lambda g: sides(backed(g)), gives=SIDES),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Observation names are not unique")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.to}: {c.name}")
def test_case(case: Case, given: Given) -> None:
    check(case, given)
