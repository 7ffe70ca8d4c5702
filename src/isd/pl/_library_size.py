"""Total counts and detected features of cells, real beside generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from isd.pl._cells import Pair, Reference, Sample, choose_cells
from isd.pl._figure import GENERATED_COLOR, REAL_INK, finish, name_axes, new_figure, resolve_show, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def library_size(
    real: AnnData,
    generated: AnnData,
    *,
    labels_key: str | None = None,
    groups: str | Sequence[str] | None = None,
    layer: str | None = None,
    reference: Reference = "test",
    max_cells: int = 5000,
    seed: int = 0,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot total counts and detected features of cells, real beside generated, all together and by label.

    Above, the distributions over all cells. Below, a row a label: median, middle half (thick) and middle 95% (thin).

    Parameters
    ----------
    real
        Real cells with counts.
    generated
        Generated cells; the same features in any order.
    labels_key
        Column of ``obs`` with the labels of both; by default the one that cells were generated with, else
        ``"leiden"`` if both have it. Without labels, the distributions alone are drawn.
    groups
        Labels to show; by default all.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    reference
        Real cells to show: ``"test"`` or ``"validation"`` rows of ``obs["isd_split"]``; with ``"all"``, or without that
        column, those that the model has not trained on.
    max_cells
        Largest number of cells used from either side.
    seed
        Seed of the draw of cells.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``library_size.png`` there.
    ax
        Axes to draw the distribution of total counts in (that panel alone).
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list of two, or of four with labels, without ``ax``), or the figure.

    Raises
    ------
    KeyError
        If the column or a label is absent.
    ValueError
        If features are missing in ``generated`` or there are no cells.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> real, fake = (ad.AnnData(rng.poisson(2.0, size=(40, 30)).astype("float32")) for _ in range(2))
    >>> axes = library_size(real, fake, show=False)
    """
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    pair = choose_cells(
        real, generated, labels_key=labels_key, layer=layer, groups=groups, reference=reference, max_cells=max_cells,
        seed=seed,
    )  # fmt: skip
    quantities = {"total counts": _totals, "detected features": _detected}
    if ax is not None:
        _distribution(ax, pair, _totals, "total counts")
        return finish(ax.figure, ax, name="library_size", show=visible, save=save, return_fig=return_fig)
    n = len(pair.groups)
    heights = [2.3] + [0.35 + 0.21 * n] * (n > 0)
    figure = new_figure((6.0, sum(heights) + 0.4), visible)
    grid = figure.subplots(len(heights), 2, squeeze=False, sharex="col", height_ratios=heights)
    for column, (name, quantity) in enumerate(quantities.items()):
        _distribution(grid[0, column], pair, quantity, name if n == 0 else "")
        if n:
            _rows(grid[1, column], pair, quantity, name, labelled=column == 0)
    return finish(figure, list(grid.ravel()), name="library_size", show=visible, save=save, return_fig=return_fig)


def _totals(sample: Sample) -> np.ndarray:
    return np.asarray(sample.counts.sum(axis=1, dtype=np.float64)).ravel()


def _detected(sample: Sample) -> np.ndarray:
    counts = sample.counts
    return np.add.reduceat(np.append(counts.data != 0, False).astype(np.int64), counts.indptr[:-1]) * (
        np.diff(counts.indptr) > 0
    )


def _distribution(ax: Axes, pair: Pair, quantity: Callable[[Sample], np.ndarray], name: str) -> None:
    """Outlines of the two histograms on common, logarithmic bins."""
    values = {"real": quantity(pair.real), "generated": quantity(pair.generated)}
    together = np.concatenate(list(values.values()))
    positive = together[together > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (0.5, 1.0)
    bins = np.geomspace(
        low * 0.98, high * 1.02, int(np.clip(np.sqrt(min(v.size for v in values.values())) * 1.5, 8, 40))
    )
    for source, of_source in values.items():
        drawn = of_source[of_source > 0]
        heights, _ = np.histogram(drawn, bins)
        ax.stairs(
            heights / max(of_source.size, 1),
            bins,
            color=GENERATED_COLOR if source == "generated" else REAL_INK,
            fill=source == "real",
            alpha=0.35 if source == "real" else 1.0,
            linewidth=1.6,
            label=f"{source} ({of_source.size:,})",
        )
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    title = "  ".join(f"median {source} {np.median(v):,.0f}" for source, v in values.items())
    name_axes(ax, name, "share of cells", title)
    ax.title.set_fontsize(7.5)
    ax.legend(frameon=False, fontsize=7.5, loc="upper left")
    _plain_log_axis(ax)
    top = ax.get_ylim()[1]
    ax.set_ylim(0, top * 1.25)  # room for the legend


def _plain_log_axis(ax: Axes) -> None:
    """Whole numbers at a few places of a logarithmic axis, whose range may be far less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_xlim()
    subs: Any = (1.0,) if high / low > 100 else (1.0, 3.0) if high / low > 12 else (1.0, 2.0, 5.0)
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _rows(ax: Axes, pair: Pair, quantity: Callable[[Sample], np.ndarray], name: str, *, labelled: bool) -> None:
    for source, sample, shift in (("real", pair.real, -0.17), ("generated", pair.generated, 0.17)):
        values = quantity(sample)
        color = REAL_INK if source == "real" else GENERATED_COLOR
        for y, group in enumerate(pair.groups):
            of_group = values[sample.labels == group]
            if not of_group.size:
                continue
            thin, thick_low, middle, thick_high, end = np.quantile(of_group, [0.025, 0.25, 0.5, 0.75, 0.975])
            ax.plot([thin, end], [y + shift] * 2, color=color, linewidth=0.8, solid_capstyle="butt")
            ax.plot([thick_low, thick_high], [y + shift] * 2, color=color, linewidth=3.2, solid_capstyle="butt")
            ax.plot([middle], [y + shift], color="white", marker="o", markersize=2.4)
    ax.set_yticks(range(len(pair.groups)), [short(group) for group in pair.groups] if labelled else [])
    ax.set_ylim(len(pair.groups) - 0.4, -0.6)
    name_axes(ax, name, (pair.key or "") if labelled else "", "")
    _plain_log_axis(ax)
    ax.tick_params(axis="y", length=0)
