"""How models are optimised: one plan, one schedule over steps or minutes, one call of Lightning."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from scvi.train import TrainingPlan, TrainRunner
from torch import Tensor, nn

from isd._memory import kept_pages
from isd.model._checkpoint import Keeper, restore_finished
from isd.model._distributed import distributed_options, quiet_distributed, same_buffers
from isd.model._epoch_means import EpochMeans
from isd.model._lines import training_lines
from isd.model._settle import LR_SCHEDULES, LRSchedule, Settled
from isd.settings import settings


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
    # of several GPUs only the current one: forking all would start them all
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
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
        Learning rate of ``log_theta`` and ``log_clump`` (which have no weight decay); log concentrations of usage have twice that.
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
        object.__setattr__(self, "seconds_before", 0.0)
        object.__setattr__(self, "_steps_done", 0)
        object.__setattr__(self, "_seconds_done", None)
        object.__setattr__(self, "max_kl_weight", max_kl_weight)
        super().__init__(module, lr=lr, weight_decay=weight_decay, max_kl_weight=max_kl_weight)
        self.dispersion_lr = dispersion_lr
        self.lr_schedule = lr_schedule
        self.elbo_metrics = elbo_metrics
        self._means = EpochMeans()

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        done = self._steps_done / max(self.total_steps, 1)
        if self.max_seconds is not None and self.started is not None:
            seconds = time.monotonic() - self.started if self._seconds_done is None else self._seconds_done
            done = max(done, seconds / self.max_seconds)
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
        groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "dispersion": [], "usage": []}
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.endswith(("log_theta", "log_clump")):
                groups["dispersion"].append(parameter)
            elif name.endswith("log_concentration"):
                groups["usage"].append(parameter)
            elif parameter.ndim >= 2:
                groups["decay"].append(parameter)
            else:
                groups["plain"].append(parameter)
        rates = {"decay": self.lr, "plain": self.lr, "dispersion": self.dispersion_lr, "usage": 2 * self.dispersion_lr}
        self._peak_rates = []
        params = []
        for key, parameters in groups.items():
            if parameters:
                decay = self.weight_decay if key == "decay" else 0.0
                params.append({"params": parameters, "lr": rates[key], "weight_decay": decay})
                self._peak_rates.append(rates[key])
        # Lightning cannot clip gradients inside a fused step under mixed precision
        clipped = self._trainer is not None and self.trainer.gradient_clip_val is not None
        mixed = self._trainer is not None and "mixed" in str(self.trainer.precision)
        return {"optimizer": torch.optim.AdamW(params, fused=not (clipped and mixed))}

    def on_train_start(self) -> None:
        """Start the clock, from where an interrupted training stopped it."""
        self.started = time.monotonic() - self.seconds_before

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates of this step."""
        self._steps_done = self.global_step
        if self.max_seconds is not None and self.trainer.world_size > 1:
            # by its own clock, each process would train at another rate
            self._seconds_done = self.trainer.strategy.broadcast(time.monotonic() - self.started)
        factor = learning_rate_factor(self.progress, self.lr_schedule)
        for group, rate in zip(self.optimizers().param_groups, self._peak_rates, strict=True):
            group["lr"] = rate * factor

    def _log_step(self, loss: Tensor) -> None:
        # by hand: scvi's logger keeps one value an epoch of what goes through self.log
        if self.global_step % self.trainer.log_every_n_steps == 0 and self.trainer.logger is not None:
            loss = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
            self.trainer.logger.log_metrics({"train_loss_step": loss.detach()}, step=self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """scvi's step, which logs nothing by itself."""
        if "kl_weight" in self.loss_kwargs:
            # validation, which comes before the end of the epoch, has another
            self._last_kl_weight = self.kl_weight
            self.loss_kwargs.update({"kl_weight": self._last_kl_weight})
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        n = output.n_obs_minibatch
        values = {"train_loss": output.loss}
        if self.elbo_metrics:
            parts = {
                "reconstruction_loss_train": output.reconstruction_loss_sum / n,
                "kl_local_train": output.kl_local_sum / n,
                "kl_global_train": output.kl_global_sum,
            }
            values |= parts | {"elbo_train": sum(parts.values())}
        values |= {f"{key}_train": value for key, value in output.extra_metrics.items()}
        self._means.add(values, n)
        self._log_step(output.loss)
        return output.loss

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch's cells, and the last weight of the KL divergence."""
        strategy = self.trainer.strategy if self.trainer.world_size > 1 else None
        means = self._means.take(strategy)
        if means and "kl_weight" in self.loss_kwargs:
            means["kl_weight"] = self._last_kl_weight
        # they are those of all processes already; Lightning warns of values that it does not put together itself
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=strategy is not None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of an epoch that is not over."""
        checkpoint["epoch_means"] = self._means.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them; they are those of the first process."""
        if "epoch_means" in checkpoint and self.trainer.is_global_zero:
            self._means.load_state_dict(checkpoint["epoch_means"], self.device)

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
        @torch.no_grad()
        def average(ema: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
            n = float(n_averaged)
            return torch.lerp(current, ema, min(decay, (1 + n) / (10 + n)))

        super().__init__(avg_fn=average)
        self.decay = decay


def fit(
    model: Any,
    data: lightning.LightningDataModule,
    settled: Settled,
    *,
    n_train: int,
    n_validations: int = 20,
    monitor: str = "validation_loss",
    n_threads: int | None = None,
    **plan_options: Any,
) -> bool:
    """Train ``model.module`` through scvi's runner and Lightning, quietly.

    Parameters
    ----------
    model
        The model; gets ``history_`` and the rows that were used.
    data
        Batches.
    settled
        Checked options.
    n_train
        Number of training rows.
    n_validations
        About so many times in the training, validation rows are looked at.
    monitor
        What early stopping looks at.
    n_threads
        CPU threads of torch.
    **plan_options
        Further arguments of :class:`IsdTrainingPlan`.

    Returns
    -------
    Whether the training is finished; ``False`` where its minutes were up and it can go on.

    Raises
    ------
    KeyboardInterrupt, SystemExit
        After SIGINT or SIGTERM, when the step that ran has ended: the model keeps the weights that it has then.
    """
    options, checkpoints = dict(settled.fit), settled.checkpoints
    checkpoints.check_model(model)
    if checkpoints.notes is not None and checkpoints.notes["finished"]:
        restore_finished(model, checkpoints)
        return True
    progress, log_every = options.pop("progress", None), options.pop("log_every", 10)
    callbacks = [*options.pop("callbacks", []), *training_lines(model, progress)]
    if settled.ema_decay is not None:
        callbacks.append(WarmEMA(settled.ema_decay))
    limit = None if settled.max_minutes is None else 60.0 * settled.max_minutes
    max_seconds = None if checkpoints.in_sittings else limit
    if max_seconds is not None and checkpoints.notes is not None:
        limit = max_seconds - checkpoints.notes["seconds"]
    averages = [c for c in callbacks if isinstance(c, WarmEMA)]
    keeper = Keeper(
        model, model._saved_within or model, checkpoints, total_steps=settled.steps, limit=limit, averages=averages
    )
    callbacks.append(keeper)
    plugins = options.pop("plugins", None) or []
    options["plugins"] = [*(plugins if isinstance(plugins, (list, tuple)) else [plugins]), keeper.io]
    seed = torch.initial_seed()
    data.seed, data.start = seed, keeper.start
    options = distributed_options({**options, "callbacks": callbacks}, seed=seed, monitor=monitor)
    n_epochs = math.ceil(settled.steps / max(n_train // settled.batch_size, 1))
    has_validation = getattr(data, "n_val", 0) > 0
    with few_threads(n_threads), kept_pages(), quiet_lightning(), quiet_distributed(), warnings.catch_warnings():
        # what Lightning says about data loader workers and logging intervals is not the user's to act on
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=UserWarning, message=".*(num_workers|DataLoader|logging interval).*")
        runner = TrainRunner(
            model,
            training_plan=IsdTrainingPlan(
                model.module, total_steps=settled.steps, max_seconds=max_seconds, **settled.plan, **plan_options
            ),
            data_splitter=data,
            max_epochs=n_epochs,
            max_steps=settled.steps,
            early_stopping_monitor=monitor,
            check_val_every_n_epoch=max(1, n_epochs // n_validations) if has_validation else None,
            enable_progress_bar=False,  # ours is among the callbacks
            log_every_n_steps=log_every,
            gradient_clip_val=settled.gradient_clip_val,
            ckpt_path=checkpoints.source,
            **options,
        )
        for callback in runner.trainer.callbacks:
            if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
                # when validation ends: an epoch that is cut short has none, and a training that goes on in it no value
                callback._check_on_train_epoch_end = False
        # scvi moves the model of every process to the first device
        runner.device = runner.trainer.strategy.root_device
        # Lightning keeps the mode that it finds, and a module at rest is in that of evaluation: without this, dropout,
        # hidden labels, batch statistics and the KL warm-up would all be off
        model.module.train()
        trained, model.training_finished_ = model.is_trained_, False
        # scvi adds to a history that is there; a model from a checkpoint is trained and has none
        model.is_trained_ = trained and bool(model.history_)
        try:
            with keeper.signals():
                runner()
            same_buffers(model.module, runner.trainer)
        finally:
            model.is_trained_ = model.is_trained_ or trained
            model.module.eval()
    # plain numbers: the logger leaves tensors among them
    model.history_ = {key: frame.astype(float) for key, frame in (model.history_ or {}).items()}
    if keeper.stopped == "minutes" and not checkpoints.in_sittings:
        keeper.stopped = None  # the learning rate was annealed over these minutes: that is the whole training
    model.training_finished_ = keeper.stopped is None
    if model.training_finished_:
        keeper.finish()
    step = runner.trainer.global_step
    # the trainer holds the optimiser state (twice the weights) and a reference to the data
    model.trainer = None
    keeper.tell(step)
    return model.training_finished_
