"""``isodiff info`` and ``isodiff prepare``: files, before anything is trained on them."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.markup import escape

import isd
from isd.cli._app import app
from isd.cli._shared import Debug, Layer, Progress, Seed, _messages, _one_line, _Steps, _write, check_out, is_zarr

if TYPE_CHECKING:
    from anndata import AnnData

#: Tools whose files :func:`isd.io.read_quant` and :func:`isd.io.read_long_reads` read.
_QUANT = ("salmon", "kallisto", "oarfish", "rsem", "piscem")
_LONG = ("isoquant", "flames", "bambu", "isosceles", "wf-single-cell")

Source = StrEnum("Source", [(name.replace("-", "_"), name) for name in ("h5ad", "zarr", "archs4", *_QUANT, *_LONG)])  # type: ignore[misc]


@app.command()
def info(
    file: Annotated[
        Path, typer.Argument(help="An h5ad file, a zarr store, or an ARCHS4 transcript file.", exists=True)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a file holds: shape, types, memory, labels, isoforms a gene. Its matrix is not read."""
    with _one_line(debug):
        found = isd.io.info(file)
        typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found))


@app.command()
def prepare(
    file: Annotated[Path, typer.Argument(help="What to read: a file, or a folder of a tool's files.", exists=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .h5ad or .zarr.")],
    source: Annotated[
        Source | None,
        typer.Option(help="What wrote the files; by default h5ad, zarr, ARCHS4 and long-read tools are recognised."),
    ] = None,
    gene_map: Annotated[
        Path | None, typer.Option(help="GTF or table of transcripts and genes.", exists=True, dir_okay=False)
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(help="ARCHS4: a regular expression that the metadata must match (repeat for several)."),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="ARCHS4: a file of accessions, one a line.", exists=True, dir_okay=False)
    ] = None,
    single_cell: Annotated[
        bool | None, typer.Option(help="ARCHS4: single cells only, or none of them; by default both.")
    ] = None,
    layer: Layer = None,
    recipe: Annotated[
        bool, typer.Option(help="Normalise, find features, PCA, neighbours and leiden (isd.pp.recipe).")
    ] = True,
    resolution: Annotated[float, typer.Option(help="Resolution of leiden.", min=0.0001)] = 1.0,
    split: Annotated[bool, typer.Option(help="Divide into train, validation and test (isd.pp.split).")] = True,
    test_size: Annotated[float, typer.Option(help="Share of test cells.", min=0.0, max=1.0)] = 0.3,
    validation_size: Annotated[float, typer.Option(help="Share of validation cells.", min=0.0, max=1.0)] = 0.1,
    labels_key: Annotated[str | None, typer.Option(help="Column of obs to stratify by; by default leiden.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs whose groups are not divided.")] = None,
    seed: Seed = 0,
    progress: Progress = None,
    debug: Debug = False,
) -> None:
    """Read counts, add genes, prepare and split them: an h5ad file that is ready for training.

    Leaves raw counts in layers["counts"], and cells without counts out.
    """
    with _one_line(debug, progress):
        step = _Steps(2 + recipe + split)
        with step(f"reading {file}"):
            if out.resolve() == file.resolve():
                raise ValueError(f"--out {out} is the input; give another file.")
            # a file that cannot be written should be known now
            check_out(out, overwrite=True)
            adata = _any(file, source, gene_map, search or None, samples, single_cell)
            adata = _with_counts(adata, layer)
            _messages.print(f"      {adata.n_obs:,} cells or samples x {adata.n_vars:,} transcripts")
        if recipe:
            with step("recipe: normalisation, features, PCA, neighbours, leiden"):
                isd.pp.recipe(adata, layer=layer, resolution=resolution, seed=seed)
        if split:
            with step("split"):
                isd.pp.split(
                    adata, test_size=test_size, validation_size=validation_size, labels_key=labels_key,
                    batch_key=batch_key, seed=seed,
                )  # fmt: skip
        with step(f"writing {out}"):
            _write(adata, out)
        sides = adata.obs["isd_split"].value_counts().to_dict() if split else {}
        shares = f" ({', '.join(f'{n:,} {side}' for side, n in sides.items())})" if sides else ""
        typer.echo(
            f"Wrote {adata.n_obs:,} cells or samples x {adata.n_vars:,} transcripts{shares} in {step.elapsed / 60:.1f} min: {out}"
        )


def _any(
    file: Path,
    source: Any,
    gene_map: Path | None,
    search: list[str] | None,
    samples: Path | None,
    single_cell: bool | None,
) -> AnnData:
    """Read with the reader of the source."""
    name = str(source) if source is not None else _recognised(file)
    if name != "archs4" and (search is not None or samples is not None or single_cell is not None):
        raise ValueError(
            f"--search, --samples and --single-cell choose samples of ARCHS4 files; this is read as {name}."
        )
    if name == "archs4":
        wanted = None if samples is None else samples.read_text().split()
        return isd.io.read_archs4(file, samples=wanted, search=search, single_cell=single_cell, gene_map=gene_map)
    if name in _QUANT:
        return isd.io.read_quant(file, name, gene_map=gene_map)  # type: ignore[arg-type]
    if name in ("h5ad", "zarr"):
        adata = _anndata(file, name)
        if gene_map is not None:
            isd.pp.annotate_genes(adata, isd.io.read_gene_map(gene_map))
        return adata
    return isd.io.read_long_reads(file, None if name == "long reads" else name, gene_map=gene_map)  # type: ignore[arg-type]


def _recognised(file: Path) -> str:
    """``h5ad``, ``zarr``, ``archs4`` by content; else a long-read tool's files, whose reader looks further."""
    if file.suffix == ".h5ad":
        return "h5ad"
    if is_zarr(file):
        return "zarr"
    import h5py

    if file.is_file() and h5py.is_hdf5(file):
        return "archs4"
    return "long reads"


def _anndata(file: Path, name: str) -> AnnData:
    import anndata

    isd.io.info(file)  # says in a line what is wrong with the file, if anything
    return anndata.read_h5ad(file) if name == "h5ad" else anndata.read_zarr(file)


def _with_counts(adata: AnnData, layer: str | None) -> AnnData:
    """Leave out cells without counts: they cannot be normalised."""
    from isd._counts import all_zero_rows, get_counts

    counts = get_counts(adata, layer)
    if counts is None:
        raise ValueError('X is empty; name the layer of raw counts with --layer, such as "counts".')
    empty = all_zero_rows(counts, rounded=True)
    if not empty.size:
        return adata
    _messages.print(f"      {escape(f'{empty.size} cells without counts are left out')}")
    return adata[np.setdiff1d(np.arange(adata.n_obs), empty)].copy()
