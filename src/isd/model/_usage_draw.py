"""Draws of isoform counts given the counts of genes: Dirichlet-multinomial, exact sums, one random stream a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from isd.metrics import GeneMap
from isd.module._usage_sampling import split_counts
from isd.nn import IsoformCounts


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
    sizes = np.diff(np.append(totals.start, usage.size))
    whole = totals.total.astype(np.int64)
    for cell in range(totals.n_cells):
        pairs, entries = slice(*pair_ends[cell : cell + 2]), slice(*entry_ends[cell : cell + 2])
        if pairs.start < pairs.stop:
            rng = np.random.default_rng([*key, first_cell + cell])
            out[entries] = split_counts(whole[pairs], usage[entries], concentration[pairs], sizes[pairs], rng)
    return out
