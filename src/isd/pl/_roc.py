"""ROC curves of the classifier that tries to tell generated cells from real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import UNS_KEY
from isd.pl._figure import GENERATED_COLOR, REAL_COLOR, finish, label_colors, new_figure, resolve_show, short, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"features": "on features", "pcs": "on principal components"}


def roc(
    generated: AnnData,
    *,
    space: Literal["features", "pcs"] | None = None,
    groups: str | Sequence[str] | bool = "all",
    mode: Literal["together", "per_label"] = "together",
    n_cols: int = 4,
    key: str = "metrics",
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot the ROC curves that :func:`isd.metrics.evaluate` left, beside the floor of real against real.

    Parameters
    ----------
    generated
        Generated cells, evaluated.
    space
        ``"features"`` or ``"pcs"``; by default one panel for each that was evaluated (features, in ``ax``).
    groups
        ``"all"`` cells together, one label, several (with ``"all"`` among them if wanted), or ``True`` for every
        label. With one group, the floor's curve and the intervals (95%) are drawn.
    mode
        ``"together"``: all groups in one panel for each space. ``"per_label"``: one panel a group, each with its
        floor's curve and intervals, in one space (features, where they were evaluated).
    n_cols
        Panels in a row, for ``"per_label"``.
    key
        Key that ``evaluate`` was given as ``key_added``.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``roc.png`` there.
    ax
        Axes to draw one space in.
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list where there are several), or the figure.

    Raises
    ------
    KeyError
        If the cells have not been evaluated, or a group or space was not.
    ValueError
        For another ``mode``, or several panels in one ``ax``.

    Examples
    --------
    >>> import anndata as ad
    >>> from isd.metrics import evaluate
    >>> rng = np.random.default_rng(0)
    >>> real, fake = (ad.AnnData(rng.poisson(2.0, size=(n, 9)).astype("float32")) for n in (200, 50))
    >>> real.obs["isd_split"] = ["train"] * 150 + ["test"] * 50
    >>> table = evaluate(real, fake, metrics="random_forest_auc", n_boot=20)
    >>> axes = roc(fake, show=False)
    """
    if mode not in ("together", "per_label"):
        raise ValueError(f"mode={mode!r} is not known; choose 'together' or 'per_label'.")
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    slot = generated.uns.get(UNS_KEY, {})
    curves_key = "roc" if key == "metrics" else f"{key}_roc"
    if curves_key not in slot or key not in slot:
        raise KeyError(
            f'generated.uns["{UNS_KEY}"] has no {curves_key!r}; run isd.metrics.evaluate(adata, generated) with '
            "random_forest_auc among its metrics first."
        )
    curves: pd.DataFrame = slot[curves_key]
    table: pd.DataFrame = slot[key]
    table = table[table["metric"] == "random_forest_auc"]
    known = list(dict.fromkeys(table["group"]))
    if isinstance(groups, bool):
        groups = [group for group in known if group != "all"]
    wanted = [str(g) for g in ([groups] if isinstance(groups, str) else groups)]
    _check_known(wanted, known, "groups")
    evaluated = [name for name in _TITLES if name in set(table["space"])]
    spaces = evaluated if space is None else [space]
    _check_known(spaces, evaluated, "space")
    figure: Any
    if mode == "per_label":
        if ax is not None and len(wanted) > 1:
            raise ValueError(f"ax= holds one panel, but there are {len(wanted)} groups; give one of them in groups=.")
        if ax is None:
            of_space = curves[curves["space"] == spaces[0]], table[table["space"] == spaces[0]]
            figure, axes = _small_panels(*of_space, wanted, _TITLES[spaces[0]], n_cols, visible)
            return finish(figure, axes, name="roc", show=visible, save=save, return_fig=return_fig)
    if ax is not None:
        spaces, figure, axes = spaces[:1], ax.figure, [ax]
        homes: list[Any] = [ax]
    else:
        # one column wide (3.4 inches) for each space, so that text stays readable in print
        lines = 1 + max(2, len(wanted))
        figure = new_figure((3.5 * len(spaces), 3.6 + 0.17 * lines), visible)
        homes = list(figure.subfigures(1, len(spaces), squeeze=False)[0])
        axes = [home.add_subplot() for home in homes]
    for panel, home, name in zip(axes, homes, spaces, strict=True):
        _draw(panel, curves[curves["space"] == name], table[table["space"] == name], wanted)
        panel.set_title(_TITLES[name], fontsize=10)
        # a legend among the curves would lie on one or another: below, or in the corner of somebody's own axes
        place: dict[str, Any] = {"loc": "lower right"} if ax is not None else {"loc": "outside lower center"}
        home.legend(**place, frameon=False, fontsize=8, title="AUC", title_fontsize=8)
    result = axes[0] if len(axes) == 1 else axes
    return finish(figure, result, name="roc", show=visible, save=save, return_fig=return_fig)


def _check_known(asked: Sequence[str], known: Sequence[str], what: str) -> None:
    absent = [name for name in asked if name not in known]
    if absent or not asked:
        raise KeyError(f"{what} {absent or list(asked)} were not evaluated; there are {list(known)}.")


def _draw(ax: Axes, curves: pd.DataFrame, table: pd.DataFrame, groups: Sequence[str]) -> None:
    ax.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, linestyle=":", zorder=1)
    colors = (
        {groups[0]: GENERATED_COLOR}
        if len(groups) == 1
        else {"all": "#222222"} | label_colors([group for group in groups if group != "all"])
    )
    for group in groups:
        row = table[table["group"] == group].iloc[0]
        of_group = curves[curves["group"] == group]
        name = "generated" if len(groups) == 1 else group
        if of_group.empty:
            ax.plot([], [], color=colors[group], label=f"{name}: n too small ({row['n_real']} real)")
            continue
        if len(groups) == 1:
            label = f"real against real {row['floor']:.2f} ({row['floor_lower']:.2f} to {row['floor_upper']:.2f})"
            _curve(ax, of_group[of_group["source"] == "floor"], REAL_COLOR, label, band=True, linestyle="--")
            label = f"{name} {row['value']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})"
        else:
            label = f"{name}  {row['value']:.2f} (floor {row['floor']:.2f})"
        _curve(ax, of_group[of_group["source"] == "generated"], colors[group], label, band=len(groups) == 1)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.set_xlabel("real cells called generated", fontsize=9)
    ax.set_ylabel("generated cells found", fontsize=9)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.tick_params(labelsize=8)
    tidy(ax)


def _small_panels(
    curves: pd.DataFrame, table: pd.DataFrame, groups: Sequence[str], title: str, n_cols: int, show: bool
) -> tuple[Any, list[Any]]:
    """One panel a group: curve and floor with their intervals, numbers inside, where no curve can be."""
    from matplotlib.lines import Line2D

    columns = max(1, min(n_cols, len(groups)))
    rows = math.ceil(len(groups) / columns)
    figure = new_figure((max(1.75 * columns + 0.4, 3.4), 1.95 * rows + 0.8), show)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for unused in grid.ravel()[len(groups) :]:
        unused.remove()
    axes = list(grid.ravel()[: len(groups)])
    for position, (panel, group) in enumerate(zip(axes, groups, strict=True)):
        row = table[table["group"] == group].iloc[0]
        of_group = curves[curves["group"] == group]
        panel.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, linestyle=":", zorder=1)
        if of_group.empty:
            panel.text(0.5, 0.5, "n too small", ha="center", va="center", fontsize=7.5, color="#777777")
        else:
            _curve(panel, of_group[of_group["source"] == "floor"], REAL_COLOR, "", band=True, linestyle="--")
            _curve(panel, of_group[of_group["source"] == "generated"], GENERATED_COLOR, "", band=True)
            text = f"{row['value']:.2f} ({row['lower']:.2f}-{row['upper']:.2f})\nfloor {row['floor']:.2f}"
            panel.text(0.98, 0.03, text, ha="right", va="bottom", fontsize=6.5)
        panel.set_title(f"{short(group, 18)} (n = {row['n_real']:,})", fontsize=7.5)
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.tick_params(labelsize=7, labelbottom=position + columns >= len(groups))
        tidy(panel)
    figure.supxlabel("real cells called generated", fontsize=8)
    figure.supylabel("generated cells found", fontsize=8)
    handles = [
        Line2D([], [], color=REAL_COLOR, linestyle="--", label="real against real"),
        Line2D([], [], color=GENERATED_COLOR, label=f"generated, {title}"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=7.5)
    return figure, axes


def _curve(ax: Axes, curve: pd.DataFrame, color: str, label: str, *, band: bool, linestyle: str = "-") -> None:
    fpr = np.concatenate([[0.0], curve["fpr"]])
    ax.plot(fpr, np.concatenate([[0.0], curve["tpr"]]), color=color, label=label, linestyle=linestyle, zorder=3)
    if band:
        ax.fill_between(curve["fpr"], curve["tpr_lower"], curve["tpr_upper"], color=color, alpha=0.2, linewidth=0)
