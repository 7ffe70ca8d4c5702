"""Observed against inferred usage of isoforms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from isd._constants import GENE_ID, UNS_KEY
from isd._counts import get_counts
from isd.metrics import isoform_usage
from isd.pl._figure import GENERATED_COLOR, finish, name_axes, new_figure, resolve_show

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def usage_scatter(
    observed: AnnData,
    inferred: AnnData,
    *,
    labels_key: str | None = None,
    gene_key: str = GENE_ID,
    layer: str | None = None,
    min_counts: float = 50,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot the usage of isoforms in observed cells against that in inferred (or generated) ones, label by label.

    A point is an isoform in a label: its share of the gene's counts, pooled over the label's cells. Numbers of points are shown
    as shades.

    Parameters
    ----------
    observed
        Real cells with counts of isoforms and ``var[gene_key]``.
    inferred
        The same cells as :func:`isd.tl.infer_isoforms` tells their isoforms, or others with the same features in any order.
    labels_key
        Column of ``obs`` of both; by default the one that ``inferred`` was made with, else ``"leiden"`` if both have it;
        without labels all cells are pooled.
    gene_key
        Column of ``observed.var`` with the gene of each transcript.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    min_counts
        Counts that a gene needs in a label on both sides.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``usage_scatter.png`` there.
    ax
        Axes to draw in.
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes, or the figure.

    Raises
    ------
    KeyError
        If a column or features are absent.
    ValueError
        If no gene with several isoforms has enough counts.

    Examples
    --------
    >>> import anndata as ad, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> var = pd.DataFrame({"gene_id": ["g1", "g1", "g2", "g2"]}, index=["t1", "t2", "t3", "t4"])
    >>> real, fake = (
    ...     ad.AnnData(rng.poisson([4.0, 1, 2, 3], size=(40, 4)).astype("float32"), var=var) for _ in range(2)
    ... )
    >>> ax = usage_scatter(real, fake, show=False)
    """
    if gene_key not in observed.var:
        raise KeyError(
            f"gene_key {gene_key!r} is not in observed.var, which has {list(map(str, observed.var.columns))}."
        )
    columns = inferred.var_names.get_indexer(observed.var_names)
    if (columns < 0).any():
        raise KeyError(f"inferred lacks {int((columns < 0).sum())} of the {observed.n_vars} features of observed.")
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    key = _labels_key(observed, inferred, labels_key)
    found = []
    for adata, order in ((observed, slice(None)), (inferred, columns)):
        labels = None if key is None else adata.obs[key].astype(object).map(str, na_action="ignore").to_numpy()
        counts = get_counts(adata, layer)[:, order]
        found.append(isoform_usage(counts, observed.var[gene_key].to_numpy(), labels, min_counts=min_counts))
    shared = [name for name in found[0].labels if name in set(found[1].labels)]
    x, y = (np.concatenate([f.usage[list(f.labels).index(name)] for name in shared] or [np.zeros(0)]) for f in found)
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        raise ValueError(
            f"no gene with several isoforms has {min_counts} counts in a label of both; lower min_counts or pool labels."
        )
    x, y = x[known], y[known]
    figure: Any
    if ax is None:
        figure = new_figure((3.5, 3.3), visible)
        ax = figure.add_subplot()
    else:
        figure = ax.figure
    if x.size > 400:
        # on a logarithmic scale: most isoforms are hardly used
        from matplotlib.colors import LogNorm

        bins: dict[str, Any] = {"gridsize": 40, "extent": (0, 1, 0, 1), "mincnt": 1, "norm": LogNorm(vmin=0.2)}
        shades = ax.hexbin(x, y, cmap="Greys", linewidths=0.1, **bins)
        bar = figure.colorbar(shades, ax=ax, shrink=0.7, pad=0.02)
        bar.set_label("isoforms", fontsize=7.5)
        bar.ax.tick_params(labelsize=7)
    else:
        ax.scatter(x, y, s=9, color="#444444", alpha=0.6, linewidths=0)
    ax.plot([0, 1], [0, 1], color=GENERATED_COLOR, linewidth=0.9)
    error = np.abs(x - y).mean()
    r = np.corrcoef(x, y)[0, 1] if x.size > 1 and x.std() > 0 and y.std() > 0 else np.nan
    text = f"r = {r:.3f}\nmean |difference| = {error:.3f}\n{x.size:,} isoforms"
    text += f" in {len(shared)} labels" if key is not None else ""
    ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize=7)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal")
    name_axes(ax, "usage, observed", "usage, inferred", "")
    return finish(figure, ax, name="usage_scatter", show=visible, save=save, return_fig=return_fig)


def _labels_key(observed: AnnData, inferred: AnnData, key: str | None) -> str | None:
    if key is not None:
        for name, adata in (("observed", observed), ("inferred", inferred)):
            if key not in adata.obs:
                raise KeyError(
                    f"labels_key {key!r} is not in {name}.obs, which has {list(map(str, adata.obs.columns))}."
                )
        return key
    made_with = inferred.uns.get(UNS_KEY, {}).get("labels_key")
    for candidate in (made_with, "leiden"):
        if candidate is not None and candidate in observed.obs and candidate in inferred.obs:
            return str(candidate)
    return None
