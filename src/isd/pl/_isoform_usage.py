"""Which isoforms a gene uses in each label, real beside generated."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import GENE_ID, GENE_NAME
from isd.pl._cells import Pair, Reference, Sample, choose_cells
from isd.pl._figure import (
    COLOR_BLIND_SAFE,
    GENERATED_COLOR,
    REAL_INK,
    finish,
    new_figure,
    resolve_show,
    short,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHER = "#d0d0d0"
_N_BOOT = 200
_ALL = "all cells"


def isoform_usage(
    real: AnnData,
    generated: AnnData,
    gene: str,
    *,
    kind: Literal["stacked", "grouped"] = "stacked",
    labels_key: str | None = None,
    groups: str | Sequence[str] | None = None,
    layer: str | None = None,
    reference: Reference = "test",
    max_isoforms: int = 6,
    min_counts: float = 10,
    max_cells: int = 20_000,
    seed: int = 0,
    show: bool | None = None,
    save: str | Path | bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Any:
    """Plot the usage of a gene's isoforms, label by label, real beside generated.

    Usage is an isoform's share of the gene's counts, pooled over the cells of a label.

    Parameters
    ----------
    real
        Real cells with counts, and ``var["gene_id"]`` or ``var["gene_name"]``.
    generated
        Generated cells; the same features in any order.
    gene
        Identifier (with or without version) or name of the gene.
    kind
        ``"stacked"``: one bar a label and source, divided among isoforms, with the gene's counts printed beside.
        ``"grouped"``: one panel an isoform, with 95% intervals (bootstrap over cells).
    labels_key
        Column of ``obs`` with the labels of both; by default the one that cells were generated with, else
        ``"leiden"`` if both have it; without labels, all cells together.
    groups
        Labels to show; by default all.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    reference
        Real cells to show: ``"test"`` or ``"validation"`` rows of ``obs["isd_split"]``; with ``"all"``, or without that
        column, those that the model has not trained on.
    max_isoforms
        Isoforms shown, the most used ones in real cells; the rest is ``"other"``.
    min_counts
        Counts of the gene that a label needs: shares of fewer are not drawn but said to be too few.
    max_cells
        Largest number of cells used from either side.
    seed
        Seed of the draw of cells and of the bootstrap.
    show
        Show the figure; by default where there is a display and nothing is saved.
    save
        Path of a picture; a bare name goes into ``isd.settings.figdir``; ``True`` for ``isoform_usage.png`` there.
    ax
        Axes to draw stacked bars in.
    return_fig
        Return the figure.

    Returns
    -------
    ``None`` if shown, else the axes (a list for ``"grouped"``), or the figure.

    Raises
    ------
    KeyError
        If the gene, the column or a label is absent.
    ValueError
        For a gene name of several genes, another ``kind``, or grouped bars in one ``ax``.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> var = pd.DataFrame({"gene_id": ["g1", "g1", "g2"]}, index=["t1", "t2", "t3"])
    >>> real, fake = (ad.AnnData(rng.poisson(2.0, size=(40, 3)).astype("float32"), var=var) for _ in range(2))
    >>> axes = isoform_usage(real, fake, "g1", show=False)
    """
    if kind not in ("stacked", "grouped"):
        raise ValueError(f"kind={kind!r} is not known; choose 'stacked' or 'grouped'.")
    if kind == "grouped" and ax is not None:
        raise ValueError("grouped bars need a panel an isoform; ax= holds one: choose kind='stacked'.")
    if max_isoforms < 1:
        raise ValueError(f"max_isoforms={max_isoforms} must be at least 1.")
    visible = resolve_show(show, save=save, ax=ax, return_fig=return_fig)
    features, title = find_gene(real.var, gene)
    pair = choose_cells(
        real, generated, labels_key=labels_key, layer=layer, groups=groups, reference=reference, max_cells=max_cells,
        seed=seed, features=features,
    )  # fmt: skip
    parts, names = _parts(pair, _isoform_names(real.var, features), max_isoforms, min_counts)
    if kind == "stacked":
        figure, axes = _stacked(pair, parts, names, title, min_counts, ax, visible)
    else:
        figure, axes = _grouped(pair, parts, names, title, min_counts, seed, visible)
    return finish(figure, axes, name="isoform_usage", show=visible, save=save, return_fig=return_fig)


def find_gene(var: pd.DataFrame, gene: str) -> tuple[np.ndarray, str]:
    """Positions of a gene's transcripts, and how to call it.

    Parameters
    ----------
    var
        With columns ``gene_id`` and/or ``gene_name``.
    gene
        Identifier, with or without version, or name.

    Raises
    ------
    KeyError
        If there is no such column or no such gene.
    ValueError
        If several genes have that name.
    """
    columns = [name for name in (GENE_ID, GENE_NAME) if name in var]
    if not columns:
        raise KeyError(
            f"var has neither {GENE_ID!r} nor {GENE_NAME!r}; run isd.pp.annotate_genes(adata, ...) to say which gene "
            "a transcript belongs to."
        )
    texts = {name: var[name].astype(object).map(str, na_action="ignore") for name in columns}
    candidates = dict(texts)
    if GENE_ID in texts:
        candidates["without version"] = texts[GENE_ID].str.replace(r"\.\d+$", "", regex=True)
    for values in candidates.values():
        found = np.flatnonzero((values == gene).to_numpy())
        if found.size:
            break
    else:
        known = pd.unique(pd.concat(list(texts.values())).dropna())
        like = difflib.get_close_matches(gene, list(known[:50_000]), n=3)
        hint = f"; did you mean {like}?" if like else f"; there are, for instance, {list(known[:3])}"
        raise KeyError(f"gene {gene!r} is neither in var[{columns[0]!r}] nor among the names{hint}")
    if GENE_ID in texts:
        ids = list(pd.unique(texts[GENE_ID].iloc[found].dropna()))
        if len(ids) > 1:
            raise ValueError(f"{len(ids)} genes are called {gene!r}: give one of {ids[:10]}.")
    title = gene
    if len(columns) == 2:
        gene_id, gene_name = (texts[name].iloc[found[0]] for name in (GENE_ID, GENE_NAME))
        if isinstance(gene_name, str) and isinstance(gene_id, str) and gene_name != gene_id:
            title = f"{gene_name} ({gene_id})"
    return found, title


def _isoform_names(var: pd.DataFrame, features: np.ndarray) -> list[str]:
    if "transcript_name" in var:
        named = var["transcript_name"].iloc[features]
        if named.notna().all() and named.is_unique:
            return [str(name) for name in named]
    return [str(name) for name in var.index[features]]


def _parts(
    pair: Pair, names: Sequence[str], largest: int, min_counts: float
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Counts per cell of the isoforms shown, the most used in real cells first, then of all others together.

    Those are shown whose largest share in any label is largest: the isoform that one label switches to, too.
    """
    counts = {"real": pair.real.counts.toarray(), "generated": pair.generated.counts.toarray()}
    order = np.argsort(-counts["real"].sum(axis=0), kind="stable")
    if len(names) > largest:
        pooled = [counts["real"][_members(pair, pair.real, group)].sum(axis=0) for group in pair.groups or (_ALL,)]
        shares = np.array([of_label / max(of_label.sum(), min_counts, 1e-12) for of_label in pooled]).max(axis=0)
        shown = np.zeros(len(names), dtype=bool)
        shown[order[np.argsort(-shares[order], kind="stable")[:largest]]] = True
        kept, rest = order[shown[order]], order[~shown[order]]
        counts = {n: np.column_stack([c[:, kept], c[:, rest].sum(axis=1)]) for n, c in counts.items()}
        return counts, [*(names[i] for i in kept), f"other ({rest.size})"]
    return {name: c[:, order] for name, c in counts.items()}, [names[i] for i in order]


def _members(pair: Pair, sample: Sample, group: str) -> np.ndarray:
    return np.ones(sample.n, dtype=bool) if not pair.groups else sample.labels == group


def _samples(pair: Pair) -> list[tuple[str, Sample]]:
    return [("real", pair.real), ("generated", pair.generated)]


def _stacked(
    pair: Pair,
    parts: dict[str, np.ndarray],
    names: Sequence[str],
    title: str,
    min_counts: float,
    ax: Axes | None,
    show: bool,
) -> tuple[Any, Any]:
    from matplotlib.patches import Patch

    groups = pair.groups or (_ALL,)
    longest = max(len(short(name)) for name in names)
    legend_columns = max(1, min(3, int(52 / (longest + 7))))
    legend_rows = -(-(len(names) + 2) // legend_columns)
    figure: Any
    if ax is None:
        figure = new_figure((4.4, 1.0 + 0.36 * len(groups) + 0.19 * legend_rows), show)
        ax = figure.add_subplot()
        home: Any = figure
    else:
        figure, home = ax.figure, ax
    colors = _colors(names)
    beside = ax.get_yaxis_transform()
    for y, group in enumerate(groups):
        for (source, sample), shift in zip(_samples(pair), (-0.2, 0.2), strict=True):
            pooled = parts[source][_members(pair, sample, group)].sum(axis=0)
            total = pooled.sum()
            if total < max(min_counts, 1e-12):
                ax.text(0.01, y + shift, f"{source}: too few counts", va="center", fontsize=6.5, color="#777777")
            else:
                left = 0.0
                for share, color in zip(pooled / total, colors, strict=True):
                    style: dict[str, Any] = (
                        {"hatch": "/////", "edgecolor": "white"} if source == "generated" else {"edgecolor": color}
                    )
                    ax.barh(y + shift, share, 0.38, left, color=color, linewidth=0.0, **style)
                    left += share
            ax.text(1.015, y + shift, f"{total:,.0f}", transform=beside, va="center", fontsize=6.5, color="#444444")
    ax.text(1.015, -0.72, "counts", transform=beside, va="center", fontsize=7, color="#444444")
    ax.set_xlim(0, 1)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_yticks(range(len(groups)), [short(group) for group in groups])
    ax.set_xlabel("share of the gene's counts", fontsize=8.5)
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=7.5)
    ax.tick_params(axis="y", length=0)
    tidy(ax)
    handles = [Patch(facecolor="#777777", label="real"), Patch(facecolor="#777777", label="generated", hatch="/////")]
    handles[1].set(edgecolor="white", linewidth=0)
    handles += [Patch(color=color, label=short(name)) for name, color in zip(names, colors, strict=True)]
    place: dict[str, Any] = (
        {"loc": "outside lower center"} if home is figure else {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
    )
    home.legend(handles=handles, ncols=legend_columns, frameon=False, fontsize=7, handlelength=1.4, **place)
    return figure, ax


def _colors(names: Sequence[str]) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    n = len(names) - names[-1].startswith("other (")
    if n <= len(COLOR_BLIND_SAFE):
        chosen = list(COLOR_BLIND_SAFE[:n])
    else:
        chosen = [to_hex(colormaps["turbo"](p)) for p in np.linspace(0.03, 0.97, n)]
    return chosen + [_OTHER] * (len(names) - n)


def _grouped(
    pair: Pair,
    parts: dict[str, np.ndarray],
    names: Sequence[str],
    title: str,
    min_counts: float,
    seed: int,
    show: bool,
) -> tuple[Any, Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    groups = pair.groups or (_ALL,)
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    label_width = 0.07 * max(len(short(group)) for group in groups)
    height = (0.65 + 0.27 * len(groups)) * n_rows + 0.75
    figure = new_figure((max(1.55 * n_columns + label_width + 0.2, 3.4), height), show)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True, sharex=True).ravel()
    for unused in grid[len(names) :]:
        unused.remove()
    axes = list(grid[: len(names)])
    rng = np.random.default_rng(seed)
    for y, group in enumerate(groups):
        for (source, sample), shift in zip(_samples(pair), (-0.19, 0.19), strict=True):
            counts = parts[source][_members(pair, sample, group)]
            color = REAL_INK if source == "real" else GENERATED_COLOR
            if counts.sum() < max(min_counts, 1e-12):
                axes[0].text(0.02, y + shift, "too few counts", va="center", fontsize=6, color=color)
                continue
            usage, low, high = usage_interval(counts, rng)
            for i, panel in enumerate(axes):
                panel.barh(y + shift, usage[i], 0.34, color=color, linewidth=0, alpha=0.85)
                panel.plot([low[i], high[i]], [y + shift] * 2, color="black", linewidth=0.9)
    for i, (panel, name) in enumerate(zip(axes, names, strict=True)):
        panel.set_title(short(name), fontsize=7.5)
        panel.set_xlim(0, 1)
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.set_yticks(range(len(groups)), [short(group) for group in groups])
        panel.set_ylim(len(groups) - 0.45, -0.55)
        panel.tick_params(labelsize=7.5, labelleft=i % n_columns == 0, labelbottom=i + n_columns >= len(names))
        panel.tick_params(axis="y", length=0)
        tidy(panel)
    figure.suptitle(title, fontsize=9)
    handles: list[Any] = [Patch(color=REAL_INK, label="real"), Patch(color=GENERATED_COLOR, label="generated")]
    handles.append(Line2D([], [], color="black", linewidth=0.9, label="95% interval"))
    axes[-1].set_xlabel("share", fontsize=8)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=7.5)
    return figure, axes


def usage_interval(counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pooled usage and its 95% interval by a bootstrap over cells.

    Parameters
    ----------
    counts
        Counts of a gene's isoforms, shape ``(n_cells, n_isoforms)``, not all zero.
    rng
        Source of the draws.

    Returns
    -------
    Usage, lower and upper bounds, each of shape ``(n_isoforms,)``.
    """
    n = counts.shape[0]
    draws = rng.multinomial(n, np.full(n, 1 / n), size=_N_BOOT) @ counts
    totals = draws.sum(axis=1, keepdims=True)
    kept = draws[totals[:, 0] > 0] / totals[totals[:, 0] > 0]
    low, high = np.quantile(kept, [0.025, 0.975], axis=0)
    return counts.sum(axis=0) / counts.sum(), low, high
