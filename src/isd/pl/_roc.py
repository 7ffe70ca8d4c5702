"""ROC curves of the classifier that tries to tell generated cells from real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import UNS_KEY
from isd.pl._figure import GENERATED_COLOR, REAL_COLOR, finish, label_colors, new_figure, resolve_show, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"features": "on features", "pcs": "on principal components"}


def roc(
    generated: AnnData,
    *,
    space: Literal["features", "pcs"] | None = None,
    groups: str | Sequence[str] = "all",
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
        ``"all"`` cells together, one label, or several (with ``"all"`` among them if wanted). With one group, the
        floor's curve and the intervals (95%) are drawn.
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
    wanted = [str(g) for g in ([groups] if isinstance(groups, str) else groups)]
    _check_known(wanted, list(dict.fromkeys(table["group"])), "groups")
    evaluated = [name for name in _TITLES if name in set(table["space"])]
    spaces = evaluated if space is None else [space]
    _check_known(spaces, evaluated, "space")
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


def _curve(ax: Axes, curve: pd.DataFrame, color: str, label: str, *, band: bool, linestyle: str = "-") -> None:
    fpr = np.concatenate([[0.0], curve["fpr"]])
    ax.plot(fpr, np.concatenate([[0.0], curve["tpr"]]), color=color, label=label, linestyle=linestyle, zorder=3)
    if band:
        ax.fill_between(curve["fpr"], curve["tpr_lower"], curve["tpr_upper"], color=color, alpha=0.2, linewidth=0)
