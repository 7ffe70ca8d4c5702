"""Models of the isoforms of a MuData, whose genes may be a measurement of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from isd._counts import classify_counts, get_counts, resolve_layer, where
from isd.metrics import GeneMap
from isd.pp._match_genes import match_genes
from isd.pp._mudata import check_modalities

if TYPE_CHECKING:
    from mudata import MuData

#: Slot of the isoforms' AnnData with the counts of genes that were measured beside them, a column for each of their genes.
GENE_COUNTS = "isd_gene_counts"
#: Where a MuData keeps the name of the modality that was set up.
_MODALITY = "_isd_isoform"


def isoforms_of(data: Any) -> Any:
    """The AnnData that a model works on: the isoforms of a MuData that was set up; anything else as it is.

    Raises
    ------
    ValueError
        If a MuData was not set up.
    """
    if data is None or isinstance(data, AnnData) or type(data).__name__ != "MuData":
        return data
    if _MODALITY not in data.uns:
        raise ValueError("this MuData was not set up yet; call setup_mudata(mdata) of the model's class first.")
    return data[data.uns[_MODALITY]]


def prepare_mudata(mdata: MuData, isoform: str, gene: str | None, gene_layer: str | None, gene_key: str) -> AnnData:
    """Write what the whole and its genes say of the cells beside the isoforms, whose AnnData is returned.

    Raises
    ------
    KeyError
        If a modality, a layer or the gene map is absent.
    ValueError
        If cells are missing from the gene modality, or its values are no counts.
    """
    check_modalities(mdata, isoform, *([] if gene is None else [gene]))
    adata: AnnData = mdata[isoform]
    if gene_key not in adata.var:
        raise KeyError(
            f"gene_key {gene_key!r} is not in mdata[{isoform!r}].var, which has {list(map(str, adata.var.columns))}; "
            "run isd.pp.annotate_genes first."
        )
    counts = None
    if gene is not None:
        genes: AnnData = mdata[gene]
        rows = genes.obs_names.get_indexer(adata.obs_names)
        if (rows < 0).any():
            raise ValueError(
                f"{int((rows < 0).sum())} of the {adata.n_obs} cells of mdata[{isoform!r}] are not in mdata[{gene!r}]. "
                "Keep those in both: mudata.pp.intersect_obs(mdata)."
            )
        matrix = get_counts(genes, gene_layer)
        classify_counts(matrix, f"mdata[{gene!r}], {where(resolve_layer(genes, gene_layer))}")
        match = match_genes(genes, GeneMap.from_ids(adata.var[gene_key]), adata.var, gene_key)
        counts = match.counts(sparse.csr_matrix(matrix)[rows]).astype(np.float32)
    for column in mdata.obs:
        # labels may be known of the whole only
        if column not in adata.obs and ":" not in str(column):
            adata.obs[column] = mdata.obs[column].reindex(adata.obs_names)
    mdata.uns[_MODALITY] = isoform
    adata.obsm.pop(GENE_COUNTS, None)
    if counts is not None:
        adata.obsm[GENE_COUNTS] = counts
    return adata


def measured_genes(adata: AnnData, n_genes: int) -> sparse.csr_matrix | None:
    """Counts of genes that were measured beside the isoforms, ``(n_obs, n_genes)``; ``None`` where there are none."""
    counts = adata.obsm.get(GENE_COUNTS)
    if counts is None:
        return None
    if counts.shape[1] != n_genes:
        raise ValueError(
            f"obsm[{GENE_COUNTS!r}] has {counts.shape[1]} columns, but the model has {n_genes} genes. Call setup_mudata again."
        )
    return sparse.csr_matrix(counts)
