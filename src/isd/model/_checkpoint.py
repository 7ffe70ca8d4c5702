"""Trainings that are stopped, killed or cut by a time limit, and go on as if nothing had happened."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train._logger import SimpleLogger
from torchmetrics import Metric

from isd._atomic import beside, recover
from isd._hash import fingerprint
from isd.model._files import check_target
from isd.model._state import TRAINING_FILE, SafeCheckpoints, read_notes, read_state, write_state
from isd.settings import settings

#: Checkpoints of a training whose interval was not given.
N_CHECKPOINTS = 10


@dataclass
class Checkpoints:
    """Where a training keeps its state, and where it goes on from.

    Parameters
    ----------
    folder
        Folder of the model that is saved at each checkpoint; ``None`` for none.
    every
        Interval in steps; ``None`` for a tenth of the training.
    resume
        ``True``: go on with what is in ``folder``, if anything is. A folder: go on with that. ``False``: begin anew.
        ``None``: begin anew, and refuse to overwrite a training that is not finished.
    part
        Folder of the trained model within that of the saved one: a VAE's in that of its diffusion model.
    """

    folder: Path | None
    every: int | None
    resume: bool | str | Path | None
    part: str = ""
    source: Path | None = field(default=None, init=False)
    notes: dict[str, Any] | None = field(default=None, init=False)
    call: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.folder = None if self.folder is None else Path(self.folder).absolute()
        if self.every is not None and self.every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {self.every}.")
        if self.every is not None and self.folder is None and not isinstance(self.resume, (str, Path)):
            raise ValueError("checkpoint_every needs checkpoint_dir, the folder to save to.")
        if self.resume is True and self.folder is None:
            raise ValueError("resume=True needs checkpoint_dir, the folder to go on with; or give resume that folder.")
        self.source = self._find()
        if self.folder is not None:
            check_target(self.folder, overwrite=True)
        if self.source is not None:
            self.notes = read_notes(self.source)

    def _find(self) -> Path | None:
        """State to go on with, if there is one."""
        if isinstance(self.resume, (str, Path)):
            recover(Path(self.resume))
            source = Path(self.resume).absolute() / self.part / TRAINING_FILE
            if not source.is_file():
                raise FileNotFoundError(
                    f"{self.resume} has no {TRAINING_FILE}: there is no training to go on with. Give the checkpoint_dir of one."
                )
            self.folder = source.parents[1 if self.part else 0] if self.folder is None else self.folder
            return source
        if self.folder is None:
            return None
        recover(self.folder)
        source = self.folder / self.part / TRAINING_FILE
        if not source.is_file() or self.resume is False:
            return None
        if self.resume:
            return source
        notes = read_notes(source)
        if not notes["finished"]:
            raise ValueError(
                f"{self.folder} holds a training that stopped at step {notes['step']:,} of {notes['total_steps']:,}. Give resume=True "
                "to go on with it, resume=False to begin anew in its place, or another checkpoint_dir."
            )
        return None

    @property
    def in_sittings(self) -> bool:
        """Whether minutes are those of this call, and the learning rate follows steps alone."""
        if self.notes is not None:
            return self.notes["in_sittings"]
        return self.resume not in (None, False)

    def check(self, call: dict[str, Any]) -> None:
        """Raise when another call began what this one is to go on with.

        Raises
        ------
        ValueError
            Naming what differs.
        """
        told = {name: str(value) for name, value in call.items()}
        self.call |= told
        if self.notes is None:
            return
        began = self.notes["call"]
        differ = [f"{n}: {began[n]} then, {told[n]} now" for n in told if n in began and began[n] != told[n]]
        if differ:
            raise ValueError(
                f"{self.source} is the state of another training ({'; '.join(differ)}). Make the same call on the same data to go "
                "on with it, give resume=False to begin anew, or another folder."
            )

    def check_model(self, model: Any) -> None:
        """:meth:`check` for the rows, the features and the shape of a model."""
        rows = [np.asarray(i, dtype=np.int64) for i in (model.train_indices_, model.validation_indices_)]
        shapes = str([(name, tuple(value.shape)) for name, value in model.module.state_dict().items()])
        self.check(
            {
                "class": type(model).__name__,
                "rows": fingerprint(*rows, model.train_obs_hash),
                "features": fingerprint("\n".join(map(str, model.feature_names))),
                "shape of the network": fingerprint(shapes),
                **model._checkpoint_call(),
            }
        )


class Keeper(Callback):
    """Keep the state of a training, and stop it in good order when time is up or a signal comes.

    A checkpoint is the model's folder as ``save`` writes it, with the averaged weights where there is an average, and
    in it the state that the training needs to go on. Both take the place of the older ones in one step.

    Parameters
    ----------
    model
        What is trained.
    owner
        What is saved: the model, or the diffusion model that the VAE belongs to.
    checkpoints
        Where.
    total_steps
        Length of the training.
    limit
        Seconds after which to stop; ``None`` for none.
    averages
        Callbacks that average the weights.
    """

    def __init__(
        self,
        model: Any,
        owner: Any,
        checkpoints: Checkpoints,
        *,
        total_steps: int,
        limit: float | None,
        averages: list[Any],
    ) -> None:
        self.model, self.owner, self.checkpoints = model, owner, checkpoints
        self.total_steps, self.limit, self.averages = total_steps, limit, averages
        self.every = checkpoints.every or max(total_steps // N_CHECKPOINTS, 1)
        self.io = SafeCheckpoints()
        #: why the training stopped before its end: ``"minutes"``, or a signal's number
        self.stopped: str | int | None = None
        self._signal: int | None = None
        self._due = self._stop = False
        self._started = time.monotonic()
        self._seconds_before = 0.0 if checkpoints.notes is None else float(checkpoints.notes["seconds"])
        self._partial: dict[str, Any] | None = None
        self._saved_step: int | None = None
        self._caught: list[int] = []

    @property
    def start(self) -> tuple[int, int]:
        """Epoch and number of its batches from which to go on."""
        notes = self.checkpoints.notes
        return (0, 0) if notes is None else (int(notes["epoch"]), int(notes["batch"]))

    # -- going on ----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Put back what Lightning does not: random numbers, history, the clock."""
        for number in self._caught:
            # Lightning has put its own handler of SIGTERM before ours, which raises when the epoch ends
            signal.signal(number, self._remember)
        if signal.SIGTERM in self._caught:
            # one that came before is remembered here, too; Lightning would raise on it, with exit code 0
            trainer._signal_connector.received_sigterm = False
        self._started = time.monotonic()
        pl_module.seconds_before = self._seconds_before
        if self.checkpoints.source is None:
            return
        extra = self.io.extra
        _set_random_state(extra["random"], pl_module.device)
        if isinstance(trainer.logger, SimpleLogger) and trainer.is_global_zero:
            trainer.logger.experiment.data = {name: frame.astype(object) for name, frame in extra["history"].items()}
        if extra["between_epochs"]:
            _set_counters(trainer.fit_loop, epoch=self.start[0], step=int(extra["step"]))
        else:
            self._partial = extra["partial"]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Let the epoch's metrics go on from where they were."""
        if self._partial is not None:
            for name, module in pl_module.named_modules():
                if name in self._partial["metrics"]:
                    for key, value in self._partial["metrics"][name].items():
                        setattr(module, key, value)

    # -- keeping -----------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write a checkpoint where one is due; after an epoch's last batch, when the epoch is over."""
        if self._partial is not None:
            _add_partial(trainer.fit_loop.epoch_loop._results, self._partial["results"])
            self._partial = None
        step = trainer.global_step
        self._due |= self.checkpoints.folder is not None and step % self.every == 0 and step != self._saved_step
        over = self.limit is not None and time.monotonic() - self._started >= self.limit
        stop = over or self._signal is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        self._stop |= stop
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if step >= self.total_steps or progress.is_last_batch or progress.current.ready >= trainer.num_training_batches:
            return
        self._keep(trainer, pl_module, (trainer.current_epoch, progress.current.ready), between_epochs=False)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Write what was due when the last epoch ended."""
        if trainer.global_step:
            self._keep(trainer, pl_module, (trainer.fit_loop.epoch_progress.current.processed, 0), between_epochs=True)

    def _keep(self, trainer: Any, pl_module: Any, place: tuple[int, int], *, between_epochs: bool) -> None:
        if self._stop and not trainer.should_stop:
            self.stopped = "minutes" if self._signal is None else self._signal
            trainer.should_stop = True
            if self.checkpoints.folder is not None:
                self._save(trainer, pl_module, place, between_epochs=between_epochs)
        elif self._due:
            try:
                self._save(trainer, pl_module, place, between_epochs=between_epochs)
            except OSError as e:
                # hours of training are worth more than one checkpoint
                warnings.warn(
                    f"the checkpoint of step {trainer.global_step:,} could not be written to {self.checkpoints.folder} ({e}); an "
                    "older one stays, and the training goes on.",
                    UserWarning,
                    stacklevel=2,
                )
        self._due = False

    def _save(self, trainer: Any, pl_module: Any, place: tuple[int, int], *, between_epochs: bool) -> None:
        folder = self.checkpoints.folder
        assert folder is not None
        self._saved_step = trainer.global_step
        self.io.notes = self._notes(trainer.global_step, place)
        # of several processes, the first has a history
        has_history = isinstance(trainer.logger, SimpleLogger) and trainer.is_global_zero
        self.io.extra = {
            "random": _random_state(pl_module.device),
            "history": dict(trainer.logger.history) if has_history else {},
            "between_epochs": between_epochs,
            "step": trainer.global_step,
            "partial": None if between_epochs else _partial(trainer.fit_loop.epoch_loop._results, pl_module),
        }
        state = beside(folder)
        try:
            trainer.save_checkpoint(state)
            if trainer.is_global_zero:
                for average in self.averages:
                    average._swap_models(pl_module)
                try:
                    self._save_model(folder, state)
                finally:
                    for average in self.averages:
                        average._swap_models(pl_module)
        finally:
            state.unlink(missing_ok=True)

    def finish(self) -> None:
        """Keep the trained model, and that it is finished."""
        folder = self.checkpoints.folder
        if folder is None or getattr(self.model, "trainer", None) is None or not self.model.trainer.is_global_zero:
            return
        state = beside(folder)
        weights = {name: value.detach().cpu() for name, value in self.model.module.state_dict().items()}
        notes = {**self._notes(self.model.trainer.global_step, (0, 0)), "finished": True}
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_state(state, {"weights": weights, "history": self.model.history_}, notes)
            self._save_model(folder, state)
        finally:
            state.unlink(missing_ok=True)

    def _notes(self, step: int, place: tuple[int, int]) -> dict[str, Any]:
        return {
            "call": self.checkpoints.call,
            # without minutes, the learning rate follows the steps: minutes of a later call are that call's
            "in_sittings": self.checkpoints.in_sittings or self.limit is None,
            "step": step,
            "total_steps": self.total_steps,
            "epoch": place[0],
            "batch": place[1],
            "seconds": self._seconds_before + time.monotonic() - self._started,
            "finished": False,
            **self.model._checkpoint_notes(),
        }

    def _save_model(self, folder: Path, state: Path) -> None:
        trained, self.model.is_trained_ = self.model.is_trained_, True
        self.model._state_to_save = state
        try:
            self.owner.save(folder, overwrite=True)
        finally:
            self.model.is_trained_ = trained
            self.model._state_to_save = None

    # -- stopping ----------------------------------------------------------------------------------------------

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Have the first SIGINT or SIGTERM end the training after the step that runs, and the second at once."""
        caught: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # others cannot catch any
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                caught[signal.SIGINT] = signal.signal(signal.SIGINT, self._remember)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                caught[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._remember)
        self._caught = list(caught)
        try:
            yield
        except SystemExit as e:
            # Lightning makes it of a signal that ends a training at once, with an exit code that is not the signal's
            if self._signal == signal.SIGINT:
                raise KeyboardInterrupt from e
            raise SystemExit(128 + signal.SIGTERM if self._signal == signal.SIGTERM else e.code) from e
        finally:
            for number, handler in caught.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number

    def tell(self, step: int) -> None:
        """Say that the training is not finished and how to go on; after a signal, end as it asked for.

        Raises
        ------
        KeyboardInterrupt, SystemExit
            After SIGINT, and after SIGTERM.
        """
        if self.stopped is None:
            return
        folder = self.checkpoints.folder
        how = (
            "the model keeps the weights of that step; give checkpoint_dir to be able to go on exactly."
            if folder is None
            else f'to go on, make the same call with checkpoint_dir="{folder}" and resume=True.'
        )
        message = f"training stopped at step {step:,} of {self.total_steps:,}; {how}"
        if self.stopped == signal.SIGINT:
            raise KeyboardInterrupt(message)
        warnings.warn(message, UserWarning, stacklevel=4)
        if self.stopped == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)


def in_sittings(folder: str | Path | None, resume: bool | str | Path | None, part: str) -> bool:
    """Whether minutes are those of one call, for a model and a part of it that is trained first."""
    if resume in (None, False):
        return False
    base = resume if isinstance(resume, (str, Path)) else folder
    for file in () if base is None else (Path(base) / TRAINING_FILE, Path(base) / part / TRAINING_FILE):
        if file.is_file():
            return bool(read_notes(file)["in_sittings"])
    return True


def restore_finished(model: Any, checkpoints: Checkpoints) -> None:
    """Give a model the weights of a training that was finished before."""
    assert checkpoints.source is not None
    state = read_state(checkpoints.source)
    model.module.load_state_dict(state["weights"])
    model.module.eval()
    model.history_ = state["history"]
    model.is_trained_ = model.training_finished_ = True


def _random_state(device: torch.device) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    numbers = torch.from_numpy(np.asarray(keys).astype(np.int64))
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": [kind, numbers, *rest]}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _set_counters(loop: Any, *, epoch: int, step: int) -> None:
    """Have Lightning's loop begin an epoch after so many epochs and steps."""
    for counter in (loop.epoch_progress.current, loop.epoch_progress.total):
        counter.ready = counter.started = counter.processed = counter.completed = epoch
    optimizer = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    optimizer.ready = optimizer.completed = step
    loop.epoch_loop._batches_that_stepped = step


def _partial(results: Any, plan: Any) -> dict[str, Any]:
    """What metrics have added up since the epoch began."""
    metrics = {
        name: {**module.metric_state, "_update_count": module._update_count}
        for name, module in plan.named_modules()
        if isinstance(module, Metric)
    }
    sums = {
        key: {"value": m.value, "cumulated_batch_size": getattr(m, "cumulated_batch_size", None)}
        for key, m in results.items()
        if m.is_tensor and m.meta.on_epoch
    }
    return {"metrics": metrics, "results": sums}


def _add_partial(results: Any, before: dict[str, Any]) -> None:
    for key, sums in before.items():
        metric = results.get(key)
        if metric is not None and metric.meta.is_mean_reduction:
            metric.value = metric.value + sums["value"].to(metric.value.device)
            metric.cumulated_batch_size = metric.cumulated_batch_size + sums["cumulated_batch_size"]


def default_seed(seed: int | None) -> int:
    """The seed of a training."""
    return settings.seed if seed is None else int(seed)
