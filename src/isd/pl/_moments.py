"""Moments of features: means, variances, zeros, generated against real, beside real against real."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from isd.pl._cells import Pair, Reference, choose_cells
from isd.pl._figure import GENERATED_COLOR, SOURCES, finish, name_axes, new_figure, resolve_show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = "#c8c8c8"


def mean_variance(
    real: AnnData,
    generated: AnnData,
    *,
    layer: str | None = None,
    reference: Reference = "test",
    max_cells: int = 5000,
    seed: int = 0,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot mean and variance of every feature's counts: generated against real, and variance against mean.

    Real cells are halved at random. One half gives the horizontal axis; the other half, against it, gives the shaded
    band in which 95% of the features of real cells lie; as many generated cells give the points. Titles say how many
    of the points lie in the band: 95% is what real cells would have.

    Parameters
    ----------
    real
        Real cells with counts.
    generated
        Generated cells; the same features in any order.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    reference
        Real cells to show: ``"test"`` or ``"validation"`` rows of ``obs["isd_split"]``; with ``"all"``, or without that
        column, those that the model has not trained on.
    max_cells
        Largest number of cells used from either side.
    seed
        Seed of the halving and of the draw of cells.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``mean_variance.png`` there.
    ax
        Axes to draw variance against mean in (that panel alone).
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list of three without ``ax``), or the figure.

    Raises
    ------
    ValueError
        If features are missing in ``generated``, or there are fewer than 4 cells of either.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> real, fake = (ad.AnnData(rng.poisson(2.0, size=(40, 30)).astype("float32")) for _ in range(2))
    >>> axes = mean_variance(real, fake, show=False)
    """
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    halves = _halves(_all_cells(real, generated, layer, reference, max_cells, seed), seed)
    moments = {name: _moments(counts) for name, counts in halves.items()}
    least = 0.5 / halves["real"].shape[0]
    figure: Any
    if ax is None:
        figure = new_figure((8.4, 3.2), visible)
        axes = list(figure.subplots(1, 3))
        for panel, position, name in zip(axes, (0, 1), ("mean", "variance"), strict=False):
            values = {sample: found[position] for sample, found in moments.items()}
            _against_real(panel, values, name, least)
        panel = axes[2]
    else:
        figure, panel = ax.figure, ax
    for name in ("real", "generated"):
        mean, variance, _ = moments[name]
        kept = (mean > 0) & (variance > 0)
        _points(panel, mean[kept], variance[kept], SOURCES[name])
        _trend(panel, mean[kept], variance[kept], name)
    low, high = panel.get_xlim()
    line = np.array([max(low, least), high])
    panel.plot(line, line, color="#222222", linewidth=0.9, linestyle=":", label="Poisson")
    panel.set(xscale="log", yscale="log")
    panel.minorticks_off()
    name_axes(panel, "mean count", "variance", "variance against mean")
    panel.legend(frameon=False, fontsize=7.5, loc="upper left")
    result = axes if ax is None else ax
    return finish(figure, result, name="mean_variance", show=visible, save=save, return_fig=return_fig)


def zero_fraction(
    real: AnnData,
    generated: AnnData,
    *,
    layer: str | None = None,
    reference: Reference = "test",
    max_cells: int = 5000,
    seed: int = 0,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot the share of cells without a count, feature by feature: generated against real, and against the mean.

    As in :func:`mean_variance`, the shaded band is where 95% of the features lie when one half of the real cells is
    compared with the other.

    Parameters
    ----------
    real
        Real cells with counts.
    generated
        Generated cells; the same features in any order.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    reference
        Real cells to show: ``"test"`` or ``"validation"`` rows of ``obs["isd_split"]``; with ``"all"``, or without that
        column, those that the model has not trained on.
    max_cells
        Largest number of cells used from either side.
    seed
        Seed of the halving and of the draw of cells.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``zero_fraction.png`` there.
    ax
        Axes to draw generated against real in (that panel alone).
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list of two without ``ax``), or the figure.

    Raises
    ------
    ValueError
        If features are missing in ``generated``, or there are fewer than 4 cells of either.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> real, fake = (ad.AnnData(rng.poisson(2.0, size=(40, 30)).astype("float32")) for _ in range(2))
    >>> axes = zero_fraction(real, fake, show=False)
    """
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    halves = _halves(_all_cells(real, generated, layer, reference, max_cells, seed), seed)
    moments = {name: _moments(counts) for name, counts in halves.items()}
    zeros = {name: found[2] for name, found in moments.items()}
    if ax is not None:
        _against_real(ax, zeros, "zero fraction", None)
        return finish(ax.figure, ax, name="zero_fraction", show=visible, save=save, return_fig=return_fig)
    figure = new_figure((5.8, 3.2), visible)
    axes = list(figure.subplots(1, 2))
    _against_real(axes[0], zeros, "zero fraction", None)
    for name in ("real", "generated"):
        mean = moments[name][0]
        kept = mean > 0
        _points(axes[1], mean[kept], zeros[name][kept], SOURCES[name])
        _trend(axes[1], mean[kept], zeros[name][kept], name)
    axes[1].set_xscale("log")
    axes[1].minorticks_off()
    means = np.geomspace(axes[1].get_xlim()[0], axes[1].get_xlim()[1], 100)
    axes[1].plot(means, np.exp(-means), color="#222222", linewidth=0.9, linestyle=":", label="Poisson")
    axes[1].set_ylim(-0.03, 1.03)
    name_axes(axes[1], "mean count", "zero fraction", "zeros against mean")
    axes[1].legend(frameon=False, fontsize=7.5, loc="lower left")
    return finish(figure, axes, name="zero_fraction", show=visible, save=save, return_fig=return_fig)


def _all_cells(
    real: AnnData, generated: AnnData, layer: str | None, reference: Reference, max_cells: int, seed: int
) -> Pair:
    pair = choose_cells(
        real, generated, labels_key=None, layer=layer, groups=None, reference=reference, max_cells=max_cells, seed=seed
    )
    if min(pair.real.n, pair.generated.n) < 4:
        raise ValueError(
            f"there are {pair.real.n} real and {pair.generated.n} generated cells; at least 4 of each are needed."
        )
    return pair


def _halves(pair: Pair, seed: int) -> dict[str, sparse.csr_matrix]:
    """Two random halves of the real cells, and as many generated ones (or all of these, with halves as small)."""
    rng = np.random.default_rng(seed)
    n = min(pair.real.n // 2, pair.generated.n)
    order = rng.permutation(pair.real.n)
    rows = np.sort(rng.permutation(pair.generated.n)[:n])
    halves = {"real": np.sort(order[:n]), "other": np.sort(order[n : 2 * n])}
    return {name: pair.real.counts[kept] for name, kept in halves.items()} | {"generated": pair.generated.counts[rows]}


def _moments(counts: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance (unbiased) and zero fraction of each column."""
    n, n_vars = counts.shape
    values = counts.data.astype(np.float64)
    total = np.bincount(counts.indices, values, n_vars)
    squares = np.bincount(counts.indices, values**2, n_vars)
    mean = total / n
    present = np.bincount(counts.indices, values != 0, n_vars)
    return mean, np.maximum(squares - n * mean**2, 0.0) / (n - 1), 1 - present / n


def floor_band(x: np.ndarray, y: np.ndarray, *, n_bins: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where 95% of ``y - x`` lie, along ``x``: centres of bins, lower and upper bounds of ``y``.

    Parameters
    ----------
    x, y
        The same quantity of the same features in two halves of real cells, shape ``(n_features,)``.
    n_bins
        Largest number of bins; each holds about as many features as the others, and at least 20 if there are 20.

    Returns
    -------
    Three arrays of one length, the first increasing.
    """
    # either half may stand for the other: twice as many differences
    at, difference = np.concatenate([x, y]), np.concatenate([y - x, x - y])
    n_bins = int(np.clip(at.size // 40, 1, n_bins))
    edges = np.unique(np.quantile(at, np.linspace(0, 1, n_bins + 1)))
    bins = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, max(edges.size - 2, 0))
    found = [
        (np.median(at[bins == b]), *np.quantile(difference[bins == b], [0.025, 0.975]))
        for b in range(max(edges.size - 1, 1))
        if (bins == b).any()
    ]
    centre, low, high = np.array(found).T
    if centre.size:  # to the ends of the data
        centre = np.concatenate([[at.min()], centre, [at.max()]])
        low, high = np.pad(low, 1, mode="edge"), np.pad(high, 1, mode="edge")
    return centre, centre + low, centre + high


def _against_real(ax: Axes, values: dict[str, np.ndarray], name: str, least: float | None) -> None:
    """Generated against real with the band of real against real; on a logarithmic axis from ``least`` on, if given."""
    present = np.any([found > 0 for found in values.values()], axis=0) if least is not None else slice(None)
    to, back = (np.log10, lambda v: 10**v) if least is not None else (lambda v: v, lambda v: v)
    scaled = {k: to(np.maximum(found[present], least or 0.0)) for k, found in values.items()}
    centre, low, high = floor_band(scaled["real"], scaled["other"])
    if least is None:
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    slack = 1e-9
    within = (scaled["generated"] >= np.interp(scaled["real"], centre, low) - slack) & (
        scaled["generated"] <= np.interp(scaled["real"], centre, high) + slack
    )
    ax.fill_between(back(centre), back(low), back(high), color=_BAND, linewidth=0, zorder=1, label="real against real")
    _points(ax, back(scaled["real"]), back(scaled["generated"]), GENERATED_COLOR)
    limits = back(np.array([min(v.min() for v in scaled.values()), max(v.max() for v in scaled.values())]))
    ax.plot(limits, limits, color="#222222", linewidth=0.8, zorder=3)
    if least is not None:
        ax.set(xscale="log", yscale="log")
        ax.minorticks_off()
    else:
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    name_axes(ax, "real", "generated", f"{name}\n{within.mean():.0%} of features in the band")


def _points(ax: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    size = float(np.clip(9000 / max(x.size, 1), 1.0, 10.0))
    ax.scatter(x, y, s=size, color=color, alpha=0.35, linewidths=0, rasterized=True, zorder=2)


def _trend(ax: Axes, x: np.ndarray, y: np.ndarray, name: str) -> None:
    """Running median over features of like mean."""
    order = np.argsort(x, kind="stable")
    chunks = [chunk for chunk in np.array_split(order, max(1, min(20, x.size // 20))) if chunk.size]
    points = [(np.median(x[chunk]), np.median(y[chunk])) for chunk in chunks]
    style = "-" if name == "real" else "--"
    color = "#4d4d4d" if name == "real" else "#8a3d00"
    ax.plot(*zip(*points, strict=True), color=color, linestyle=style, linewidth=1.6, label=name, zorder=4)
