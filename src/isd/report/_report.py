"""The function that puts the page together and writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isd._atomic import whole_file
from isd.report import _html as html
from isd.report._pictures import isoforms, label_pictures, pictures
from isd.report._provenance import provenance
from isd.report._tables import all_cells_table, csv_link, label_table
from isd.report._verdict import verdict

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def report(
    real: AnnData,
    generated: AnnData,
    path: str | Path = "report.html",
    *,
    labels_key: str | None = None,
    layer: str | None = None,
    groups: bool | Sequence[str] = True,
    metrics: Sequence[str] | str | None = None,
    reference: Literal["test", "validation", "all"] = "test",
    baselines: bool | Mapping[str, AnnData] = False,
    table: pd.DataFrame | None = None,
    genes: Sequence[str] | None = None,
    n_boot: int = 200,
    max_cells: int = 5000,
    seed: int = 0,
    n_jobs: int = 1,
    title: str = "Generated cells, judged",
    progress: bool | None = None,
) -> Path:
    """Write a report on generated cells: one HTML file that needs nothing else, for any browser.

    The verdict comes first, then the table of metrics beside their floors, pictures, labels (sortable), and how the
    cells were made. Everything is inside the file: it can be mailed, and opens without a network.

    Parameters
    ----------
    real
        Real cells with counts, held-out ones among them, as for :func:`isd.metrics.evaluate`.
    generated
        Generated cells; the same features in any order.
    path
        Where to write it. Folders are made; an older file is replaced at once, when the new one is complete.
    labels_key
        Column of ``obs`` with the labels of both. By default the one the cells were generated with, else ``"leiden"``
        if both have it.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    groups
        ``True``: every label; ``False``: all cells together only; or a list of labels.
    metrics
        Names of metrics, as for :func:`isd.metrics.evaluate`; by default all.
    reference
        ``"test"`` or ``"validation"`` rows of ``obs["isd_split"]``, or ``"all"`` to ignore that column.
    baselines
        Free baselines to print beside the model, as for :func:`isd.metrics.evaluate`.
    table
        What :func:`isd.metrics.evaluate` returned, to report it without computing it again. ``groups``,
        ``metrics``, ``baselines`` and ``n_boot`` are then not used. ROC curves are shown where ``generated.uns["isd"]["roc"]`` holds them.
    genes
        Genes whose isoform usage is shown; by default up to four chosen by rule: two that switch isoforms between
        labels of real cells, and two that generated cells get most wrong.
    n_boot
        Bootstrap samples and permutations.
    max_cells
        Largest number of cells compared and drawn from either side.
    seed
        Seed of every draw.
    n_jobs
        Processor cores; -1 for all.
    title
        Heading of the page.
    progress
        Show a progress bar; by default as ``isd.settings.progress`` says.

    Returns
    -------
    The path. Without ``table``, ``generated.uns["isd"]`` gets ``"metrics"`` and ``"roc"``, as from ``evaluate``.

    Raises
    ------
    KeyError
        If ``labels_key``, a label or a gene is absent.
    ValueError
        If features are missing, values are not counts, or ``table`` is no table of metrics.
    OSError
        If the file cannot be written: known before anything is computed.

    Examples
    --------
    >>> import anndata as ad, numpy as np, tempfile
    >>> rng = np.random.default_rng(0)
    >>> real, fake = (ad.AnnData(rng.poisson(2.0, size=(n, 9)).astype("float32")) for n in (200, 60))
    >>> real.obs["isd_split"] = ["train"] * 140 + ["test"] * 60
    >>> folder = tempfile.mkdtemp()
    >>> path = report(real, fake, f"{folder}/report.html", metrics=["coverage"], n_boot=20)
    >>> path.read_text().startswith("<!doctype html>")
    True
    """
    from isd.metrics import evaluate
    from isd.pl._isoform_usage import find_gene

    path = Path(path)
    for gene in genes or ():
        find_gene(real.var, gene)
    with whole_file(path) as new:
        if table is None:
            if generated.is_view:
                generated = generated.copy()
            table = evaluate(
                real, generated, labels_key=labels_key, layer=layer, groups=groups, metrics=metrics, baselines=baselines,
                reference=reference, n_boot=n_boot, n_jobs=n_jobs, max_cells=max_cells, seed=seed, progress=progress,
            )  # fmt: skip
            settings: dict[str, Any] = {"bootstrap samples": n_boot}
        else:
            settings = {"metrics": "computed before, with settings of their own"}
        from isd.pl._cells import find_key, label_counts
        from isd.pl._metrics import as_table

        table = as_table(table)
        key = find_key(real, generated, labels_key)
        settings |= {
            "seed": seed, "reference": reference, "labels_key": key, "layer": layer, "largest number of cells": max_cells,
        }  # fmt: skip
        options = {"layer": layer, "reference": reference, "max_cells": max_cells, "seed": seed}
        body = [f"<h1>{html.escape(title)}</h1>", *verdict(table, real, generated)]
        body += ["<h2>All cells together</h2>", all_cells_table(table), csv_link(table)]
        body += pictures(real, generated, table, key, options, n_jobs)
        body += [
            *label_table(table, key, label_counts(real, generated, key, reference)),
            *label_pictures(table, generated),
        ]
        body += isoforms(real, generated, genes, key, options)
        body += provenance(real, generated, settings)
        new.write_text(html.page(title, body), encoding="utf-8")
    return path
