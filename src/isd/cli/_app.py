"""The command ``isodiff``: the public calls of :mod:`isd`, for a shell and for batch jobs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

import isd
from isd._atomic import whole_file
from isd.cli._shared import (
    Debug,
    Jobs,
    Layer,
    Progress,
    Seed,
    _messages,
    _one_line,
    _read,
    _Steps,
    _write,
    quiet_lightning,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["app", "demo", "evaluate", "main"]


class Reference(StrEnum):
    """Rows of the real data that generated cells are compared with."""

    test = "test"
    validation = "validation"
    all = "all"


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Isoform-resolved expression, generated: counts per transcript for bulk samples and single cells.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"isodiff {isd.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="An h5ad file or zarr store of raw counts; simulated cells by default.", exists=True, readable=True
        ),
    ] = None,
    labels_key: Annotated[
        str | None, typer.Option(help="Column of obs with the labels; by default leiden, made where it is missing.")
    ] = None,
    layer: Layer = None,
    out: Annotated[Path, typer.Option(help="Folder for what is made.", file_okay=False)] = Path("isodiff_demo"),
    n_obs: Annotated[int, typer.Option(help="Simulated cells.", min=20)] = 3000,
    n_vars: Annotated[int, typer.Option(help="Simulated transcripts.", min=20)] = 2000,
    n_labels: Annotated[int, typer.Option(help="Simulated clusters.", min=1)] = 8,
    max_minutes: Annotated[
        float | None, typer.Option(help="Training stops after so many minutes.", min=0.01, show_default="none")
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(help="Training steps of either network; by default they follow the number of cells.", min=1),
    ] = None,
    guidance_scale: Annotated[
        float, typer.Option(help="Classifier-free guidance; 1 is plain conditional sampling.", min=0.0)
    ] = 1.0,
    seed: Seed = 0,
    n_jobs: Jobs = -1,
    progress: Progress = None,
    debug: Debug = False,
) -> None:
    """Train on cells, generate as many as were held out, and compare the two.

    Leaves model/, generated.h5ad, metrics.csv, umap.png and roc.png in the folder OUT.
    """
    import matplotlib

    matplotlib.use("Agg")
    isd.settings.seed = seed
    with _one_line(debug, progress):
        step = _Steps(6)
        with step(f"data: {'simulated' if data is None else data}"):
            if data is None:
                adata = isd.datasets.simulated(n_obs=n_obs, n_vars=n_vars, n_labels=n_labels, seed=seed)
            else:
                without = "Leave the option out to cluster with leiden."
                adata = _read(data, labels_key=labels_key, layer=layer, without=without)
            # a folder that cannot be written should be known before the training, not after
            out.mkdir(parents=True, exist_ok=True)
            from isd.model._files import check_target

            check_target(out / "model", overwrite=True)
            labels_key = "leiden" if labels_key is None else labels_key
            isd.pp.recipe(adata, layer=layer, seed=seed)
            isd.pp.split(adata, labels_key=labels_key, seed=seed)
            n_test = int((adata.obs["isd_split"] == "test").sum())
            n_labels_found = adata.obs[labels_key].nunique()
            _messages.print(
                f"      {adata.n_obs:,} cells x {adata.n_vars:,} transcripts, {n_labels_found} labels in "
                f"obs[{escape(repr(labels_key))}], {n_test:,} cells held out"
            )
        with step("training: autoencoder, then diffusion"):
            isd.model.LatentDiffusion.setup_anndata(adata, layer="counts", labels_key=labels_key)
            model = isd.model.LatentDiffusion(adata)
            quiet_lightning(debug)
            model.train(
                max_steps=max_steps,
                max_minutes=max_minutes,
                vae_kwargs=None if max_steps is None else {"max_steps": max_steps},
            )
            model.save(out / "model", overwrite=True)
        with step(f"generating {n_test:,} cells"):
            fake = isd.tl.generate(model, n_obs=n_test, labels="match", guidance_scale=guidance_scale, seed=seed)
        with step("judging them against the held-out cells"):
            table = isd.metrics.evaluate(adata, fake, labels_key=labels_key, n_jobs=n_jobs, seed=seed)
            with whole_file(out / "metrics.csv") as new:
                table.to_csv(new, index=False)
        with step("pictures"):
            isd.pl.umap_compare(adata, fake, color=labels_key, show=False, save=out / "umap.png")
            isd.pl.roc(fake, show=False, save=out / "roc.png")
        with step(f"writing {out}"):
            _write(fake, out / "generated.h5ad")
        _summary(table, everything=False)
        typer.echo(_last_line(fake, table, out, step.elapsed))


@app.command()
def evaluate(
    real: Annotated[
        Path,
        typer.Argument(help="An h5ad file (or zarr store) of real cells, held-out ones among them.", exists=True),
    ],
    fake: Annotated[Path, typer.Argument(help="An h5ad file (or zarr store) of generated cells.", exists=True)],
    labels_key: Annotated[
        str | None,
        typer.Option(help="Column of obs with the labels of both; by default the one they were generated with."),
    ] = None,
    layer: Layer = None,
    reference: Annotated[
        Reference, typer.Option(help='Rows of obs["isd_split"] to compare with; all ignores that column.')
    ] = Reference.test,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric to compute (repeat for several), all, or seed; by default all quick ones."),
    ] = None,
    labels: Annotated[bool, typer.Option(help="Also judge each label by itself.")] = True,
    baselines: Annotated[bool, typer.Option(help="Also judge the baselines that come for free.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a report to this file: one HTML page.", dir_okay=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table to this file: csv.", dir_okay=False)] = None,
    n_boot: Annotated[int, typer.Option(help="Bootstrap samples and permutations.", min=20)] = 200,
    max_cells: Annotated[int, typer.Option(help="Largest number of cells compared from either side.", min=10)] = 5000,
    seed: Seed = 0,
    n_jobs: Jobs = -1,
    progress: Progress = None,
    debug: Debug = False,
) -> None:
    """Compare generated cells with held-out real ones: metrics beside their floors, as a table and a report."""
    import matplotlib

    matplotlib.use("Agg")
    with _one_line(debug, progress):
        step = _Steps(2 + (report is not None))
        with step(f"data: {real}, {fake}"):
            adata, generated = (_read(path, labels_key=labels_key, layer=layer) for path in (real, fake))
            for path in (report, out):
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
        with step("judging"):
            table = isd.metrics.evaluate(
                adata, generated, labels_key=labels_key, layer=layer, groups=labels, metrics=_metrics(metric),
                baselines=baselines, reference=reference.value, n_boot=n_boot, max_cells=max_cells, n_jobs=n_jobs,
                seed=seed,
            )  # fmt: skip
            if out is not None:
                with whole_file(out) as new:
                    table.to_csv(new, index=False)
        if report is not None:
            with step(f"writing {report}"):
                isd.report(
                    adata, generated, report, labels_key=labels_key, layer=layer, table=table,
                    reference=reference.value, max_cells=max_cells, n_jobs=n_jobs, seed=seed,
                )  # fmt: skip
        _summary(table, everything=report is None and out is None)
        made = " and ".join(str(path) for path in (report, out) if path is not None)
        typer.echo(
            f"Judged {generated.n_obs:,} generated cells against {adata.n_obs:,} real ones in {step.elapsed / 60:.1f} min"
            f"{f': {made}' if made else ''}. {_auc(table)}"
        )


def _metrics(given: list[str] | None) -> Any:
    """``metrics`` of :func:`isd.metrics.evaluate`: a set by its name, or names of metrics."""
    return given[0] if given in (["all"], ["seed"]) else given or None


def _headline(table: pd.DataFrame, space: str) -> Any:
    """The row of the two-sample AUC over all cells."""
    rows = table[(table["metric"] == "random_forest_auc") & (table["space"] == space) & (table["group"] == "all")]
    return rows.iloc[0] if len(rows) else None


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3g}"


#: What is printed; the csv and the report have all rows.
_HEADLINES = (
    ("random_forest_auc", "features"), ("random_forest_auc", "pcs"), ("mmd", "pcs"), ("precision", "pcs"),
    ("recall", "pcs"), ("library_size", "counts"), ("zero_fraction_error", "features"),
    ("correlation_error", "features"), ("nearest_distance_ratio", "pcs"), ("label_agreement", "features"),
    ("usage_js_distance", "usage"), ("within_gene_correlation", "usage"),
)  # fmt: skip


def _summary(table: pd.DataFrame, *, everything: bool) -> None:
    """Print metrics over all cells: all of them, or the headlines and what is far from its floor."""
    rows = table[table["group"] == "all"]
    shown = rows
    if not everything:
        headline = [key in _HEADLINES for key in zip(rows["metric"], rows["space"], strict=True)]
        shown = rows[np.asarray(headline, dtype=bool) | (rows["verdict"] == "far")]
    view = Table(
        title="generated against held-out cells (floor: held-out against held-out)", title_justify="left",
        box=SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for name in ("metric", "space", "value", "floor", "verdict"):
        view.add_column(name, justify="right" if name in ("value", "floor") else "left", no_wrap=name == "metric")
    notes = []
    for row in shown.to_dict("records"):
        numbers = _number(row["value"]), _number(row["floor"])
        view.add_row(str(row["metric"]), str(row["space"]), *numbers, str(row.get("verdict", "")))
        if isinstance(row["note"], str) and row["note"]:
            notes.append(f"{row['metric']}, {row['space']}: {row['note']}")
    _messages.print(view)
    counts = rows["verdict"].value_counts()
    parts = [f"{counts.get(verdict, 0)} {verdict}" for verdict in ("indistinguishable", "close", "far")]
    _messages.print(
        f"{len(rows)} rows over all cells: {', '.join(parts)}, {(rows['verdict'] == '').sum()} without a value"
    )
    for note in notes:
        _messages.print(escape(note))
    labels = table[table["group"] != "all"]
    small = labels[labels["note"].fillna("").str.contains("n too small")]["group"].nunique()
    if small:
        _messages.print(f"{small} of {labels['group'].nunique()} labels: n too small (see the table)")


def _auc(table: pd.DataFrame) -> str:
    """The AUC of the random forest beside its floor, in words."""
    parts = []
    for space, name in (("features", "features"), ("pcs", "PCs")):
        row = _headline(table, space)
        if row is None or row["value"] != row["value"]:
            parts.append(f"on {name}: n too small")
        else:
            parts.append(f"{row['value']:.2f} on {name} (floor {row['floor']:.2f})")
    return f"Random-forest AUC against held-out cells, 0.5 = indistinguishable: {', '.join(parts)}"


def _last_line(fake: AnnData, table: pd.DataFrame, out: Path, seconds: float) -> str:
    """One line: what was made, and the AUC beside its floor."""
    return (
        f"Made {fake.n_obs:,} cells x {fake.n_vars:,} transcripts in {seconds / 60:.1f} min: {out / 'generated.h5ad'}, with "
        f"model/, metrics.csv, umap.png, roc.png beside it. {_auc(table)}"
    )


def main() -> None:
    """Run the command line; ``isodiff --help`` lists the commands."""
    try:
        app()
    except KeyboardInterrupt:
        _messages.print("stopped")
        sys.exit(130)
