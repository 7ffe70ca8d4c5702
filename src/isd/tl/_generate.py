"""Generation of isoform counts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args

from isd._progress import track
from isd.diffusion import ClassifierFree, ClassifierGuide, Denoiser, get_sampler
from isd.model._classifier import Classifier, check_belongs
from isd.model._generated import LATENT_STREAM, TEMPLATE_STREAM, TILE, Cells, broadcast_library, generated_adata
from isd.model._latent_diffusion import LatentDiffusion
from isd.settings import settings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Labels = Literal["match"] | str | int | Mapping[Any, int] | Sequence[Any] | None


def generate(
    model: LatentDiffusion,
    n_obs: int | None = None,
    labels: Labels = "match",
    *,
    batch: Any = None,
    guidance_scale: float = 1.0,
    classifier: Classifier | None = None,
    classifier_scale: float | None = None,
    start_guide_step: int | None = None,
    sampler: str | None = None,
    n_steps: int | None = None,
    library_size: float | ArrayLike | None = None,
    seed: int | None = None,
    batch_size: int = 256,
    accelerator: str | None = None,
    progress: bool | None = None,
) -> AnnData:
    """Generate cells or samples: exactly as many as asked for, as a new AnnData of counts.

    Parameters
    ----------
    model
        A trained :class:`isd.model.LatentDiffusion`.
    n_obs
        Number of cells. ``None``: what ``labels`` adds up to, else the number of training cells.
    labels
        ``"match"`` (default) keeps the proportions of the training cells; one label; ``{label: n}``; an array with one
        label a cell; or ``None``, which generates without a label.
    batch
        Batch to generate for; ``None`` follows the training cells of the label.
    guidance_scale
        Classifier-free guidance: 1 is plain conditional sampling, above 1 sharper; each cell then costs two network
        calls a step.
    classifier
        A :class:`isd.model.Classifier` of this model, whose gradient guides towards the label.
    classifier_scale
        Weight of that gradient; ``None`` is the preset's (published: 2), or 1 with a classifier under the default.
    start_guide_step
        The classifier guides below this step of the schedule's 1000 (published: 500; default: everywhere that it
        was trained).
    sampler
        ``"heun"`` (default), ``"euler"``, ``"dpm++"``, ``"ddim"`` or ``"ddpm"`` (published).
    n_steps
        Number of steps; 12 of Heun by default (23 network calls), 25 for others, 1000 for DDPM.
    library_size
        Total counts of each cell, one number or one a cell; ``None`` generates them with the latent (models that do
        not generate depth draw it from the training cells of the label).
    seed
        Seed; ``None`` takes ``isd.settings.seed``. The same seed gives the same cells on the same machine.
    batch_size
        Cells whose latents are computed at once on an accelerator, in tiles of 256. On a CPU it is one tile, and results
        do not depend on it.
    accelerator
        Where to compute: ``None`` leaves the model where it is.
    progress
        Progress bars.

    Returns
    -------
    AnnData of shape ``(n_obs, n_vars)``: csr counts in the layer that the model reads (``X`` then holds log1p of
    1e4-normalised counts) or in ``X``; ``obs`` with label (categories and colours of the training data), batch and
    covariates; ``obsm["X_isd_vae"]``; provenance in ``uns["isd"]``. Cells of an array of labels keep its order.

    Raises
    ------
    ValueError
        If the model is not trained, a label or batch is unknown, numbers do not add up, or the classifier belongs to
        another model.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> fake = isd.tl.generate(model, labels={"0": 3, "1": 2}, seed=0)
    >>> fake.obs["leiden"].tolist()
    ['0', '0', '0', '1', '1']
    """
    if not isinstance(model, LatentDiffusion):
        raise TypeError(f"model must be an isd.model.LatentDiffusion, got {type(model).__name__}.")
    if not model.is_trained:
        raise ValueError("the model is not trained yet; call model.train() first.")
    model._check_consistent()
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    seed = settings.seed if seed is None else int(seed)
    codes = label_codes(model, n_obs, labels)
    n = len(codes)
    defaults = model.generate_defaults
    sampler_name = sampler or str(defaults["sampler"])
    if n_steps is None:
        n_steps = (
            defaults["n_steps"]
            if sampler_name == defaults["sampler"]
            else {"ddpm": None, "heun": 12}.get(sampler_name, 25)
        )
    solver = get_sampler(sampler_name, n_steps)
    if guidance_scale < 0:
        raise ValueError(f"guidance_scale must not be negative, got {guidance_scale}.")
    if classifier is None and classifier_scale:
        raise ValueError(f"classifier_scale={classifier_scale} needs a classifier.")
    unlabelled = codes == len(model.labels)
    if classifier is not None:
        if not classifier.is_trained:
            raise ValueError("the classifier is not trained yet; call its train() first.")
        check_belongs(classifier, model)
        if unlabelled.any():
            raise ValueError("a classifier guides towards labels; give labels, or no classifier.")
        if list(classifier.labels) != list(model.labels):
            raise ValueError("the classifier knows other labels than the model.")
        if classifier_scale is None:
            classifier_scale = defaults["classifier_scale"] or 1.0
        if start_guide_step is None:
            start_guide_step = min(
                int(defaults["start_guide_step"]),
                round(model.module.schedule.n_timesteps * classifier.module.start_guide_time),
            )
    codes = _check_conditions(
        model, codes, labels, guidance_scale, guided=bool(classifier is not None and classifier_scale)
    )
    if accelerator is not None:
        _, _, device = parse_device_args(accelerator, "auto", return_device="torch", validate_single_device=True)
        for part in (model, model.vae, classifier):
            if part is not None:
                part.to_device(device)
    templates = template_rows(model, codes, batch, np.random.default_rng([seed, TEMPLATE_STREAM]))
    full_codes = model.template_codes_[templates].copy()
    full_codes[:, 0] = codes
    x = _sample_latents(
        model,
        full_codes,
        solver=solver,
        guidance_scale=guidance_scale,
        classifier=classifier,
        classifier_scale=classifier_scale or 0.0,
        start_guide_step=start_guide_step,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    if library_size is not None:
        log_library = np.log(broadcast_library(np.asarray(library_size), n)).astype(np.float32)
    elif model.module.model_library:
        log_library = x[:, -1]
    else:
        log_library = model.template_log_library_[templates]
    continuous = getattr(model, "template_continuous_", None)
    cells = Cells(
        latents=np.ascontiguousarray(x[:, : model.vae.module.n_latent]),
        log_library=log_library,
        codes=full_codes[:, 1:],
        continuous=None if continuous is None else continuous[templates],
    )
    provenance = {
        "seed": seed,
        "sampler": sampler_name,
        "n_steps": int(n_steps) if n_steps is not None else len(solver.times(model.module.schedule)) - 1,
        "guidance_scale": float(guidance_scale),
        "classifier_scale": float(classifier_scale or 0.0),
        "start_guide_step": start_guide_step,
        "n_network_calls": solver.n_network_calls,
    }
    return generated_adata(
        model,
        model.vae,
        cells,
        label_codes=codes,
        seed=seed,
        provenance=provenance,
        progress=progress,
    )


def label_codes(model: LatentDiffusion, n_obs: int | None, labels: Labels) -> np.ndarray:
    """Label code of each cell to generate; ``len(model.labels)`` where none is asked for.

    Raises
    ------
    ValueError
        For unknown labels and numbers that do not add up.
    """
    if n_obs is not None and (not _is_whole(n_obs) or n_obs < 1):
        raise ValueError(f"n_obs must be a whole number of at least 1, got {n_obs!r}.")
    n_obs = None if n_obs is None else int(n_obs)
    known = {label: i for i, label in enumerate(model.labels)}

    def code(label: Any) -> int:
        label = label.item() if isinstance(label, np.generic) else label
        if label in known:
            return known[label]
        same_text = [k for k in known if str(k) == str(label)]
        hint = f" Did you mean {same_text[0]!r} ({type(same_text[0]).__name__})?" if same_text else ""
        raise ValueError(
            f"label {label!r} is not one of the labels that the model was trained on: {list(model.labels)}.{hint}"
        )

    trained = model.template_codes_[:, 0]
    if labels is None:
        return np.full(n_obs if n_obs is not None else len(trained), len(known))
    if isinstance(labels, str) and labels == "match" and "match" not in known:
        counts = np.bincount(trained, minlength=len(known))[: len(known)]
        if counts.sum() == 0:
            raise ValueError("the model saw no labelled cells; give labels=None.")
        return np.repeat(np.arange(len(known)), _apportion(counts, len(trained) if n_obs is None else n_obs))
    if isinstance(labels, Mapping):
        for label, number in labels.items():
            if not _is_whole(number) or number < 0:
                raise ValueError(
                    f"labels asks for {number} cells of {label!r}; give whole numbers that are not negative."
                )
        codes = np.repeat([code(k) for k in labels], [int(v) for v in labels.values()]).astype(int)
        if n_obs is not None and len(codes) != n_obs:
            raise ValueError(f"labels add up to {len(codes)} cells, but n_obs is {n_obs}; give one of the two.")
        if not len(codes):
            raise ValueError("labels adds up to no cells.")
        return codes
    if isinstance(labels, (str, bytes)) or np.isscalar(labels):
        return np.full(n_obs if n_obs is not None else len(trained), code(labels))
    values = list(labels)  # type: ignore[arg-type]
    if n_obs is not None and len(values) != n_obs:
        raise ValueError(f"labels has {len(values)} entries, but n_obs is {n_obs}; give one label a cell.")
    if not values:
        raise ValueError("labels is empty.")
    if pd.isna(pd.Series(values, dtype=object)).any():
        raise ValueError("labels has missing values; give labels=None to generate without labels.")
    return np.array([code(v) for v in values])


def _is_whole(value: Any) -> bool:
    return (
        isinstance(value, (Integral, float, np.floating)) and not isinstance(value, bool) and float(value).is_integer()
    )


def _check_conditions(
    model: LatentDiffusion, codes: np.ndarray, labels: Labels, guidance_scale: float, *, guided: bool
) -> np.ndarray:
    """Refuse labels and guidance that the denoiser knows nothing of; labels that nobody asked for are left out.

    Returns
    -------
    Label codes of the cells.
    """
    null = len(model.labels)
    if not model.module.conditional:
        if guidance_scale != 1.0:
            raise ValueError("guidance_scale needs a denoiser that sees labels; that of preset='published' does not.")
        if guided or (codes == null).all() or null == 1:
            return codes
        if isinstance(labels, str) and labels == "match":
            warnings.warn(
                "this model's denoiser does not see labels (preset='published'): cells are generated without. "
                "Give classifier= to guide them, or labels=None.",
                UserWarning,
                stacklevel=3,
            )
            return np.full_like(codes, null)
        raise ValueError(
            "this model's denoiser does not see labels (preset='published'); give classifier= to guide them, or labels=None."
        )
    if model.module.label_dropout == 0 and (guidance_scale != 1.0 or (codes == null).any()):
        raise ValueError(
            "the model was trained with label_dropout=0 and knows no cells without label: "
            "guidance_scale must be 1 and labels be given."
        )
    return codes


def _apportion(counts: np.ndarray, n: int) -> np.ndarray:
    """Whole numbers in proportion to ``counts`` that add up to ``n`` (largest remainders)."""
    exact = counts / counts.sum() * n
    out = np.floor(exact).astype(int)
    order = np.argsort(-(exact - out), kind="stable")
    out[order[: n - out.sum()]] += 1
    return out


def template_rows(model: LatentDiffusion, codes: np.ndarray, batch: Any, rng: np.random.Generator) -> np.ndarray:
    """Training row that stands in for what is not asked for (batch, covariates, depth): one of the same label.

    Parameters
    ----------
    model
        The model.
    codes
        Label codes of the cells.
    batch
        Batch asked for, or ``None``.
    rng
        Source of randomness.
    """
    trained = model.template_codes_
    allowed = np.ones(len(trained), dtype=bool)
    if batch is not None:
        allowed = trained[:, 1] == model.vae._batch_code(batch)
    out = np.zeros(len(codes), dtype=int)
    if not allowed.any():
        raise ValueError(f"batch {batch!r} has no training cells; the model cannot have learnt it.")
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        same = np.ones(len(trained), dtype=bool) if code == len(model.labels) else trained[:, 0] == code
        if not same.any():
            raise ValueError(f"label {model.labels[code]!r} has no training cells; the model cannot have learnt it.")
        pool = np.flatnonzero(same & allowed)
        if not pool.size:
            # a combination that was never seen: the rest of the row is taken from the batch
            pool = np.flatnonzero(allowed)
        out[rows] = rng.choice(pool, size=len(rows))
    return out


def _sample_latents(
    model: LatentDiffusion,
    codes: np.ndarray,
    *,
    solver: Any,
    guidance_scale: float,
    classifier: Classifier | None,
    classifier_scale: float,
    start_guide_step: int | None,
    seed: int,
    batch_size: int,
    progress: bool | None,
) -> np.ndarray:
    """Latents (and log library size) on the VAE's scale, shape ``(n, n_input)``."""
    module = model.module
    device = module.device
    n, null = len(codes), len(model.labels)
    out = np.empty((n, module.n_input), dtype=np.float32)
    # products of other shapes differ in their last bits: on a CPU, every tile is computed alone, whatever batch_size is
    tiles_at_once = 1 if device.type == "cpu" else max(1, -(-batch_size // TILE))
    starts = range(0, n, TILE * tiles_at_once)
    calls = 0
    for start in track(starts, "Sampling latents", progress=progress):
        rows = slice(start, min(start + TILE * tiles_at_once, n))
        batch_codes = torch.as_tensor(codes[rows], device=device)
        size = len(batch_codes)

        def network(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return module.network(x, t, condition)

        nothing = batch_codes.clone()
        nothing[:, 0] = null
        free = ClassifierFree.batched(network, batch_codes, nothing, guidance_scale)
        guides = []
        if classifier is not None and classifier_scale:
            guides.append(
                ClassifierGuide(
                    classifier.log_prob(batch_codes[:, 0]),
                    classifier_scale,
                    start_guide_step=start_guide_step,
                    n_timesteps=module.schedule.n_timesteps,
                )
            )
        # one stream a tile: which cells are computed together does not change their noise
        streams = [np.random.default_rng([seed, LATENT_STREAM, (start + k) // TILE]) for k in range(0, size, TILE)]

        def noise(
            step: int, shape: torch.Size, streams: list[np.random.Generator] = streams, size: int = size
        ) -> torch.Tensor:
            parts = [
                rng.standard_normal((min(TILE, size - k * TILE), module.n_input), dtype=np.float32)
                for k, rng in enumerate(streams)
            ]
            return torch.from_numpy(np.concatenate(parts)).to(device)

        denoiser = Denoiser(free, module.schedule, module.parametrization)
        x = solver.sample(denoiser, noise(-1, torch.Size()), guide=guides or None, noise_fn=noise)
        calls = solver.n_network_calls
        with torch.no_grad():
            out[rows] = module.scaler.inverse(x).cpu().numpy()
    solver.n_network_calls = calls
    return out
