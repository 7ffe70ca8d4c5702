"""Means of what the steps of an epoch gave, logged once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class EpochMeans:
    """Sums over the steps of an epoch, on the device that they are on.

    Lightning takes a millisecond for a value that a step logs, and scvi logs six a step: a quarter of the time of a small
    model. Summed by hand and logged at the epoch's end, they are the same numbers.

    Examples
    --------
    >>> import torch
    >>> means = EpochMeans()
    >>> means.add({"loss": torch.tensor(1.0)}, n=1)
    >>> means.add({"loss": torch.tensor(4.0)}, n=2)
    >>> {key: float(value) for key, value in means.take().items()}
    {'loss': 3.0}
    >>> means.take()
    {}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n = 0

    def add(self, means: dict[str, Any], n: int) -> None:
        """Take in the means of a minibatch of ``n`` cells."""
        self._n += n
        for key, value in means.items():
            part = torch.as_tensor(value).detach() * n
            self._sums[key] = self._sums[key] + part if key in self._sums else part

    def take(self, strategy: Any = None) -> dict[str, Tensor]:
        """Means over all cells since the last call, those of a strategy's other processes included; empty where there were none."""
        if not self._n:
            return {}
        sums = torch.stack([value.float() for value in self._sums.values()])
        sums = torch.cat([sums, sums.new_tensor([self._n])])
        if strategy is not None:
            sums = strategy.reduce(sums, reduce_op="sum")
        means = dict(zip(self._sums, sums[:-1] / sums[-1], strict=True))
        self._sums, self._n = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch keeps."""
        return {"sums": dict(self._sums), "n": self._n}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str) -> None:
        """Go on from there."""
        self._sums, self._n = {key: value.to(device) for key, value in state["sums"].items()}, state["n"]
