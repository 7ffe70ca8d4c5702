"""Transcripts of a gene: which columns belong together, and sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse


@dataclass(frozen=True, eq=False)
class GeneMap:
    """Which columns of a matrix of transcripts belong to which gene.

    Parameters
    ----------
    genes
        Identifiers of the genes, in order of first appearance, shape ``(n_genes,)``.
    gene_of
        Position in ``genes`` of each transcript, -1 where it has none, shape ``(n_vars,)``.

    Examples
    --------
    >>> genes = GeneMap.from_ids(["g1", "g2", "g1", None])
    >>> genes.gene_of.tolist(), genes.n_isoforms.tolist()
    ([0, 1, 0, -1], [2, 1])
    >>> genes.sums(np.array([[1.0, 2.0, 3.0, 4.0]])).tolist()
    [[4.0, 2.0]]
    >>> genes.spread(np.array([[4.0, 2.0]])).tolist()
    [[4.0, 2.0, 4.0, nan]]
    >>> genes.subset(np.array([1, 3])).genes.tolist()
    ['g2']
    """

    genes: np.ndarray
    gene_of: np.ndarray

    @classmethod
    def from_ids(cls, gene_ids: Sequence[Any] | np.ndarray | pd.Series) -> GeneMap:
        """Make it from ``var["gene_id"]``; missing and empty identifiers are no gene."""
        ids = pd.Series(np.asarray(gene_ids, dtype=object))
        ids = ids.where(ids.notna() & (ids.astype(str) != ""), None)
        codes, genes = pd.factorize(ids)
        return cls(np.asarray(genes, dtype=object), codes.astype(np.int64))

    @cached_property
    def n_isoforms(self) -> np.ndarray:
        """Number of transcripts of each gene."""
        return np.bincount(self.gene_of[self.gene_of >= 0], minlength=self.genes.size)

    @cached_property
    def in_multi_isoform_gene(self) -> np.ndarray:
        """Whether each transcript's gene has another one."""
        known = self.gene_of >= 0
        return known & (np.append(self.n_isoforms, 0)[self.gene_of] > 1)

    @cached_property
    def segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns sorted by gene (those without one left out), and where each gene starts among them."""
        order = np.argsort(self.gene_of, kind="stable")[int((self.gene_of < 0).sum()) :]
        return order, np.searchsorted(self.gene_of[order], np.arange(self.genes.size))

    @cached_property
    def indicator(self) -> sparse.csr_matrix:
        """Matrix of shape ``(n_vars, n_genes)`` with a 1 where a transcript belongs to a gene."""
        rows = np.flatnonzero(self.gene_of >= 0)
        shape = (self.gene_of.size, self.genes.size)
        return sparse.csr_matrix((np.ones(rows.size), (rows, self.gene_of[rows])), shape=shape)

    def sums(self, values: Any) -> Any:
        """Sum over each gene's transcripts.

        Parameters
        ----------
        values
            Shape ``(n, n_vars)``: dense, or sparse such as counts of cells.

        Returns
        -------
        Shape ``(n, n_genes)``, csr where ``values`` is sparse. Cost: one sparse product.
        """
        if sparse.issparse(values):
            return sparse.csr_matrix(values @ self.indicator)
        return np.asarray(self.indicator.T @ np.asarray(values, dtype=np.float64).T).T

    def spread(self, per_gene: np.ndarray) -> np.ndarray:
        """Value of its gene for every transcript, shape ``(n, n_vars)``; NaN (or 0 for whole numbers) without a gene."""
        per_gene = np.asarray(per_gene)
        out = (
            per_gene[:, np.maximum(self.gene_of, 0)]
            if self.genes.size
            else np.zeros((len(per_gene), len(self.gene_of)))
        )
        if (self.gene_of < 0).any():
            out = out.astype(np.float64) if out.dtype.kind == "f" else out
            out[:, self.gene_of < 0] = np.nan if out.dtype.kind == "f" else 0
        return out

    def subset(self, columns: np.ndarray) -> GeneMap:
        """The same for some of the columns; genes without one are dropped."""
        kept, codes = np.unique(self.gene_of[columns], return_inverse=True)
        if kept.size and kept[0] == -1:
            return GeneMap(self.genes[kept[1:]], codes - 1)
        return GeneMap(self.genes[kept], codes)
