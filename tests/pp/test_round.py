from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from isd.pp import round_counts

VALUES = np.array([[0.4, 1.7, 12.0, 30.0], [3.2, 0.0, 1.0, 2.5]], dtype=np.float32)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("layer", [None, "counts", "estimates"])
def test_rounds_in_place_and_keeps_the_estimates(make, layer):
    adata = ad.AnnData(make(VALUES) if layer is None else np.zeros((2, 4), dtype=np.float32))
    if layer is not None:
        adata.layers[layer] = make(VALUES)
    with pytest.warns(UserWarning, match=r"4 of 7 non-zero values \(57%\)") as caught:
        assert round_counts(adata, layer=layer) is None
    assert len(caught) == 1
    rounded = adata.X if layer is None else adata.layers[layer]
    assert type(rounded) is type(make(VALUES)) and rounded.dtype == np.float32
    expected = [[0, 2, 12, 30], [3, 0, 1, 2]]
    np.testing.assert_array_equal(rounded.toarray() if sparse.issparse(rounded) else rounded, expected)
    kept = adata.layers["estimated_counts"]
    np.testing.assert_array_equal(kept.toarray() if sparse.issparse(kept) else kept, VALUES)
    if sparse.issparse(rounded):
        assert rounded.nnz == 6  # 0.4 is stored no more
    round_counts(adata, layer=layer)  # whole now: nothing to do, nothing to warn of


def test_whole_counts_stay(recwarn):
    adata = ad.AnnData(np.rint(VALUES))
    copied = round_counts(adata, copy=True)
    assert copied is not adata and not copied.layers and not recwarn


def test_copy_leaves_the_original():
    adata = ad.AnnData(VALUES.copy())
    with pytest.warns(UserWarning, match="estimated"):
        copied = round_counts(adata, copy=True)
    np.testing.assert_array_equal(adata.X, VALUES)
    assert not adata.layers and copied.X[0, 1] == 2


def test_errors():
    adata = ad.AnnData(VALUES.copy())
    with pytest.raises(KeyError, match=r"is not in adata\.layers, which has"):
        round_counts(adata, layer="none")
    adata.layers["estimated_counts"] = VALUES
    with pytest.raises(ValueError, match="would overwrite"):
        round_counts(adata)
    with pytest.raises(ValueError, match="log-normalised"):
        round_counts(ad.AnnData(np.log1p(VALUES)))
    with pytest.raises(TypeError, match="expected an AnnData, got list"):
        round_counts([1.5])
