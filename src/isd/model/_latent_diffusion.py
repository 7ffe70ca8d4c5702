"""The latent diffusion model that users hold."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from anndata import AnnData

from isd._atomic import recover
from isd._hash import fingerprint
from isd.diffusion import Parametrization, get_schedule
from isd.model._checkpoint import Checkpoints, in_sittings
from isd.model._latent_data import LatentDataModule
from isd.model._latent_densities import FEW_CELLS
from isd.model._latent_space import LatentSpace
from isd.model._mudata import isoforms_of
from isd.model._presets import (
    DEFAULT_GENERATE,
    PUBLISHED,
    Preset,
    check_preset,
    default_diffusion,
    default_diffusion_train,
    pretrained_train,
    resolve,
)
from isd.model._pretrained_diffusion import PretrainedDiffusionMixin
from isd.model._settle import LRSchedule, settle
from isd.model._state import TRAINING_FILE
from isd.model._training import fit, seeded
from isd.model._vae import VAE, VAE_FOLDER
from isd.module import LatentDiffusionModule
from isd.settings import settings


class LatentDiffusion(PretrainedDiffusionMixin, LatentSpace):
    """Diffusion model over the latents of a :class:`VAE`, conditioned on label, batch and categorical covariates.

    It models the standardised latent together with the log library size, so that depth is generated too. Conditions
    are hidden at random in training: the same model runs conditional, unconditional and classifier-free guided.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`, or a MuData registered with :meth:`setup_mudata`.
    vae
        A trained VAE on the same features, batches and covariates. ``None``: :meth:`train` trains one first.
    schedule
        ``"straight"`` (flow matching, default), ``"linear"`` or ``"cosine"``.
    parametrization
        ``"velocity"`` (default), ``"epsilon"``, ``"x0"`` or ``"v"``.
    n_hidden, n_blocks, dropout
        Shape of the denoiser.
    label_dropout
        Probability of hiding conditions in training.
    preset
        ``"default"`` or ``"published"``: MLP U-Net over raw latents, 1000 linear steps, epsilon, classifier guidance.
    seed
        Seed of the initial weights; ``None`` takes ``isd.settings.seed``.
    registry
        Registry of a saved model, where there is no ``adata``.
    **module_kwargs
        Further arguments of :class:`isd.module.LatentDiffusionModule`.

    Raises
    ------
    ValueError
        If the VAE is not trained, or has other features, counts in another layer, other batches or covariates.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> isd.tl.generate(model, n_obs=7).shape
    (7, 60)
    >>> {name: tuple(values.shape) for name, values in model.latent_tensors().items()}
    {'latent_mean': (80, 32), 'latent_std': (80, 32), 'log_library': (80, 1), 'codes': (80, 2)}
    >>> density = model.latent_density("gaussian")  # what generate(latents="gaussian") draws from
    >>> import tempfile
    >>> folder = f"{tempfile.mkdtemp()}/model"
    >>> model.save(folder)
    >>> again = isd.model.LatentDiffusion.load(folder)
    """

    _module_cls = LatentDiffusionModule

    def __init__(
        self,
        adata: AnnData | None = None,
        vae: VAE | None = None,
        *,
        schedule: Literal["straight", "linear", "cosine"] | None = None,
        parametrization: Parametrization | None = None,
        n_hidden: int | None = None,
        n_blocks: int | None = None,
        dropout: float | None = None,
        label_dropout: float | None = None,
        preset: Preset = "default",
        seed: int | None = None,
        registry: dict[str, Any] | None = None,
        _check_vae: bool = True,
        **module_kwargs: Any,
    ) -> None:
        adata = isoforms_of(adata)
        super().__init__(adata, registry)
        check_preset(preset)
        self.vae_fingerprint_: str | None = None
        self.preset = preset
        self._seed = seed
        given = {
            "schedule": schedule,
            "parametrization": parametrization,
            "n_hidden": n_hidden,
            "n_blocks": n_blocks,
            "dropout": dropout,
            "label_dropout": label_dropout,
            **module_kwargs,
        }
        rule = PUBLISHED["diffusion"] if preset == "published" else default_diffusion()
        self.module_params = resolve(given, rule)
        get_schedule(self.module_params["schedule"])  # an unknown name is told now, not after the VAE's training
        self._vae: VAE | None = None
        self._vae_given = vae is not None
        if vae is not None:
            self._attach(vae, check_trained=_check_vae)
        elif adata is not None:
            VAE.setup_anndata(adata, **self.setup_args)
            self._attach(VAE(adata, preset=preset, seed=seed), check_trained=False)
        else:
            raise ValueError("LatentDiffusion needs adata, or a vae when it is loaded without data.")
        self.init_params_ = {"kwargs": {}, "non_kwargs": {**self.module_params, "preset": preset}}
        self._model_summary_string = (
            f"isd LatentDiffusion: {self.module_params['schedule']} schedule, "
            f"{self.module_params['parametrization']} prediction, {len(self.labels)} labels"
        )

    def _attach(self, vae: VAE, *, check_trained: bool = True) -> None:
        """Take a VAE and make the denoiser for its latents."""
        if not isinstance(vae, VAE):
            raise TypeError(f"vae must be an isd.model.VAE, got {type(vae).__name__}.")
        if check_trained and not vae.is_trained:
            raise ValueError("the vae is not trained yet; call vae.train() first, or give none and it is trained here.")
        ours, theirs = self.feature_names, vae.feature_names
        if len(ours) != len(theirs) or not (ours == theirs).all():
            shared = len(ours.intersection(theirs))
            raise ValueError(
                f"the vae has other features: {len(theirs)} against {len(ours)} of the data, {shared} shared"
                f"{', in another order' if shared == len(ours) == len(theirs) else ''}. Use a VAE of these data."
            )
        for what in (
            "batch_key",
            "categorical_covariate_keys",
            "continuous_covariate_keys",
            "size_factor_key",
            "layer",
        ):
            a, b = self.setup_args.get(what), vae.setup_args.get(what)
            if (list(a) if isinstance(a, (list, tuple)) else a) != (list(b) if isinstance(b, (list, tuple)) else b):
                raise ValueError(f"the vae was set up with {what}={b!r}, the model with {what}={a!r}; they must agree.")
        if vae.n_categories[1:] != self.n_categories[1:]:
            raise ValueError("the vae has other batches or covariate categories than the data of this model.")
        self._vae = vae
        options = dict(self.module_params)
        with seeded(self._seed):
            self.module = LatentDiffusionModule(
                vae.module.n_latent,
                self.n_categories,
                schedule=get_schedule(options.pop("schedule")),
                **options,
            )
        self.module.eval()

    @property
    def fingerprint(self) -> str | None:
        """Digest of the weights and of the VAE's, or ``None`` before training."""
        if not self.is_trained_:
            return None
        return fingerprint(str(super().fingerprint), str(self.vae.fingerprint))

    @property
    def generate_defaults(self) -> dict[str, Any]:
        """Sampler and guidance that :func:`isd.tl.generate` uses where it is told nothing else."""
        return dict(PUBLISHED["generate"] if self.preset == "published" else DEFAULT_GENERATE)

    # -- training ----------------------------------------------------------------------------------------------

    def train(
        self,
        max_epochs: int | None = None,
        *,
        max_steps: int | None = None,
        max_minutes: float | None = None,
        vae_kwargs: dict[str, Any] | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        lr_schedule: LRSchedule | None = None,
        ema_decay: float | None = None,
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
        """Train the VAE if it is not trained yet, encode all cells once, then train the denoiser on their latents.

        Parameters
        ----------
        max_epochs, max_steps, max_minutes
            Length of the denoiser's training, as in :meth:`VAE.train` (half after :meth:`from_pretrained`, a
            quarter below 200 cells). With ``max_minutes`` and a VAE still to train,
            the VAE takes up to 60% of the minutes unless ``vae_kwargs`` says otherwise.
        vae_kwargs
            Arguments of :meth:`VAE.train`; where they are not given, it gets ``accelerator``, ``devices``, ``strategy``,
            ``num_nodes``, ``progress`` and ``seed`` of this call.
        batch_size, lr, weight_decay, lr_schedule
            Of the optimiser (AdamW); ``None`` follows the preset and the number of cells. Several processes split each
            batch.
        ema_decay
            Decay of the average of the weights that sampling uses (0.999); it warms up.
        early_stopping, early_stopping_patience
            Stop when the loss of the validation cells has not improved for so many validations.
        checkpoint_every, checkpoint_dir
            Save the model every so many steps to this folder, and with it the state that the training needs to go on. Without
            ``checkpoint_every``, ten times. The folder holds a model as :meth:`save` writes it, at any time.
        resume
            ``True``: go on with the training in ``checkpoint_dir``, if there is one, to the same weights as without the
            interruption (bit for bit on a CPU); a folder: with that in it. ``max_minutes`` is then the length of this call,
            and the learning rate follows the steps of the whole. ``False``: begin anew. ``None``: begin anew, and refuse to
            overwrite a training that is not finished.
        log_every
            Steps between logged values.
        accelerator, devices
            As in scvi-tools.
        progress
            Progress bars; ``None`` follows ``isd.settings.progress``.
        seed
            Seed of the training; ``None`` takes ``isd.settings.seed``.
        **trainer_kwargs
            Passed to :class:`scvi.train.Trainer`.

        Notes
        -----
        The rows for training and validation are the VAE's own where it was trained on the same data.
        """
        self._validate_anndata()
        train_idx, val_idx, test_idx = self._rows()
        n_train = len(train_idx)
        if self.vae.is_trained and vae_kwargs and resume in (None, False):
            raise ValueError("vae_kwargs was given, but the vae is trained already.")
        vae_options: dict[str, Any] = {
            "accelerator": accelerator,
            "devices": devices,
            "progress": progress,
            "seed": seed,
            **{name: trainer_kwargs[name] for name in ("strategy", "num_nodes") if name in trainer_kwargs},
        }
        vae_options |= {"checkpoint_every": checkpoint_every, "checkpoint_dir": checkpoint_dir, "resume": resume}
        vae_options |= vae_kwargs or {}
        sittings, began = in_sittings(checkpoint_dir, resume, VAE_FOLDER), time.monotonic()
        if max_minutes is not None and max_minutes > 0 and not self.vae.is_trained:
            if sittings:
                vae_options.setdefault("max_minutes", max_minutes)
            elif not {"max_minutes", "max_steps", "max_epochs"} & set(vae_options):
                vae_options["max_minutes"], max_minutes = 0.6 * max_minutes, 0.4 * max_minutes
        settled = settle(
            {
                "max_steps": max_steps,
                "batch_size": batch_size,
                "lr": lr,
                "weight_decay": weight_decay,
                "lr_schedule": lr_schedule,
                "ema_decay": ema_decay,
                "gradient_clip_val": trainer_kwargs.pop("gradient_clip_val", None),
            },
            self._train_rule(n_train),
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
        if n_train < FEW_CELLS and not self.is_trained_ and self.pretrained_ is None:
            warnings.warn(
                f"{n_train} training cells are few for a diffusion model. A Gaussian per label is the safer choice "
                'on so few; it is fitted too: isd.tl.generate(model, latents="gaussian").',
                UserWarning,
                stacklevel=2,
            )
        if not self._have_vae(settled.checkpoints, vae_options):
            return
        if sittings and settled.max_minutes is not None:
            settled.max_minutes = max(settled.max_minutes - (time.monotonic() - began) / 60, 1e-3)
        tensors = self.latent_tensors(progress=progress)
        if self.pretrained_ is not None and self.pretrained_["vae"] == self.vae.fingerprint:
            self._widen_range(tensors, train_idx)
        elif not self.is_trained_ or self.vae_fingerprint_ != self.vae.fingerprint:
            self._fit_scaler(tensors, train_idx)
        self.vae_fingerprint_ = self.vae.fingerprint
        self._remember_rows(train_idx, val_idx, test_idx)
        self.train_obs_hash_ = np.union1d(self.train_obs_hash_, np.asarray(self.vae.train_obs_hash))
        # rows that stand in for what generation is not told: batch, covariates, and where it is not modelled, depth
        self.template_codes_ = tensors["codes"].numpy()[train_idx]
        self.template_log_library_ = tensors["log_library"].numpy()[train_idx, 0]
        continuous = self.vae._continuous(self.adata)
        if continuous is not None:
            self.template_continuous_ = continuous[train_idx]
        self._fit_gaussians(tensors, train_idx, settings.seed if seed is None else seed)
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

    def _have_vae(self, checkpoints: Checkpoints, options: dict[str, Any]) -> bool:
        """Train the VAE, or take that of a checkpoint; whether it is ready."""
        if checkpoints.source is not None and checkpoints.notes is not None:
            told = checkpoints.notes["vae"]
            if self.vae.fingerprint == told:
                return True
            vae = VAE.load(checkpoints.source.parent / VAE_FOLDER, False)
            if vae.fingerprint != told or (self._vae_given and self.vae.is_trained):
                raise ValueError(
                    f"{checkpoints.source.parent} goes on with the vae {told}, and the model has another one "
                    f"({self.vae.fingerprint}). Give LatentDiffusion(adata, vae) the one that it began with, or none."
                )
            vae._attach_data(self.adata)
            vae.module.sparse_input = checkpoints.notes["sparse_input"]
            self._vae = vae
            return True
        begun = checkpoints.folder is not None and (checkpoints.folder / VAE_FOLDER / TRAINING_FILE).is_file()
        begun = begun and checkpoints.resume not in (None, False)
        if not self.vae.is_trained or begun or not (self._vae_given or self.vae.training_finished):
            self.vae._saved_within = self
            try:
                self.vae.train(**options)
            finally:
                self.vae._saved_within = None
            return self.vae.training_finished
        return True

    def _checkpoint_notes(self) -> dict[str, Any]:
        return {"vae": self.vae.fingerprint, "sparse_input": self.vae.module.sparse_input}

    def _train_rule(self, n_train: int) -> dict[str, Any]:
        """Settings of a training where it is told nothing else."""
        rule = PUBLISHED["diffusion_train"] if self.preset == "published" else default_diffusion_train(n_train)
        if self.pretrained_ is None:
            return rule
        return {key: value for key, value in pretrained_train(rule, n_train).items() if key in rule}

    # -- files -------------------------------------------------------------------------------------------------

    def _check_consistent(self) -> None:
        if self.is_trained_ and self.vae_fingerprint_ != self.vae.fingerprint:
            raise ValueError(
                "the vae was trained further after the diffusion model: its latents mean something else now. "
                "Call train() of the diffusion model again."
            )

    def _extra_meta(self) -> dict[str, Any]:
        return {"vae_fingerprint": self.vae.fingerprint}

    def _save_beside(self, folder: Path) -> None:
        self.vae.save(folder / VAE_FOLDER)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        dir_path: str | Path,
        adata: AnnData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        *,
        vae: VAE | None = None,
        allow_pickle: bool = False,
    ) -> Self:
        """Load a model and its VAE; nothing in the folder is executed.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data to attach, with the model's features in the model's order. ``None`` takes the AnnData in the folder if
            there is one, else none; ``False`` takes none. Generating needs none.
        accelerator, device
            Where to put the model.
        vae
            The model's VAE, if it is in memory already.
        allow_pickle
            As in :meth:`VAE.load`.

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        ValueError
            If files are damaged, the VAE is another one than the model was trained with, or the features of ``adata``
            are others or in another order.
        """
        recover(Path(dir_path))
        if vae is None:
            vae = VAE.load(Path(dir_path) / VAE_FOLDER, False, accelerator, device, allow_pickle=allow_pickle)
        model = cls._load(dir_path, adata, accelerator, device, allow_pickle, vae=vae, _check_vae=False)
        if model._adata is not None and vae._adata is None:
            vae._attach_data(model._adata)
        return model
