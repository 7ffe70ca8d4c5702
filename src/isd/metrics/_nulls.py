"""The draws behind the baselines: usage redrawn, independent negative binomials, a Gaussian per label."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from isd.metrics._genes import GeneMap
from isd.metrics._usage import label_sums

_VALUES = 1 << 22


def redraw_usage(
    counts: sparse.csr_matrix, codes: np.ndarray, genes: GeneMap, lenders: np.ndarray, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Each cell's gene totals, spread over isoforms by a multinomial with the label's pooled usage.

    Parameters
    ----------
    counts
        Whole counts, csr, shape ``(n, n_vars)``.
    codes
        Label of each cell, from 0.
    genes
        Which transcript belongs to which gene; those without one are kept as they are.
    lenders
        Rows to redraw, with repetition if wanted.
    rng
        Source of the draws.

    Returns
    -------
    csr matrix of shape ``(len(lenders), n_vars)``.
    """
    sums = label_sums(counts, codes, int(codes.max()) + 1)
    order, starts = genes.segments
    sizes = np.diff(np.append(starts, order.size))
    parts = []
    for label in range(sums.shape[0]):
        # isoforms by falling share: what is left to draw is soon nothing
        by_share = order[np.lexsort((-sums[label, order], genes.gene_of[order]))]
        share = sums[label, by_share]
        ahead = np.cumsum(share[::-1])[::-1]
        ends = np.append(ahead, 0.0)[starts + sizes]
        left = ahead - np.repeat(ends, sizes)  # of this isoform and the gene's rarer ones
        conditional = np.clip(np.divide(share, left, out=np.ones_like(share), where=left > 0), 0.0, 1.0)
        conditional[starts + sizes - 1] = 1.0
        mine = np.flatnonzero(codes[lenders] == label)
        totals = sparse.csr_matrix(genes.sums(counts[lenders[mine]])).tocoo()
        row, gene = mine[totals.coords[0]], totals.coords[1]
        remaining = np.rint(totals.data).astype(np.int64)
        rank = 0
        while remaining.size:
            at = starts[gene] + rank
            drawn = rng.binomial(remaining, conditional[at])
            hit = drawn > 0
            parts.append((row[hit], by_share[at[hit]], drawn[hit]))
            remaining = remaining - drawn
            more = remaining > 0
            row, gene, remaining = row[more], gene[more], remaining[more]
            rank += 1
    rows, columns, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    shape = (lenders.size, counts.shape[1])
    out = sparse.csr_matrix((values.astype(np.float64), (rows, columns)), shape=shape)
    if (genes.gene_of < 0).any():
        out = out + counts[lenders] @ sparse.diags((genes.gene_of < 0).astype(float))
    return sparse.csr_matrix(out)


def negative_binomial_moments(
    counts: sparse.csr_matrix, codes: np.ndarray, n_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the library and dispersion of every transcript in every label, by moments.

    With library size ``L_c`` and ``mu_c = share * L_c``, ``share = sum y / sum L`` and the dispersion solves
    ``sum (y_c - mu_c)^2 = sum mu_c + dispersion * sum mu_c^2``; it is not below 0 (Poisson).

    Parameters
    ----------
    counts
        Shape ``(n, n_vars)``, csr.
    codes
        Label of each cell, from 0.
    n_labels
        Number of labels.

    Returns
    -------
    Two arrays of shape ``(n_labels, n_vars)``.
    """
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    total, squares = (np.bincount(codes, weights=w, minlength=n_labels)[:, None] for w in (library, library**2))
    y = label_sums(counts, codes, n_labels)
    share = y / np.maximum(total, 1e-12)
    y2 = label_sums(counts.multiply(counts).tocsr(), codes, n_labels)
    y_library = label_sums(sparse.diags(library) @ counts, codes, n_labels)
    mu2 = share**2 * squares
    excess = y2 - 2 * share * y_library + mu2 - y
    return share, np.maximum(np.divide(excess, mu2, out=np.zeros_like(mu2), where=mu2 > 0), 0.0)


def negative_binomial_cells(
    counts: sparse.csr_matrix, codes: np.ndarray, lenders: np.ndarray, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Cells of independent negative binomials with the lenders' labels and library sizes.

    Parameters
    ----------
    counts, codes
        Training cells.
    lenders
        Rows that give label and library size.
    rng
        Source of the draws.

    Returns
    -------
    csr matrix of shape ``(len(lenders), n_vars)``; made in blocks of a few million values.
    """
    n_labels = int(codes.max()) + 1
    share, dispersion = negative_binomial_moments(counts, codes, n_labels)
    library = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()[lenders]
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for label in range(n_labels):
        rows = np.flatnonzero(codes[lenders] == label)
        columns = np.flatnonzero(share[label] > 0)
        phi = np.maximum(dispersion[label, columns], 1e-8)  # as good as Poisson
        step = max(1, _VALUES // max(columns.size, 1))
        for start in range(0, rows.size, step):
            block = rows[start : start + step]
            mean = library[block, None] * share[label, columns]
            drawn = rng.poisson(mean * rng.standard_gamma(1 / phi, size=mean.shape) * phi)
            i, j = np.nonzero(drawn)
            parts.append((block[i], columns[j], drawn[i, j]))
    i, j, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sparse.csr_matrix((values.astype(np.float64), (i, j)), shape=(lenders.size, counts.shape[1]))


def label_gaussian(points: Any, codes: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws of one Gaussian per label, fitted to points by mean and covariance.

    Parameters
    ----------
    points
        Shape ``(n, n_dims)``.
    codes
        Label of each point, from 0.
    wanted
        Label of each draw.
    rng
        Source of the draws.

    Returns
    -------
    Shape ``(len(wanted), n_dims)``. Covariances are shrunk towards those of all points within their labels, with the
    weight ``n_dims / (n_dims + n)`` of a prior as strong as ``n_dims`` points: few cells give no covariance.
    """
    points = np.asarray(points, dtype=np.float64)
    n_dims = points.shape[1]
    labels = np.unique(codes)
    means = {label: points[codes == label].mean(axis=0) for label in labels}
    residual = points - np.stack([means[code] for code in codes])
    pooled = residual.T @ residual / max(points.shape[0] - labels.size, 1)
    out = np.empty((wanted.size, n_dims))
    for label in np.unique(wanted):
        own = residual[codes == label]
        weight = n_dims / (n_dims + own.shape[0])
        covariance = (1 - weight) * (own.T @ own) / max(own.shape[0] - 1, 1) + weight * pooled
        rows = np.flatnonzero(wanted == label)
        out[rows] = rng.multivariate_normal(means[label], covariance, size=rows.size, method="eigh")
    return out
