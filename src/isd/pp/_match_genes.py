"""Which of a model's genes the columns of gene-level data are."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import GENE_ID, GENE_NAME
from isd.metrics import GeneMap
from isd.pp._anndata import some
from isd.pp._ids import TRANSCRIPT_ID, map_ids, strip_version

#: Columns of ``var`` in which gene-level data may name their genes, besides the names of the rows.
_COLUMNS = (GENE_ID, "gene_ids", "ensembl_id", GENE_NAME, "gene_symbols", "gene_symbol", "symbol", "gene_names")
#: What :func:`isd.pp.map_ids` may take a name for that is a gene's.
_GENE_TYPES = ("gene_id", "gene_name")
#: Share of names that are transcripts of the model, above which data are taken to be isoforms.
_ISOFORMS = 0.5


@dataclass(frozen=True)
class GeneMatch:
    """Columns of gene-level data by gene of a model.

    Attributes
    ----------
    gene_of
        Gene of each column, -1 where the model has none, shape ``(n_columns,)``.
    n_genes
        Number of the model's genes.
    n_missing, n_unknown, n_ambiguous, n_repeated
        Genes of the model that the data lack; columns that the model does not know; columns whose name means several genes;
        columns beyond the first of a gene.
    """

    gene_of: np.ndarray
    n_genes: int
    n_missing: int
    n_unknown: int
    n_ambiguous: int
    n_repeated: int

    @property
    def present(self) -> np.ndarray:
        """Genes that the data have, booleans of shape ``(n_genes,)``."""
        return np.bincount(self.gene_of[self.gene_of >= 0], minlength=self.n_genes) > 0

    @property
    def indicator(self) -> sparse.csr_matrix:
        """Matrix of shape ``(n_columns, n_genes)`` that adds up the columns of each gene."""
        rows = np.flatnonzero(self.gene_of >= 0)
        shape = (self.gene_of.size, self.n_genes)
        return sparse.csr_matrix((np.ones(rows.size), (rows, self.gene_of[rows])), shape=shape)

    def counts(self, matrix: Any) -> sparse.csr_matrix:
        """Counts of the model's genes, csr of shape ``(n, n_genes)``."""
        return sparse.csr_matrix(sparse.csr_matrix(matrix) @ self.indicator)

    def summary(self) -> dict[str, int]:
        """Numbers for ``uns``."""
        return {
            "n_genes_matched": int(self.present.sum()),
            "n_genes_missing": self.n_missing,
            "n_columns_unknown": self.n_unknown,
            "n_columns_ambiguous": self.n_ambiguous,
        }


def match_genes(adata: AnnData, genes: GeneMap, table: pd.DataFrame, gene_key: str = GENE_ID) -> GeneMatch:
    """Match the columns of gene-level data with the genes of a model, by identifier, then by symbol.

    Versions are taken off where an identifier is not found as it is. Looked at are ``var_names``, then ``var["gene_id"]``,
    ``var["gene_ids"]``, ``var["gene_name"]`` and their like, for what is not found yet.

    Parameters
    ----------
    adata
        Cells by genes.
    genes
        Genes of the model.
    table
        The model's features: its ``gene_key`` column, and ``gene_name`` where there is one.
    gene_key
        Column of identifiers.

    Raises
    ------
    ValueError
        If the columns are transcripts of the model, or no gene is shared.

    Warns
    -----
    UserWarning
        Once, with the numbers of genes that are missing, ambiguous or there more than once.
    """
    codes, names = genes.gene_of, adata.var_names.astype(str)
    known = codes >= 0
    features = table.index.astype(str)
    among = np.isin(strip_version(names), strip_version(features)) & ~np.isin(names, genes.genes.astype(str))
    if among.mean() > _ISOFORMS:
        raise ValueError(
            f"{int(among.sum())} of the {adata.n_vars} columns are transcripts of the model, not genes: these are isoform "
            'counts already. Sum them first: isd.pp.to_mudata(adata)["gene"].'
        )
    t2g = pd.DataFrame({TRANSCRIPT_ID: features[known], GENE_ID: genes.genes[codes[known]].astype(str)})
    if GENE_NAME in table:
        t2g[GENE_NAME] = table[GENE_NAME].astype(object).to_numpy()[known]
    position = pd.Series(np.arange(genes.genes.size), index=pd.Index(genes.genes.astype(str)))
    gene_of = np.full(adata.n_vars, -1, dtype=np.int64)
    ambiguous = np.zeros(adata.n_vars, dtype=bool)
    for values in [names, *(adata.var[c].astype(object).map(str).to_numpy() for c in _COLUMNS if c in adata.var)]:
        rows = np.flatnonzero(gene_of < 0)
        if not rows.size:
            break
        found = map_ids(list(np.asarray(values, dtype=object)[rows]), "gene_id", t2g=t2g)
        is_gene = found["id_type"].isin(_GENE_TYPES).to_numpy()
        hit = is_gene & (found["status"] == "mapped").to_numpy()
        gene_of[rows[hit]] = position[found[GENE_ID].to_numpy()[hit]].to_numpy()
        ambiguous[rows] |= is_gene & (found["status"] == "ambiguous").to_numpy()
    ambiguous &= gene_of < 0
    if (gene_of < 0).all():
        raise ValueError(
            f"none of the {adata.n_vars} columns ({some(names, 3)}) is one of the model's {genes.genes.size} genes "
            f"({some(genes.genes, 3)}). Columns are matched by identifier and by symbol, versions aside: check species and "
            'naming, or put identifiers into adata.var["gene_id"].'
        )
    n = np.bincount(gene_of[gene_of >= 0], minlength=genes.genes.size)
    match = GeneMatch(
        gene_of,
        genes.genes.size,
        n_missing=int((n == 0).sum()),
        n_unknown=int(((gene_of < 0) & ~ambiguous).sum()),
        n_ambiguous=int(ambiguous.sum()),
        n_repeated=int(np.maximum(n - 1, 0).sum()),
    )
    _warn(match)
    return match


def _warn(match: GeneMatch, stacklevel: int = 4) -> None:
    parts = []
    if match.n_missing:
        parts.append(
            f"{match.n_missing} of the model's {match.n_genes} genes are not in the data (their isoforms get no counts)"
        )
    if match.n_ambiguous:
        parts.append(f"{match.n_ambiguous} columns have a symbol that several of the model's genes share (left out)")
    if match.n_repeated:
        parts.append(f"{match.n_repeated} columns repeat a gene (added up)")
    if parts:
        warnings.warn("; ".join(parts) + ".", UserWarning, stacklevel=stacklevel)
