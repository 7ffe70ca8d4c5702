"""What networks start from: shares and principal axes of the training cells, read in chunks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from isd.model._generated import log_normalized

#: Rows that principal axes are computed from, at most: more do not change a start.
_MAX_ROWS = 2000


def feature_share(counts: Any, rows: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """Share of each feature in all counts of some rows.

    Parameters
    ----------
    counts
        Matrix of counts, in memory or backed.
    rows
        Rows to add up.
    chunk
        Rows in memory at once.
    """
    total = np.zeros(counts.shape[1])
    for start in range(0, len(rows), chunk):
        total += np.asarray(counts[np.sort(rows[start : start + chunk])].sum(axis=0), dtype=float).ravel()
    return total / total.sum()


def density(counts: Any, rows: np.ndarray, n_rows: int = 512) -> float:
    """Share of the counts that are not zero, in some rows.

    Parameters
    ----------
    counts
        Matrix of counts, in memory or backed.
    rows
        Rows to look at; of more than ``n_rows``, so many at equal distances.
    n_rows
        Number of rows that are read at most.
    """
    if len(rows) > n_rows:
        rows = rows[np.linspace(0, len(rows) - 1, n_rows).astype(int)]
    rows = np.sort(rows)
    return sparse.csr_matrix(counts[rows]).count_nonzero() / (len(rows) * counts.shape[1])


def principal_loadings(counts: Any, rows: np.ndarray, n_components: int, seed: int = 0) -> np.ndarray:
    """Principal axes of log-normalised counts that stand out of noise, each as long as the standard deviation of its scores.

    An axis stands out if it has more variance than the first axis of the same values in other cells: each feature's
    values are permuted over the cells, which keeps how they vary and loses how they vary together (parallel analysis). The
    axes after these are noise of the training cells, or single features of large variance. A decoder that starts from
    them says that held-out cells vary along them as well, which they do not.

    Parameters
    ----------
    counts
        Matrix of counts, in memory or backed.
    rows
        Training rows; of more than 2,000, so many are drawn.
    n_components
        Number of axes at most.
    seed
        Seed of the draw, the permutation and the decomposition.

    Returns
    -------
    Array of shape ``(at most n_components, n_vars)``.

    References
    ----------
    Horn 1965, A rationale and test for the number of factors in factor analysis; Buja and Eyuboglu 1992 for permutations.
    """
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(rows, _MAX_ROWS, replace=False) if len(rows) > _MAX_ROWS else rows)
    matrix = log_normalized(sparse.csr_matrix(counts[rows], dtype=np.float32))
    n_components = min(n_components, min(matrix.shape) - 1)
    if n_components < 1:
        return np.zeros((0, matrix.shape[1]))
    pca = PCA(n_components, svd_solver="arpack", random_state=seed).fit(matrix)
    noise = PCA(1, svd_solver="arpack", random_state=seed).fit(_permuted(matrix, rng)).explained_variance_[0]
    kept = pca.explained_variance_ > noise
    return pca.components_[kept] * np.sqrt(pca.explained_variance_[kept])[:, None]


def _permuted(matrix: sparse.csr_matrix, rng: np.random.Generator) -> sparse.csr_matrix:
    """Each column's values in other rows."""
    by_column = matrix.tocsc()
    n = matrix.shape[0]
    rows = np.empty_like(by_column.indices)
    for start, stop in pairwise(by_column.indptr):
        rows[start:stop] = rng.choice(n, stop - start, replace=False)
    return sparse.csc_matrix((by_column.data, rows, by_column.indptr), shape=matrix.shape).tocsr()
