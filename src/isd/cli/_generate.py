"""``isodiff generate``: from a trained model to a file of cells."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import isd
from isd.cli._app import app
from isd.cli._shared import Debug, ModelFolder, Overwrite, Progress, Seed, _one_line, _Steps, check_out, quiet_lightning


class Latents(StrEnum):
    """Where latents come from."""

    diffusion = "diffusion"
    gaussian = "gaussian"
    mixture = "mixture"
    prior = "prior"


class Accept(StrEnum):
    """Which cells are kept."""

    classified = "classified"


class Sampler(StrEnum):
    """How the diffusion is walked."""

    heun = "heun"
    euler = "euler"
    dpm = "dpm++"
    ddim = "ddim"
    ddpm = "ddpm"


@app.command()
def generate(
    model: ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .h5ad or .zarr.")],
    n_obs: Annotated[
        int | None,
        typer.Option(
            help="Number of cells; by default what the labels add up to, else as many as were trained on.", min=1
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="match (default: as in training), none, a label, or LABEL=NUMBER (repeat for several)."),
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Batch to generate for; by default as in training.")] = None,
    covariates: Annotated[
        list[str] | None, typer.Option(help="Category of a covariate: NAME=VALUE (repeat for several).")
    ] = None,
    guidance_scale: Annotated[
        list[str] | None,
        typer.Option(help="Classifier-free guidance: one number (default 1), or LABEL=NUMBER (repeat for several)."),
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Folder of a classifier that guides.", exists=True, file_okay=False)
    ] = None,
    classifier_scale: Annotated[
        float | None, typer.Option(help="Weight of its gradient; 0: it does not guide.")
    ] = None,
    start_guide_step: Annotated[
        int | None, typer.Option(help="The classifier guides below this step of 1000.", min=0)
    ] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="By default the model's: heun.")] = None,
    n_steps: Annotated[int | None, typer.Option(help="Steps of the sampler.", min=1)] = None,
    latents: Annotated[Latents, typer.Option(help="Where latents come from.")] = Latents.diffusion,
    library_size: Annotated[float | None, typer.Option(help="Total counts of each cell; by default generated.")] = None,
    accept: Annotated[
        Accept | None, typer.Option(help="classified: keep cells in which the classifier finds their label.")
    ] = None,
    max_tries: Annotated[int, typer.Option(help="Most draws of a cell with --accept.", min=1)] = 20,
    part: Annotated[
        tuple[int, int] | None,
        typer.Option(help="K N: the K-th of N parts, for one process of several.", show_default="none"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Cells at once on an accelerator.", min=1)] = 256,
    accelerator: Annotated[str, typer.Option(help="Where to compute: auto, cpu, gpu, mps.")] = "auto",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    progress: Progress = None,
    debug: Debug = False,
) -> None:
    """Generate cells or samples from a trained latent diffusion model, straight to a file.

    Example: isodiff generate model --n-obs 5000 --guidance-scale 1.5 --out fake.h5ad

    Interrupted, the same command goes on with what is done. The same seed gives the same cells.
    """
    with _one_line(debug, progress):
        step = _Steps(2)
        with step(f"model: {model}"):
            check_out(out, overwrite=overwrite)
            quiet_lightning(debug)
            from isd.model import Classifier, LatentDiffusion, read_info

            if (found := read_info(model)["class"]) != "LatentDiffusion":
                raise ValueError(f"{model} holds a {found}; cells are generated from a LatentDiffusion.")
            # the data beside the model, where there are any, serve for a mixture alone
            loaded = LatentDiffusion.load(model, None if latents == "mixture" else False, accelerator)
            guide = None
            if classifier is not None:
                guide = Classifier.load(classifier, False, accelerator, diffusion=loaded)
            asked = _labels(labels, loaded)
            options: dict[str, Any] = {
                "batch": None if batch is None else _known(batch, loaded.batches),
                "covariates": _covariates(covariates, loaded),
                "guidance_scale": _scales(guidance_scale, loaded),
                "sampler": None if sampler is None else sampler.value,
                "accept": None if accept is None else accept.value,
            }
        with step(f"generating to {out}"):
            fake = isd.tl.generate(
                loaded,
                n_obs,
                asked,
                **options,
                classifier=guide,
                classifier_scale=classifier_scale,
                start_guide_step=start_guide_step,
                n_steps=n_steps,
                latents=latents.value,  # type: ignore[arg-type]
                library_size=library_size,
                max_tries=max_tries,
                part=part,
                backed=out,
                overwrite=overwrite,
                seed=seed,
                batch_size=batch_size,
            )
            shape = fake.shape
            if fake.isbacked:
                fake.file.close()
        typer.echo(f"Wrote {shape[0]:,} cells x {shape[1]:,} transcripts in {step.elapsed / 60:.1f} min: {out}")


def _known(text: str, values: Any) -> Any:
    """The value that is written so; the text itself where none is, for the error that names those there are."""
    return next((value for value in list(values) if str(value) == text), text)


def _labels(given: list[str] | None, model: Any) -> Any:
    """``labels`` of :func:`isd.tl.generate`."""
    texts = {str(label) for label in model.labels}
    given = given or ["match"]
    if len(given) == 1 and (given[0] in texts or "=" not in given[0]):
        if given[0] == "none" and "none" not in texts:
            return None
        return given[0] if given[0] == "match" else _known(given[0], model.labels)
    numbers = dict(_pair(text, "--labels", "LABEL=NUMBER") for text in given)
    return {_known(label, model.labels): _as(int, number, "--labels") for label, number in numbers.items()}


def _scales(given: list[str] | None, model: Any) -> Any:
    """``guidance_scale`` of :func:`isd.tl.generate`."""
    if not given:
        return 1.0
    if len(given) == 1 and "=" not in given[0]:
        return _as(float, given[0], "--guidance-scale")
    numbers = dict(_pair(text, "--guidance-scale", "LABEL=NUMBER") for text in given)
    return {_known(label, model.labels): _as(float, number, "--guidance-scale") for label, number in numbers.items()}


def _covariates(given: list[str] | None, model: Any) -> dict[str, Any] | None:
    """``covariates`` of :func:`isd.tl.generate`."""
    pairs = dict(_pair(text, "--covariates", "NAME=VALUE") for text in given or ())
    known = model.covariate_categories
    return {name: _known(value, known.get(name, ())) for name, value in pairs.items()} or None


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    # the last sign: labels may hold one
    name, sign, value = text.rpartition("=")
    if not sign:
        raise typer.BadParameter(f"{text!r} is not {form}.", param_hint=option)
    return name, value


def _as(kind: type, text: str, option: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a {'whole ' if kind is int else ''}number.", param_hint=option
        ) from None
