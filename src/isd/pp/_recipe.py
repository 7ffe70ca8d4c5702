"""The usual scanpy preparation in one call: counts kept, values normalised, a view of the cells."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import COUNTS_LAYER, TARGET_SUM
from isd._counts import all_zero_rows, classify_layer, resolve_layer, where
from isd.pp._anndata import as_csr, same_values, some, to_write_on
from isd.pp._qc import quality
from isd.pp._round import ESTIMATED_LAYER, check_estimates_fit, rounded_with_warning
from isd.settings import settings


def recipe(
    adata: AnnData,
    *,
    layer: str | None = None,
    n_top_features: int = 2000,
    n_pcs: int = 50,
    n_neighbors: int = 15,
    resolution: float = 1.0,
    key_added: str = "leiden",
    fractional: Literal["round", "error"] = "round",
    seed: int | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Prepare counts through scanpy: quality, normalisation, features, PCA, neighbours and leiden.

    What is there already is kept and used: a counts layer, log-normalised values in ``X``, quality columns,
    ``var["highly_variable"]``, ``obsm["X_pca"]``, ``uns["neighbors"]`` and ``obs[key_added]``. A second call changes
    nothing. PCA and leiden are views for people: they see all cells, which models and metrics must not.

    Parameters
    ----------
    adata
        Annotated data with raw counts, in memory: dense or sparse, ``(n_obs, n_vars)``.
    layer
        Layer that holds the counts; ``None`` takes ``layers["counts"]`` if there, else ``X``; ``"X"`` is ``X``.
    n_top_features
        Highly variable features (scanpy's ``"seurat"`` flavour, on log-normalised values).
    n_pcs
        Principal components; fewer where there are fewer cells or features.
    n_neighbors
        Neighbours of a cell; fewer where there are fewer cells.
    resolution
        Resolution of leiden (igraph, two iterations).
    key_added
        Column of ``obs`` for the clusters.
    fractional
        What to do with estimated counts that are not whole: ``"round"`` (with one warning, the estimates are kept in
        ``layers["estimated_counts"]``) or ``"error"``.
    seed
        Seed of PCA, neighbours and leiden; ``None`` takes :attr:`isd.settings.seed <isd.settings.Settings.seed>`.
    copy
        Whether to return a changed copy and leave ``adata`` as it is.

    Returns
    -------
    ``None``, or the copy. Written, where missing:

    ``layers["counts"]``
        Raw counts, csr.
    ``X``
        ``log1p`` of the counts scaled to a total of 10,000 a cell, csr float32. Values in ``X`` that are neither this
        nor the counts are the caller's own: they stay, with a warning.
    ``obs``
        ``n_genes_by_counts``, ``total_counts``, ``pct_counts_in_top_{50,100,200,500}_genes`` (as far as there are that
        many features), ``total_counts_*`` and ``pct_counts_*`` for ``mt``, ``ribo`` and ``hb``, ``mt_outlier`` (above
        8%, or more than 3 scaled median absolute deviations above the median), ``n_counts``, ``n_genes``;
        ``key_added``. Nothing is filtered.
    ``var``
        ``mt``, ``ribo``, ``hb`` (by ``var["gene_name"]``, else by ``var_names``), ``n_cells_by_counts``, ``mean_counts``,
        ``pct_dropout_by_counts``, ``total_counts``, ``highly_variable`` and its statistics.
    ``obsm["X_pca"]``, ``varm["PCs"]``, ``obsp``, ``uns``
        As scanpy writes them.

    Raises
    ------
    KeyError
        If ``layer`` is not there.
    ValueError
        If the values are no counts (NaN, negative, log-normalised), cells have no counts (some are named), counts are
        fractional and ``fractional="error"``, there are fewer than 2 cells or 2 features with counts, or the data are
        backed by a file. ``adata`` is then as it was.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(200, 300, n_labels=3)
    >>> isd.pp.recipe(adata)
    >>> adata.obsm["X_pca"].shape, "counts" in adata.layers
    ((200, 50), True)
    """
    _check_arguments(n_top_features, n_pcs, n_neighbors, resolution, fractional)
    if adata.isbacked:
        raise ValueError(
            "adata is backed by a file, and the recipe writes layers; read it into memory: adata = adata.to_memory()."
        )
    adata = to_write_on(adata, copy=copy)
    seed = settings.seed if seed is None else seed
    source = resolve_layer(adata, layer)
    given = adata.X if source is None else adata.layers[source]
    if given is None:
        raise ValueError("adata.X is empty; put raw counts there, or name their layer with layer=.")
    if adata.n_obs < 2:
        raise ValueError(f"adata has {adata.n_obs} cells; at least 2 are needed.")

    is_whole = classify_layer(adata, source) == "integer"
    if not is_whole and fractional == "error":
        raise ValueError(
            f"{where(source)} holds fractional (estimated) counts, and models of counts need whole numbers. "
            'Round them with isd.pp.round_counts(adata) or isd.pp.recipe(adata, fractional="round"), '
            "or give the layer of whole counts."
        )
    _check_empty(adata, given, source, is_whole)
    if source != COUNTS_LAYER and COUNTS_LAYER in adata.layers:
        if not same_values(adata.layers[COUNTS_LAYER], given, np.arange(adata.n_obs)):
            raise ValueError(
                f"layer={layer!r} was given, but adata.layers[{COUNTS_LAYER!r}] is there and holds other values; "
                f"the recipe keeps counts there: rename or drop it, or leave layer out to use it."
            )
    if is_whole:
        counts = as_csr(given)
    else:
        check_estimates_fit(adata)
        counts = as_csr(rounded_with_warning(given, where(source)))

    work = AnnData(obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=adata.var_names), shape=adata.shape)
    writes_x = _fill_normalised(adata, work, counts, source)
    _add_views(adata, work, counts, n_top_features, n_pcs, n_neighbors, resolution, key_added, seed)
    obs, var = quality(adata, counts) if _quality_is_missing(adata) else (pd.DataFrame(), pd.DataFrame())

    # everything that can fail has been done: only now is anything written
    if not is_whole:
        adata.layers[ESTIMATED_LAYER] = given
    if COUNTS_LAYER not in adata.layers or source == COUNTS_LAYER:
        # a layer of another name stays the caller's: two layers must not share their memory
        adata.layers[COUNTS_LAYER] = counts.copy() if counts is given and source not in (None, COUNTS_LAYER) else counts
    if writes_x:
        adata.X = work.X
    for frame, made in ((adata.obs, obs), (adata.var, var), (adata.obs, work.obs), (adata.var, work.var)):
        for column in made.columns.difference(frame.columns, sort=False):
            frame[column] = made[column]
    for slot in ("obsm", "varm", "obsp", "uns"):
        target, new = getattr(adata, slot), getattr(work, slot)
        for key in new:
            if key not in target:
                target[key] = new[key]
    return adata if copy else None


def _check_arguments(n_top_features: int, n_pcs: int, n_neighbors: int, resolution: float, fractional: str) -> None:
    for name, value, least in (
        ("n_top_features", n_top_features, 2),
        ("n_pcs", n_pcs, 1),
        ("n_neighbors", n_neighbors, 2),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}.")
    if resolution <= 0:
        raise ValueError(f"resolution is {resolution}; expected a number above 0.")
    if fractional not in ("round", "error"):
        raise ValueError(f'fractional is {fractional!r}; expected "round" or "error".')


def _check_empty(adata: AnnData, given: Any, source: str | None, is_whole: bool) -> None:
    empty = all_zero_rows(given, rounded=not is_whole)
    if empty.size:
        rint = "" if is_whole else ".rint()" if sparse.issparse(given) else ".round()"
        after = "" if is_whole else " after rounding"
        raise ValueError(
            f"{empty.size} of {adata.n_obs} cells have no counts in {where(source)}{after}: "
            f"{some(adata.obs_names[empty])}. They cannot be normalised; drop them first: "
            f"adata = adata[np.asarray({where(source)}{rint}.sum(axis=1)).ravel() > 0].copy()"
        )


def _fill_normalised(adata: AnnData, work: AnnData, counts: sparse.csr_matrix, source: str | None) -> bool:
    """Put the recipe's values into ``work.X``; say whether they belong into ``adata.X``."""
    import scanpy as sc

    rows = np.unique(np.linspace(0, adata.n_obs - 1, 256).astype(int))
    sample = AnnData(X=counts[rows].astype(np.float32))
    sc.pp.normalize_total(sample, target_sum=TARGET_SUM)
    sc.pp.log1p(sample)
    everything = np.arange(rows.size)
    writes_x = True
    if source is not None and adata.X is not None:
        if same_values(as_csr(adata.X[rows]), sample.X, everything, atol=1e-3):
            work.X = adata.X
            if "log1p" not in adata.uns:
                work.uns["log1p"] = {"base": None}
            return False
        estimates = adata.layers[source][rows]
        if not any(same_values(adata.X[rows], c, everything) for c in (counts[rows], estimates)):
            warnings.warn(
                "adata.X holds neither the counts nor log1p of 1e4-normalised counts, and is kept as it is; features, PCA "
                f"and clusters are made from the counts in {where(source)}. Generated data hold log1p(1e4) values: for "
                "the same here, set adata.X = adata.layers['counts'].copy() and run isd.pp.recipe again.",
                UserWarning,
                stacklevel=3,
            )
            writes_x = False
    work.X = counts.astype(np.float32)  # a copy, also where it is float32
    sc.pp.normalize_total(work, target_sum=TARGET_SUM)
    sc.pp.log1p(work)
    if not writes_x:
        del work.uns["log1p"]
    return writes_x


def _add_views(
    adata: AnnData,
    work: AnnData,
    counts: sparse.csr_matrix,
    n_top_features: int,
    n_pcs: int,
    n_neighbors: int,
    resolution: float,
    key_added: str,
    seed: int,
) -> None:
    """Highly variable features, PCA, neighbours and clusters into ``work``, each unless ``adata`` has it."""
    import scanpy as sc

    if "highly_variable" in adata.var:
        work.var["highly_variable"] = adata.var["highly_variable"]
    else:
        seen = int((counts.sum(axis=0) > 0).sum())
        if seen < 2:
            raise ValueError(f"{seen} of {adata.n_vars} features have counts; at least 2 are needed.")
        with np.errstate(invalid="ignore", divide="ignore"):  # a feature that never varies has no log dispersion
            sc.pp.highly_variable_genes(work, flavor="seurat", n_top_genes=min(n_top_features, seen))
    if "X_pca" in adata.obsm:
        work.obsm["X_pca"] = adata.obsm["X_pca"]
    else:
        n_features = int(work.var["highly_variable"].sum())
        n_comps = min(n_pcs, adata.n_obs - 1, n_features - 1)
        if n_comps < 1:
            raise ValueError(f"{n_features} highly variable features were found; PCA needs at least 2.")
        sc.pp.pca(work, n_comps=n_comps, mask_var="highly_variable", svd_solver="arpack", random_state=seed)
    if "neighbors" in adata.uns:
        work.uns["neighbors"] = adata.uns["neighbors"]
        for key in ("connectivities_key", "distances_key"):
            name = adata.uns["neighbors"].get(key, key.removesuffix("_key"))
            if name in adata.obsp:
                work.obsp[name] = adata.obsp[name]
    else:
        sc.pp.neighbors(work, n_neighbors=min(n_neighbors, max(2, adata.n_obs - 1)), use_rep="X_pca", random_state=seed)
    if key_added not in adata.obs:
        sc.tl.leiden(
            work,
            resolution=resolution,
            key_added=key_added,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=seed,
        )


def _quality_is_missing(adata: AnnData) -> bool:
    return not {"n_genes_by_counts", "total_counts", "pct_counts_mt", "mt_outlier", "n_counts"} <= set(adata.obs)
