"""Real and generated cells on one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import OBSM_UMAP, SOURCE_GENERATED, SOURCE_KEY, SOURCE_REAL, UNS_KEY
from isd.pl._figure import (
    BACKGROUND_COLOR,
    GENERATED_COLOR,
    REAL_COLOR,
    finish,
    label_colors,
    new_figure,
    resolve_show,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Fewer points than this have no density worth drawing.
_MIN_DENSITY = 20
Mode = Literal["global", "per_label", "combined"]


def umap_compare(
    adata: AnnData,
    generated: AnnData,
    *,
    color: str | None = None,
    groups: str | Sequence[str] | None = None,
    mode: Mode | None = None,
    joint: AnnData | None = None,
    layer: str | None = None,
    max_cells: int = 5000,
    size: float | None = None,
    contours: bool = False,
    n_cols: int = 4,
    seed: int = 0,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot generated cells over real ones on a UMAP that was fitted on the real ones.

    Equal numbers of real and generated cells are drawn, so that neither hides the other by number alone.

    Parameters
    ----------
    adata
        Real cells with counts.
    generated
        Generated cells.
    color
        Column of ``obs`` with the labels. By default the one that the cells were generated with, else ``"leiden"`` if
        both have it. ``"isd_source"``: no labels, one panel.
    groups
        Labels to show.
    mode
        ``"global"``: real and generated over each other, then either by label. ``"per_label"``: one panel a label.
        ``"combined"``: as global, the chosen ``groups`` in colour and all others pale. By default ``"combined"``
        where groups are given, else ``"global"``.
    joint
        What :func:`isd.tl.embed` returned, to plot it again without computing it again.
    layer
        Layer of the counts, for :func:`isd.tl.embed`.
    max_cells
        Largest number of cells drawn from either side.
    size
        Size of points; by default by their number.
    contours
        Draw real and generated cells over each other as densities instead of points: shaded areas for real cells,
        lines for generated ones, each around the densest places that hold 50%, 80% and 95% of the cells.
    n_cols
        Panels in a row, for ``"per_label"``.
    seed
        Seed of the embedding and of the draw.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``umap_compare.png`` there.
    ax
        Axes to draw the overlay of real and generated cells in (that panel alone).
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list where there are several), or the figure.

    Raises
    ------
    KeyError
        If ``color`` or a group is absent.
    ValueError
        If a mode needs labels and there are none, or several panels are to go into one ``ax``.

    Examples
    --------
    >>> import anndata as ad
    >>> from isd.tl._embed import embed
    >>> rng = np.random.default_rng(0)
    >>> real = ad.AnnData(rng.poisson(2.0, size=(40, 20)).astype("float32"))
    >>> fake = ad.AnnData(rng.poisson(2.0, size=(10, 20)).astype("float32"))
    >>> axes = umap_compare(real, fake, joint=embed(real, fake, n_pcs=5), show=False)
    """
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    wanted = None if groups is None else [str(g) for g in ([groups] if isinstance(groups, str) else groups)]
    mode = mode or ("global" if wanted is None else "combined")
    if mode not in ("global", "per_label", "combined"):
        raise ValueError(f"mode={mode!r} is not known; choose 'global', 'per_label' or 'combined'.")
    key = _resolve_color(adata, generated, color)
    if key is None and mode != "global":
        raise ValueError(f"mode={mode!r} needs labels; give color=, a column of obs of both data sets.")
    if key is not None:
        _check_groups(adata, generated, key, wanted)
    if joint is None:
        from isd.tl._embed import embed  # the one call from pl into tl: the map is computed where it is missing

        joint = embed(adata, generated, layer=layer, max_cells=max(max_cells, 5000), seed=seed)
    elif OBSM_UMAP not in joint.obsm or SOURCE_KEY not in joint.obs:
        raise KeyError(f"joint lacks obsm[{OBSM_UMAP!r}] or obs[{SOURCE_KEY!r}]; give what isd.tl.embed returned.")
    cells = _Cells(joint, key, max_cells, size, seed, contours)
    labels = [name for name in cells.names if wanted is None or name in wanted]
    if mode == "per_label" and ax is not None and len(labels) != 1:
        raise ValueError(f"ax= holds one panel, but {len(labels)} labels are to be drawn; give one of them in groups=.")

    if ax is not None:
        _overlay(ax, cells, labels if mode != "global" else None)
        figure, axes = ax.figure, ax
    elif mode == "per_label":
        figure, axes = _per_label(cells, labels, n_cols, visible)
    else:
        figure, axes = _panels(cells, labels if mode == "combined" else None, visible)
    return finish(figure, axes, name="umap_compare", show=visible, save=save, return_fig=return_fig)


def _resolve_color(adata: AnnData, generated: AnnData, color: str | None) -> str | None:
    if color == SOURCE_KEY:
        return None
    if color is not None:
        for name, data in (("adata", adata), ("generated", generated)):
            if color not in data.obs:
                raise KeyError(f"color {color!r} is not in {name}.obs, which has {list(map(str, data.obs.columns))}.")
        return color
    for key in (generated.uns.get(UNS_KEY, {}).get("labels_key"), "leiden"):
        if key is not None and str(key) in adata.obs and str(key) in generated.obs:
            return str(key)
    return None


def _check_groups(adata: AnnData, generated: AnnData, key: str, wanted: list[str] | None) -> None:
    known = {str(v) for data in (adata, generated) for v in data.obs[key].dropna().unique()}
    absent = [group for group in wanted or [] if group not in known]
    if absent:
        raise KeyError(f"groups {absent} are not labels in obs[{key!r}], which has {sorted(known)}.")


class _Cells:
    """Coordinates, labels and colours of what is drawn: equal numbers from either side, in random order."""

    def __init__(
        self, joint: AnnData, key: str | None, max_cells: int, size: float | None, seed: int, contours: bool
    ) -> None:
        source = joint.obs[SOURCE_KEY].astype(str).to_numpy()
        rows = {name: np.flatnonzero(source == name) for name in (SOURCE_REAL, SOURCE_GENERATED)}
        self.contours = contours
        self.n = min(max_cells, *(found.size for found in rows.values()))
        rng = np.random.default_rng(seed)
        self.rows = {name: rng.permutation(found)[: self.n] for name, found in rows.items()}
        self.xy = np.asarray(joint.obsm[OBSM_UMAP])
        self.size = size if size is not None else float(np.clip(12_000 / max(self.n, 1), 1.5, 18))
        self.key, self.names, self.colors, self.labels = key, [], {}, np.full(joint.n_obs, "", dtype=object)
        if key is not None:
            column = joint.obs[key]
            if not isinstance(column.dtype, pd.CategoricalDtype):
                column = column.astype("category")
            self.labels = column.astype(object).map(str, na_action="ignore").to_numpy(dtype=object)
            self.names = [str(category) for category in column.cat.categories]
            self.colors = label_colors(self.names, joint.uns.get(f"{key}_colors"))

    def members(self, source: str, names: Sequence[str] | None) -> np.ndarray:
        """Rows drawn from one side, of some labels or (``None``) of all."""
        rows = self.rows[source]
        return rows if names is None else rows[np.isin(self.labels[rows], list(names))]


def _scatter(ax: Axes, cells: _Cells, rows: np.ndarray, color: Any, **options: Any) -> None:
    options = {"s": cells.size, "linewidths": 0, "rasterized": True} | options
    ax.scatter(cells.xy[rows, 0], cells.xy[rows, 1], c=color, **options)


def _limits(cells: _Cells) -> np.ndarray:
    low, high = np.nanmin(cells.xy, axis=0), np.nanmax(cells.xy, axis=0)
    pad = (0.08 if cells.contours else 0.04) * np.maximum(high - low, 1e-6)
    return np.array([low - pad, high + pad])


def _frame(ax: Axes, cells: _Cells, title: str) -> None:
    """Same limits in every panel; a UMAP's units mean nothing, so no ticks."""
    low, high = _limits(cells)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
    ax.set_title(title, fontsize=10)
    for spine in ax.spines.values():
        spine.set_color("#bbbbbb")


def _overlay(ax: Axes, cells: _Cells, names: Sequence[str] | None, *, title: str | None = None) -> None:
    """Real cells in grey, generated ones over them; cells of other labels pale underneath."""
    if names is not None:
        others = np.setdiff1d(cells.rows[SOURCE_REAL], cells.members(SOURCE_REAL, names))
        _scatter(ax, cells, others, BACKGROUND_COLOR, zorder=1)
    real, fake = cells.members(SOURCE_REAL, names), cells.members(SOURCE_GENERATED, names)
    if cells.contours:
        _densities(ax, cells, real, fake)
    else:
        _scatter(ax, cells, real, REAL_COLOR, zorder=2)
        _scatter(ax, cells, fake, GENERATED_COLOR, zorder=3, alpha=0.65, s=0.7 * cells.size)
    _frame(ax, cells, title if title is not None else f"{real.size:,} real, {fake.size:,} generated")


def _densities(ax: Axes, cells: _Cells, real: np.ndarray, fake: np.ndarray) -> None:
    """Real cells as shaded areas, generated ones as lines, few cells as points."""
    for rows, shades in ((real, ("#dcdcdc", "#bdbdbd", "#949494")), (fake, None)):
        if rows.size < _MIN_DENSITY:
            _scatter(ax, cells, rows, GENERATED_COLOR if shades is None else REAL_COLOR, zorder=4)
            continue
        grid, density, levels = density_levels(cells.xy[rows], _limits(cells))
        if shades is not None:
            ax.contourf(*grid, density, [*levels, np.inf], colors=shades, zorder=2)
        else:
            ax.contour(*grid, density, levels, colors=GENERATED_COLOR, linewidths=(0.7, 1.0, 1.5), zorder=3)


def density_levels(
    points: np.ndarray, limits: np.ndarray, *, shares: Sequence[float] = (0.95, 0.8, 0.5), n_grid: int = 200
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, list[float]]:
    """Smoothed density of points on a grid, and the levels above which given shares of them lie.

    Parameters
    ----------
    points
        Shape ``(n, 2)``.
    limits
        Lower left and upper right corner, shape ``(2, 2)``.
    shares
        Decreasing shares of the density.
    n_grid
        Places in either direction.

    Returns
    -------
    Coordinates along either axis, density of shape ``(n_grid, n_grid)`` (rows are ``y``), and increasing levels.
    """
    from scipy.ndimage import gaussian_filter

    edges = [np.linspace(low, high, n_grid + 1) for low, high in limits.T]
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=edges)
    # islands of a map are narrow: far less smoothing than a rule for one normal distribution would give
    smooth = gaussian_filter(counts.T, 0.018 * n_grid * (1000 / points.shape[0]) ** (1 / 6), mode="constant")
    order = np.sort(smooth.ravel())[::-1]
    held = np.cumsum(order) / order.sum()
    levels = [float(order[np.searchsorted(held, share)]) for share in shares]
    # contours need strictly increasing levels
    for i in range(1, len(levels)):
        levels[i] = max(levels[i], levels[i - 1] * (1 + 1e-6))
    return ((edges[0][1:] + edges[0][:-1]) / 2, (edges[1][1:] + edges[1][:-1]) / 2), smooth, levels


def _by_label(ax: Axes, cells: _Cells, source: str, names: Sequence[str] | None, title: str) -> None:
    rows = cells.members(source, names)
    if names is not None:
        _scatter(ax, cells, np.setdiff1d(cells.rows[SOURCE_REAL], rows), BACKGROUND_COLOR, zorder=1)
    unlabelled = [label not in cells.colors for label in cells.labels[rows]]
    _scatter(ax, cells, rows[unlabelled], BACKGROUND_COLOR, zorder=1)
    rows = rows[~np.asarray(unlabelled, dtype=bool)]
    _scatter(ax, cells, rows, [cells.colors[label] for label in cells.labels[rows]] or "none", zorder=2)
    _frame(ax, cells, title)


def _handles(colors: dict[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=color, marker="o", linestyle="none", markersize=5, label=name)
        for name, color in colors.items()
    ]


_SOURCES = {SOURCE_REAL: REAL_COLOR, SOURCE_GENERATED: GENERATED_COLOR}


def _panels(cells: _Cells, names: Sequence[str] | None, show: bool) -> tuple[Any, Any]:
    """Overlay, then real and generated by label with one legend beside them."""
    shown = [] if cells.key is None else list(names if names is not None else cells.names)
    if not shown:
        figure = new_figure((4.2, 4.2), show)
        ax = figure.add_subplot()
        _overlay(ax, cells, None)
        figure.legend(handles=_handles(_SOURCES), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        return figure, ax
    columns = math.ceil(len(shown) / 16)
    width = 0.5 + columns * (0.35 + 0.075 * min(max(map(len, shown)), 24))
    figure = new_figure((10.2 + width, 3.9), show)
    axes = list(figure.subplots(1, 3))
    _overlay(axes[0], cells, names)
    _by_label(axes[1], cells, SOURCE_REAL, names, "real")
    _by_label(axes[2], cells, SOURCE_GENERATED, names, "generated")
    # legends below the panel that they belong to, and beside the last: none covers a point
    axes[0].legend(
        handles=_handles(_SOURCES), loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2, frameon=False, fontsize=9
    )
    figure.legend(
        handles=_handles({short(name): cells.colors[name] for name in shown}),
        loc="outside right center",
        title=cells.key,
        ncols=columns,
        frameon=False,
        fontsize=8,
        title_fontsize=9,
    )
    return figure, axes


def _per_label(cells: _Cells, labels: Sequence[str], n_cols: int, show: bool) -> tuple[Any, Any]:
    n_cols = max(1, min(n_cols, len(labels)))
    n_rows = math.ceil(len(labels) / n_cols)
    figure = new_figure((2.6 * n_cols + 0.2, 2.75 * n_rows + 0.5), show)
    grid = np.atleast_1d(figure.subplots(n_rows, n_cols, squeeze=False)).ravel()
    for ax, name in zip(grid, labels, strict=False):
        n_real, n_fake = (cells.members(source, [name]).size for source in (SOURCE_REAL, SOURCE_GENERATED))
        _overlay(ax, cells, [name], title=f"{short(name)}\n{n_real:,} real, {n_fake:,} generated")
        ax.title.set_fontsize(8.5)
    for ax in grid[len(labels) :]:
        ax.remove()
    handles = _handles(_SOURCES | {"real, other labels": BACKGROUND_COLOR})
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure, list(grid[: len(labels)])
