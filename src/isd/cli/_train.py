"""``isodiff train``: from counts to a folder with a trained model."""

from __future__ import annotations

import inspect
import shutil
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

import isd
from isd.cli._app import app
from isd.cli._shared import (
    EXIT_NOT_FINISHED,
    Accelerator,
    Debug,
    Layer,
    Overwrite,
    Progress,
    Seed,
    _messages,
    _one_line,
    _read,
    _Steps,
    quiet_lightning,
)

if TYPE_CHECKING:
    from anndata import AnnData


class Kind(StrEnum):
    """What is trained."""

    vae = "vae"
    latent_diffusion = "latent-diffusion"
    classifier = "classifier"


class Preset(StrEnum):
    """Whose networks and settings."""

    default = "default"
    published = "published"


class Part(StrEnum):
    """Parts of a reference that stay as they are."""

    encoder = "encoder"
    decoder = "decoder"
    first_layer = "first_layer"
    last_layer = "last_layer"
    trunk = "trunk"


#: Options that serve one kind of model alone.
_ONLY = {
    "--vae": (Kind.latent_diffusion,),
    "--vae-kwargs": (Kind.latent_diffusion,),
    "--reference": (Kind.vae, Kind.latent_diffusion),
    "--freeze": (Kind.vae, Kind.latent_diffusion),
    "--scimilarity": (Kind.vae, Kind.latent_diffusion),
    "--n-latent": (Kind.vae, Kind.latent_diffusion),
    "--gene-key": (Kind.vae, Kind.latent_diffusion),
    "--diffusion": (Kind.classifier,),
}
#: Arguments that have an option of their own, or are not for a shell.
_OURS = {"self", "adata", "vae", "diffusion", "registry", "preset", "seed", "progress", "checkpoint_dir", "resume"}


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="An h5ad file or zarr store of raw counts.", exists=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the model to.", file_okay=False)],
    model: Annotated[Kind, typer.Option(help="What to train.")] = Kind.latent_diffusion,
    preset: Annotated[
        Preset, typer.Option(help="Networks and settings: ours, or the starting project's.")
    ] = Preset.default,
    labels_key: Annotated[
        str | None, typer.Option(help="Column of obs with the labels; by default leiden, or the diffusion model's.")
    ] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Train without labels: one class.")] = False,
    one_label: Annotated[str | None, typer.Option(help="Train on the cells of this label alone.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with batches.")] = None,
    categorical_covariate_keys: Annotated[
        list[str] | None, typer.Option(help="A further column of obs to condition on (repeat for several).")
    ] = None,
    gene_key: Annotated[str | None, typer.Option(help="Column of var with the gene of each transcript.")] = None,
    layer: Layer = None,
    backed: Annotated[
        bool, typer.Option("--backed", help="Leave X of an h5ad file on disk: memory does not grow with the cells.")
    ] = False,
    diffusion: Annotated[
        Path | None,
        typer.Option(help="classifier: folder of the diffusion model to guide.", exists=True, file_okay=False),
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(help="Folder of a trained VAE to stand on.", exists=True, file_okay=False)
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a model of other data to start from (from_pretrained).", exists=True, file_okay=False
        ),
    ] = None,
    freeze: Annotated[
        list[Part] | None, typer.Option(help="A part of the reference to leave as it is (repeat for several).")
    ] = None,
    match_labels: Annotated[
        bool, typer.Option(help="Whether labels of the same name mean the same in the reference.")
    ] = True,
    scimilarity: Annotated[
        Path | None,
        typer.Option(
            help="Folder of SCimilarity's weights to start from (from_scimilarity).", exists=True, file_okay=False
        ),
    ] = None,
    n_latent: Annotated[int | None, typer.Option(help="Width of the VAE's latent.", min=1)] = None,
    model_kwargs: Annotated[
        list[str] | None, typer.Option(help="Further argument of the model: NAME=VALUE (repeat for several).")
    ] = None,
    vae_kwargs: Annotated[
        list[str] | None,
        typer.Option(help="Argument of the training of the diffusion model's VAE: NAME=VALUE, such as max_steps=5000."),
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(help="Length of the training in epochs.", min=1)] = None,
    max_steps: Annotated[int | None, typer.Option(help="Length of the training in steps.", min=1)] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(help="Length of the training in minutes; with --resume that of this call.", min=0.001),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cells of a step.", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", min=0.0)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", min=0.0)] = None,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Stop when validation cells say so.")
    ] = False,
    log_every: Annotated[int, typer.Option(help="Steps between logged values.", min=1)] = 10,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; by default a tenth of the training.", min=1)
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the checkpoints; by default OUT.checkpoint, removed when OUT is there.", file_okay=False
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(help="Go on with the training in the folder of checkpoints, or begin anew in its place."),
    ] = None,
    save_anndata: Annotated[
        bool, typer.Option("--save-anndata", help="Keep the data in the folder of the model.")
    ] = False,
    overwrite: Overwrite = False,
    accelerator: Accelerator = "auto",
    devices: Annotated[int | None, typer.Option(help="How many devices.", min=1)] = None,
    seed: Seed = 0,
    progress: Progress = None,
    debug: Debug = False,
) -> None:
    """Train a VAE, a latent diffusion model (with its VAE) or a classifier on raw counts.

    Example: isodiff train cells.h5ad --labels-key cell_type --out model --max-minutes 60

    Interrupted, it goes on with: the same command and --resume. Exit code 3 says that the time is up and it can go on.
    """
    given = {
        "--vae": vae, "--vae-kwargs": vae_kwargs, "--reference": reference, "--freeze": freeze, "--scimilarity": scimilarity,
        "--n-latent": n_latent, "--gene-key": gene_key, "--diffusion": diffusion,
    }  # fmt: skip
    _check_usage(model, given, labels_key=labels_key, no_labels=no_labels, max_epochs=max_epochs, max_steps=max_steps)
    default_dir = checkpoint_dir is None
    checkpoints = out.with_name(f"{out.name}.checkpoint") if checkpoint_dir is None else checkpoint_dir
    with _one_line(debug, progress):
        isd.settings.seed = seed
        step = _Steps(3)
        with step(f"data: {data}"):
            _check_folders(out, checkpoints, model, checkpoint_every, resume, overwrite=overwrite)
            quiet_lightning(debug)
            start = _Start(
                model,
                preset,
                diffusion,
                vae,
                reference,
                freeze or (),
                match_labels,
                scimilarity,
                n_latent,
                model_kwargs,
                seed,
            )
            vae_options = _values(vae_kwargs, isd.model.VAE.train, "--vae-kwargs")
            labels_key = None if no_labels else labels_key or start.labels_key
            adata = _read(
                data, labels_key=labels_key, layer=layer, backed=backed, without="Give --no-labels for one class."
            )
            if one_label is not None:
                adata = _of_label(adata, labels_key, one_label)
            setup = {
                "layer": layer, "labels_key": labels_key, "batch_key": batch_key,
                "categorical_covariate_keys": categorical_covariate_keys or None,
            }  # fmt: skip
            start.setup(adata, setup | ({} if gene_key is None else {"gene_key": gene_key}))
            _messages.print(f"      {adata.n_obs:,} cells or samples x {adata.n_vars:,} transcripts")
        length = {"max_epochs": max_epochs, "max_steps": max_steps, "max_minutes": max_minutes}
        common = {
            "accelerator": accelerator, "devices": "auto" if devices is None else devices, "seed": seed,
            "checkpoint_every": checkpoint_every, "resume": resume, "log_every": log_every,
        }  # fmt: skip
        options = {
            **length, **common, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
            "checkpoint_dir": checkpoints,
        }  # fmt: skip
        if early_stopping:
            options["early_stopping"] = True
        with step(f"training: {model.value}"):
            trained = start.train(adata, options, common, vae_options)
            if trained is None or not trained.training_finished:
                _messages.print(
                    f"not finished: {escape(str(checkpoints))} holds what is done; --resume goes on with it"
                )
                raise typer.Exit(EXIT_NOT_FINISHED)
        with step(f"writing {out}"):
            trained.save(out, overwrite=overwrite, save_anndata=save_anndata)
            if default_dir:
                for folder in (checkpoints, _beside(checkpoints)):
                    shutil.rmtree(folder, ignore_errors=True)
        labels = f"{len(trained.labels)} labels of {trained.labels_key}" if trained.labels_key else "no labels"
        typer.echo(
            f"Trained a {type(trained).__name__} on {len(trained.train_indices):,} cells x {adata.n_vars:,} transcripts, "
            f"{labels}, in {step.elapsed / 60:.1f} min: {out}"
        )


def _check_usage(
    model: Kind,
    given: dict[str, Any],
    *,
    labels_key: str | None,
    no_labels: bool,
    max_epochs: int | None,
    max_steps: int | None,
) -> None:
    """Options that contradict each other are wrong usage: exit code 2."""
    for name, value in given.items():
        if value and model not in _ONLY[name]:
            kinds = " or ".join(kind.value for kind in _ONLY[name])
            raise typer.BadParameter(f"goes with --model {kinds}, not with {model.value}.", param_hint=name)
    if model is Kind.classifier and given["--diffusion"] is None:
        raise typer.BadParameter(
            "a classifier needs the folder of the diffusion model to guide.", param_hint="--diffusion"
        )
    starts = [name for name in ("--vae", "--reference", "--scimilarity") if given[name]]
    if len(starts) > 1:
        raise typer.BadParameter(f"give one of {' and '.join(starts)}.", param_hint=starts[1])
    if given["--n-latent"] and starts:
        raise typer.BadParameter(f"{starts[0]} has a latent of its own.", param_hint="--n-latent")
    if given["--vae-kwargs"] and given["--vae"]:
        raise typer.BadParameter("that VAE is trained already.", param_hint="--vae-kwargs")
    if given["--freeze"] and not given["--reference"]:
        raise typer.BadParameter("names parts of a --reference.", param_hint="--freeze")
    if labels_key is not None and no_labels:
        raise typer.BadParameter("contradicts --labels-key.", param_hint="--no-labels")
    if max_epochs is not None and max_steps is not None:
        raise typer.BadParameter("give epochs or steps, not both.", param_hint="--max-epochs")


def _check_folders(
    out: Path, checkpoints: Path, model: Kind, every: int | None, resume: bool | None, *, overwrite: bool
) -> None:
    """Raise where results could not be written: before any data are read."""
    from isd.model._checkpoint import Checkpoints
    from isd.model._files import check_target

    if out.resolve() == checkpoints.resolve():
        raise ValueError(f"--checkpoint-dir {checkpoints} is OUT; give another folder.")
    check_target(out, overwrite=overwrite)
    for part in ("", "vae") if model is Kind.latent_diffusion else ("",):
        Checkpoints(checkpoints, every, resume, part)
    Checkpoints(_beside(checkpoints), every, resume)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)


def _beside(checkpoints: Path) -> Path:
    """Folder of the checkpoints of a VAE that is trained in a call of its own, before its diffusion model."""
    return checkpoints.with_name(f"{checkpoints.name}-vae")


def _values(pairs: list[str] | None, call: Any, option: str) -> dict[str, Any]:
    """``NAME=VALUE``, with values as in YAML and names as the call has them."""
    import yaml

    known = sorted(
        name
        for name, parameter in inspect.signature(call).parameters.items()
        if name not in _OURS and not name.startswith("_") and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    )
    out = {}
    for pair in pairs or ():
        name, is_there, value = pair.partition("=")
        if not is_there or name not in known:
            raise typer.BadParameter(
                f"{pair!r} is not NAME=VALUE with a name of: {', '.join(known)}.", param_hint=option
            )
        # YAML 1.1 takes 5e-4 for text
        out[name] = _number(value) if (parsed := yaml.safe_load(value)) == value else parsed
    return out


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _of_label(adata: AnnData, labels_key: str | None, label: str) -> AnnData:
    if labels_key is None:
        raise ValueError("--one-label needs --labels-key.")
    found = (adata.obs[labels_key].astype(str) == label).to_numpy()
    if found.sum() < 2:
        names = ", ".join(map(str, adata.obs[labels_key].value_counts().index[:12]))
        raise ValueError(f"--one-label {label}: {found.sum()} cells have it in obs[{labels_key!r}] (labels: {names}).")
    return adata[found].to_memory() if adata.isbacked else adata[found].copy()


class _Start:
    """A model to be trained, and what it starts from; folders are loaded before the data are read."""

    def __init__(
        self,
        kind: Kind,
        preset: Preset,
        diffusion: Path | None,
        vae: Path | None,
        reference: Path | None,
        freeze: Any,
        match_labels: bool,
        scimilarity: Path | None,
        n_latent: int | None,
        model_kwargs: list[str] | None,
        seed: int,
    ) -> None:
        from isd.model import VAE, Classifier, LatentDiffusion, read_info

        self.kind, self.seed, self.scimilarity, self.reference = kind, seed, scimilarity, reference
        self.match_labels = match_labels
        self.freeze = [part.value for part in freeze]
        self.cls: Any = {"vae": VAE, "latent-diffusion": LatentDiffusion, "classifier": Classifier}[kind.value]
        self.model_options = {"preset": preset.value, "seed": seed}
        self.model_options |= _values(model_kwargs, self.cls, "--model-kwargs")
        self.vae_options: dict[str, Any] = {} if n_latent is None else {"n_latent": n_latent}
        self.vae_options |= {"preset": preset.value, "seed": seed}
        self.own_vae = kind is Kind.vae or bool(n_latent or reference or scimilarity)
        self.vae = None if vae is None else VAE.load(vae, False)
        self.diffusion = None if diffusion is None else LatentDiffusion.load(diffusion, False)
        if reference is not None:
            read_info(reference)
        self.labels_key = "leiden" if self.diffusion is None else self.diffusion.labels_key or "leiden"

    def setup(self, adata: AnnData, options: dict[str, Any]) -> None:
        """Register the data; errors of the counts and of names are told here."""
        self.options = options
        if self.kind is not Kind.classifier:
            from isd.model import VAE

            VAE.setup_anndata(adata, **options)
        if self.kind is not Kind.vae:
            self.cls.setup_anndata(adata, **options)

    def train(
        self, adata: AnnData, options: dict[str, Any], common: dict[str, Any], vae_options: dict[str, Any]
    ) -> Any:
        """The trained model; ``None`` where the time was up before its VAE was trained."""
        if self.kind is Kind.vae:
            return _trained(self._vae(adata, self.model_options), options)
        if self.kind is Kind.classifier:
            return _trained(self.cls(adata, self.diffusion, **self.model_options), options)
        if not self.own_vae:
            model = self.cls(adata, self.vae, **self.model_options)
            return _trained(model, {**options, "vae_kwargs": vae_options or None})
        begin, minutes, sittings = time.monotonic(), options["max_minutes"], bool(options["resume"])
        length = {} if minutes is None else {"max_minutes": minutes if sittings else 0.6 * minutes}
        vae = self._vae(adata, self.vae_options)
        folder = _beside(options["checkpoint_dir"])
        vae.train(**{**common, **length, "checkpoint_dir": folder, **vae_options})
        if not vae.training_finished:
            return None
        if minutes is not None:
            left = minutes - (time.monotonic() - begin) / 60 if sittings else 0.4 * minutes
            options = {**options, "max_minutes": max(left, 1e-3)}
        self.cls.setup_anndata(adata, **self.options)
        if self.reference is not None and "trunk" in self.freeze:
            # the axes of the latent space are still the reference's
            model = self.cls.from_pretrained(self.reference, adata, vae=vae, seed=self.seed)
        else:
            model = self.cls(adata, vae, **self.model_options)
        return _trained(model, options)

    def _vae(self, adata: AnnData, options: dict[str, Any]) -> Any:
        from isd.model import VAE

        options = {**options, **{k: v for k, v in self.vae_options.items() if k == "n_latent"}}
        VAE.setup_anndata(adata, **self.options)
        if self.scimilarity is not None:
            return VAE.from_scimilarity(self.scimilarity, adata, seed=self.seed)
        if self.reference is not None:
            return VAE.from_pretrained(
                self.reference, adata, freeze=self.freeze, match_labels=self.match_labels, seed=self.seed
            )
        return VAE(adata, **options)


def _trained(model: Any, options: dict[str, Any]) -> Any:
    model.train(**options)
    return model
