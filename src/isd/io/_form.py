"""The one form that all readers end in: csr counts, transcripts in ``var`` with their genes, metadata in ``obs``."""

from __future__ import annotations

import logging
import warnings
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from isd._constants import GENE_ID, GENE_NAME
from isd._counts import classify_counts
from isd.io._errors import UnreadableFileError
from isd.pp import annotate_genes

_log = logging.getLogger("isd")

#: What a gene map may be given as.
GeneMap: TypeAlias = pd.DataFrame | str | PathLike[str] | None


def as_anndata(
    counts: Any,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    *,
    path: Path,
    gene_map: GeneMap = None,
    keep_dtype: bool = False,
    checked: bool = True,
) -> AnnData:
    """Make the AnnData of a reader.

    Parameters
    ----------
    counts
        Sparse matrix of shape ``(n_obs, n_vars)``.
    obs, var
        Frames indexed by cells or samples, and by transcripts.
    path
        Where it came from, for messages.
    gene_map
        Frame of :func:`isd.io.read_gene_map`, or a path for it.
    keep_dtype
        Leave integers as the file has them.
    checked
        Whether the values must pass for counts.

    Raises
    ------
    ValueError
        If the shapes do not fit, or the values are no counts.
    """
    if counts.shape != (len(obs), len(var)):
        raise UnreadableFileError(
            f"{path} has a matrix of {counts.shape[0]} x {counts.shape[1]}, but names of {len(obs)} cells or samples and "
            f"{len(var)} transcripts; its files do not belong together."
        )
    counts = sparse.csr_matrix(counts)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    if checked:
        kind = classify_counts(counts, f"the matrix of {path.name}")
        if not keep_dtype:
            counts = counts.astype(_dtype(counts, kind))
    var = var.copy()
    var.index = pd.Index(var.index.astype(str), name="transcript_id")
    if not var.index.is_unique:
        counts, var = _added_up(counts, var)
    obs = obs.copy()
    obs.index = obs.index.astype(str)
    if not obs.index.is_unique:
        repeated = obs.index[obs.index.duplicated()].unique()
        warnings.warn(
            f"{len(repeated)} names of cells or samples occur more than once ({_some(repeated)}); "
            "they were made unique by a number.",
            UserWarning,
            stacklevel=3,
        )
        obs.index = make_index_unique(obs.index)
    adata = AnnData(counts, obs=obs, var=var)
    add_genes(adata, gene_map, stacklevel=4)
    return adata


def add_genes(adata: AnnData, gene_map: GeneMap, *, stacklevel: int = 3) -> None:
    """Write ``var["gene_id"]`` and ``var["gene_name"]``, and name the transcripts that no gene was found for."""
    if gene_map is not None:
        from isd.io._gene_map import read_gene_map

        annotate_genes(adata, gene_map if isinstance(gene_map, pd.DataFrame) else read_gene_map(gene_map))
    if gene_map is None and GENE_ID not in adata.var:
        _log.info("the file names no genes; give gene_map= (GTF or TSV), or use isd.pp.annotate_genes later")
        return
    without = _without_gene(adata)
    if without.any():
        names = adata.var_names[without]
        warnings.warn(
            f"{len(names)} of {adata.n_vars} transcripts have no gene: {_some(names)}. "
            + (
                "The gene map does not hold them: is it of the same annotation, and does it hold novel transcripts?"
                if gene_map is not None
                else "Give gene_map= (a GTF or TSV) to look them up."
            ),
            UserWarning,
            stacklevel=stacklevel,
        )


def _without_gene(adata: AnnData) -> np.ndarray:
    if GENE_ID not in adata.var:
        return np.ones(adata.n_vars, dtype=bool)
    column = adata.var[GENE_ID]
    return (column.isna() | (column.astype(str).str.strip() == "")).to_numpy()


def _dtype(counts: sparse.csr_matrix, kind: str) -> type:
    """int32 for whole counts (int64 above), float32 for estimates."""
    if kind == "fractional":
        return np.float32
    largest = float(counts.data.max()) if counts.nnz else 0.0
    if largest > np.iinfo(np.int32).max:
        return np.int64
    return np.int32


def _added_up(counts: sparse.csr_matrix, var: pd.DataFrame) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Add up columns of the same transcript: alternative loci (PAR) and damaged files repeat names."""
    codes, names = pd.factorize(var.index)
    repeated = var.index[var.index.duplicated()].unique()
    warnings.warn(
        f"{len(repeated)} transcripts occur more than once ({_some(repeated)}); their counts were added up.",
        UserWarning,
        stacklevel=4,
    )
    indicator = sparse.csr_matrix(
        (np.ones(codes.size, dtype=counts.dtype), (np.arange(codes.size), codes)), shape=(codes.size, len(names))
    )
    summed = counts @ indicator
    first = ~var.index.duplicated()
    return sparse.csr_matrix(summed), var[first]


def _some(names: Any, most: int = 5) -> str:
    listed = ", ".join(map(repr, map(str, names[:most])))
    return listed + (", ..." if len(names) > most else "")


def gene_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The columns ``gene_id`` and ``gene_name`` of a table that may call them otherwise; strings, missing where empty."""
    found: dict[str, pd.Series] = {}
    for ours, aliases in _GENE_ALIASES.items():
        for column in table.columns:
            if str(column).lower() in aliases and ours not in found:
                values = table[column].astype(object).where(table[column].notna(), np.nan)
                found[ours] = values.replace({"": np.nan, ".": np.nan, "-": np.nan})
    return pd.DataFrame(found, index=table.index)


_GENE_ALIASES = {
    GENE_ID: ("gene_id", "geneid", "ensembl_gene_id", "ensembl_gene", "associated_gene", "gene_ids"),
    GENE_NAME: ("gene_name", "gene_symbol", "symbol", "genename", "external_gene_name"),
}

__all__ = ["GeneMap", "add_genes", "as_anndata", "gene_columns"]
