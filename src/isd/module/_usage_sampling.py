"""Drawing the isoforms of gene counts."""

from __future__ import annotations

import numpy as np
from scipy import sparse


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
            at, split = _split(
                counts[several].astype(np.int64),
                logits[i],
                concentration[i, genes],
                offsets[genes],
                sizes[genes],
                stream,
            )
            columns.append(features[at])
            values.append(split.astype(counts.dtype))
        index, count = np.concatenate(columns), np.concatenate(values)
        order = np.argsort(index)
        rows.append((index[order], count[order]))
    indptr = np.concatenate([[0], np.cumsum([len(index) for index, _ in rows])])
    indices = np.concatenate([index for index, _ in rows]).astype(np.int32)
    data = np.concatenate([count for _, count in rows]).astype(np.float32)
    return sparse.csr_matrix((data, indices, indptr.astype(np.int32)), shape=(totals.shape[0], len(features)))


def _split(
    counts: np.ndarray,
    logits: np.ndarray,
    concentration: np.ndarray,
    first: np.ndarray,
    sizes: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of isoforms with counts, and their counts, of one cell's genes."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    at = np.arange(int(sizes.sum())) + np.repeat(first - starts, sizes)
    mean = logits[at].astype(np.float64)
    mean -= np.repeat(np.maximum.reduceat(mean, starts), sizes)
    np.exp(mean, out=mean)
    mean /= np.repeat(np.add.reduceat(mean, starts), sizes)
    weights = mean.copy()
    spread = np.repeat(counts > 1, sizes)
    weights[spread] = rng.standard_gamma(np.repeat(concentration, sizes)[spread] * mean[spread])
    sums = np.add.reduceat(weights, starts)
    empty = ~(sums > 0)
    if empty.any():
        # all shares too small for floating point: at such a concentration one isoform has everything
        one = _search(np.add.reduceat(mean, starts)[empty], mean, starts[empty], sizes[empty], rng)
        weights[one] = 1.0
        sums[empty] = 1.0
    total = int(counts.sum())
    if total <= len(at):
        # one search for each count is cheaper than one binomial for each isoform
        cumulative = np.cumsum(weights / np.repeat(sums, sizes))
        gene = np.repeat(np.arange(len(counts)), counts)
        before = np.concatenate([[0.0], cumulative[starts[1:] - 1]])
        found = np.searchsorted(cumulative, before[gene] + rng.random(total), side="right")
        # rounding must not carry a count over to the next gene
        found = np.clip(found, starts[gene], starts[gene] + sizes[gene] - 1)
        split = np.bincount(found, minlength=len(at))
    else:
        split = _binomials(counts, weights, sums, starts, sizes, rng)
    kept = split > 0
    return at[kept], split[kept]


def _search(
    sums: np.ndarray, weights: np.ndarray, starts: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """One position for each stretch, in proportion to the weights."""
    points = rng.random(len(starts)) * sums
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
