"""Metrics beside their floors: everything at a glance, and label by label."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import UNS_KEY
from isd.pl._figure import GENERATED_COLOR, REAL_COLOR, finish, new_figure, resolve_show, short, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colour and shape of a verdict: either alone tells them apart.
VERDICTS = {
    "indistinguishable": ("#0072b2", "o"),
    "close": ("#e69f00", "D"),
    "far": ("#d55e00", "s"),
}
_BAND = "#dddddd"
#: Shapes of the baselines, hollow and grey: beside the model, not in its way.
_BASELINE_MARKERS = ("^", "v", "<", ">", "p", "h")
_HOLLOW: dict[str, Any] = {
    "color": "#8a8a8a", "markerfacecolor": "white", "markeredgewidth": 0.9, "markersize": 4, "linestyle": "none", "zorder": 2.5,
}  # fmt: skip
#: Distances beyond this many floor widths all look alike: far.
_FARTHEST = 1000.0


def metrics(
    generated: AnnData | pd.DataFrame,
    *,
    metrics: str | Sequence[str] | None = None,
    space: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | bool = "all",
    key: str = "metrics",
    n_cols: int = 3,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot the metrics of :func:`isd.metrics.evaluate` against their floors.

    For all cells together, one row a metric on one common axis: the distance from the floor (real against real) in
    units of the floor's interval, so that ``-1`` to ``1``, shaded, is where real cells themselves would be, and what
    lies further right is worse. Value and floor are printed beside; the baselines of ``evaluate(..., baselines=True)``
    are drawn hollow. For labels, one panel a metric in its own units,
    one row a label, with the floor's interval shaded behind each value.

    Parameters
    ----------
    generated
        Generated cells, evaluated; or the table that ``evaluate`` returned.
    metrics
        Names of metrics to show; by default all that have a value (and, for all cells, those without one, too).
    space
        Spaces to show, such as ``"pcs"``; by default all.
    groups
        ``"all"`` cells together, ``True`` for every label, or the labels to show.
    key
        Key that ``evaluate`` was given as ``key_added``.
    n_cols
        Panels in a row, for labels.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``metrics.png`` there.
    ax
        Axes to draw in: all cells, or labels by one metric.
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list where there are several), or the figure.

    Raises
    ------
    KeyError
        If the cells have not been evaluated, or a metric, space or group was not.
    ValueError
        If there is no number to plot, or several panels are to go into one ``ax``.

    Examples
    --------
    >>> numbers = {"value": [0.7], "lower": [0.66], "upper": [0.74]}
    >>> floor = {"floor": [0.5], "floor_lower": [0.45], "floor_upper": [0.55]}
    >>> names = {"metric": ["random_forest_auc"], "space": ["pcs"], "group": ["all"]}
    >>> import isd
    >>> axes = isd.pl.metrics(pd.DataFrame(names | numbers | floor), show=False)
    """
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    table = _table(generated, key)
    table = _chosen(table, "metric", metrics)
    table = _chosen(table, "space", space)
    if isinstance(groups, str) and groups == "all":
        rows = table[table["group"] == "all"]
        if rows.empty:
            raise KeyError("the table has no rows of all cells; give groups=, the labels to show.")
        figure, axes = _overview(rows, ax, visible)
    else:
        rows = table[table["group"] != "all"]
        wanted = list(dict.fromkeys(rows["group"])) if isinstance(groups, bool) else groups
        figure, axes = _by_label(_chosen(rows, "group", wanted), ax, n_cols, visible)
    return finish(figure, axes, name="metrics", show=visible, save=save, return_fig=return_fig)


def _table(generated: AnnData | pd.DataFrame, key: str) -> pd.DataFrame:
    if isinstance(generated, AnnData):
        slot = generated.uns.get(UNS_KEY, {})
        if key not in slot:
            raise KeyError(
                f'generated.uns["{UNS_KEY}"] has no {key!r}; run isd.metrics.evaluate(adata, generated) first.'
            )
        generated = slot[key]
    return as_table(generated)


def as_table(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with every column that pictures read, of the right type: out of ``evaluate``, a csv or an h5ad file.

    Raises
    ------
    KeyError
        If a column is absent without which it is no table of metrics.
    """
    table = pd.DataFrame(table).reset_index(drop=True)
    absent = [name for name in ("metric", "group", "value", "floor") if name not in table]
    if absent:
        raise KeyError(f"the table lacks {absent}; give what isd.metrics.evaluate returned.")
    # a table out of a csv or an h5ad file may hold other types than the one that was made
    for name in ("metric", "group", "space", "verdict", "note"):
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str) if name in table else ""
    baselines = [name for name in table if str(name).startswith("baseline_")]
    for name in ("value", "lower", "upper", "floor", "floor_lower", "floor_upper", *baselines):
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float) if name in table else np.nan
    return table


def _chosen(table: pd.DataFrame, column: str, wanted: str | Sequence[str] | None) -> pd.DataFrame:
    if wanted is None:
        return table
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    known = list(dict.fromkeys(table[column]))
    absent = [name for name in names if name not in known]
    if absent or not names:
        raise KeyError(f"{column} {absent or names} was not evaluated; there are {known}.")
    return table[table[column].isin(names)]


def pretty(metric: str, space: str = "") -> str:
    """How pictures and reports call a metric: ``"random forest AUC, pcs"``."""
    words = [word.upper() if word in ("auc", "mmd", "kl", "lisi", "jsd") else word for word in metric.split("_")]
    name = " ".join(words)
    return f"{name}, {space.replace('pcs', 'PCs')}" if space else name


def _distance(row: Any, value: float | None = None) -> tuple[float, float, float]:
    """Distance of value, lower and upper bound from the floor, in widths of the floor's interval; larger is worse.

    With ``value``, such as a baseline's, of that number alone.
    """
    from isd.metrics import METRICS

    metric = METRICS.get(row.metric)
    better = getattr(metric, "better", "")
    widths = {1: row.floor_upper - row.floor, -1: row.floor - row.floor_lower}
    # a floor that is nearly exact (a share of 1, say) would make any value far
    smallest = max(1e-6 * max(1.0, abs(row.floor)), getattr(metric, "tolerance", 0.0) / 2)

    def scaled(number: float) -> float:
        side = 1 if number >= row.floor else -1
        return float((number - row.floor) / max(widths[side], smallest)) if np.isfinite(widths[side]) else np.nan

    point, low, high = (
        (scaled(row.value), scaled(row.lower), scaled(row.upper)) if value is None else [scaled(value)] * 3
    )
    if better == "higher":
        return -point, -high, -low
    if better == "lower":
        return point, low, high
    # good values lie at the floor, or it is not known where: any deviation is a deviation
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return abs(point), nearest, max(abs(low), abs(high))


def _marker(verdict: str) -> tuple[str, str]:
    return VERDICTS.get(verdict, (GENERATED_COLOR, "o"))


def _overview(rows: pd.DataFrame, ax: Axes | None, show: bool) -> tuple[Any, Any]:
    height = 1.15 + 0.2 * len(rows)
    figure = new_figure((4.7, height), show) if ax is None else ax.figure
    ax = figure.add_subplot() if ax is None else ax
    ax.axvspan(-1, 1, color=_BAND, linewidth=0, zorder=0)
    ax.axvline(0, color=REAL_COLOR, linewidth=0.9, zorder=1)
    furthest, leftmost = 3.0, -3.0
    baselines = dict(zip(_baseline_columns(rows), itertools.cycle(_BASELINE_MARKERS), strict=False))
    for y, row in enumerate(rows.itertuples()):
        if not np.isfinite(row.value):
            reason = "n too small" if "n too small" in row.note else "no value"
            _beside(ax, y, 6, reason, color="#777777", style="italic")
            continue
        point, low, high = np.clip(_distance(row), -_FARTHEST, _FARTHEST)
        floor = "no floor" if not np.isfinite(row.floor) else number(row.floor)
        _beside(ax, y, 6, number(row.value))
        _beside(ax, y, 46, floor, color="#666666")
        if not np.isfinite(point):
            continue
        color, marker = _marker(row.verdict)
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [y, y], color=color, linewidth=1.5, solid_capstyle="butt", zorder=2)
            furthest = max(furthest, abs(low), abs(high))
        ax.plot([point], [y], color=color, marker=marker, markersize=4.5, linestyle="none", zorder=3)
        furthest = max(furthest, abs(point))
        for name, shape in baselines.items():
            place = np.clip(_distance(row, float(rows.at[row.Index, name]))[0], -_FARTHEST, _FARTHEST)
            if np.isfinite(place):
                ax.plot([place], [y], marker=shape, **_HOLLOW)
                furthest = max(furthest, abs(place))
                leftmost = min(leftmost, place)
    _beside(ax, -0.95, 6, "value", weight="bold")
    _beside(ax, -0.95, 46, "floor", weight="bold", color="#666666")
    ax.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    left = leftmost if rows.empty else min(leftmost * 1.3, -_leftmost(rows) * 1.3)
    ax.set_xlim(left, furthest * 1.5)
    ticks = [tick for tick in (-100, -10, -1, 0, 1, 10, 100, 1000) if left <= tick <= furthest * 1.5]
    ax.set_xticks(ticks, [f"{tick:d}" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(rows)), [pretty(row.metric, row.space) for row in rows.itertuples()])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("distance from the floor (shaded: real against real, 95%)\nfurther right is worse", fontsize=8)
    ax.tick_params(labelsize=7.5)
    ax.tick_params(axis="y", length=0)
    tidy(ax)
    handles = _verdict_handles(rows)
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=7.5)
    if baselines:
        from matplotlib.lines import Line2D

        named = [Line2D([], [], marker=m, label=_baseline_name(name), **_HOLLOW) for name, m in baselines.items()]
        figure.legend(handles=named, loc="outside lower center", ncols=3, frameon=False, fontsize=7.5)
    return figure, ax


def _baseline_columns(rows: pd.DataFrame) -> list[str]:
    """Columns of :func:`isd.metrics.evaluate`'s baselines that have a number to show."""
    return [name for name in rows if str(name).startswith("baseline_") and np.isfinite(rows[name]).any()]


def _baseline_name(column: str) -> str:
    return column.removeprefix("baseline_").replace("_", " ")


def _beside(ax: Axes, y: float, offset: float, text: str, **style: Any) -> None:
    """Text right of the axes, at a distance in points, so that columns keep apart whatever the size of the axes."""
    ax.annotate(
        text,
        (1, y),
        xycoords=ax.get_yaxis_transform(),
        xytext=(offset, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        annotation_clip=False,
        **style,
    )


def _leftmost(rows: pd.DataFrame) -> float:
    lows = np.array([_distance(row)[1] for row in rows.itertuples()])
    lows = lows[np.isfinite(lows)]
    return float(np.clip(-lows.min(), 0, _FARTHEST)) if lows.size else 0.0


def _verdict_handles(rows: pd.DataFrame) -> list[Any]:
    from matplotlib.lines import Line2D

    present = set(rows["verdict"])
    return [
        Line2D([], [], color=color, marker=marker, markersize=4.5, linewidth=1.5, label=name)
        for name, (color, marker) in VERDICTS.items()
        if name in present
    ]


def _by_label(rows: pd.DataFrame, ax: Axes | None, n_cols: int, show: bool) -> tuple[Any, Any]:
    panels = [
        (names, of_metric)
        for names, of_metric in rows.groupby(["metric", "space"], sort=False)
        if np.isfinite(of_metric["value"]).any()
    ]
    if not panels:
        raise ValueError("there is no number to plot for these labels: too few cells, or they were not evaluated.")
    groups = list(dict.fromkeys(rows["group"]))
    if ax is not None:
        if len(panels) != 1:
            raise ValueError(f"ax= holds one panel, but there are {len(panels)}; choose one with metrics= and space=.")
        figure, axes = ax.figure, [ax]
    else:
        columns = max(1, min(n_cols, len(panels)))
        n_rows = math.ceil(len(panels) / columns)
        label_width = 0.07 * min(max(map(len, groups)), 24)
        figure = new_figure((2.1 * columns + label_width + 0.2, (0.75 + 0.17 * len(groups)) * n_rows + 0.45), show)
        grid = figure.subplots(n_rows, columns, squeeze=False, sharey=True)
        for unused in grid.ravel()[len(panels) :]:
            unused.remove()
        axes = list(grid.ravel()[: len(panels)])
    for position, (panel, ((metric, space), of_metric)) in enumerate(zip(axes, panels, strict=True)):
        _label_panel(panel, of_metric, groups)
        panel.set_title(pretty(metric, space), fontsize=8.5)
        if ax is None and position % columns:
            panel.tick_params(axis="y", labelleft=False)
    if ax is None:
        handles = [_floor_handle(), *(_verdict_handles(rows) or [_value_handle()])]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, 1 + columns), frameon=False, fontsize=8)
    return figure, axes[0] if len(axes) == 1 else axes


def _label_panel(ax: Axes, rows: pd.DataFrame, groups: Sequence[str]) -> None:
    place = {group: y for y, group in enumerate(groups)}
    for row in rows.itertuples():
        y = place[row.group]
        if not np.isfinite(row.value):
            continue
        if np.isfinite(row.floor):
            ax.plot([row.floor_lower, row.floor_upper], [y, y], color="#cfcfcf", linewidth=6, solid_capstyle="butt")
            ax.plot([row.floor] * 2, [y - 0.32, y + 0.32], color="#707070", linewidth=1.1)
        color, marker = _marker(row.verdict)
        ax.plot([row.lower, row.upper], [y, y], color=color, linewidth=1.4, solid_capstyle="butt", zorder=3)
        ax.plot([row.value], [y], color=color, marker=marker, markersize=4, zorder=4)
    # what has no number is said where it would have been
    seen = set(rows.loc[np.isfinite(rows["value"]), "group"])
    for group in groups:
        if group not in seen:
            note = " ".join(rows.loc[rows["group"] == group, "note"])
            text = "n too small" if "n too small" in note else "no value"
            ax.text(
                0.03, place[group], text, transform=ax.get_yaxis_transform(), va="center", fontsize=6.5, color="#777777"
            )
    ax.set_yticks(range(len(groups)), [short(group) for group in groups])
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.locator_params(axis="x", nbins=4)
    ax.tick_params(labelsize=7.5)
    ax.tick_params(axis="y", length=0)
    tidy(ax)


def _floor_handle() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color="#cfcfcf", linewidth=6, label="real against real")


def _value_handle() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=GENERATED_COLOR, marker="o", markersize=4, linewidth=1.4, label="generated")


def number(value: float) -> str:
    """Few digits, without a needless exponent."""
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e4):
        return f"{value:.0e}"
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}"
