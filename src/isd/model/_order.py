"""The order of the rows in training: it follows from seed and epoch alone, so that a training can go on anywhere in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

_STREAM = 21


class EpochSampler(RandomSampler):
    """Each row once an epoch, in an order that follows from seed and epoch.

    torch's own sampler draws the order from the global stream of random numbers: nobody could say later what it was.

    Parameters
    ----------
    n
        Number of rows.
    seed
        Seed.
    start
        An epoch and the number of its rows that were seen before: they are left out of that epoch.

    Examples
    --------
    >>> sampler = EpochSampler(5, seed=0, start=(2, 3))
    >>> whole = EpochSampler(5, seed=0)
    >>> whole.set_epoch(2)
    >>> list(sampler) == list(whole)[3:], len(sampler)
    (True, 5)
    """

    def __init__(self, n: int, *, seed: int, start: tuple[int, int] = (0, 0)) -> None:
        super().__init__(range(n))
        self.n, self.seed, self.start = n, seed, start
        self.epoch = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch comes; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Positions of rows."""
        order = np.random.default_rng([self.seed, _STREAM, self.epoch]).permutation(self.n)
        return iter(order[self.start[1] if self.epoch == self.start[0] else 0 :].tolist())


class EpochBatches(BatchSampler):
    """Batches of :class:`EpochSampler`, for loaders that fetch a batch at a time.

    Parameters
    ----------
    n, seed
        As for :class:`EpochSampler`.
    batch_size
        Rows of a batch; a last incomplete batch is left out.
    start
        An epoch and the number of its batches that were seen before.
    """

    def __init__(self, n: int, batch_size: int, *, seed: int, start: tuple[int, int] = (0, 0)) -> None:
        self.rows = EpochSampler(n, seed=seed, start=(start[0], start[1] * batch_size))
        super().__init__(self.rows, batch_size, drop_last=True)

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch comes; Lightning calls this."""
        self.rows.set_epoch(epoch)


def own_generator(loader: Any) -> DataLoader:
    """Let a loader draw the seeds of its workers elsewhere than from the global stream, which is the training's."""
    loader.generator = torch.Generator().manual_seed(0)
    return loader
