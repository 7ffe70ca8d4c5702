"""Losses over training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from isd.pl._figure import COLOR_BLIND_SAFE, REAL_COLOR, finish, new_figure, resolve_show, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIDES = {"train": (REAL_COLOR, "training"), "validation": (COLOR_BLIND_SAFE[1], "validation")}


def history(
    history: Mapping[str, pd.DataFrame],
    *,
    keys: Sequence[str] | None = None,
    n_cols: int = 3,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot what a model logged in training, training and validation cells in one panel each quantity.

    Parameters
    ----------
    history
        A model's ``history``: one data frame per quantity, with steps or epochs as index.
    keys
        Quantities to plot, as in ``history`` or without their ``train`` or ``validation``; by default all that were
        logged more than once for training or validation cells (per epoch where there is that, else per step).
    n_cols
        Panels in a row.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``history.png`` there.
    ax
        Axes to draw one quantity in.
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list where there are several), or the figure.

    Raises
    ------
    KeyError
        If a quantity is absent.
    ValueError
        If there is nothing to plot, or several quantities are to go into one ``ax``.

    Examples
    --------
    >>> losses = pd.DataFrame({"train_loss_epoch": [3.0, 2.0, 1.5]})
    >>> axes = history({"train_loss_epoch": losses}, show=False)
    """
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    panels = _panels(history or {}, keys)
    if ax is not None:
        if len(panels) != 1:
            raise ValueError(f"ax= holds one quantity, but there are {list(panels)}; choose one with keys=.")
        figure, axes = ax.figure, [ax]
    else:
        columns = min(n_cols, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = new_figure((3.4 * columns, 2.7 * rows), visible)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for unused in grid[len(panels) :]:
            unused.remove()
        axes = list(grid[: len(panels)])
    for panel, (name, sides) in zip(axes, panels.items(), strict=True):
        for side, frame in sides.items():
            color, label = _SIDES[side]
            values = pd.to_numeric(frame.iloc[:, 0], errors="coerce").dropna()
            panel.plot(values.index, values.to_numpy(), color=color, label=label, linewidth=1.4)
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel(next(iter(sides.values())).index.name or "epoch", fontsize=9)
        panel.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # of MaxNLocator
        panel.tick_params(labelsize=8)
        panel.legend(frameon=False, fontsize=8)
        tidy(panel)
    result = axes[0] if len(axes) == 1 else axes
    return finish(figure, result, name="history", show=visible, save=save, return_fig=return_fig)


def _side(key: str) -> tuple[str, str] | None:
    """Quantity and side of a logged key: ``elbo_train`` is ``("elbo", "train")``; ``None`` for other keys."""
    found = re.search(r"(^|_)(train|validation)(_|$)", key)
    if found is None:
        return None
    name = re.sub(r"_(step|epoch)$", "", (key[: found.start()] + "_" + key[found.end() :]).strip("_"))
    return name or "loss", found.group(2)


def _panels(logged: Mapping[str, pd.DataFrame], keys: Sequence[str] | None) -> dict[str, dict[str, pd.DataFrame]]:
    panels: dict[str, dict[str, pd.DataFrame]] = {}
    # per-epoch values come last in this order and so replace values per step
    for key in sorted(logged, key=lambda k: (not k.endswith("_step"), k)):
        side = _side(key)
        if side is not None and len(logged[key]) > 1:
            panels.setdefault(side[0], {})[side[1]] = logged[key]
    if keys is not None:
        wanted = list(dict.fromkeys((_side(key) or (key, ""))[0] for key in keys))
        absent = [name for name in wanted if name not in panels]
        if absent:
            raise KeyError(f"{absent} were not logged; there are {sorted(panels)}.")
        panels = {name: panels[name] for name in wanted}
    if not panels:
        raise ValueError("history holds no quantity of more than one value for training or validation; train first.")
    return dict(sorted(panels.items(), key=lambda item: (item[0] != "loss", item[0]))) if keys is None else panels
