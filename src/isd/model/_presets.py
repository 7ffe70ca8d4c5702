"""Settings of the models: the default, which follows the size of the data, and the published configuration."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Preset = Literal["default", "published"]
PRESETS: tuple[str, ...] = ("default", "published")

#: The autoencoder, diffusion model and classifier of the starting project, which follow SCimilarity
#: (Heimberg et al. 2024) and scDiffusion (Luo et al. 2024): point latents on the unit sphere, mean squared error,
#: epsilon-prediction over 1000 linear steps, DDPM, classifier guidance of scale 2 below step 500.
PUBLISHED: dict[str, dict[str, Any]] = {
    "vae": {
        "n_hidden": 1024,
        "n_layers": 3,
        "n_latent": 128,
        "norm": "batch",
        "activation": "prelu",
        "likelihood": "normal",
        "deterministic": True,
        "l2_normalize": True,
        "use_library": False,
    },
    "vae_train": {
        "lr": 5e-4,
        "weight_decay": 0.01,
        "batch_size": 128,
        "max_steps": 20_000,
        "lr_schedule": "constant",
        "gradient_clip_val": None,
        "kl_warmup": 0.0,
    },
    "diffusion": {
        "schedule": "linear",
        "parametrization": "epsilon",
        "network": "mlp_unet",
        "hidden": (512, 512, 256, 128),
        "model_library": False,
        "standardize": False,
        "library_quantiles": 0,
        "time_sampling": "uniform",
        "label_dropout": 0.0,
    },
    "diffusion_train": {
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "batch_size": 128,
        "max_steps": 200_000,
        "lr_schedule": "linear",
        "ema_decay": 0.9999,
        "gradient_clip_val": None,
    },
    "classifier": {"hidden": (512, 512, 256), "dropout": 0.0, "start_guide_time": 0.5},
    "classifier_train": {
        "lr": 3e-4,
        "weight_decay": 0.05,
        "batch_size": 128,
        "max_steps": 20_000,
        "lr_schedule": "linear",
    },
    "generate": {"sampler": "ddpm", "n_steps": 1000, "classifier_scale": 2.0, "start_guide_step": 500},
}


def check_preset(preset: str) -> None:
    """Raise for an unknown preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose one of {PRESETS}.")


#: Training cells below which a data set is tiny, small, and large; counts per feature below which it is sparse.
VERY_FEW, FEW, SMALL, LARGE = 200, 500, 1000, 5000
SPARSE = 100.0
#: Counts per feature and cell above which data are deep, as bulk is: small deviations show, and take long to learn.
DEEP = 20.0


def default_vae(n_train: int, counts_per_feature: float = np.inf) -> dict[str, Any]:
    """Width, dropout and priors by what there is to learn from: a wide network fits few counts and not the field.

    Parameters
    ----------
    n_train
        Number of training cells.
    counts_per_feature
        Counts of all training cells per feature.

    Examples
    --------
    >>> [default_vae(n)["n_hidden"] for n in (500, 3000)], [default_vae(n)["dropout"] for n in (300, 900, 9000)]
    ([128, 256], [0.1, 0.1, 0.0])
    >>> default_vae(300, 300 * 100.0)["dropout"]  # bulk
    0.0
    """
    sparse = counts_per_feature < SPARSE
    # dropout blurs what deep counts say sharply
    enough = n_train >= (VERY_FEW if _deep(n_train, counts_per_feature) else LARGE)
    return {
        "n_hidden": 128 if n_train < SMALL or sparse else 256,
        "n_layers": 2,
        "n_latent": 32,
        "output_rank": 32,
        "dispersion_rank": 8,
        "shrinkage": 5.0,
        "dispersion_shrinkage": 10.0,
        "clumps": True,
        "label_weight": 5.0,
        "covariate_shift": True,
        "dropout": 0.0 if enough else 0.1,
        "norm": "layer",
        "activation": "silu",
        "likelihood": "nb",
        "deterministic": False,
        "l2_normalize": False,
        "use_library": True,
    }


def default_vae_train(n_train: int, counts_per_feature: float = np.inf) -> dict[str, Any]:
    """Steps, batch size and weight decay by the same two numbers.

    Examples
    --------
    >>> [default_vae_train(n)["max_steps"] for n in (20, 80, 300, 400, 900, 3000, 100_000)]
    [100, 200, 750, 800, 1600, 2000, 31250]
    >>> [default_vae_train(n, n * 100.0)["max_steps"] for n in (80, 300, 2000)]  # bulk
    [800, 1600, 5000]
    """
    if n_train < SMALL:
        deep = _deep(n_train, counts_per_feature)
        steps = 800 if n_train < (VERY_FEW if deep else FEW) else 1600
        if n_train < FEW and not deep:
            # few cells are soon learnt by heart: at most some 160 epochs
            steps = min(max(100, 5 * n_train // 2), steps)
        rule = {"max_steps": steps, "batch_size": 64, "weight_decay": 0.1}
    elif n_train < LARGE and _deep(n_train, counts_per_feature):
        rule = {"max_steps": 5000, "batch_size": 128, "weight_decay": 0.01}
    elif n_train < LARGE:
        rule = {"max_steps": 1500 if counts_per_feature < SPARSE else 2000, "batch_size": 128, "weight_decay": 0.01}
    else:
        # about 40 epochs, between 3,000 and 40,000 steps
        rule = {"max_steps": min(max(3000, 40 * n_train // 128), 40_000), "batch_size": 128, "weight_decay": 0.01}
    return {"lr": 1e-3, "lr_schedule": "one_cycle", "gradient_clip_val": 10.0, "kl_warmup": 0.3, **rule}


def pretrained_train(rule: dict[str, Any], n_train: int, *, far: bool = False) -> dict[str, Any]:
    """Settings for weights that are nearly right: small steps, fewer of them, and the whole evidence bound from the start.

    Parameters
    ----------
    rule
        Settings for weights that start from nothing.
    n_train
        Number of training cells: fewer are sooner learnt by heart.
    far
        Whether the reference is of another assay, or knows little of these cells: weights that are not nearly right need larger
        steps, where there are cells enough to learn from.

    Examples
    --------
    >>> (
    ...     pretrained_train(default_vae_train(100), 100)["max_steps"],
    ...     pretrained_train(default_vae_train(300), 300)["max_steps"],
    ... )
    (62, 375)
    """
    steps = max(rule["max_steps"] // (4 if n_train < VERY_FEW else 2), 1)
    lr = rule["lr"] if far and n_train >= VERY_FEW else min(3e-4, rule["lr"])
    return {**rule, "lr": lr, "max_steps": steps, "kl_warmup": 0.0}


def _deep(n_train: int, counts_per_feature: float) -> bool:
    return DEEP * max(n_train, 1) < counts_per_feature < np.inf


def default_diffusion() -> dict[str, Any]:
    """Straight path, velocity, an AdaLN network of width 128, over standardised latents and log library size."""
    return {
        "schedule": "straight",
        "parametrization": "velocity",
        "network": "adaln",
        "hidden": (512, 512, 256, 128),
        "n_hidden": 128,
        "n_blocks": 2,
        "dropout": 0.0,
        "model_library": True,
        "standardize": True,
        "library_quantiles": 64,
        "time_sampling": "logit_normal",
        "label_dropout": 0.1,
    }


def default_diffusion_train(n_train: int) -> dict[str, Any]:
    """Steps by the number of training cells."""
    steps = 2000 if n_train < 1000 else 4000 if n_train < 20_000 else 10_000
    return {
        "lr": 1e-3,
        "weight_decay": 0.01,
        "batch_size": 128 if n_train < 20_000 else 512,
        "max_steps": steps,
        "lr_schedule": "one_cycle",
        "ema_decay": 0.999,
        "gradient_clip_val": 1.0,
    }


def default_classifier() -> dict[str, Any]:
    """Small network over all times."""
    return {"hidden": (128, 128), "dropout": 0.1, "start_guide_time": 1.0}


def default_classifier_train(n_train: int) -> dict[str, Any]:
    """Steps by the number of training cells."""
    return {
        "lr": 1e-3,
        "weight_decay": 0.05,
        "batch_size": 128,
        "max_steps": 1000 if n_train < 5000 else 3000,
        "lr_schedule": "one_cycle",
    }


#: Sampling of the default: Heun's method with 12 steps makes 23 network calls.
DEFAULT_GENERATE: dict[str, Any] = {"sampler": "heun", "n_steps": 12, "classifier_scale": 0.0, "start_guide_step": 1000}


def resolve(given: dict[str, Any], fallback: dict[str, Any]) -> dict[str, Any]:
    """Values that were given, else those of the rule."""
    return {**fallback, **{k: v for k, v in given.items() if v is not None}}
