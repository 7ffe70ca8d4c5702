"""What networks start from: shares and principal axes of the training cells, read in chunks."""

from __future__ import annotations

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


def principal_loadings(
    counts: Any, rows: np.ndarray, n_components: int, seed: int = 0, *, groups: sparse.csr_matrix | None = None
) -> np.ndarray:
    """Principal axes of log-normalised counts, each as long as the standard deviation of its scores.

    Parameters
    ----------
    counts
        Matrix of counts, in memory or backed.
    rows
        Training rows; of more than 2,000, so many are drawn.
    n_components
        Number of axes; fewer come back where there are fewer cells or features.
    seed
        Seed of the draw and of the decomposition.
    groups
        Matrix of shape ``(n_vars, n_groups)`` that adds features up, such as isoforms to genes.

    Returns
    -------
    Array of shape ``(at most n_components, n_vars)``, or as many columns as groups.
    """
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(rows, _MAX_ROWS, replace=False) if len(rows) > _MAX_ROWS else rows)
    chosen = sparse.csr_matrix(counts[rows], dtype=np.float32)
    matrix = log_normalized(chosen if groups is None else sparse.csr_matrix(chosen @ groups))
    n_components = min(n_components, min(matrix.shape) - 1)
    if n_components < 1:
        return np.zeros((0, matrix.shape[1]))
    pca = PCA(n_components, svd_solver="arpack", random_state=seed).fit(matrix)
    return pca.components_ * np.sqrt(np.maximum(pca.explained_variance_, 0.0))[:, None]
