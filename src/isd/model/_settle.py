"""Options of a training, checked before any time is spent on it."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import lightning.pytorch as lightning
import numpy as np
from scvi.train import SaveCheckpoint, Trainer

from isd.model._checkpoint import Checkpoints, default_seed

LRSchedule = Literal["one_cycle", "linear", "constant"]
LR_SCHEDULES: tuple[str, ...] = ("one_cycle", "linear", "constant")


@dataclass
class Settled:
    """Options of a training that have been checked."""

    batch_size: int
    steps: int
    max_minutes: float | None
    gradient_clip_val: float | None
    ema_decay: float | None
    plan: dict[str, Any]
    fit: dict[str, Any]
    checkpoints: Checkpoints


def settle(
    given: dict[str, Any],
    rule: dict[str, Any],
    *,
    n_train: int,
    n_val: int,
    max_epochs: int | None,
    max_minutes: float | None,
    fit_options: dict[str, Any],
    trainer_kwargs: dict[str, Any],
) -> Settled:
    """Check all options of a training before any time is spent on it.

    Parameters
    ----------
    given, rule
        What the caller asked for, ``None`` where nothing; what the preset says.
    n_train, n_val
        Numbers of training and validation rows.
    max_epochs, max_minutes
        Length of the training, besides ``given["max_steps"]``.
    fit_options
        Options of :func:`fit`.
    trainer_kwargs
        Further arguments for the trainer.

    Raises
    ------
    TypeError
        For arguments that no trainer knows.
    ValueError
        For values that cannot be.
    """
    lengths = {"max_steps": given.get("max_steps"), "max_epochs": max_epochs, "max_minutes": max_minutes}
    for name, value in lengths.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if given.get("max_steps") is not None and max_epochs is not None:
        raise ValueError("give max_steps or max_epochs, not both.")
    options = {**rule, **{k: v for k, v in given.items() if v is not None}}
    if options["lr_schedule"] not in LR_SCHEDULES:
        raise ValueError(f"lr_schedule {options['lr_schedule']!r} is unknown; choose one of {LR_SCHEDULES}.")
    if int(options["batch_size"]) < 1:
        raise ValueError(f"batch_size must be at least 1, got {options['batch_size']}.")
    for name in ("lr", "weight_decay"):
        if not (np.isfinite(options[name]) and options[name] >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {options[name]}.")
    decay = options.pop("ema_decay", None)
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"ema_decay must lie in [0, 1), got {decay}.")
    fit_options = dict(fit_options)
    checkpoints = Checkpoints(
        fit_options.pop("checkpoint_dir", None),
        fit_options.pop("checkpoint_every", None),
        fit_options.pop("resume", None),
        fit_options.pop("checkpoint_part", ""),
    )
    seed = default_seed(fit_options.pop("seed", None))
    if fit_options.get("early_stopping") and not n_val:
        raise ValueError("early_stopping needs validation cells; run isd.pp.split(adata) first.")
    known = {*signature(Trainer.__init__).parameters, *signature(lightning.Trainer.__init__).parameters}
    unknown = sorted(set(trainer_kwargs) - known)
    if unknown:
        raise TypeError(f"train() got arguments that neither it nor the trainer knows: {', '.join(unknown)}.")
    scvi_checkpoints = any(isinstance(c, SaveCheckpoint) for c in trainer_kwargs.get("callbacks", []))
    if scvi_checkpoints or trainer_kwargs.get("enable_checkpointing"):
        raise ValueError(
            "scvi's SaveCheckpoint reads pickled models, which isd does not write; use checkpoint_every and checkpoint_dir."
        )
    batch_size = min(int(options.pop("batch_size")), n_train)
    default_steps = options.pop("max_steps")
    steps = int(max_epochs) * max(n_train // batch_size, 1) if max_epochs is not None else int(default_steps)
    call = {"max_steps": steps, "batch_size": batch_size, "ema_decay": decay, "seed": seed, **options}
    for name in ("early_stopping", "early_stopping_patience"):
        call[name] = fit_options.get(name)
    checkpoints.check(call)
    return Settled(
        batch_size=batch_size,
        steps=steps,
        max_minutes=max_minutes,
        gradient_clip_val=options.pop("gradient_clip_val", None),
        ema_decay=decay,
        plan=options,
        fit={**fit_options, **trainer_kwargs},
        checkpoints=checkpoints,
    )
