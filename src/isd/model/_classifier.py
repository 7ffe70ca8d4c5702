"""The classifier that users hold: predicts labels of cells, and guides a diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from isd._constants import SPLIT_KEY, UNS_KEY
from isd.diffusion import get_schedule
from isd.model._base import IsdModel
from isd.model._files import check_class, read_document
from isd.model._latent_data import LatentDataModule
from isd.model._latent_diffusion import LatentDiffusion
from isd.model._presets import (
    PUBLISHED,
    Preset,
    check_preset,
    default_classifier,
    default_classifier_train,
    resolve,
)
from isd.model._settle import LRSchedule, settle
from isd.model._training import fit, seeded
from isd.module import ClassifierModule


class Classifier(IsdModel):
    """Time-conditional classifier on noised latents of a :class:`LatentDiffusion` model.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    diffusion
        The trained diffusion model that it is to guide; schedule, scaler and VAE are shared with it. To guide it, the
        classifier must know the same labels; to predict, it may know others.
    hidden, dropout
        Shape of the network.
    start_guide_time
        The classifier is trained at times below this share of the diffusion (default 1, published 0.5).
    preset
        ``"default"`` or ``"published"``.
    seed
        Seed of the initial weights.
    registry
        Registry of a saved model, where there is no ``adata``.

    Raises
    ------
    ValueError
        If the diffusion model is not trained or was set up with other features, or there are fewer than two labels.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> isd.model.Classifier.setup_anndata(adata)
    >>> classifier = isd.model.Classifier(adata, model)
    >>> classifier.train(max_steps=5, progress=False)
    >>> fake = isd.tl.generate(model, n_obs=4, classifier=classifier, classifier_scale=1.0)
    >>> bool(set(classifier.predict()) <= {"0", "1"}), classifier.predict(soft=True).shape
    (True, (80, 2))
    >>> latents = model.latent_tensors()
    >>> classifier.probabilities(latents["latent_mean"].numpy(), latents["log_library"].numpy()[:, 0]).shape
    (80, 2)
    >>> import tempfile, torch
    >>> log_prob = classifier.log_prob(torch.zeros(3, dtype=torch.long))
    >>> log_prob(torch.zeros(3, model.module.n_input), torch.full((3,), 0.5)).shape
    torch.Size([3])
    >>> folder = f"{tempfile.mkdtemp()}/classifier"
    >>> classifier.save(folder)
    >>> again = isd.model.Classifier.load(folder, diffusion=model)
    """

    _module_cls = ClassifierModule

    def __init__(
        self,
        adata: AnnData | None = None,
        diffusion: LatentDiffusion | None = None,
        *,
        hidden: tuple[int, ...] | None = None,
        dropout: float | None = None,
        start_guide_time: float | None = None,
        preset: Preset = "default",
        seed: int | None = None,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(adata, registry)
        check_preset(preset)
        _check_diffusion(diffusion)
        assert diffusion is not None
        if not diffusion.is_trained:
            raise ValueError("the diffusion model is not trained yet; call its train() first.")
        if (
            len(diffusion.feature_names) != len(self.feature_names)
            or not (diffusion.feature_names == self.feature_names).all()
        ):
            raise ValueError("the diffusion model has other features than the data of the classifier.")
        if len(self.labels) < 2:
            raise ValueError(
                f"a classifier needs at least 2 labels; labels_key={self.labels_key!r} has {len(self.labels)}."
            )
        self.preset = preset
        self._diffusion = diffusion
        rule = PUBLISHED["classifier"] if preset == "published" else default_classifier()
        given = {"hidden": hidden, "dropout": dropout, "start_guide_time": start_guide_time}
        self.module_params = resolve(given, rule)
        schedule = diffusion.module_params["schedule"]
        with seeded(seed):
            self.module = ClassifierModule(
                diffusion.vae.module.n_latent,
                len(self.labels),
                schedule=get_schedule(schedule),
                model_library=diffusion.module.model_library,
                standardize=diffusion.module.scaler.enabled,
                library_quantiles=diffusion.module.scaler.n_quantiles,
                **self.module_params,
            )
        self.module.scaler.load_state_dict(diffusion.module.scaler.state_dict())
        self.module.eval()
        self.diffusion_fingerprint_ = diffusion.fingerprint
        self.init_params_ = {"kwargs": {}, "non_kwargs": {**self.module_params, "preset": preset}}
        self._model_summary_string = f"isd Classifier: {len(self.labels)} labels"

    @property
    def diffusion(self) -> LatentDiffusion:
        """The diffusion model that the classifier guides."""
        return self._diffusion

    def train(
        self,
        max_epochs: int | None = None,
        *,
        max_steps: int | None = None,
        max_minutes: float | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        lr_schedule: LRSchedule | None = None,
        early_stopping: bool = False,
        early_stopping_patience: int = 5,
        checkpoint_every: int | None = None,
        checkpoint_dir: str | Path | None = None,
        resume: bool | str | Path | None = None,
        log_every: int = 10,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        progress: bool | None = None,
        seed: int | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on noised latents of the diffusion model's training rows.

        Parameters
        ----------
        max_epochs, max_steps, max_minutes
            Length of the training, as in :meth:`VAE.train`.
        batch_size, lr, weight_decay, lr_schedule
            Of the optimiser (AdamW); ``None`` follows the preset and the number of cells. Several processes split each
            batch.
        early_stopping, early_stopping_patience, checkpoint_every, checkpoint_dir, resume, log_every
            As in :meth:`VAE.train`.
        accelerator, devices, progress, seed
            As in :meth:`VAE.train`.
        **trainer_kwargs
            Passed to :class:`scvi.train.Trainer`.
        """
        adata = self._validate_anndata()
        diffusion = self.diffusion
        rows = None if SPLIT_KEY in adata.obs else diffusion.rows_of(adata)
        train_idx, val_idx, test_idx = self._split() if rows is None else rows
        n_train = len(train_idx)
        settled = settle(
            {
                "max_steps": max_steps,
                "batch_size": batch_size,
                "lr": lr,
                "weight_decay": weight_decay,
                "lr_schedule": lr_schedule,
                "gradient_clip_val": trainer_kwargs.pop("gradient_clip_val", None),
            },
            PUBLISHED["classifier_train"] if self.preset == "published" else default_classifier_train(n_train),
            n_train=n_train,
            n_val=len(val_idx),
            max_epochs=max_epochs,
            max_minutes=max_minutes,
            fit_options={
                "accelerator": accelerator,
                "devices": devices,
                "early_stopping": early_stopping,
                "early_stopping_patience": early_stopping_patience,
                "checkpoint_every": checkpoint_every,
                "checkpoint_dir": checkpoint_dir,
                "resume": resume,
                "seed": seed,
                "log_every": log_every,
                "progress": progress,
            },
            trainer_kwargs=trainer_kwargs,
        )
        tensors = diffusion.latent_tensors(adata, progress=progress)
        tensors["codes"][:, 0] = torch.from_numpy(self.label_codes(adata))
        self._remember_rows(train_idx, val_idx, test_idx)
        with seeded(seed):
            fit(
                self,
                LatentDataModule(tensors, train_idx, val_idx, test_idx, batch_size=settled.batch_size),
                settled,
                n_train=n_train,
                n_threads=1,
                kl_warmup=0.0,
                elbo_metrics=False,
            )

    @torch.inference_mode()
    def predict(
        self, adata: AnnData | None = None, *, soft: bool = False, progress: bool | None = None
    ) -> np.ndarray | pd.DataFrame:
        """Label of clean cells, through the VAE's posterior mean at time zero.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        soft
            Return probabilities.
        progress
            Progress bar.

        Returns
        -------
        Array of labels of length ``n_obs``, or a DataFrame of probabilities with one column a label.
        """
        self._check_if_trained(warn=False, message="the classifier is not trained yet; call train() first.")
        if adata is None:
            adata = self.adata
        if adata is None:
            raise ValueError("the classifier was loaded without data; give adata= to predict.")
        vae = self.diffusion.vae
        mean, _ = vae.encode_distribution(adata, progress=progress)
        probabilities = self.probabilities(mean, vae._log_library(adata))
        if soft:
            return pd.DataFrame(probabilities, index=adata.obs_names, columns=pd.Index(self.labels.tolist()))
        return self.labels[probabilities.argmax(1)]

    @torch.inference_mode()
    def probabilities(self, latents: np.ndarray, log_library: np.ndarray) -> np.ndarray:
        """Probability of each label for clean latents, at time zero.

        Parameters
        ----------
        latents
            Shape ``(n, n_latent)``, on the VAE's scale.
        log_library
            Log library size, shape ``(n,)``; read where the diffusion model generates it.

        Returns
        -------
        Array of shape ``(n, n_labels)``, in the order of :attr:`labels`.
        """
        x = torch.from_numpy(latents)
        if self.module.model_library:
            x = torch.cat([x, torch.from_numpy(np.asarray(log_library, dtype=np.float32))[:, None]], dim=1)
        parts = []
        for start in range(0, len(x), 4096):
            block = self.module.scaler(x[start : start + 4096].to(self.module.device))
            logits = self.module.network(block, torch.zeros(len(block), device=block.device))
            parts.append(torch.softmax(logits, dim=1).cpu().numpy())
        return np.concatenate(parts)

    def log_prob(self, codes: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Function ``(x_t, t) -> log p(label given x_t)`` for a label code per row: what a guide differentiates.

        Parameters
        ----------
        codes
            Label code of each row that will be asked about, shape ``(n,)``.
        """
        return lambda x, t: self.module.log_prob(x, t, codes)

    def _checkpoint_call(self) -> dict[str, Any]:
        return {"diffusion model": self.diffusion.fingerprint}

    def _extra_meta(self) -> dict[str, Any]:
        return {UNS_KEY: {"diffusion_fingerprint": self.diffusion_fingerprint_}}

    @classmethod
    def load(  # type: ignore[override]
        cls,
        dir_path: str | Path,
        adata: AnnData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        *,
        diffusion: LatentDiffusion | None = None,
        allow_pickle: bool = False,
    ) -> Self:
        """Load a classifier for the diffusion model that it was trained with.

        Parameters
        ----------
        dir_path
            Folder of the classifier.
        adata
            Data to attach; not needed to guide.
        accelerator, device
            Where to put the model.
        diffusion
            The diffusion model, loaded before.
        allow_pickle
            As in :meth:`VAE.load`.

        Raises
        ------
        TypeError
            If no diffusion model is given.
        ValueError
            If it is another diffusion model than the classifier was trained with.
        """
        # a folder of another class is the first thing to say: its load() needs no diffusion
        if diffusion is None and not allow_pickle:
            check_class(Path(dir_path), read_document(dir_path), cls.__name__)
        _check_diffusion(diffusion)
        model = cls._load(dir_path, adata, accelerator, device, allow_pickle, diffusion=diffusion)
        check_belongs(model, model.diffusion)
        return model


def _check_diffusion(diffusion: object) -> None:
    if not isinstance(diffusion, LatentDiffusion):
        raise TypeError(
            f"diffusion must be the isd.model.LatentDiffusion that is to be guided, got {type(diffusion).__name__}."
        )


def check_belongs(classifier: Classifier, diffusion: LatentDiffusion) -> None:
    """Raise when a classifier was trained with another diffusion model.

    Raises
    ------
    ValueError
        Naming both fingerprints.
    """
    ours, theirs = classifier.diffusion_fingerprint_, diffusion.fingerprint
    if ours != theirs:
        raise ValueError(
            f"the classifier was trained with another diffusion model (fingerprint {ours}, this model has {theirs}): "
            "its latents mean something else. Train a Classifier for this model."
        )
