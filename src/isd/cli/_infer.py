"""``isodiff infer``: from the counts of genes to those of isoforms."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import isd
from isd.cli._app import app
from isd.cli._shared import (
    Debug,
    Layer,
    ModelFolder,
    Overwrite,
    Progress,
    Seed,
    _one_line,
    _read,
    _Steps,
    _write,
    check_out,
    quiet_lightning,
)


class Output(StrEnum):
    """What is written."""

    samples = "samples"
    mean = "mean"
    usage = "usage"


class Method(StrEnum):
    """How usage is found."""

    direct = "direct"
    diffusion = "diffusion"


@app.command()
def infer(
    model: ModelFolder,
    data: Annotated[Path, typer.Argument(help="An h5ad file or zarr store with counts of genes.", exists=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .h5ad or .zarr.")],
    output: Annotated[Output, typer.Option(help="Counts that are drawn, their means, or shares.")] = Output.samples,
    n_samples: Annotated[int, typer.Option(help="Draws of each cell.", min=1)] = 1,
    labels: Annotated[
        str | None, typer.Option(help="Column of obs with labels, where the gene encoder has terms for labels.")
    ] = None,
    method: Annotated[
        Method, typer.Option(help="From the genes, or through the latent (needs a model saved with its data).")
    ] = Method.direct,
    std: Annotated[bool, typer.Option("--std", help="With --output mean: standard deviations, too.")] = False,
    layer: Layer = None,
    batch_size: Annotated[int, typer.Option(help="Cells at once; changes nothing but memory.", min=1)] = 256,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    progress: Progress = None,
    debug: Debug = False,
) -> None:
    """Infer counts of isoforms from counts of genes: a cell's isoforms add up to its genes.

    Example: isodiff infer model genes.h5ad --out isoforms.h5ad
    """
    with _one_line(debug, progress):
        step = _Steps(3)
        with step(f"model: {model}, data: {data}"):
            check_out(out, overwrite=overwrite)
            if out.resolve() == data.resolve():
                raise ValueError(f"--out {out} is the input; give another file.")
            quiet_lightning(debug)
            loaded = _load(model)
            genes = _read(data, labels_key=None, layer=layer)
        with step("isoforms"):
            inferred = isd.tl.infer_isoforms(
                loaded,
                genes,
                n_samples,
                labels,
                output=output.value,  # type: ignore[arg-type]
                method=method.value,  # type: ignore[arg-type]
                std=std,
                layer=layer,
                seed=seed,
                batch_size=batch_size,
            )
        with step(f"writing {out}"):
            _write(inferred, out)
        missing = inferred.uns["isd"].get("n_genes_missing")
        without = f", {missing:,} genes of the model are not in the data" if missing else ""
        typer.echo(
            f"Wrote {inferred.n_obs:,} cells x {inferred.n_vars:,} isoforms{without} in {step.elapsed / 60:.1f} min: {out}"
        )


def _load(folder: Path) -> Any:
    """A VAE or a latent diffusion model, with the data beside where a gene encoder has to be fitted to them."""
    from isd.model import VAE, LatentDiffusion, read_info

    cls: Any = LatentDiffusion if read_info(folder)["class"] == "LatentDiffusion" else VAE
    return cls.load(folder)
