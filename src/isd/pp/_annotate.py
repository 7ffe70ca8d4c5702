"""The gene of each transcript, written into ``var``."""

from __future__ import annotations

import logging
from os import PathLike

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import GENE_ID, GENE_NAME
from isd.pp._anndata import to_write_on
from isd.pp._ids import STATUS, Target, map_ids, read_t2g

_log = logging.getLogger("isd")


def annotate_genes(adata: AnnData, t2g: pd.DataFrame | str | PathLike[str]) -> pd.DataFrame:
    """Write the gene of each transcript into ``var`` where it is missing.

    Parameters
    ----------
    adata
        Annotated data whose ``var_names`` :func:`map_ids` understands.
    t2g
        Transcript-to-gene table, as :func:`read_t2g` or :func:`isd.io.read_gene_map` gives it, or its path.

    Returns
    -------
    Frame of counts with the rows ``gene_id`` and ``gene_name`` (if the table has names) and the columns ``kept`` (there
    before), ``mapped``, ``ambiguous`` and ``unmapped``. Written: ``var["gene_id"]`` and ``var["gene_name"]``; values
    that are there stay, those that were not found stay missing (a column of which nothing was found is
    not written). A name is looked up by ``var_names``, then by
    ``var["gene_id"]``.

    Raises
    ------
    ValueError
        If ``t2g`` lacks a column.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, isd
    >>> t2g = pd.DataFrame(
    ...     {"transcript_id": ["ENST00000263100"], "gene_id": ["ENSG00000121410"], "gene_name": ["A1BG"]}
    ... )
    >>> adata = ad.AnnData(np.ones((2, 2)), var=pd.DataFrame(index=["ENST00000263100.8", "novel_1"]))
    >>> isd.pp.annotate_genes(adata, t2g)
               kept  mapped  ambiguous  unmapped
    gene_id       0       1          0         1
    gene_name     0       1          0         1
    >>> adata.var["gene_name"].fillna("-").tolist()
    ['A1BG', '-']
    """
    table = t2g if isinstance(t2g, pd.DataFrame) else read_t2g(t2g)
    new: dict[str, pd.Series] = {}
    counts: dict[str, dict[str, int]] = {}
    targets: tuple[Target, ...] = ("gene_id", "gene_name")
    for target in targets:
        if target == GENE_NAME and GENE_NAME not in table:
            continue
        column = pd.Series(np.nan, index=adata.var_names, dtype=object)
        if target in adata.var:
            column = adata.var[target].astype(object).replace("", np.nan)
        missing = column.isna().to_numpy()
        found = map_ids(adata.var_names[missing], target, t2g=table)
        values, status = found[target].to_numpy(), found["status"].astype(object).to_numpy()
        if target == GENE_NAME:
            gene = new.get(GENE_ID, adata.var.get(GENE_ID, column)).astype(object)[missing].fillna("").astype(str)
            by_gene = map_ids(gene, target, t2g=table)
            better = pd.isna(values) & by_gene[target].notna().to_numpy()
            values = np.where(better, by_gene[target].to_numpy(), values)
            status = np.where(better, "mapped", status)
        counts[target] = {"kept": int((~missing).sum())} | {s: int((status == s).sum()) for s in STATUS}
        if missing.any():
            column = column.copy()
            column.iloc[np.flatnonzero(missing)] = values
            if column.notna().any():  # a column of gaps alone could not be written to h5ad
                new[target] = column
    report = pd.DataFrame.from_dict(counts, orient="index")
    if new:
        adata = to_write_on(adata, copy=False)
        for key, column in new.items():
            adata.var[key] = column
    for slot, row in report.iterrows():
        _log.info("%s: %s", slot, ", ".join(f"{n} {what}" for what, n in row.items()))
    return report
