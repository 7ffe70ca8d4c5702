"""How far a training is, in lines for a log file."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from isd._progress import Lines, lines


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
        loss = f", loss {float(outputs['loss']):.4g}" if isinstance(outputs, dict) and "loss" in outputs else ""
        self.told.tell(f"{self.what}, step", trainer.global_step, trainer.max_steps, loss)


def training_lines(model: Any, progress: bool | None) -> list[Callback]:
    """The callback for a model, where lines are wanted."""
    told = lines(progress)
    return [] if told is None else [TrainingLines(told, type(model).__name__)]
