"""Early stopping that takes back the weights that were best on validation cells."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

#: Validation cells from which their loss is precise enough to stop by.
ENOUGH_VALIDATION = 20


class KeepBest(Callback):
    """Stop when the loss of the validation cells no longer falls, and take back the weights at which it was lowest.

    Lightning's early stopping leaves the weights of the last validation, which is not the best one.

    Parameters
    ----------
    patience
        Validations without a lower loss after which training stops.
    monitor
        What is lowest.
    """

    def __init__(self, patience: int, monitor: str = "validation_loss") -> None:
        self.patience, self.monitor = patience, monitor
        self.waited = 0
        self.best = float("inf")
        self.state: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the weights as they are now."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.sanity_checking:
            return
        if float(value) < self.best:
            self.best, self.waited = float(value), 0
            self.state = {k: v.detach().cpu().clone() for k, v in pl_module.module.state_dict().items()}
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Take back the best weights."""
        if self.state:
            with torch.no_grad():
                pl_module.module.load_state_dict(self.state)
