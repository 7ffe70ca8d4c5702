"""A gene's isoforms over a map of cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from isd._counts import get_counts
from isd.pl._figure import BACKGROUND_COLOR, finish, new_figure, resolve_show, short
from isd.pl._isoform_usage import _isoform_names, find_gene


def umap_isoforms(
    adata: AnnData,
    gene: str,
    *,
    basis: str = "X_umap",
    layer: str | None = None,
    smooth: int = 15,
    max_isoforms: int = 4,
    max_cells: int = 20_000,
    size: float | None = None,
    n_cols: int = 3,
    seed: int = 0,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot a gene's counts and the usage of its isoforms over a map of the cells.

    A single cell has few counts of a gene, and shares of one or two counts are 0 or 1: usage is therefore pooled over the nearest
    cells on the map. Cells without a count of the gene among these are grey.

    Parameters
    ----------
    adata
        Cells with counts of isoforms (real, generated or inferred) and ``var["gene_id"]`` or ``var["gene_name"]``.
    gene
        Identifier (with or without version) or name of the gene.
    basis
        Slot of ``obsm`` with the map, of which the first two columns are drawn.
    layer
        Layer of the counts; by default ``"counts"`` where there is one, else ``X``.
    smooth
        Cells that usage is pooled over, the cell itself among them; 1 shows each cell's own shares.
    max_isoforms
        Isoforms shown, those with the most counts.
    max_cells
        Largest number of cells drawn.
    size
        Size of points; by default by their number.
    n_cols
        Panels in a row.
    seed
        Seed of the draw of cells.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``umap_isoforms.png`` there.
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the list of axes, or the figure.

    Raises
    ------
    KeyError
        If the gene or the map is absent.
    ValueError
        If numbers are out of range.

    Examples
    --------
    >>> import anndata as ad, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> var = pd.DataFrame({"gene_id": ["g1", "g1", "g2"]}, index=["t1", "t2", "t3"])
    >>> cells = ad.AnnData(rng.poisson(2.0, size=(40, 3)).astype("float32"), var=var)
    >>> cells.obsm["X_umap"] = rng.normal(size=(40, 2))
    >>> axes = umap_isoforms(cells, "g1", show=False)
    """
    for name, value in (
        ("smooth", smooth),
        ("max_isoforms", max_isoforms),
        ("n_cols", n_cols),
        ("max_cells", max_cells),
    ):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if basis not in adata.obsm:
        raise KeyError(
            f"basis {basis!r} is not in adata.obsm, which has {list(adata.obsm)}; run sc.tl.umap(adata) first."
        )
    visible = resolve_show(show, save=save, ax=None, return_fig=return_fig)
    features, title = find_gene(adata.var, gene)
    counts = get_counts(adata, layer)[:, features]
    counts = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    points = np.asarray(adata.obsm[basis])[:, :2]
    rows = np.arange(adata.n_obs)
    if adata.n_obs > max_cells:
        rows = np.sort(np.random.default_rng(seed).choice(adata.n_obs, max_cells, replace=False))
    points, counts = points[rows], counts[rows].astype(np.float64)
    order = np.argsort(-counts.sum(axis=0), kind="stable")[:max_isoforms]
    names = [_isoform_names(adata.var, features)[i] for i in order]
    pooled = _pooled(counts, points, smooth)
    totals = pooled.sum(axis=1)
    with np.errstate(invalid="ignore"):
        usage = np.where(totals[:, None] > 0, pooled[:, order] / totals[:, None], np.nan)
    n_panels = 1 + len(order)
    n_cols = min(n_cols, n_panels)
    n_rows = -(-n_panels // n_cols)
    figure = new_figure((2.3 * n_cols + 0.5, 2.15 * n_rows + 0.35), visible)
    layout: Any = figure.get_layout_engine()
    layout.set(wspace=0.08, hspace=0.06)
    grid = figure.subplots(n_rows, n_cols, squeeze=False).ravel()
    for unused in grid[n_panels:]:
        unused.remove()
    axes = list(grid[:n_panels])
    dot = size if size is not None else float(np.clip(12_000 / max(len(rows), 1), 0.8, 14))
    total = counts.sum(axis=1)
    axes[0].scatter(*points[total == 0].T, color=BACKGROUND_COLOR, s=dot, linewidths=0)
    some = np.flatnonzero(total > 0)
    # the highest on top
    some = some[np.argsort(total[some], kind="stable")]
    expressed = axes[0].scatter(*points[some].T, c=np.log1p(total[some]), s=dot, cmap="viridis_r", linewidths=0)
    _bar(figure, expressed, axes[0], "log1p counts")
    axes[0].set_title("counts of the gene", fontsize=7.5)
    for i, (ax, name) in enumerate(zip(axes[1:], names, strict=True)):
        known = ~np.isnan(usage[:, i])
        ax.scatter(*points[~known].T, color=BACKGROUND_COLOR, s=dot, linewidths=0)
        shades = ax.scatter(*points[known].T, c=usage[known, i], s=dot, cmap="viridis", vmin=0, vmax=1, linewidths=0)
        ax.set_title(short(name), fontsize=7.5)
    _bar(figure, shades, axes[1:], "usage" if smooth == 1 else f"usage in {smooth} nearest cells")
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=9)
    return finish(figure, axes, name="umap_isoforms", show=visible, save=save, return_fig=return_fig)


def _pooled(counts: np.ndarray, points: np.ndarray, n: int) -> np.ndarray:
    """Counts summed over the nearest cells on the map."""
    if n == 1:
        return counts
    from sklearn.neighbors import NearestNeighbors

    n = min(n, len(points))
    found = NearestNeighbors(n_neighbors=n).fit(points).kneighbors(points, return_distance=False)
    rows = np.repeat(np.arange(len(points)), n)
    weights = sparse.csr_matrix((np.ones(rows.size), (rows, found.ravel())), shape=(len(points), len(points)))
    return np.asarray(weights @ counts)


def _bar(figure: Any, shades: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(shades, ax=axes, shrink=0.7, pad=0.02, aspect=18)
    bar.set_label(label, fontsize=7.5)
    bar.ax.tick_params(labelsize=6.5)
    bar.outline.set_visible(False)
