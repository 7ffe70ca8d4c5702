"""How models are optimised: one plan, one schedule over steps or minutes, one call of Lightning."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from scvi.train import TrainingPlan, TrainRunner
from torch import Tensor, nn

from isd._constants import SPLIT_KEY, SPLIT_TEST, SPLIT_TRAIN, SPLIT_VALIDATION
from isd.settings import settings

LRSchedule = Literal["one_cycle", "linear", "constant"]
LR_SCHEDULES: tuple[str, ...] = ("one_cycle", "linear", "constant")


@contextmanager
def few_threads(n_threads: int | None) -> Iterator[None]:
    """Run a block with so many CPU threads of torch (``None``: as many as there are).

    Layers of a latent model are so small that handing them to several threads costs more than it saves: on two busy
    cores a step took 13 ms with one thread and over 200 ms with two.
    """
    before = torch.get_num_threads()
    try:
        if n_threads is not None:
            torch.set_num_threads(min(n_threads, before))
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int | None) -> Iterator[int]:
    """Run a block under a seed of its own and leave the global random state as it was."""
    seed = settings.seed if seed is None else int(seed)
    numpy_state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield seed
        finally:
            np.random.set_state(numpy_state)


def learning_rate_factor(progress: float, schedule: LRSchedule, warmup: float = 0.1) -> float:
    """Share of the peak learning rate at a share of the training.

    Parameters
    ----------
    progress
        Between 0 (start) and 1 (end).
    schedule
        ``"one_cycle"``: linear warm-up over ``warmup``, then a cosine to zero; ``"linear"``: to zero (published);
        ``"constant"``.
    warmup
        Share of the training that warms up.

    Examples
    --------
    >>> [round(learning_rate_factor(p, "one_cycle"), 2) for p in (0.0, 0.1, 0.55, 1.0)]
    [0.01, 1.0, 0.5, 0.0]
    """
    progress = min(max(progress, 0.0), 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes on devices and on why it stopped off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class IsdTrainingPlan(TrainingPlan):
    """scvi's plan, with AdamW, a rate of its own for the dispersion, and schedules over the whole training.

    Progress is the larger of the share of steps and the share of minutes, so that a training that is bounded
    by time anneals to its end too.

    Parameters
    ----------
    module
        What is trained.
    total_steps
        Number of optimiser steps.
    max_seconds
        Time at which training stops.
    lr, weight_decay, lr_schedule
        Of the networks.
    dispersion_lr
        Learning rate of ``log_theta`` (which has no weight decay).
    kl_warmup
        Share of the training over which the KL weight rises from 0 to ``max_kl_weight``.
    max_kl_weight
        Final weight of the KL divergence.
    elbo_metrics
        Whether to log the parts of the evidence lower bound of each training epoch, as scvi does. Off for latent
        models, which have none and whose steps take no longer than the logging.
    """

    def __init__(
        self,
        module: Any,
        *,
        total_steps: int,
        max_seconds: float | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        dispersion_lr: float = 1e-2,
        lr_schedule: LRSchedule = "one_cycle",
        kl_warmup: float = 0.3,
        max_kl_weight: float = 1.0,
        elbo_metrics: bool = True,
    ) -> None:
        if lr_schedule not in LR_SCHEDULES:
            raise ValueError(f"lr_schedule {lr_schedule!r} is unknown; choose one of {LR_SCHEDULES}.")
        # read by the kl_weight property, which scvi's constructor asks for; no module among them, so plain
        # attributes may be set before nn.Module's constructor has run
        object.__setattr__(self, "total_steps", total_steps)
        object.__setattr__(self, "kl_warmup", kl_warmup)
        object.__setattr__(self, "max_seconds", max_seconds)
        object.__setattr__(self, "started", None)
        object.__setattr__(self, "_steps_done", 0)
        object.__setattr__(self, "max_kl_weight", max_kl_weight)
        super().__init__(module, lr=lr, weight_decay=weight_decay, max_kl_weight=max_kl_weight)
        self.dispersion_lr = dispersion_lr
        self.lr_schedule = lr_schedule
        self.elbo_metrics = elbo_metrics

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        done = self._steps_done / max(self.total_steps, 1)
        if self.max_seconds is not None and self.started is not None:
            done = max(done, (time.monotonic() - self.started) / self.max_seconds)
        return min(done, 1.0)

    @property
    def kl_weight(self) -> Tensor:
        """Weight of the KL divergence now; validation always uses the final weight."""
        module = self.__dict__.get("_modules", {}).get("module")
        if module is not None and not module.training:
            return torch.tensor(self.max_kl_weight)
        ramp = 1.0 if self.kl_warmup <= 0 else min(self.progress / self.kl_warmup, 1.0)
        return torch.tensor(ramp * self.max_kl_weight)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW (fused) with weight decay on matrices only."""
        groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "dispersion": []}
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.endswith("log_theta"):
                groups["dispersion"].append(parameter)
            elif parameter.ndim >= 2:
                groups["decay"].append(parameter)
            else:
                groups["plain"].append(parameter)
        rates = {"decay": self.lr, "plain": self.lr, "dispersion": self.dispersion_lr}
        self._peak_rates = []
        params = []
        for key, parameters in groups.items():
            if parameters:
                decay = self.weight_decay if key == "decay" else 0.0
                params.append({"params": parameters, "lr": rates[key], "weight_decay": decay})
                self._peak_rates.append(rates[key])
        return {"optimizer": torch.optim.AdamW(params, fused=True)}

    def on_train_start(self) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates of this step."""
        self._steps_done = self.global_step
        factor = learning_rate_factor(self.progress, self.lr_schedule)
        for group, rate in zip(self.optimizers().param_groups, self._peak_rates, strict=True):
            group["lr"] = rate * factor

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """scvi's step; without its metrics where there is no evidence lower bound."""
        if self.elbo_metrics:
            return super().training_step(batch, batch_idx)
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        options = {"on_step": False, "on_epoch": True, "batch_size": output.n_obs_minibatch}
        self.log("train_loss", output.loss, prog_bar=True, sync_dist=self.use_sync_dist, **options)
        for key, value in output.extra_metrics.items():
            self.log(f"{key}_train", value, **options)
        return output.loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """scvi's step, at the final KL weight, so that values of different epochs can be compared."""
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs.update({"kl_weight": self.kl_weight})
        if self.elbo_metrics:
            super().validation_step(batch, batch_idx)
            return
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        values = {"validation_loss": output.loss, **{f"{k}_validation": v for k, v in output.extra_metrics.items()}}
        self.log_dict(values, on_epoch=True, batch_size=output.n_obs_minibatch, sync_dist=self.use_sync_dist)


class WarmEMA(WeightAveraging):
    """Exponential moving average of the weights whose decay warms up, so that short trainings forget their start.

    After ``n`` updates the decay is ``min(decay, (1 + n) / (10 + n))``.

    Parameters
    ----------
    decay
        Final decay.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {decay}.")

        @torch.no_grad()
        def average(ema: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
            n = float(n_averaged)
            return torch.lerp(current, ema, min(decay, (1 + n) / (10 + n)))

        super().__init__(avg_fn=average)
        self.decay = decay


class SaveEvery(Callback):
    """Save the model every so many steps; the previous save is replaced only when the new one is whole.

    Parameters
    ----------
    model
        Model with a ``save`` method.
    every_n_steps
        Interval in optimiser steps.
    path
        Folder to save to.
    """

    def __init__(self, model: Any, every_n_steps: int, path: str | Path) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {every_n_steps}.")
        self.model = model
        self.every_n_steps = every_n_steps
        self.path = Path(path)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when the interval is full."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.is_global_zero:
            self.model.save(self.path, overwrite=True)


def resolve_split(
    adata: Any, codes: np.ndarray, *, validation_size: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows for training, validation and test.

    ``obs["isd_split"]`` is honoured. Without it, ``validation_size`` of the rows, stratified by label, are set
    aside for validation (none with fewer than 20 rows) and nothing for testing.

    Parameters
    ----------
    adata
        The data.
    codes
        Label code of each row.
    validation_size
        Share of validation rows where there is no split yet.
    seed
        Seed of that choice.

    Returns
    -------
    Three sorted arrays of row positions.
    """
    if SPLIT_KEY in adata.obs:
        split = adata.obs[SPLIT_KEY].astype(object)
        known = {SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_TEST}
        other = sorted({str(v) for v in split.unique() if v not in known})
        if other:
            raise ValueError(
                f"adata.obs[{SPLIT_KEY!r}] has values {other}; expected {sorted(known)}. Run isd.pp.split(adata) again."
            )
        parts = [np.flatnonzero((split == k).to_numpy()) for k in (SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_TEST)]
        if parts[0].size < 2:
            raise ValueError(f"adata.obs[{SPLIT_KEY!r}] leaves {parts[0].size} training cells; at least 2 are needed.")
        return parts[0], parts[1], parts[2]
    n = adata.n_obs
    rng = np.random.default_rng(seed)
    if n < 20 or validation_size <= 0:
        return np.arange(n), np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    # systematic sampling over rows sorted by label: each label gives its share, to within one row
    order = np.lexsort((rng.random(n), codes))
    every = 1.0 / validation_size
    picks = np.unique(np.floor(np.arange(rng.random() * every, n, every)).astype(int))
    picks = picks[picks < n]
    validation = np.sort(order[picks])
    train = np.setdiff1d(np.arange(n), validation)
    return train, validation, np.zeros(0, dtype=int)


def resolve_steps(
    *,
    max_steps: int | None,
    max_epochs: int | None,
    max_minutes: float | None,
    n_train: int,
    batch_size: int,
    default: int,
) -> int:
    """Number of optimiser steps from whichever of steps, epochs and minutes was given."""
    for name, value in (("max_steps", max_steps), ("max_epochs", max_epochs), ("max_minutes", max_minutes)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    per_epoch = max(n_train // batch_size, 1)
    if max_steps is not None and max_epochs is not None:
        raise ValueError("give max_steps or max_epochs, not both.")
    if max_steps is not None:
        return int(max_steps)
    if max_epochs is not None:
        return int(max_epochs) * per_epoch
    return default


def fit(
    model: Any,
    data: lightning.LightningDataModule,
    *,
    make_plan: Callable[[int, float | None], lightning.LightningModule],
    total_steps: int,
    max_minutes: float | None,
    n_train: int,
    batch_size: int,
    accelerator: str = "auto",
    devices: Any = "auto",
    early_stopping: bool = False,
    early_stopping_patience: int = 5,
    checkpoint_every: int | None = None,
    checkpoint_dir: str | Path | None = None,
    log_every: int = 10,
    progress: bool | None = None,
    callbacks: list[Callback] | None = None,
    gradient_clip_val: float | None = 1.0,
    n_validations: int = 20,
    monitor: str = "validation_loss",
    n_threads: int | None = None,
    **trainer_kwargs: Any,
) -> None:
    """Train ``model.module`` through scvi's runner and Lightning, quietly."""
    steps_per_epoch = max(n_train // batch_size, 1)
    n_epochs = math.ceil(total_steps / steps_per_epoch)
    callbacks = list(callbacks or [])
    if checkpoint_every is not None:
        if checkpoint_dir is None:
            raise ValueError("checkpoint_every needs checkpoint_dir, the folder to save to.")
        callbacks.append(SaveEvery(model, checkpoint_every, checkpoint_dir))
    if max_minutes is not None:
        trainer_kwargs["max_time"] = timedelta(minutes=max_minutes)
    max_seconds = None if max_minutes is None else 60.0 * max_minutes
    has_validation = getattr(data, "n_val", 0) > 0
    if early_stopping and not has_validation:
        raise ValueError("early_stopping needs validation cells; run isd.pp.split(adata) first.")
    with few_threads(n_threads), quiet_lightning(), warnings.catch_warnings():
        # what Lightning says about data loader workers and logging intervals is not the user's to act on
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=UserWarning, message=".*(num_workers|DataLoader|logging interval).*")
        runner = TrainRunner(
            model,
            training_plan=make_plan(total_steps, max_seconds),
            data_splitter=data,
            max_epochs=n_epochs,
            accelerator=accelerator,
            devices=devices,
            max_steps=total_steps,
            early_stopping=early_stopping,
            early_stopping_monitor=monitor,
            early_stopping_patience=early_stopping_patience,
            check_val_every_n_epoch=max(1, n_epochs // n_validations) if has_validation else None,
            enable_progress_bar=settings.show_progress(progress),
            log_every_n_steps=log_every,
            callbacks=callbacks,
            gradient_clip_val=gradient_clip_val,
            **trainer_kwargs,
        )
        runner()
    # plain numbers: the logger leaves tensors among them
    model.history_ = {key: frame.astype(float) for key, frame in (model.history_ or {}).items()}
    # the trainer holds the optimiser state (twice the weights) and a reference to the data
    model.trainer = None
