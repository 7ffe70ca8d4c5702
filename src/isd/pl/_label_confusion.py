"""Labels asked for against labels found by a classifier of real cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from isd.pl._cells import Pair, Reference, Sample, training_cells
from isd.pl._figure import finish, new_figure, resolve_show, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Above this number of labels, shares are shown by colour alone.
_MAX_PRINTED = 12


def label_confusion(
    real: AnnData,
    generated: AnnData,
    *,
    labels_key: str | None = None,
    layer: str | None = None,
    reference: Reference = "test",
    max_cells: int = 5000,
    seed: int = 0,
    n_jobs: int = 1,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot the label that a classifier finds against the one that generated cells were asked to have.

    A logistic regression is trained on real training cells, as for the metric ``label_agreement``
    (:func:`isd.metrics.label_agreement`). Beside the generated cells, held-out real cells show which labels it mixes
    up by itself. Rows add up to 100%.

    Parameters
    ----------
    real
        Real cells with counts. Those that are not shown as reference are trained on: rows ``"train"`` of
        ``obs["isd_split"]``, or without that column those that the model has trained on, else a random half.
    generated
        Generated cells; the same features in any order.
    labels_key
        Column of ``obs`` with the labels of both; by default the one that cells were generated with, else
        ``"leiden"`` if both have it.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    reference
        Real cells to show: ``"test"`` or ``"validation"`` rows of ``obs["isd_split"]``; with ``"all"``, or without that
        column, those that the model has not trained on.
    max_cells
        Largest number of cells used for training, and from either side.
    seed
        Seed of draws, features and classifier.
    n_jobs
        Processor cores.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``label_confusion.png`` there.
    ax
        Axes to draw the generated cells in (that panel alone).
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list of two without ``ax``), or the figure.

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If there are no labels, or features are missing in ``generated``.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> label = np.array(["a", "b"] * 40)
    >>> rate = np.where(label[:, None] == "a", [5.0, 1, 1, 5], [1.0, 5, 5, 1])
    >>> real, fake = (ad.AnnData(rng.poisson(rate).astype("float32"), obs={"leiden": label}) for _ in range(2))
    >>> axes = label_confusion(real, fake, show=False)
    """
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    train, pair = training_cells(
        real, generated, labels_key=labels_key, layer=layer, reference=reference, max_cells=max_cells, seed=seed
    )
    found = _found(train, pair, list(real.var_names), seed, n_jobs)
    known = set(train.labels)
    columns = [name for name in pair.groups if name in known]
    shares = {
        source: _shares(sample.labels, found[source], pair.groups, columns)
        for source, sample in (("real", pair.real), ("generated", pair.generated))
    }
    titles = {
        source: f"{name}\n{np.mean(found[source] == sample.labels):.0%} as asked, {sample.n:,} cells"
        for source, name, sample in (
            ("real", "held-out real", pair.real),
            ("generated", "generated", pair.generated),
        )
    }
    n_labels = len(pair.groups)
    side = max(2.0, 0.3 * n_labels) if n_labels <= _MAX_PRINTED else float(np.clip(0.13 * n_labels, 4.0, 9.0))
    if ax is not None:
        _matrix(ax, shares["generated"], pair.groups, columns, titles["generated"], ylabel="label asked for")
        return finish(ax.figure, ax, name="label_confusion", show=visible, save=save, return_fig=return_fig)
    label_width = 0.065 * max(len(short(name)) for name in pair.groups)
    # many labels: one above the other, so that their names can be read at the width of a page
    stacked = side > 4.5
    n_rows, n_columns = (2, 1) if stacked else (1, 2)
    size = n_columns * side + 1.0 + label_width, n_rows * (side + 0.5) + 0.5 + label_width
    figure = new_figure(size, visible)
    axes = list(figure.subplots(n_rows, n_columns, sharex=stacked, sharey=not stacked))
    ylabels = ("label of the cell", "label asked for") if stacked else ("label of the cell, or asked for", "")
    for panel, source, ylabel in zip(axes, shares, ylabels, strict=True):
        image = _matrix(panel, shares[source], pair.groups, columns, titles[source], ylabel=ylabel)
    if len(pair.groups) > _MAX_PRINTED:
        bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, pad=0.015, format=lambda v, _: f"{v:.0%}")
        bar.ax.tick_params(labelsize=7.5)
        bar.outline.set_visible(False)
    return finish(figure, axes, name="label_confusion", show=visible, save=save, return_fig=return_fig)


def _found(train: Sample, pair: Pair, var_names: Sequence[str], seed: int, n_jobs: int) -> dict[str, np.ndarray]:
    """Label found for each cell: one classifier, trained once."""
    from isd.metrics import Yardstick, label_agreement

    yardstick = Yardstick.fit(train.counts, var_names, seed=seed)
    points = sparse.vstack([yardstick.features(sample.counts) for sample in (pair.real, pair.generated)])
    asked = np.concatenate([pair.real.labels, pair.generated.labels])
    features = yardstick.features(train.counts)
    predicted = label_agreement(
        features.toarray(), train.labels, points.toarray(), asked, seed=seed, n_jobs=n_jobs
    ).predicted
    return {"real": predicted[: pair.real.n], "generated": predicted[pair.real.n :]}


def _shares(asked: np.ndarray, found: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Share of each row's cells that were found in each column; NaN for rows without cells."""
    counts = np.array([[np.sum(found[asked == row] == column) for column in columns] for row in rows], dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def _matrix(
    ax: Axes, shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, *, ylabel: str
) -> Any:
    from matplotlib import colormaps

    # one hue from light to dark: order is seen with any colour vision and in print
    colormap = colormaps["Blues"].with_extremes(bad="#eeeeee")
    image = ax.imshow(shares, vmin=0, vmax=1, cmap=colormap, aspect="equal", interpolation="nearest")
    if len(rows) <= _MAX_PRINTED:
        for (y, x), share in np.ndenumerate(shares):
            if np.isfinite(share) and share >= 0.005:
                color = "white" if share > 0.55 else "#333333"
                ax.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=color)
    longest = max(len(short(name)) for name in columns)
    ax.set_xticks(range(len(columns)), [short(name) for name in columns], rotation=90 if longest > 2 else 0)
    ax.set_yticks(range(len(rows)), [short(name) for name in rows])
    ax.tick_params(labelsize=7.5 if len(rows) <= 30 else 6, length=0)
    ax.set_xlabel("label found", fontsize=8.5)
    ax.set_ylabel(ylabel, fontsize=8.5)
    ax.set_title(title, fontsize=8.5)
    for spine in ax.spines.values():
        spine.set_color("#bbbbbb")
    return image
