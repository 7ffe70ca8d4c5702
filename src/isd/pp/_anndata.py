"""What every function of ``isd.pp`` does with the AnnData that it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from isd._counts import without_float16


def to_write_on(adata: AnnData, *, copy: bool) -> AnnData:
    """Return the AnnData that results are written to: a copy, or itself (a view becomes an object of its own first)."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"expected an AnnData, got {type(adata).__name__}.")
    if copy:
        return adata.copy()
    if adata.is_view:
        adata._init_as_actual(adata.copy())
    return adata


def as_csr(matrix: Any) -> sparse.csr_matrix:
    """Return the matrix as ``csr_matrix``, itself if it is one."""
    return matrix if isinstance(matrix, sparse.csr_matrix) else sparse.csr_matrix(without_float16(matrix))


def some(names: Any, most: int = 5) -> str:
    """Write a list for a message: the first few, and how many there are."""
    names = list(names)
    listed = ", ".join(repr(str(name)) for name in names[:most])
    return listed + (f", ... ({len(names)} in all)" if len(names) > most else "")


def same_values(a: Any, b: Any, rows: np.ndarray, atol: float = 0.0) -> bool:
    """Whether two matrices hold the same values in some rows, up to ``atol``."""
    difference = as_csr(a[rows]).astype(np.float64) - as_csr(b[rows]).astype(np.float64)
    return difference.nnz == 0 or float(np.abs(difference.data).max()) <= atol
