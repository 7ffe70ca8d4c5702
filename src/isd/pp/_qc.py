"""Quality columns, named as the data sets that the project started from name them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import GENE_NAME

_PERCENT_TOP = (50, 100, 200, 500)
#: Upper-cased, so that mouse names ("mt-Co1", "Hba-a1") count, too. Haemoglobins are named: HBP1, HBS1L, HBEGF are not.
_FAMILIES = {"mt": r"MT-", "ribo": r"RP[SL]\d", "hb": r"HB[ABDEGMQZ](?:\d|-|$)"}
#: Per cent of mitochondrial counts that is too much whatever the others have.
_MT_LIMIT = 8.0


def quality(adata: AnnData, counts: sparse.csr_matrix) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Quality columns of cells and of features, through :func:`scanpy.pp.calculate_qc_metrics`.

    Parameters
    ----------
    adata
        Names of genes are taken from ``var["gene_name"]``, or from ``var_names`` where it is missing.
    counts
        Counts, ``(n_obs, n_vars)``.

    Returns
    -------
    Frames for ``obs`` and ``var``.
    """
    import scanpy as sc

    names = pd.Series(adata.var_names, index=adata.var_names).astype(str)
    if GENE_NAME in adata.var:
        given = adata.var[GENE_NAME].astype(object)
        names = names.where(given.isna().to_numpy(), given.to_numpy()).astype(str)
    flags = pd.DataFrame({key: names.str.upper().str.match(pattern) for key, pattern in _FAMILIES.items()})
    flags.index = adata.var_names
    if counts.dtype != np.float32:  # scanpy's sums of unsigned integers are compiled anew in every process
        counts = sparse.csr_matrix((counts.data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)
    obs, var = sc.pp.calculate_qc_metrics(
        AnnData(X=counts, obs=pd.DataFrame(index=adata.obs_names), var=flags),
        qc_vars=list(_FAMILIES),
        percent_top=[n for n in _PERCENT_TOP if n <= adata.n_vars] or None,
        log1p=False,
    )
    share = obs["pct_counts_mt"].to_numpy(dtype=float)
    distance = share - np.median(share)
    spread = np.median(np.abs(distance))
    obs["mt_outlier"] = (share > _MT_LIMIT) | ((spread > 0) & (distance > 3 * 1.4826 * spread))
    obs["n_counts"] = obs["total_counts"]
    obs["n_genes"] = obs["n_genes_by_counts"]
    return obs, pd.concat([flags, var], axis=1)
