"""Isoform switches between two groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isd._constants import GENE_NAME
from isd.pl._figure import COLOR_BLIND_SAFE, finish, new_figure, resolve_show, short, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NEEDED = ("gene", "isoform", "usage1", "usage2", "effect", "proba_du")
_QUIET = "#b5b5b5"


def switches(
    table: pd.DataFrame,
    n_genes: int = 10,
    *,
    genes: Sequence[str] | None = None,
    max_isoforms: int = 3,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot isoform switches: the usage of an isoform in both groups, joined by a line.

    Isoforms that are called (``is_du_fdr_...``) are drawn in colour, others of the same genes in grey.

    Parameters
    ----------
    table
        What :func:`isd.tl.differential_usage` returned.
    n_genes
        Number of genes: those of the first rows of the table, that is of the surest changes.
    genes
        Genes to show instead, by identifier or name.
    max_isoforms
        Isoforms of a gene, those with the largest changes.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``switches.png`` there.
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
        If the table lacks columns, or a gene is not in it.
    ValueError
        If there is nothing to show.

    Examples
    --------
    >>> table = pd.DataFrame(
    ...     {
    ...         "gene": ["g1", "g1"],
    ...         "isoform": ["t1", "t2"],
    ...         "usage1": [0.8, 0.2],
    ...         "usage2": [0.3, 0.7],
    ...         "effect": [0.5, -0.5],
    ...         "proba_du": [1.0, 1.0],
    ...     }
    ... )
    >>> ax = switches(table, show=False)
    """
    missing = [c for c in _NEEDED if c not in table]
    if missing:
        raise KeyError(f"table lacks {missing}; give what isd.tl.differential_usage returned.")
    if n_genes < 1 or max_isoforms < 1:
        raise ValueError(f"n_genes={n_genes} and max_isoforms={max_isoforms} must be at least 1.")
    if table.empty:
        raise ValueError("the table has no rows: no gene had enough counts in both groups.")
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    chosen = list(table["gene"].drop_duplicates()[:n_genes]) if genes is None else [_gene(table, g) for g in genes]
    called = next((c for c in table if str(c).startswith("is_du_fdr_")), None)
    rows, heads = [], []
    y = 0.0
    for gene in chosen:
        part = table[table["gene"] == gene]
        part = part.iloc[np.argsort(-part["effect"].abs().to_numpy(), kind="stable")[:max_isoforms]]
        name = part[GENE_NAME].iloc[0] if GENE_NAME in part else None
        heads.append((y, str(gene) if not isinstance(name, str) else name))
        for _, row in part.sort_values("effect", ascending=False).iterrows():
            y += 1
            rows.append((y, row))
        y += 1.4
    figure: Any
    if ax is None:
        figure = new_figure((4.8, 0.9 + 0.17 * y), visible)
        ax = figure.add_subplot()
    else:
        figure = ax.figure
    first, second = COLOR_BLIND_SAFE[:2]
    for at, row in rows:
        sure = called is None or bool(row[called])
        ax.plot(
            [row["usage2"], row["usage1"]], [at, at], color="#777777" if sure else "#d9d9d9", linewidth=1.6, zorder=1
        )
        ax.scatter(row["usage2"], at, s=26, color=second if sure else _QUIET, zorder=2, linewidths=0)
        ax.scatter(row["usage1"], at, s=26, color=first if sure else _QUIET, zorder=3, linewidths=0)
    for at, name in heads:
        ax.text(0.01, at, name, fontsize=7.5, fontweight="bold", va="center", transform=ax.get_yaxis_transform())
    ax.set_yticks([at for at, _ in rows], [short(str(row["isoform"])) for _, row in rows], fontsize=6.5)
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(y - 0.6, -0.8)
    ax.set_xlabel("usage", fontsize=8.5)
    ax.tick_params(axis="x", labelsize=7.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", linewidth=0.4, color="#e5e5e5")
    ax.set_axisbelow(True)
    tidy(ax)
    _legend(figure, ax, table, (first, second), called is not None and any(not bool(r[called]) for _, r in rows))
    return finish(figure, ax, name="switches", show=visible, save=save, return_fig=return_fig)


def _gene(table: pd.DataFrame, gene: str) -> str:
    for column in ("gene", GENE_NAME):
        if column in table and (table[column] == gene).any():
            return str(table.loc[table[column] == gene, "gene"].iloc[0])
    raise KeyError(f"gene {gene!r} is not in the table: it is unknown, has one isoform, or too few counts.")


def _legend(figure: Any, ax: Axes, table: pd.DataFrame, colors: tuple[str, str], with_grey: bool) -> None:
    from matplotlib.lines import Line2D

    names = [short(str(table[c].iloc[0])) if c in table else c for c in ("group1", "group2")]
    entries = [*zip(names, colors, strict=True), *([("not called", _QUIET)] if with_grey else [])]
    handles = [Line2D([], [], marker="o", linestyle="", markersize=5, color=c, label=n) for n, c in entries]
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(handles), frameon=False, fontsize=7.5,
        handletextpad=0.2, borderaxespad=0.1,
    )  # fmt: skip
