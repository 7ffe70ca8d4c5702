"""The command ``isodiff``: the public calls of :mod:`isd`, for a shell and for batch jobs."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import isd

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["app", "demo", "main"]

#: Progress and messages; stdout carries results only.
_messages = Console(stderr=True, soft_wrap=True, highlight=False)

#: What is a wrong input or a full disk, and not a mistake of ours: shown as one line.
_EXPECTED = (ValueError, KeyError, OSError, MemoryError)

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


@contextmanager
def _one_line(debug: bool) -> Iterator[None]:
    """Show errors of the input, and our own warnings, as one line each; with ``debug`` everything, with tracebacks."""
    if debug:
        yield
        return
    with warnings.catch_warnings():
        # what isd says is addressed to the user (its stack level points here); other libraries talk to programmers
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module=r"isd(\.|$)")
        warnings.showwarning = lambda message, *_args, **_kwargs: _messages.print(
            f"[yellow]warning:[/] {escape(' '.join(str(message).split()))}"
        )
        try:
            yield
        except _EXPECTED as error:
            # str(KeyError) is the repr of its message
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            text = " ".join(str(text).split()) or type(error).__name__
            _messages.print(f"[red]error:[/] {escape(text)}")
            raise typer.Exit(1) from None


class _Steps:
    """Numbered steps with the time that each took."""

    def __init__(self, total: int) -> None:
        self.total, self.number, self.start = total, 0, time.monotonic()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.number += 1
        _messages.print(f"[bold]\\[{self.number}/{self.total}][/] {escape(what)}")
        begin = time.monotonic()
        yield
        _messages.print(f"      [dim]{time.monotonic() - begin:.1f} s[/]")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="An h5ad file of raw counts; simulated cells by default.", exists=True, dir_okay=False, readable=True
        ),
    ] = None,
    labels_key: Annotated[
        str | None, typer.Option(help="Column of obs with the labels; by default leiden, made where it is missing.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help='Layer of raw counts; by default "counts" where there is one, else X.')
    ] = None,
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
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    n_jobs: Annotated[int, typer.Option(help="Processes of the random forests; -1 is all cores.")] = -1,
    progress: Annotated[bool | None, typer.Option(help="Progress bars; on a terminal by default.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")] = False,
) -> None:
    """Train on cells, generate as many as were held out, and compare the two.

    Leaves model/, generated.h5ad, metrics.csv, umap.png and roc.png in the folder OUT.
    """
    import matplotlib

    matplotlib.use("Agg")
    if progress is not None:
        isd.settings.progress = progress
    isd.settings.seed = seed
    with _one_line(debug):
        step = _Steps(6)
        with step(f"data: {'simulated' if data is None else data}"):
            if data is None:
                adata = isd.datasets.simulated(n_obs=n_obs, n_vars=n_vars, n_labels=n_labels, seed=seed)
            else:
                adata = _read(data, labels_key=labels_key, layer=layer)
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
            if not debug:
                # lightning sets this level when it is imported, which happened just now
                logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
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
            table.to_csv(out / "metrics.csv", index=False)
        with step("pictures"):
            isd.pl.umap_compare(adata, fake, color=labels_key, show=False, save=out / "umap.png")
            isd.pl.roc(fake, show=False, save=out / "roc.png")
        with step(f"writing {out}"):
            fake.write_h5ad(out / "generated.h5ad")
        _summary(table)
        typer.echo(_last_line(fake, table, out, step.elapsed))


def _read(path: Path, *, labels_key: str | None, layer: str | None) -> AnnData:
    """Read a file, and check the names that the user gave while nothing has been spent yet."""
    import anndata

    try:
        adata = anndata.read_h5ad(path)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as an h5ad file: {error}") from error
    if labels_key is not None and labels_key not in adata.obs:
        raise KeyError(
            f"--labels-key {labels_key}: there is no such column in obs, which has {', '.join(map(str, adata.obs))}. "
            "Leave the option out to cluster with leiden."
        )
    if layer not in (None, "X") and layer not in adata.layers:
        raise KeyError(
            f"--layer {layer}: there is no such layer; the file has {', '.join(adata.layers) or 'none'}. "
            "Leave the option out to read counts from X."
        )
    return adata


def _headline(table: pd.DataFrame, space: str) -> Any:
    """The row of the two-sample AUC over all cells."""
    rows = table[(table["metric"] == "random_forest_auc") & (table["space"] == space) & (table["group"] == "all")]
    return rows.iloc[0] if len(rows) else None


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3g}"


def _summary(table: pd.DataFrame) -> None:
    """Print the metrics over all cells, and how many rows of single labels were too small."""
    view = Table(title="generated against held-out cells (floor: held-out against held-out)", title_justify="left")
    for name in ("metric", "space", "value", "floor", "note"):
        view.add_column(name, justify="right" if name in ("value", "floor") else "left")
    for row in table[table["group"] == "all"].to_dict("records"):
        note = row["note"] if isinstance(row["note"], str) else ""
        view.add_row(str(row["metric"]), str(row["space"]), _number(row["value"]), _number(row["floor"]), escape(note))
    _messages.print(view)
    labels = table[table["group"] != "all"]
    small = labels[labels["note"].fillna("").str.contains("n too small")]["group"].nunique()
    if small:
        _messages.print(f"{small} of {labels['group'].nunique()} labels: n too small (see metrics.csv)")


def _last_line(fake: AnnData, table: pd.DataFrame, out: Path, seconds: float) -> str:
    """One line: what was made, and the AUC beside its floor."""
    parts = []
    for space, name in (("features", "features"), ("pcs", "PCs")):
        row = _headline(table, space)
        if row is None or row["value"] != row["value"]:
            parts.append(f"on {name}: n too small")
        else:
            parts.append(f"{row['value']:.2f} on {name} (floor {row['floor']:.2f})")
    return (
        f"Made {fake.n_obs:,} cells x {fake.n_vars:,} transcripts in {seconds / 60:.1f} min: {out / 'generated.h5ad'}, with "
        f"model/, metrics.csv, umap.png, roc.png beside it. Random-forest AUC against held-out cells, 0.5 = "
        f"indistinguishable: {', '.join(parts)}"
    )


def main() -> None:
    """Run the command line; ``isodiff --help`` lists the commands."""
    try:
        app()
    except KeyboardInterrupt:
        _messages.print("stopped")
        sys.exit(130)
