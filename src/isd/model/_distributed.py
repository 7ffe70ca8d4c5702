"""Training in several processes: who gets which rows, and what keeps processes alike.

A batch is split over the processes, so that a training in several of them is the training in one: the same batches, the
same number of steps, gradients averaged over the same cells. Lightning and torch do the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from scvi.train._callbacks import LoudEarlyStopping
from scvi.train._logger import SimpleLogger
from torch.utils.data import DataLoader, Dataset, Sampler

_PLAIN_DDP = "ddp"


def check_share(batch_size: int, size: int) -> None:
    """Raise if a batch has fewer rows than there are processes."""
    if batch_size < size:
        raise ValueError(
            f"a batch of {batch_size} cells cannot be split over {size} processes; give batch_size of at least "
            f"{size}, or fewer devices."
        )


class SharedBatches(Sampler[list[int]]):
    """Batches of all processes, of which each takes its share.

    All processes draw the same order of the rows from the same seed. Of each batch, process ``rank`` of ``size`` takes every
    ``size``-th row. A batch whose rows do not go round is shortened, since gradients are averaged over processes with
    equal weights; rows that do not fill a batch are left out until the next epoch.

    Parameters
    ----------
    n
        Number of rows.
    batch_size
        Rows of a batch, all processes together.
    rank, size
        This process, and how many there are.
    seed
        Seed of the order of the rows, with the number of the epoch.
    start
        An epoch and the number of its batches that were seen before: they are left out of that epoch.

    Raises
    ------
    ValueError
        If a batch has fewer rows than there are processes.

    Examples
    --------
    >>> first, second = (list(SharedBatches(7, 4, rank=r, size=2)) for r in (0, 1))
    >>> [len(batch) for batch in first], len({*first[0], *second[0]})
    ([2], 4)
    """

    def __init__(
        self, n: int, batch_size: int, *, rank: int, size: int, seed: int = 0, start: tuple[int, int] = (0, 0)
    ) -> None:
        check_share(batch_size, size)
        self.n, self.batch_size, self.rank, self.size, self.seed = n, batch_size, rank, size, seed
        self.start = start
        self.epoch = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; Lightning calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        whole = self.batch_size // self.size * self.size
        for i in range(self.start[1] if self.epoch == self.start[0] else 0, len(self)):
            start = i * self.batch_size
            yield order[start : start + whole][self.rank :: self.size].tolist()

    def __len__(self) -> int:
        return self.n // self.batch_size


class SharedRows(Sampler[list[int]]):
    """All rows once, split over processes into as many batches for each.

    Parameters
    ----------
    n
        Number of rows. Fewer than processes: every process looks at all of them, which gives the same mean.
    batch_size
        Most rows of a batch, all processes together.
    rank, size
        This process, and how many there are.

    Examples
    --------
    >>> [list(SharedRows(5, 4, rank=r, size=2)) for r in (0, 1)]
    [[[0, 2], [4]], [[1], [3]]]
    """

    def __init__(self, n: int, batch_size: int, *, rank: int, size: int) -> None:
        most = -(-n // size)
        # with other numbers of batches, processes would wait for each other for ever
        n_batches = max(1, min(-(-most // max(batch_size // size, 1)), n // size))
        rows = np.arange(rank, n, size) if n >= size else np.arange(n)
        self.batches = [part.tolist() for part in np.array_split(rows, n_batches)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def place(data: Any) -> tuple[int, int]:
    """Rank of this process and number of processes, as the trainer of a data module knows them."""
    trainer = getattr(data, "trainer", None)
    return (0, 1) if trainer is None else (int(trainer.global_rank), int(trainer.world_size))


def batches_loader(dataset: Dataset, batches: Sampler[list[int]], **options: Any) -> DataLoader:
    """Loader that asks a data set for whole batches.

    It draws the seeds of its workers from a generator of its own: the global stream of random numbers is the training's, and
    its state at a step is all that the training needs of it to go on.
    """
    generator = torch.Generator().manual_seed(0)
    return DataLoader(dataset, sampler=batches, batch_size=None, generator=generator, **options)


class OwnNoise(Callback):
    """Random numbers that differ between processes: with one seed for all, each share of a batch would get the same noise.

    Parameters
    ----------
    seed
        Seed of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Seed each process for itself."""
        if trainer.world_size > 1:
            stream = np.random.SeedSequence([self.seed, trainer.global_rank]).generate_state(1)[0]
            torch.manual_seed(int(stream))


def is_distributed(strategy: Any) -> bool:
    """Whether a strategy of Lightning means several processes of DDP."""
    return isinstance(strategy, DDPStrategy) or (isinstance(strategy, str) and strategy.startswith("ddp"))


def distributed_options(options: dict[str, Any], *, seed: int, monitor: str) -> dict[str, Any]:
    """Arguments of the trainer for several processes.

    scvi's trainer turns early stopping off there and leaves a folder of pickled histories wherever it was called. Values of
    the validation are averaged over processes, so that all of them stop together: both are undone.

    Parameters
    ----------
    options
        Arguments of :class:`scvi.train.Trainer`.
    seed
        Seed of the training.
    monitor
        What early stopping looks at.
    """
    options = dict(options)
    # rows are dealt out by our own samplers, whatever the strategy
    options.setdefault("use_distributed_sampler", False)
    strategy = options.get("strategy")
    options["callbacks"] = [*options.get("callbacks", []), OwnNoise(seed)]
    if not is_distributed(strategy):
        return options
    if strategy == _PLAIN_DDP:
        # gradients stay in the buckets in which they are sent, and are not held twice
        options["strategy"] = DDPStrategy(gradient_as_bucket_view=True)
    if options.pop("early_stopping", False):
        given = {"min_delta": 0.0, "patience": 45, "warmup_epochs": 0, "mode": "min"}
        given = {name: options.get(f"early_stopping_{name}", value) for name, value in given.items()}
        options["callbacks"].append(LoudEarlyStopping(monitor=monitor, **given))
    if options.get("logger") is None:
        options["logger"] = SimpleLogger()
    return options


@contextmanager
def quiet_distributed() -> Iterator[None]:
    """Hide what scvi says of early stopping under DDP, which is not so here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="early_stopping was automatically disabled", category=UserWarning)
        yield


def same_buffers(module: torch.nn.Module, trainer: lightning.Trainer) -> None:
    """Give all processes the first one's buffers: statistics of batch normalisation are each process's own."""
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
