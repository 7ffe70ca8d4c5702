"""Isoforms and genes of the same cells as two modalities of a MuData, and back."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import GENE_ID, GENE_NAME, TARGET_SUM
from isd._counts import get_counts, resolve_layer
from isd.metrics import GeneMap

if TYPE_CHECKING:
    from mudata import MuData

#: Names of the modalities.
ISOFORM, GENE = "isoform", "gene"


def to_mudata(adata: AnnData, gene_key: str = GENE_ID, *, layer: str | None = None) -> MuData:
    """Put isoforms, and genes as the sums of their isoforms, side by side.

    Parameters
    ----------
    adata
        Cells by transcripts, with raw counts. Not changed; its matrices are shared, not copied.
    gene_key
        Column of ``var`` that says which gene a transcript belongs to.
    layer
        Layer of raw counts; ``None`` takes ``"counts"`` if there, else ``X``; ``"X"`` takes ``X``.

    Returns
    -------
    :class:`mudata.MuData` with the modalities

    ``"isoform"``
        ``adata``.
    ``"gene"``
        Cells by genes, in the order of their first transcripts, csr counts in the same place: where that is a layer, ``X`` holds
        log1p of them scaled to 10,000 a cell. ``var`` has ``gene_name`` where ``adata`` has it, and ``n_isoforms``.

    Both, and ``.obs`` of the whole, have the columns of ``adata.obs``.

    Raises
    ------
    KeyError
        If ``gene_key`` or ``layer`` is absent.
    ValueError
        If no transcript has a gene.

    Warns
    -----
    UserWarning
        If some transcripts have no gene: their counts are in no column of ``"gene"``.

    Examples
    --------
    >>> import isd
    >>> mdata = isd.pp.to_mudata(isd.datasets.simulated(n_obs=30, n_vars=40, n_labels=2))
    >>> mdata["isoform"].shape, mdata["gene"].shape
    ((30, 40), (30, 9))
    >>> bool((mdata["isoform"].X.sum(1) == mdata["gene"].X.sum(1)).all())
    True
    """
    from mudata import MuData

    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, got {type(adata).__name__}.")
    if gene_key not in adata.var:
        raise KeyError(
            f"gene_key {gene_key!r} is not in adata.var, which has {list(map(str, adata.var.columns))}. "
            "Run isd.pp.annotate_genes(adata, ...) first, or name another column."
        )
    layer = resolve_layer(adata, layer)
    genes = GeneMap.from_ids(adata.var[gene_key])
    if not genes.genes.size:
        raise ValueError(f"adata.var[{gene_key!r}] names no gene.")
    without = int((genes.gene_of < 0).sum())
    if without:
        warnings.warn(
            f"{without} of {adata.n_vars} transcripts have no gene in var[{gene_key!r}]; "
            "their counts are in no column of the modality 'gene'.",
            UserWarning,
            stacklevel=2,
        )
    matrix = get_counts(adata, "X" if layer is None else layer)
    counts = genes.sums(matrix if sparse.issparse(matrix) else sparse.csr_matrix(matrix)).astype(np.float32)
    counts.sort_indices()
    first = np.unique(genes.gene_of, return_index=True)[1][int(without > 0) :]
    var = pd.DataFrame({"n_isoforms": genes.n_isoforms}, index=pd.Index(genes.genes.astype(str), name=gene_key))
    if GENE_NAME in adata.var:
        var.insert(0, GENE_NAME, adata.var[GENE_NAME].astype(object).to_numpy()[first])
    place: dict[str, Any] = (
        {"X": counts} if layer is None else {"X": _log_normalized(counts), "layers": {layer: counts}}
    )
    gene = AnnData(obs=adata.obs.copy(), var=var, **place)
    mdata = _quiet_mudata(MuData, {ISOFORM: _shallow(adata), GENE: gene})
    for column in adata.obs:
        mdata.obs[column] = adata.obs[column]
    return mdata


def from_mudata(mdata: MuData, isoform: str = ISOFORM) -> AnnData:
    """The isoforms of a MuData as an AnnData, with what its ``.obs`` says of the cells besides.

    Parameters
    ----------
    mdata
        As :func:`to_mudata` makes it, or with a modality of isoforms under another name. Not changed; matrices are shared.
    isoform
        Name of the modality.

    Returns
    -------
    AnnData of the modality. Columns of ``mdata.obs`` that it lacks are added; those that other modalities brought
    (``"gene:..."``) are not.

    Raises
    ------
    KeyError
        If there is no such modality.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=30, n_vars=40, n_labels=2)
    >>> again = isd.pp.from_mudata(isd.pp.to_mudata(adata))
    >>> again.shape, bool((again.X != adata.X).nnz == 0)
    ((30, 40), True)
    """
    check_modalities(mdata, isoform)
    adata = _shallow(mdata[isoform])
    prefixes = tuple(f"{name}:" for name in mdata.mod)
    for column in mdata.obs:
        if column not in adata.obs and not str(column).startswith(prefixes):
            adata.obs[column] = mdata.obs[column].reindex(adata.obs_names)
    return adata


def check_modalities(mdata: Any, *names: str) -> None:
    """Raise when something is no MuData, or lacks a modality.

    Raises
    ------
    TypeError
        If it is no MuData.
    KeyError
        If a modality is absent.
    """
    from mudata import MuData

    if not isinstance(mdata, MuData):
        raise TypeError(f"mdata must be a MuData, got {type(mdata).__name__}.")
    for name in names:
        if name not in mdata.mod:
            raise KeyError(f"modality {name!r} is not in mdata, which has {list(mdata.mod)}.")


def _quiet_mudata(make: Any, modalities: dict[str, AnnData]) -> MuData:
    with warnings.catch_warnings():
        # mudata announces its coming defaults; neither changes what is made here
        warnings.filterwarnings("ignore", category=FutureWarning, module="mudata")
        return make(modalities)


def _shallow(adata: AnnData) -> AnnData:
    """The same cells in an object of its own: tables are copied, matrices shared."""
    if adata.isbacked or adata.is_view:
        return adata.to_memory() if adata.isbacked else adata.copy()
    made = AnnData(
        X=adata.X,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        uns=dict(adata.uns),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        layers=dict(adata.layers),
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
    )
    if adata.raw is not None:
        made.raw = adata.raw.to_adata()
    return made


def _log_normalized(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1e-12)
    out = sparse.csr_matrix(counts.multiply((TARGET_SUM / totals)[:, None])).astype(np.float32)
    np.log1p(out.data, out=out.data)
    return out
