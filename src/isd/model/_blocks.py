"""Minibatches from blocks of rows that lie side by side in a zarr store, read by annbatch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from anndata.abc import CSRDataset
from scipy import sparse
from scvi import REGISTRY_KEYS

from isd.model._distributed import check_share

#: Rows of a block, and most bytes of counts that are in memory at once.
BLOCK = 64
WINDOW_BYTES = 256 << 20


class Windows:
    """Which rows are read together, and which batches are made of them.

    Blocks of neighbouring rows are shuffled, as many of them are read as memory allows (a window), and batches are drawn from
    all rows of a window. Several processes read the same windows: each takes its share of the rows, side by side.

    Parameters
    ----------
    rows
        Rows to train on, in rising order.
    batch_size
        Rows of a batch, all processes together. Shortened where they do not go round.
    window
        Batches of a window.
    block
        Rows of a block.
    rank, size
        This process, and how many there are.
    seed
        Seed of the order of blocks and rows, with the number of the epoch.
    start
        An epoch and the number of its batches that were seen before: they are left out of that epoch.

    Raises
    ------
    ValueError
        If a batch has fewer rows than there are processes.

    Examples
    --------
    >>> import numpy as np
    >>> for rows, batches in Windows(np.arange(10), 2, window=2, block=2):
    ...     print(len(rows), [len(batch) for batch in batches])
    4 [2, 2]
    4 [2, 2]
    2 [2]
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        *,
        window: int,
        block: int = BLOCK,
        rank: int = 0,
        size: int = 1,
        seed: int = 0,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        check_share(batch_size, size)
        self.rows, self.batch_size, self.window, self.block = rows, batch_size, window, block
        self.rank, self.size, self.seed, self.start = rank, size, seed, start
        self.epoch = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Rows of each window, in rising order, and for each batch the positions of its rows among them."""
        rng = np.random.default_rng([self.seed, self.epoch])
        blocks = np.array_split(self.rows, range(self.block, len(self.rows), self.block))
        stream = np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])
        share, skip = self.batch_size // self.size, self.start[1] if self.epoch == self.start[0] else 0
        for first in range(0, len(self), self.window):
            n_batches = min(self.window, len(self) - first)
            rows = np.sort(stream[first * self.batch_size : (first + n_batches) * self.batch_size])
            mine = rows[self.rank * n_batches * share : (self.rank + 1) * n_batches * share]
            order = rng.permutation(len(mine))  # drawn where it is not used too, so that later ones stay the same
            batches = np.split(order, n_batches)[max(skip - first, 0) :]
            if batches:
                yield mine, batches


def check_annbatch(counts: Any) -> None:
    """Raise what is in the way of reading these counts with annbatch.

    Raises
    ------
    ImportError
        Without annbatch, or before Python 3.12.
    TypeError
        If the counts are not csr in a zarr store.
    """
    if not isinstance(counts, CSRDataset) or counts.backend != "zarr":
        what = "csr in an HDF5 file" if isinstance(counts, CSRDataset) else type(counts).__name__
        raise TypeError(
            f"reader='annbatch' reads counts that are csr in a zarr store, and these are {what}. Write one with "
            "adata.write_zarr(path) and open it with anndata.io.sparse_dataset(zarr.open_group(path, mode='r')['X']), or "
            "take reader='rows'."
        )
    if sys.version_info < (3, 12):
        raise ImportError(
            f"reader='annbatch' needs Python 3.12 or later, and this is {sys.version_info.major}.{sys.version_info.minor}; "
            "take reader='rows'."
        )
    try:
        import annbatch  # noqa: F401
    except ImportError as error:
        raise ImportError("reader='annbatch' needs annbatch: pip install 'isodiff[annbatch]'.") from error


def window_size(counts: CSRDataset, batch_size: int) -> int:
    """Batches of a window: as many as take :data:`WINDOW_BYTES`, and at least one."""
    stored = int(counts.group["indices"].shape[0])
    row_bytes = 8 * max(stored / max(counts.shape[0], 1), 1.0)
    return max(1, int(WINDOW_BYTES / (row_bytes * batch_size)))


class BlockLoader:
    """Batches of a data set whose counts annbatch reads; an iterable as Lightning takes it.

    Parameters
    ----------
    counts
        Csr counts in a zarr store.
    others
        Data set of the other registered tensors, by row.
    windows
        Which rows make a batch.
    """

    def __init__(self, counts: CSRDataset, others: Any, windows: Windows) -> None:
        self.counts, self.others, self.windows = counts, others, windows
        self.sampler = windows  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        from annbatch import Loader
        from annbatch.abc import Sampler

        windows = self.windows

        class Chosen(Sampler):  # type: ignore[misc]
            """The rows of our windows, in annbatch's form."""

            batch_size = windows.batch_size // windows.size
            shuffle = True

            def n_batches(self, n_obs: int) -> int:
                return len(windows)

            def validate(self, n_obs: int) -> None:
                pass

            def _sample(self, n_obs: int) -> Iterator[dict[str, Any]]:
                for rows, batches in windows:
                    yield {"requests": rows, "splits": batches}

        loader = Loader(batch_sampler=Chosen(), return_index=True, preload_to_gpu=False, to=None)
        loader.add_dataset(self.counts)
        for batch in loader:
            others = {key: torch.as_tensor(values) for key, values in self.others[batch["index"]].items()}
            yield {**others, REGISTRY_KEYS.X_KEY: _tensor(batch["X"])}


def _tensor(x: sparse.csr_matrix) -> torch.Tensor:
    """Csr counts as scvi's data sets give them."""
    parts = (torch.from_numpy(x.indptr), torch.from_numpy(x.indices), torch.from_numpy(x.data.astype(np.float32)))
    return torch.sparse_csr_tensor(*parts, size=x.shape)
