"""What networks start from: shares and principal axes of the training cells, read in chunks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

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
        total += np.asarray(counts[np.sort(rows[start : start + chunk])].sum(axis=0, dtype=np.float64)).ravel()
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
    counts: Any,
    rows: np.ndarray,
    n_components: int,
    seed: int = 0,
    *,
    groups: sparse.csr_matrix | None = None,
    labels: np.ndarray | None = None,
    among: np.ndarray | None = None,
    few: int = 1500,
) -> np.ndarray:
    """Principal axes of log-normalised counts, each as long as the standard deviation of its scores.

    With few cells, only axes that stand out of noise: those with more variance than the first axis of the same values in
    other cells, where each feature's values are permuted over the cells, which keeps how they vary and loses how they vary
    together (parallel analysis). The axes after these are noise of the training cells. A decoder that starts from them says
    that held-out cells vary along them as well, which they do not. To these come axes between labels' means, if they have
    more variance than the first one between the means of permuted labels: a label that one feature alone marks does not
    stand out of permuted values. With more cells, where there is less noise, training is quicker from all of them (``docs/notes/realism.md``).

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
    groups
        Matrix of shape ``(n_vars, n_groups)`` that adds features up, such as isoforms to genes.
    labels
        Code of each of ``rows``, shape ``(len(rows),)``.
    among
        Codes of batches and further categories, shape ``(len(rows), n_attributes)``, where the decoder has shifts for
        them: axes along which they differ, labels being equal, are taken out.
    few
        Rows below which axes of noise are left out.

    Returns
    -------
    Array of shape ``(at most n_components, n_vars)``, or as many columns as groups.

    References
    ----------
    Horn 1965, A rationale and test for the number of factors in factor analysis; Buja and Eyuboglu 1992 for permutations.
    """
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(rows), _MAX_ROWS, replace=False) if len(rows) > _MAX_ROWS else np.arange(len(rows))
    drawn = drawn[np.argsort(rows[drawn])]
    rows = rows[drawn]
    labels = None if labels is None else labels[drawn]
    chosen = sparse.csr_matrix(counts[rows], dtype=np.float32)
    matrix = log_normalized(chosen if groups is None else sparse.csr_matrix(chosen @ groups))
    n_components = min(n_components, min(matrix.shape) - 1)
    if n_components < 1:
        return np.zeros((0, matrix.shape[1]))
    pca = PCA(n_components, svd_solver="arpack", random_state=seed).fit(matrix)
    noise = 0.0
    if len(rows) < few:
        noise = PCA(1, svd_solver="arpack", random_state=seed).fit(_permuted(matrix, rng)).explained_variance_[0]
    kept = pca.explained_variance_ > noise
    loadings = pca.components_[kept] * np.sqrt(pca.explained_variance_[kept])[:, None]
    if labels is not None and len(rows) < few:
        between = _between_labels(matrix, labels, pca.components_[kept], rng)
        loadings = np.concatenate([loadings, between])[:n_components]
    if among is not None:
        known = _between_categories(matrix, np.zeros(len(rows), int) if labels is None else labels, among[drawn])
        loadings = loadings - (loadings @ known.T) @ known
    return loadings


def _between_categories(matrix: sparse.csr_matrix, labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Orthonormal axes of the differences between categories' means and those of their labels."""
    differences = []
    for column in codes.T:
        means: dict[int, np.ndarray] = {}
        for label in np.unique(labels):
            here = np.flatnonzero(labels == label)
            middle = np.asarray(matrix[here].mean(axis=0)).ravel()
            for category in np.unique(column[here]):
                rows = here[column[here] == category]
                part = np.asarray(matrix[rows].sum(axis=0)).ravel() - len(rows) * middle
                means[category] = means.get(category, 0.0) + part / (column == category).sum()
        differences += list(means.values())
    _, values, axes = np.linalg.svd(np.array(differences), full_matrices=False)
    return axes[values > 1e-4 * max(float(values[0]), 1e-12)]


def _between_labels(
    matrix: sparse.csr_matrix, labels: np.ndarray, known: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Axes of the labels' means, outside of known ones, that stand out of those of permuted labels."""
    present, codes, n = np.unique(labels, return_inverse=True, return_counts=True)
    middle = np.asarray(matrix.mean(axis=0)).ravel()

    def axes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        members = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(n), len(codes)))
        # each mean counts as often as it has cells, so that squares of singular values are variances between cells
        means = ((members @ matrix).toarray() / n[:, None] - middle) * np.sqrt(n / len(codes))[:, None]
        means -= (means @ known.T) @ known
        _, values, found = np.linalg.svd(means, full_matrices=False)
        return values, found

    if len(present) < 2:
        return np.zeros((0, matrix.shape[1]))
    values, found = axes(codes)
    stands_out = values > axes(rng.permutation(codes))[0][0]
    return found[stands_out] * values[stands_out, None]


def _permuted(matrix: sparse.csr_matrix, rng: np.random.Generator) -> sparse.csr_matrix:
    """Each column's values in other rows."""
    by_column = matrix.tocsc()
    n = matrix.shape[0]
    rows = np.empty_like(by_column.indices)
    for start, stop in pairwise(by_column.indptr):
        rows[start:stop] = rng.choice(n, stop - start, replace=False)
    return sparse.csc_matrix((by_column.data, rows, by_column.indptr), shape=matrix.shape).tocsr()


def usage_loadings(
    counts: Any, rows: np.ndarray, gene_of: np.ndarray, n_components: int, *, shrinkage: float = 0.0, seed: int = 0
) -> np.ndarray:
    r"""Principal axes of usage: how isoforms' shares in their gene vary together, as changes of logits.

    Where a cell's logits change by :math:`\delta`, its counts change by about :math:`n_g \pi_t \delta_t`. So the residuals
    :math:`x_t - n_g \bar\pi_t` over the root of their mean count have the axes of :math:`\delta`, each isoform weighed by how
    well its counts tell it; dividing by that root again (held back by the prior where counts are few) gives logits.

    Parameters
    ----------
    counts
        Matrix of counts, in memory or backed.
    rows
        Training rows; of more than 2,000, so many are drawn.
    gene_of
        Gene of each feature, from 0, shape ``(n_vars,)``.
    n_components
        Number of axes; fewer come back where there are fewer cells or features.
    shrinkage
        Precision of the prior on logits of usage.
    seed
        Seed of the draw and of the decomposition.

    Returns
    -------
    Array of shape ``(at most n_components, n_vars)``, 0 for genes with one isoform: each axis for a score of 1 standard
    deviation.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(rows, _MAX_ROWS, replace=False) if len(rows) > _MAX_ROWS else rows)
    x = sparse.csr_matrix(counts[rows], dtype=np.float64)
    n, n_vars = x.shape
    n_genes = int(gene_of.max()) + 1
    genes = sparse.csr_matrix((np.ones(n_vars), (np.arange(n_vars), gene_of)), shape=(n_vars, n_genes))
    seen = np.asarray(x.sum(axis=0)).ravel()
    totals = (seen @ genes)[gene_of]
    pooled = np.divide(seen, totals, out=np.zeros(n_vars), where=totals > 0)
    weight = np.divide(1.0, np.sqrt(seen), out=np.zeros(n_vars), where=(seen > 0) & (pooled < 1))
    n_components = min(n_components, min(n, int((weight > 0).sum())) - 1)
    if n_components < 1:
        return np.zeros((0, n_vars))
    n_g = sparse.csr_matrix(x @ genes)
    # as deep cells have more to say, each is weighed by the root of its depth
    depth = np.sqrt(np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1.0))
    depth /= depth.mean()
    by_gene = sparse.csr_matrix(genes.multiply((pooled * weight)[:, None]))

    def forward(v: np.ndarray) -> np.ndarray:
        v = v.ravel()
        return (x @ (weight * v) - n_g @ (by_gene.T @ v)) / depth

    def backward(u: np.ndarray) -> np.ndarray:
        u = u.ravel() / depth
        return weight * (x.T @ u) - by_gene @ (n_g.T @ u)

    residuals = LinearOperator((n, n_vars), matvec=forward, rmatvec=backward, dtype=np.float64)
    start = rng.standard_normal(min(n, n_vars))
    _, scale, axes = svds(residuals, k=n_components, v0=start, solver="arpack")
    order = np.argsort(-scale)
    # of the change: T / (T + precision) of what the counts say, in logits
    root = np.sqrt(seen)
    return axes[order] * (scale[order, None] * np.sqrt(n)) * (root / (seen + shrinkage + 1e-12))
