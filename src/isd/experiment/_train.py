"""The models of an arm: trained once, kept on disk, read again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from anndata import AnnData

from isd.experiment._config import Arm, Config
from isd.experiment._data import setup_arguments
from isd.experiment._files import write_text
from isd.model import VAE, Classifier, LatentDiffusion
from isd.tl import tune_guidance

#: How the minutes of an arm that goes by time are shared out.
_SHARES = {"vae": 0.45, "diffusion": 0.45, "classifier": 0.1}


class Trainer:
    """Models of one arm and seed.

    Parameters
    ----------
    config
        The experiment.
    arm
        What to train.
    data
        By row of the grid.
    seed
        Of weights and training.
    folder
        Where models are kept.
    reference
        Folder of the arm whose minutes this one is given.
    """

    def __init__(
        self, config: Config, arm: Arm, data: dict[str, AnnData], seed: int, folder: Path, reference: Path | None
    ) -> None:
        self.config, self.arm, self.data, self.seed = config, arm, data, seed
        self.folder, self.reference = folder, reference

    def model(self, row: str, *, progress: bool | None = None) -> LatentDiffusion:
        """The diffusion model of a row: read where it is there, else trained."""
        path = self.folder / row
        adata = self.data[row]
        if (path / "model.json").exists():
            return LatentDiffusion.load(path, adata)
        # what it starts from is a row of its own, and takes none of its minutes
        bulk = self.model("bulk", progress=progress) if row == "transfer" else None
        published = self.arm.preset == "published"
        other = self.model("single_cell", progress=progress).vae if bulk is not None and published else None
        start = time.monotonic()
        vae = self._vae(row, bulk, progress) if other is None else other
        LatentDiffusion.setup_anndata(adata, **self._setup(row))
        model = LatentDiffusion(adata, vae=vae, preset=self.arm.preset, seed=self.seed, **self.arm.diffusion)
        if bulk is not None and published:
            # as it was: from one latent space to another that has nothing to do with it
            _move_denoiser(bulk, model)
        parts = ("diffusion",) if other is None else ("vae", "diffusion")
        model.train(**{**self.arm.diffusion_train, **self._minutes(row, *parts)}, seed=self.seed, progress=progress)
        write_text(self.folder / f"{row}.json", json.dumps({"seconds": time.monotonic() - start}))
        model.save(path, overwrite=True)
        return model

    def _vae(self, row: str, bulk: LatentDiffusion | None, progress: bool | None) -> VAE:
        """The VAE of a row, trained."""
        adata = self.data[row]
        VAE.setup_anndata(adata, **self._setup(row))
        train = {**self.arm.vae_train, **self._minutes(row, "vae")}
        if bulk is None:
            vae = VAE(adata, preset=self.arm.preset, seed=self.seed, **self.arm.vae)
        else:
            # clusters of bulk and of cells were found apart: the same number is not the same cluster
            vae = VAE.from_pretrained(bulk.vae, adata, **{"match_labels": False, **self.arm.transfer}, seed=self.seed)
        vae.train(**train, seed=self.seed, progress=progress)
        return vae

    def classifier(self, row: str, model: LatentDiffusion, *, progress: bool | None = None) -> Classifier | None:
        """The classifier that guides a row, where the arm has one."""
        if not self.arm.with_classifier:
            return None
        path = self.folder / f"{row}_classifier"
        if (path / "model.json").exists():
            return Classifier.load(path, self.data[row], diffusion=model)
        adata = self.data[row]
        Classifier.setup_anndata(adata, **self._setup(row))
        classifier = Classifier(adata, model, preset=self.arm.preset, seed=self.seed)
        options = {**self.arm.classifier_train, **self._minutes(row, "classifier")}
        classifier.train(**options, seed=self.seed, progress=progress)
        classifier.save(path, overwrite=True)
        return classifier

    def guidance_scale(self, row: str, model: LatentDiffusion, *, progress: bool | None = None) -> float:
        """How strongly a row is guided, as its validation cells choose."""
        path = self.folder / f"{row}_guidance.json"
        if path.exists():
            return float(json.loads(path.read_text())["guidance_scale"])
        options = {name: value for name, value in self.arm.guided.items() if name != "guidance_scale"}
        choice = tune_guidance(model, self.data[row], seed=self.seed, progress=progress, **options)
        write_text(self.folder / f"{row}_guidance.csv", choice.table.to_csv(index=False))
        write_text(path, json.dumps({"guidance_scale": choice.guidance_scale}))
        return float(choice.guidance_scale)  # type: ignore[arg-type]

    def _setup(self, row: str) -> dict[str, Any]:
        return setup_arguments(self.config, labels=row != "one_class")

    def _minutes(self, row: str, *parts: str) -> dict[str, Any]:
        """Length of a training in the minutes of another arm, where it goes by them."""
        if self.reference is None:
            return {}
        seconds = json.loads((self.reference / f"{row}.json").read_text())["seconds"]
        return {"max_minutes": max(sum(_SHARES[part] for part in parts) * seconds / 60, 0.01), "max_steps": 10**7}


@torch.no_grad()
def _move_denoiser(source: LatentDiffusion, target: LatentDiffusion) -> None:
    """Copy the weights of a denoiser, as the starting project moved them between unrelated latent spaces."""
    weights = dict(source.module.network.named_parameters())
    for name, parameter in target.module.network.named_parameters():
        if name in weights and weights[name].shape == parameter.shape:
            parameter.copy_(weights[name])
