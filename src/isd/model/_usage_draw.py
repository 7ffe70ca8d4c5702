"""Draws of isoform counts given the counts of genes: Dirichlet-multinomial, exact sums, one random stream a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from isd.metrics import GeneMap
from isd.nn import IsoformCounts

#: Counts of a cell above which isoforms are drawn by conditional binomials, not count by count.
_MANY = 200_000


@dataclass(frozen=True)
class GeneTotals:
    """Genes with several isoforms that cells express, and these isoforms.

    Attributes
    ----------
    n_cells
        Number of cells.
    cell, gene, total
        Of each pair of a cell and a gene with counts there, ordered by cell, shape ``(n_pairs,)``.
    start, pair, column
        Where each pair's isoforms start, shape ``(n_pairs,)``; pair and feature of each isoform, shape ``(n_entries,)``.
    """

    n_cells: int
    cell: np.ndarray
    gene: np.ndarray
    total: np.ndarray
    start: np.ndarray
    pair: np.ndarray
    column: np.ndarray

    def as_isoform_counts(self, device: torch.device | str) -> IsoformCounts:
        """The same as tensors; the counts of isoforms, which are not known, are 0."""
        cell, gene, total, pair, column = (
            torch.as_tensor(part, device=device) for part in (self.cell, self.gene, self.total, self.pair, self.column)
        )
        zeros = torch.zeros(len(column), device=device)
        return IsoformCounts(self.n_cells, cell, gene, total.float(), pair, column, zeros)


def gene_totals(gene_counts: sparse.csr_matrix, genes: GeneMap) -> GeneTotals:
    """Pairs of cells and genes that have counts and several isoforms, by cell, then by gene."""
    gene_counts = sparse.csr_matrix(gene_counts).sorted_indices()
    cell = np.repeat(np.arange(gene_counts.shape[0]), np.diff(gene_counts.indptr))
    gene, total = gene_counts.indices.astype(np.int64), gene_counts.data
    kept = (genes.n_isoforms[gene] > 1) & (total > 0)
    cell, gene, total = cell[kept], gene[kept], total[kept]
    order, first = genes.segments
    sizes = genes.n_isoforms[gene]
    start = np.cumsum(sizes) - sizes
    pair = np.repeat(np.arange(gene.size), sizes)
    column = order[first[gene][pair] + np.arange(pair.size) - start[pair]]
    return GeneTotals(gene_counts.shape[0], cell, gene, total, start, pair, column)


def draw_isoforms(
    totals: GeneTotals, usage: np.ndarray, concentration: np.ndarray, key: Sequence[int], first_cell: int = 0
) -> np.ndarray:
    """Counts of isoforms that add up to the counts of their genes.

    Parameters
    ----------
    totals
        What to divide; counts of genes must be whole.
    usage
        Usage of each isoform, shape ``(n_entries,)``.
    concentration
        Concentration of each pair, shape ``(n_pairs,)``.
    key
        Key of the random numbers. Each cell has a stream of its own, keyed by this and its number: draws do not depend on
        which cells come in one call.
    first_cell
        Number of the first cell.

    Returns
    -------
    Whole numbers of shape ``(n_entries,)``.
    """
    out = np.zeros(usage.size, dtype=np.int64)
    pair_ends = np.searchsorted(totals.cell, np.arange(totals.n_cells + 1))
    entry_ends = np.append(totals.start, usage.size)[pair_ends]
    whole = totals.total.astype(np.int64)
    for cell in range(totals.n_cells):
        pairs, entries = slice(*pair_ends[cell : cell + 2]), slice(*entry_ends[cell : cell + 2])
        if pairs.start == pairs.stop:
            continue
        rng = np.random.default_rng([*key, first_cell + cell])
        n = whole[pairs]
        start = totals.start[pairs] - entries.start
        pair = totals.pair[entries] - pairs.start
        shares = _dirichlet(usage[entries], concentration[pairs], start, pair, rng)
        draw = _binomials if n.sum() > _MANY else _one_by_one
        out[entries] = draw(n, shares, start, pair, rng)
    return out


def _dirichlet(
    usage: np.ndarray, concentration: np.ndarray, start: np.ndarray, pair: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Shares of isoforms, by gamma variates in logarithms: those of tiny shape are 0 in double precision, all of a gene's."""
    alpha = np.maximum(usage * concentration[pair], 1e-12)
    gamma = np.log(rng.standard_gamma(alpha + 1.0)) + np.log1p(-rng.random(alpha.size)) / alpha
    shares = np.exp(gamma - np.maximum.reduceat(gamma, start)[pair])
    return shares / np.add.reduceat(shares, start)[pair]


def _one_by_one(
    n: np.ndarray, shares: np.ndarray, start: np.ndarray, pair: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Each count falls where a uniform number lies in the cumulative shares of its gene."""
    of = np.repeat(np.arange(n.size), n)
    # the shares of gene p lie between p and p + 1
    at = np.searchsorted(np.cumsum(shares), of + rng.random(of.size), side="right")
    last = np.append(start[1:], shares.size) - 1
    return np.bincount(np.clip(at, start[of], last[of]), minlength=shares.size)


def _binomials(
    n: np.ndarray, shares: np.ndarray, start: np.ndarray, pair: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Isoform after isoform takes its part of what is left, all genes at once."""
    out = np.zeros(shares.size, dtype=np.int64)
    sizes = np.diff(np.append(start, shares.size))
    left, mass = n.copy(), np.ones(n.size)
    for k in range(int(sizes.max())):
        genes = np.flatnonzero((sizes > k) & (left > 0))
        if not genes.size:
            break
        at = start[genes] + k
        p = np.where(k == sizes[genes] - 1, 1.0, shares[at] / np.maximum(mass[genes], 1e-300))
        out[at] = rng.binomial(left[genes], np.clip(p, 0.0, 1.0))
        left[genes] -= out[at]
        mass[genes] -= shares[at]
    return out
