from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import isd._counts as counts_module
from isd._counts import all_zero_rows, classify_counts, get_counts, resolve_layer, row_sums, where

FORMATS = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
}


@pytest.fixture
def whole() -> np.ndarray:
    return np.random.default_rng(0).poisson(1.5, (40, 30)).astype(np.float32)


@pytest.fixture
def estimated(whole) -> np.ndarray:
    """As EM gives them: half of the values have fractions."""
    rng = np.random.default_rng(1)
    values = whole * 7
    values[rng.random(values.shape) < 0.5] *= 0.93
    return values


def log_normalised(counts: np.ndarray, target: float = 1e4) -> np.ndarray:
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * target).astype(np.float32)


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_whole_and_estimated_counts(make, whole, estimated):
    assert classify_counts(make(whole)) == "integer"
    assert classify_counts(make(estimated)) == "fractional"


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.int8, np.float64, bool])
def test_dtypes(dtype, whole):
    assert classify_counts(sparse.csr_matrix(whole.astype(dtype))) == "integer"


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-np.inf, "NaN"), (-2.0, "negative")],
)
def test_bad_values_are_named(make, value, message, whole):
    whole[3, 4] = value
    with pytest.raises(ValueError, match=rf"layers\['raw'\].*{message}"):
        classify_counts(make(whole), "adata.layers['raw']")


def test_negative_integers_and_text_are_refused(whole):
    with pytest.raises(ValueError, match="negative"):
        classify_counts(-whole.astype(np.int32))
    with pytest.raises(ValueError, match="must be numbers"):
        classify_counts(whole.astype(complex))


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_log_normalised_is_refused_also_of_some_features(make, whole):
    values = log_normalised(whole)
    for part in (values, values[:, :5], values[:2]):
        with pytest.raises(ValueError, match=r"log-normalised.*raw counts"):
            classify_counts(make(part))


def test_normalised_values_are_refused_by_their_totals(whole):
    scaled = whole / whole.sum(axis=1, keepdims=True) * 1e4
    with pytest.raises(ValueError, match=r"looks normalised \(every row adds up to 10000"):
        classify_counts(sparse.csr_matrix(scaled))


def test_totals_are_undone_under_the_logarithm():
    # half of the values are whole numbers, so the share of fractions does not decide: only equal totals of expm1 do
    whole = np.resize([1.0, 2.0, 3.0], 12)
    values = np.column_stack([whole, np.log1p(40.0 - np.expm1(whole))])
    with pytest.raises(ValueError, match="log1p-normalised"):
        classify_counts(values)
    with pytest.raises(ValueError, match="log2-normalised"):
        classify_counts(np.column_stack([whole, np.log2(1 + 40.0 - (2.0**whole - 1))]))
    assert classify_counts(np.column_stack([whole, values[::-1, 1]])) == "fractional"


def test_equal_totals_of_whole_counts_are_fine(whole):
    thinned = np.random.default_rng(0).multinomial(100, np.full(30, 1 / 30), 40)
    assert classify_counts(thinned.astype(np.float32)) == "integer"


def test_empty_matrices():
    assert classify_counts(sparse.csr_matrix((3, 4))) == "integer"
    assert classify_counts(np.empty((0, 4))) == "integer"


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_row_sums_and_empty_rows(make, estimated):
    estimated[[2, 7]] = 0
    estimated[9] = 0
    estimated[9, 3] = 0.4
    np.testing.assert_allclose(row_sums(make(estimated)), estimated.sum(axis=1), rtol=1e-6)
    assert all_zero_rows(make(estimated)).tolist() == [2, 7]
    assert all_zero_rows(make(estimated), rounded=True).tolist() == [2, 7, 9]


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_backed_matrices_are_read_in_blocks(make, estimated, tmp_path, monkeypatch):
    blocks = counts_module._blocks
    monkeypatch.setattr(counts_module, "_blocks", lambda matrix, values=0: blocks(matrix, 130))
    estimated[5] = 0
    path = tmp_path / "a.h5ad"
    for values, kind in ((estimated, "fractional"), (np.rint(estimated), "integer")):
        ad.AnnData(make(values)).write_h5ad(path)
        backed = ad.read_h5ad(path, backed="r")
        assert classify_counts(backed.X) == kind
        assert all_zero_rows(backed.X).tolist() == [5]
        np.testing.assert_allclose(row_sums(backed.X), values.sum(axis=1), rtol=1e-6)
        backed.file.close()
    ad.AnnData(make(log_normalised(estimated[6:]))).write_h5ad(path)
    backed = ad.read_h5ad(path, backed="r")
    with pytest.raises(ValueError, match="log-normalised"):
        classify_counts(backed.X)
    backed.file.close()


def test_blocks_cover_everything_and_stay_small(whole):
    matrix = sparse.csr_matrix(whole)
    pieces = list(counts_module._blocks(matrix, 100))
    assert (sparse.vstack(pieces) != matrix).nnz == 0
    assert len(pieces) > 5
    assert all(p.nnz <= 100 or p.shape[0] == 1 for p in pieces)
    pieces = list(counts_module._blocks(sparse.csc_matrix(whole), 100))
    assert (sparse.hstack(pieces, format="csr") != matrix).nnz == 0


def test_layers_are_resolved():
    adata = ad.AnnData(np.ones((2, 3)))
    assert resolve_layer(adata) is None and where(None) == "adata.X"
    assert get_counts(adata) is adata.X
    adata.layers["counts"] = np.full((2, 3), 2.0)
    assert resolve_layer(adata) == "counts" and where("counts") == "adata.layers['counts']"
    assert get_counts(adata)[0, 0] == 2 and get_counts(adata, "X")[0, 0] == 1
    with pytest.raises(KeyError, match=r"is not in adata\.layers, which has"):
        resolve_layer(adata, "raw")


def _real_files() -> list[Path]:
    folder = os.environ.get("ISD_DATA_DIR")
    return sorted(Path(folder).glob("*.h5ad")) if folder else []


@pytest.mark.skipif(not _real_files(), reason="ISD_DATA_DIR is unset")
def test_real_files_pass_and_their_logarithms_do_not():
    for path in _real_files():
        adata = ad.read_h5ad(path)
        if adata.n_obs > 3000:
            adata = adata[:3000].copy()
        counts = adata.X
        whole = bool((counts.data == np.rint(counts.data)).all())
        assert classify_counts(counts) == ("integer" if whole else "fractional"), path.name
        totals = np.asarray(counts.sum(axis=1)).ravel()
        features = np.random.default_rng(0).random(adata.n_vars) < 0.1
        for target in (1e4, float(np.median(totals))):
            scaled = (sparse.diags(target / totals) @ counts).tocsr().astype(np.float32)
            for values in (scaled, scaled.log1p(), scaled.log1p()[:, features]):
                with pytest.raises(ValueError, match="normalised"):
                    classify_counts(values, path.name)
        assert classify_counts(counts[:, features]) in ("integer", "fractional")
