"""What the plots share: making a figure without a display, showing, saving, and colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isd._atomic import whole_file
from isd.settings import settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, which people with any colour vision tell apart (without black, with a darker yellow).
COLOR_BLIND_SAFE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f5fb0", "#8c6d31")
REAL_COLOR, GENERATED_COLOR, BACKGROUND_COLOR = "#8a8a8a", "#d55e00", "#e3e3e3"
#: Grey of real cells where lines and bars need more ink than a cloud of points.
REAL_INK = "#5f5f5f"
SOURCES = {"real": REAL_COLOR, "generated": GENERATED_COLOR}
_NOT_INTERACTIVE = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}


def _has_display() -> bool:
    import matplotlib

    return matplotlib.get_backend().lower() not in _NOT_INTERACTIVE


def resolve_show(show: bool | None, *, save: str | Path | bool | None, ax: Axes | None, return_fig: bool) -> bool:
    """Whether to show a figure: as asked, else where there is a display and nothing else is done with it."""
    if show is not None:
        return show
    return ax is None and not save and not return_fig and _has_display()


def new_figure(figsize: tuple[float, float], show: bool) -> Figure:
    """A figure that pyplot knows only if it is to be shown: others leave nothing behind in long jobs."""
    if show:
        import matplotlib.pyplot as plt

        return plt.figure(figsize=figsize, layout="constrained")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_path(save: str | Path | bool, name: str) -> Path:
    """Where a figure goes: a path as it is, a bare name into ``isd.settings.figdir``, ``True`` under ``name``."""
    if isinstance(save, bool):
        return settings.figdir / f"{name}.png"
    path = Path(save)
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    is_bare_name = isinstance(save, str) and path.parent == Path(".") and not save.startswith(".")
    return settings.figdir / path if is_bare_name else path


def finish(figure: Any, axes: Any, *, name: str, show: bool, save: str | Path | bool | None, return_fig: bool) -> Any:
    """Save, show and return as scanpy's plots do: ``None`` where the figure is shown, else axes or the figure."""
    if save:
        path = figure_path(save, name)
        if not path.suffix:  # matplotlib adds one of its own
            path = path.with_suffix(".png")
        with whole_file(path) as new:
            figure.savefig(new, dpi=200, format=path.suffix[1:])
    if show:
        import matplotlib.pyplot as plt

        plt.show()
    if return_fig:
        return figure
    return None if show else axes


def label_colors(names: Sequence[str], stored: Any = None) -> dict[str, str]:
    """A colour for each label: those stored in ``uns`` if there are enough, else a colour-blind-safe palette."""
    if stored is not None and len(stored) >= len(names):
        return {name: str(color) for name, color in zip(names, stored, strict=False)}
    if len(names) <= len(COLOR_BLIND_SAFE):
        return dict(zip(names, COLOR_BLIND_SAFE, strict=False))
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    # lightness changes along with hue, so that neighbours differ in print, too
    positions = np.linspace(0, 1, len(names))
    return {name: to_hex(colormaps["turbo"](p)) for name, p in zip(names, positions, strict=True)}


def tidy(ax: Axes) -> None:
    """Only the axes that carry information."""
    ax.spines[["top", "right"]].set_visible(False)


def short(name: str, longest: int = 24) -> str:
    """A name that fits beside a plot."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def name_axes(ax: Axes, x: str, y: str, title: str) -> None:
    """Names and small type."""
    ax.set_title(title, fontsize=8.5)
    ax.set_xlabel(x, fontsize=8.5)
    ax.set_ylabel(y, fontsize=8.5)
    ax.tick_params(labelsize=7.5)
    tidy(ax)
