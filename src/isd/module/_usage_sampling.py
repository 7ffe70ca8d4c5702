"""Drawing the isoforms of gene counts."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from isd.module._sampling import csr_rows

#: Counts of a cell up to which one search for each count is quicker than one binomial for each isoform.
_ONE_BY_ONE = 20_000


def draw_usage(
    totals: sparse.csr_matrix,
    logits: np.ndarray,
    concentration: np.ndarray,
    sizes: np.ndarray,
    features: np.ndarray,
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    r"""Split gene counts among isoforms, Dirichlet-multinomial in each cell and gene.

    Shares are drawn only for genes that have counts in a cell; a gene with one count needs none, since its isoform is
    drawn from the mean usage.

    Parameters
    ----------
    totals
        Counts of genes, csr of shape ``(n_obs, n_genes)``. Genes with several isoforms come first.
    logits
        Logits of the mean usage of the isoforms of these genes, gene by gene, shape ``(n_obs, n_shared)``.
    concentration
        Concentration of each of these genes, of a shape that broadcasts to ``(n_obs, n_multi)``.
    sizes
        Number of isoforms of each of these genes, shape ``(n_multi,)``.
    features
        Column of each isoform: those of ``logits``, then those of genes with one isoform, shape ``(n_vars,)``.
    rng
        Source of randomness: each row gets a stream of its own from it.

    Returns
    -------
    csr matrix of shape ``(n_obs, n_vars)``, ``float32``, indices sorted. Isoforms of a gene add up to its counts.

    References
    ----------
    Mosimann, On the compound multinomial distribution (1962).

    Examples
    --------
    >>> totals = sparse.csr_matrix(np.array([[9.0, 0.0, 4.0]]))
    >>> logits = np.log([[0.5, 0.5, 0.1, 0.9]])
    >>> x = draw_usage(totals, logits, np.array([5.0, 5.0]), np.array([2, 2]), np.arange(5), np.random.default_rng(0))
    >>> x.toarray()[0, :2].sum().item(), x.toarray()[0, 2:].tolist()
    (9.0, [0.0, 0.0, 4.0])
    """
    n_multi, n_shared = len(sizes), int(sizes.sum())
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    concentration = np.broadcast_to(concentration, (totals.shape[0], n_multi))
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for i, stream in enumerate(rng.spawn(totals.shape[0])):
        stored = slice(totals.indptr[i], totals.indptr[i + 1])
        genes, counts = totals.indices[stored].astype(np.int64), totals.data[stored]
        several = genes < n_multi
        alone = ~several
        columns, values = [features[n_shared + genes[alone] - n_multi]], [counts[alone]]
        if several.any():
            genes = genes[several]
            n = sizes[genes]
            starts = np.cumsum(n) - n
            at = np.arange(int(n.sum())) + np.repeat(offsets[genes] - starts, n)
            usage = logits[i][at].astype(np.float64)
            usage -= np.repeat(np.maximum.reduceat(usage, starts), n)
            np.exp(usage, out=usage)
            split = split_counts(counts[several].astype(np.int64), usage, concentration[i, genes], n, stream)
            kept = split > 0
            columns.append(features[at[kept]])
            values.append(split[kept].astype(counts.dtype))
        index, count = np.concatenate(columns), np.concatenate(values)
        order = np.argsort(index)
        rows.append((index[order], count[order]))
    return csr_rows(rows, len(features))


def split_counts(
    counts: np.ndarray, usage: np.ndarray, concentration: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    r"""Dirichlet-multinomial draws of one cell's genes.

    Parameters
    ----------
    counts
        Whole counts of genes, above 0, shape ``(n_genes,)``.
    usage
        Weights of their isoforms, gene by gene, up to a factor of each gene, shape ``(n_entries,)``.
    concentration
        Of each gene, shape ``(n_genes,)``.
    sizes
        Number of isoforms of each gene, shape ``(n_genes,)``.
    rng
        Source of randomness.

    Returns
    -------
    Counts of isoforms, ``int64`` of shape ``(n_entries,)``: those of a gene add up to its counts.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> split = split_counts(np.array([7, 2]), np.array([0.5, 0.5, 1.0, 3.0]), np.ones(2), np.array([2, 2]), rng)
    >>> split[:2].sum().item(), split[2:].sum().item()
    (7, 2)
    """
    starts = np.cumsum(sizes) - sizes
    mean = usage / np.repeat(np.add.reduceat(usage, starts), sizes)
    weights = mean.copy()
    # one count needs no shares of its own: its isoform is drawn from the mean usage
    spread = np.repeat(counts > 1, sizes)
    weights[spread] = rng.standard_gamma(np.repeat(concentration, sizes)[spread] * mean[spread])
    sums = np.add.reduceat(weights, starts)
    empty = ~(sums > 0)
    if empty.any():
        # all shares too small for floating point: at such a concentration one isoform has everything
        weights[_search(mean, starts[empty], sizes[empty], rng)] = 1.0
        sums[empty] = 1.0
    total = int(counts.sum())
    if total <= max(len(weights), _ONE_BY_ONE):
        cumulative = np.cumsum(weights / np.repeat(sums, sizes))
        gene = np.repeat(np.arange(len(counts)), counts)
        before = np.concatenate([[0.0], cumulative[starts[1:] - 1]])
        found = np.searchsorted(cumulative, before[gene] + rng.random(total), side="right")
        # rounding must not carry a count over to the next gene
        found = np.clip(found, starts[gene], starts[gene] + sizes[gene] - 1)
        return np.bincount(found, minlength=len(weights))
    return _binomials(counts, weights, sums, starts, sizes, rng)


def _search(weights: np.ndarray, starts: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One position for each stretch, in proportion to the weights, which add up to 1 there."""
    points = rng.random(len(starts))
    return np.array(
        [
            start + min(int(np.searchsorted(np.cumsum(weights[start : start + size]), point, side="right")), size - 1)
            for start, size, point in zip(starts, sizes, points, strict=True)
        ],
        dtype=np.int64,
    )


def _binomials(
    counts: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Multinomials of all genes together: the k-th isoform of each, given what the ones before it left."""
    split = np.zeros(len(weights), dtype=np.int64)
    left, rest = counts.copy(), sums.copy()
    genes = np.arange(len(counts))
    for k in range(int(sizes.max())):
        genes = genes[(sizes[genes] > k) & (left[genes] > 0)]
        if not genes.size:
            break
        at = starts[genes] + k
        last = sizes[genes] == k + 1
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(last, 1.0, np.clip(np.nan_to_num(weights[at] / rest[genes]), 0.0, 1.0))
        drawn = rng.binomial(left[genes], share)
        split[at] = drawn
        left[genes] -= drawn
        rest[genes] -= weights[at]
    return split
