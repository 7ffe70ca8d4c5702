"""From cells of one label towards another, by diffusion with two weighted guides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from isd._counts import get_counts
from isd._progress import track
from isd.diffusion import ConditionMix, DenoiserFn, Guide
from isd.model._classifier import Classifier
from isd.model._generated import COUNTS_STREAM, START_STREAM, Cells, broadcast_library, decode_counts, generated_adata
from isd.model._latent_diffusion import LatentDiffusion
from isd.model._validation import check_features
from isd.settings import settings
from isd.tl._accept import forget
from isd.tl._conditions import extrapolated, heard_codes
from isd.tl._generate import check_model, to_device
from isd.tl._guides import GuideSpec, resolve_guides
from isd.tl._labels import code_of
from isd.tl._sample import make_sampler, sample_tiles

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

#: Step of 1000 to which real cells are noised, and power of the weights: docs/guide/generating.md has what others give.
START_STEP, POWER = 800, 2.0


def interpolate(
    model: LatentDiffusion,
    adata: AnnData,
    source: Any,
    target: Any,
    weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    start_step: int | None = None,
    power: float | None = None,
    n_obs: int | None = None,
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
    """Lead real cells of one label towards another, and show the states between.

    Real cells are encoded, noised to ``start_step``, and denoised from there while two labels pull, the source with
    ``a = (1 - w)**power`` and the target with ``b = w**power``: the denoiser predicts
    ``null + guidance_scale * (a * (source - null) + b * (target - null))``, where ``null`` is its prediction without a
    label, and a ``classifier`` adds its two gradients, weighted by ``a`` and ``b``. All weights start from the same
    cells with the same noise, so that a cell can be followed from weight to weight.

    Parameters
    ----------
    model
        A trained :class:`isd.model.LatentDiffusion`.
    adata
        Real cells with the model's features in the model's order, and its batch and covariates; not changed. Cells that
        the model was not trained on show more.
    source, target
        Two labels of the model.
    weights
        Weights of the target, each in [0, 1].
    start_step
        Step of the schedule's 1000 to which cells are noised: the more, the less is kept of each cell, and the
        further it can go. ``None`` is 800 of 1000.
    power
        1 mixes the two labels and nothing else (scDiffusion's gradient interpolation), which makes cells that are half
        the one and half the other. Above 1, both pull less in the middle, and the denoiser without a label, which has
        seen what lies between, decides more. ``None`` is 2, or 1 where the model knows no cells without label
        (``label_dropout=0``).
    n_obs
        Number of cells, drawn without replacement; ``None`` takes all of the source label.
    guidance_scale
        As in :func:`generate`: 1 is plain, above 1 sharper, 0 leaves all to the classifier.
    classifier
        A :class:`isd.model.Classifier` of the model, with the same labels.
    classifier_scale
        Weight of both gradients together; ``None`` as in :func:`generate`.
    start_guide_step
        The classifier guides below this step, as in :func:`generate`.
    sampler, n_steps
        As in :func:`generate`; by default as many steps as generation takes for this part of the way.
    library_size
        Total counts, one number or one a cell. ``None``: generated with the latent where the model models the library
        size (the default), so that depth changes on the way too; else the cell's own.
    seed
        Seed; ``None`` takes ``isd.settings.seed``. The same seed gives the same cells on the same machine.
    batch_size, accelerator, progress
        As in :func:`generate`.

    Returns
    -------
    AnnData like that of :func:`generate`, one row for each weight and cell, weight by weight: ``obs["isd_weight"]``,
    ``obs["isd_source_obs"]`` (name of the real cell), the cell's batch and covariates; labels are missing, since a cell
    between two labels has neither. Where no training cell has a label that pulls together with the cell's batch and
    covariates, a warning says so and ``obs["isd_extrapolated"]`` marks the rows. Provenance in ``uns["isd"]``.

    Raises
    ------
    KeyError
        If ``adata`` lacks the label column.
    ValueError
        If labels are unknown or the same, weights or ``start_step`` are out of range, features differ, ``adata`` has
        too few cells of the source, or guidance is asked for that the model does not know.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> between = isd.tl.interpolate(model, adata, "0", "1", weights=(0, 0.5, 1), n_obs=4)
    >>> between.shape, between.obs["isd_weight"].unique().tolist()
    ((12, 60), [0.0, 0.5, 1.0])
    """
    check_model(model)
    values = _check_weights(weights)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    seed = settings.seed if seed is None else int(seed)
    codes = [code_of(label, model.labels, name, "labels of the model") for name, label in _named(source, target)]
    if codes[0] == codes[1]:
        raise ValueError(f"source and target are both {source!r}; give two labels.")
    schedule = model.module.schedule
    step = round(START_STEP * schedule.n_timesteps / 1000) if start_step is None else start_step
    if int(step) != step or not 1 <= step <= schedule.n_timesteps:
        raise ValueError(f"start_step is {step}; a whole number in 1 ... {schedule.n_timesteps} is expected.")
    start = int(step) / schedule.n_timesteps
    solver, full = make_sampler(model, sampler, n_steps)
    if n_steps is None:
        # the steps of generation, as far as they lie on the way
        solver, full = make_sampler(model, sampler, max(1, -(-full * int(step) // schedule.n_timesteps)))
    solver.times(schedule, start=start)  # more steps than the schedule has are told now
    power = _check_guidance(model, guidance_scale, power, classifier)
    rows = _source_rows(model, adata, model.labels[codes[0]], n_obs, seed)
    n = len(rows)
    # one guide a label; their scales are weighted below
    specs = [resolve_guides(model, np.full(n, code), classifier, classifier_scale, start_guide_step) for code in codes]
    library = None if library_size is None else np.log(broadcast_library(np.asarray(library_size), n))
    if accelerator is not None:
        to_device(accelerator, model, [] if classifier is None else [classifier])

    cells, conditions, first = _start(model, adata, rows, seed)
    # of the source, the target and neither, each in the cell's own batch and with its covariates
    led = [_with_label(conditions, code) for code in (*codes, len(model.labels))]
    unseen = extrapolated(model, np.concatenate(led[:2])).reshape(2, n)
    led = [heard_codes(model, one) for one in led]
    parts, counts, n_calls = [], [], 0
    for weight in track(values, "Interpolating", progress=progress):
        shares = ((1.0 - weight) ** power, weight**power)

        def network(at: slice, device: torch.device, shares: tuple[float, float] = shares) -> DenoiserFn:
            each = [torch.as_tensor(one[at], device=device) for one in led]
            return ConditionMix(model.module.network, each[:2], shares, each[2], guidance_scale)

        def guides(at: slice, device: torch.device, shares: tuple[float, float] = shares) -> list[Guide]:
            return [
                GuideSpec(one.classifier, one.codes, one.scale * share, one.start_step).guide(
                    at, device, schedule.n_timesteps
                )
                for spec, share in zip(specs, shares, strict=True)
                for one in spec
                if one.scale * share > 0
            ]

        x = sample_tiles(
            model,
            n,
            solver=solver,
            network=network,
            guides=guides,
            key=(seed,),
            batch_size=batch_size,
            start=start,
            first=first,
            progress=False,
        )
        n_calls = max(n_calls, solver.n_network_calls)
        depth = library
        if depth is None:
            depth = x[:, -1] if model.module.model_library else cells.log_library
        part = Cells(
            np.ascontiguousarray(x[:, : model.vae.module.n_latent]),
            depth.astype(np.float32),
            cells.codes,
            cells.continuous,
        )
        parts.append(part)
        # the same stream for each weight: counts differ by what the weight changes
        counts.append(decode_counts(model.vae.module, part, key=(seed, COUNTS_STREAM), progress=False))
    guide = specs[0][0] if specs[0] else None
    fake = generated_adata(
        model,
        model.vae,
        Cells.concat(parts),
        label_codes=None,
        seed=seed,
        provenance={
            "seed": seed,
            "tool": "interpolate",
            "source": str(source),
            "target": str(target),
            "weights": values,
            "start_step": int(step),
            "power": power,
            "sampler": solver.name,
            "n_steps": full,
            "guidance_scale": float(guidance_scale),
            "classifier_scale": 0.0 if guide is None else guide.scale,
            "start_guide_step": None if guide is None else guide.start_step,
            "n_network_calls": n_calls,
        },
        counts=sparse.vstack(counts, format="csr"),
    )
    fake.obs["isd_weight"] = np.repeat(values, n)
    fake.obs["isd_source_obs"] = np.tile(np.asarray(adata.obs_names[rows], dtype=object), len(values))
    if unseen.any():
        pulls = np.stack([values < 1, values > 0])  # whether source and target do, at each weight
        fake.obs["isd_extrapolated"] = (pulls[:, :, None] & unseen[:, None, :]).any(axis=0).ravel()
    return fake


def _with_label(conditions: np.ndarray, code: int) -> np.ndarray:
    """The conditions, with another label."""
    out = conditions.copy()
    out[:, 0] = code
    return out


def _named(source: Any, target: Any) -> list[tuple[str, Any]]:
    return [("source", source), ("target", target)]


def _check_weights(weights: Sequence[float]) -> np.ndarray:
    values = np.asarray(weights, dtype=float).ravel()
    if not values.size or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"weights must be numbers in [0, 1] (0 is the source, 1 the target), got {weights}.")
    return values


def _check_guidance(model: LatentDiffusion, guidance_scale: float, power: float | None, classifier: Any) -> float:
    """Refuse guidance that the model does not know; gives the power of the weights."""
    if not 0 <= float(guidance_scale) < np.inf:
        raise ValueError(f"guidance_scale must be a finite number that is not negative, got {guidance_scale}.")
    if classifier is not None and not isinstance(classifier, Classifier):
        raise TypeError(f"classifier must be one isd.model.Classifier, got {type(classifier).__name__}.")
    if not model.module.conditional and classifier is None:
        raise ValueError(
            "this model's denoiser does not see labels (preset='published'); give classifier= to lead cells "
            "from label to label."
        )
    if not model.module.conditional and guidance_scale != 1.0:
        raise ValueError("guidance_scale needs a denoiser that sees labels; that of preset='published' does not.")
    knows_null = not model.module.conditional or model.module.label_dropout > 0
    power = (POWER if knows_null else 1.0) if power is None else float(power)
    if not 1 <= power < np.inf:
        raise ValueError(f"power must be a number of at least 1, got {power}.")
    if not knows_null and (guidance_scale != 1.0 or power != 1.0):
        raise ValueError(
            "the model was trained with label_dropout=0 and knows no cells without label: "
            "guidance_scale and power must be 1."
        )
    return power


def _source_rows(model: LatentDiffusion, adata: AnnData, label: Any, n_obs: int | None, seed: int) -> np.ndarray:
    """Rows of the cells to start from."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData of real cells, got {type(adata).__name__}.")
    check_features(model.feature_names, adata.var_names)
    if model.labels_key not in adata.obs:
        raise KeyError(
            f"adata.obs has no {model.labels_key!r}, where the source label is looked for; it has "
            f"{list(map(str, adata.obs.columns))}."
        )
    rows = np.flatnonzero(pd.Series(adata.obs[model.labels_key].astype(object)).to_numpy() == label)
    if not rows.size:
        raise ValueError(f"adata has no cells with {model.labels_key} {label!r} to start from.")
    if n_obs is None:
        return rows
    if int(n_obs) != n_obs or not 1 <= n_obs <= rows.size:
        raise ValueError(
            f"n_obs is {n_obs}; adata has {rows.size} cells with {model.labels_key} {label!r}: "
            f"give a whole number in 1 ... {rows.size}."
        )
    rng = np.random.default_rng([seed, START_STREAM, 0])
    return np.sort(rng.choice(rows, int(n_obs), replace=False))


def _start(model: LatentDiffusion, adata: AnnData, rows: np.ndarray, seed: int) -> tuple[Cells, np.ndarray, np.ndarray]:
    """Real cells as the diffusion sees them: covariates, codes of conditions, standardised draws of their posteriors."""
    vae, arguments = model.vae, model.setup_args
    keys = [model.labels_key, arguments.get("batch_key"), arguments.get("size_factor_key")]
    keys += [*(arguments.get("categorical_covariate_keys") or ()), *(arguments.get("continuous_covariate_keys") or ())]
    columns = [key for key in dict.fromkeys(keys) if key is not None and key in adata.obs]
    counts = sparse.csr_matrix(get_counts(adata, model.layer or "X")[rows])
    # a copy of what is needed: models write their codes on what they read
    own = AnnData(counts, obs=adata.obs[columns].iloc[rows].copy(), var=pd.DataFrame(index=adata.var_names.astype(str)))
    if model.layer is not None:
        own.layers[model.layer] = counts
    tensors = model.latent_tensors(own, progress=False)
    continuous = vae._continuous(own)
    for part in (model, vae):
        forget(part, own)
    mean, std, library = (tensors[key].numpy() for key in ("latent_mean", "latent_std", "log_library"))
    noise = np.random.default_rng([seed, START_STREAM, 1]).standard_normal(mean.shape)
    x = mean + std * noise
    if model.module.model_library:
        x = np.concatenate([x, library], axis=1)
    with torch.no_grad():
        first = model.module.scaler(torch.from_numpy(x.astype(np.float32)).to(model.module.device)).cpu().numpy()
    codes = tensors["codes"].numpy()
    return Cells(mean, library[:, 0], codes[:, 1:], continuous), codes, first
