"""How minibatches reach a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scvi import REGISTRY_KEYS
from scvi import settings as scvi_settings
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from isd.model._blocks import BlockLoader, Windows, check_annbatch, window_size
from isd.model._distributed import SharedBatches, SharedRows, batches_loader, place

Reader = Literal["rows", "annbatch"]


def check_reader(reader: str, counts: Any) -> None:
    """Raise unless these counts can be read so.

    Raises
    ------
    ValueError
        If the reader is unknown.
    ImportError, TypeError
        If annbatch is asked for and is not there, or cannot read these counts.
    """
    if reader not in ("rows", "annbatch"):
        raise ValueError(f"reader {reader!r} is unknown; choose 'rows' or 'annbatch'.")
    if reader == "annbatch":
        check_annbatch(counts)


class SparseDataSplitter(DataSplitter):
    """scvi's splitter, whose minibatches stay csr where the counts are stored so, and are split over processes.

    Parameters
    ----------
    *args, **kwargs
        Of :class:`scvi.dataloaders.DataSplitter`.
    reader
        Who reads the training rows: ``"rows"`` one by one, ``"annbatch"`` in blocks.
    """

    #: seed of the order of the rows; epoch and number of its batches to begin with
    seed: int = 0
    start: tuple[int, int] = (0, 0)

    def __init__(self, *args: Any, reader: Reader = "rows", **kwargs: Any) -> None:
        super().__init__(*args, load_sparse_tensor=True, **kwargs)
        self.reader = reader

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Leave sparse tensors sparse: scvi's own hook makes them dense again."""
        return batch

    def _loader(self, rows: np.ndarray, batches: Sampler[list[int]]) -> DataLoader:
        # the sampler gives whole batches: a batch is one read of the data
        data = self.adata_manager.create_torch_dataset(indices=rows, load_sparse_tensor=self.load_sparse_tensor)
        workers = {
            "num_workers": scvi_settings.dl_num_workers,
            "persistent_workers": scvi_settings.dl_persistent_workers,
        }
        return batches_loader(data, batches, pin_memory=self.pin_memory, **workers)

    def _block_loader(self, batch_size: int, rank: int, size: int) -> BlockLoader:
        counts = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        others = [key for key in self.adata_manager.data_registry if key != REGISTRY_KEYS.X_KEY]
        windows = Windows(
            np.sort(self.train_idx),
            batch_size,
            window=window_size(counts, batch_size),
            rank=rank,
            size=size,
            seed=self.seed,
            start=self.start,
        )
        return BlockLoader(counts, self.adata_manager.create_torch_dataset(data_and_attributes=others), windows)

    def train_dataloader(self) -> DataLoader | BlockLoader:
        """Shuffled batches of training rows; of several processes, each gets its share of every batch."""
        rank, size = place(self)
        n, batch_size = len(self.train_idx), self.data_loader_kwargs["batch_size"]
        if self.reader == "annbatch":
            return self._block_loader(batch_size, rank, size)
        batches = SharedBatches(n, batch_size, rank=rank, size=size, seed=self.seed, start=self.start)
        return self._loader(self.train_idx, batches)

    def val_dataloader(self) -> DataLoader | None:
        """Validation rows, each once, whatever the number of processes."""
        if not len(self.val_idx):
            return None
        rank, size = place(self)
        batches = SharedRows(len(self.val_idx), self.data_loader_kwargs["batch_size"], rank=rank, size=size)
        return self._loader(self.val_idx, batches)


def sorted_rows(indices: Sequence[int] | np.ndarray | None, n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in rising order, each once, and where each asked-for row is among them.

    A loader over backed data sorts what it is asked for: asking sorted is the way to know the order of the answer.
    """
    if indices is None:
        return np.arange(n_obs), np.arange(n_obs)
    asked = np.asarray(indices)
    if asked.dtype == bool:
        asked = np.flatnonzero(asked)
    if not asked.size:
        raise ValueError("indices names no cells.")
    if asked.min() < 0 or asked.max() >= n_obs:
        raise ValueError(f"indices must lie in 0 ... {n_obs - 1}, got {asked.min()} to {asked.max()}.")
    return np.unique(asked, return_inverse=True)
