"""How far a training is: a bar where somebody is looking, lines for a log file."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch.callbacks import Callback

from isd._progress import Bar, Lines, lines
from isd.settings import settings

#: Seconds between two updates of a bar: each asks the device for the loss, and nobody reads faster.
_EVERY = 0.2


def _loss(outputs: Any) -> str:
    return f"loss {float(outputs['loss']):.4g}" if isinstance(outputs, dict) and "loss" in outputs else ""


class TrainingLines(Callback):
    """Write steps and loss now and then.

    Parameters
    ----------
    told
        Where to.
    what
        Name of what is trained.
    """

    def __init__(self, told: Lines, what: str) -> None:
        self.told, self.what = told, what

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write a line where one is due."""
        if self.told.due():
            loss = _loss(outputs)
            more = f", {loss}" if loss else ""
            self.told.tell(f"{self.what}, step", trainer.global_step, trainer.max_steps, more)


class TrainingBar(Callback):
    """Draw steps and loss.

    In steps, not in epochs as scvi's bar does: an epoch of a large data set takes many minutes, and a training that goes
    on from a checkpoint begins in the middle.

    Parameters
    ----------
    what
        Name of what is trained.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.bar: Bar | None = None
        self.last, self.more = 0.0, ""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin where the training begins."""
        if trainer.is_global_zero:
            self.bar = Bar(f"{self.what}, step", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move on, now and then."""
        if self.bar is None or (time.monotonic() - self.last < _EVERY and trainer.global_step < trainer.max_steps):
            return
        self.more = _loss(outputs)
        self.bar.move(trainer.global_step, self.more)
        self.last = time.monotonic()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the bar where the training ended."""
        self._close(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the bar where the training broke off: what is said about it stands below."""
        self._close(trainer)

    def _close(self, trainer: Any) -> None:
        if self.bar is not None:
            self.bar.move(trainer.global_step, self.more)
            self.bar.close()
            self.bar = None


def training_lines(model: Any, progress: bool | None) -> list[Callback]:
    """The callback for a model: a bar or lines, where they are wanted."""
    what = type(model).__name__
    if settings.show_progress(progress):
        return [TrainingBar(what)]
    told = lines(progress)
    return [] if told is None else [TrainingLines(told, what)]
