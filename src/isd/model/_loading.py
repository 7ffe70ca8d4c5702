"""How minibatches reach a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from isd.model._distributed import SharedBatches, SharedRows, batches_loader, place


class SparseDataSplitter(DataSplitter):
    """scvi's splitter, whose minibatches stay csr where the counts are stored so, and are split over processes.

    Parameters
    ----------
    *args, **kwargs
        Of :class:`scvi.dataloaders.DataSplitter`.
    """

    #: Seed of the order of the rows where several processes share batches.
    seed: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, load_sparse_tensor=True, **kwargs)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Leave sparse tensors sparse: scvi's own hook makes them dense again."""
        return batch

    def _shared(self, rows: np.ndarray, batches: Sampler[list[int]]) -> DataLoader:
        return batches_loader(self.adata_manager.create_torch_dataset(indices=rows, load_sparse_tensor=True), batches)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of training rows; of several processes, each gets its share of every batch."""
        rank, size = place(self)
        if size == 1:
            return super().train_dataloader()
        batch_size = self.data_loader_kwargs["batch_size"]
        batches = SharedBatches(len(self.train_idx), batch_size, rank=rank, size=size, seed=self.seed)
        return self._shared(self.train_idx, batches)

    def val_dataloader(self) -> DataLoader | None:
        """Validation rows, each once, whatever the number of processes."""
        rank, size = place(self)
        if size == 1 or not len(self.val_idx):
            return super().val_dataloader()
        batches = SharedRows(len(self.val_idx), self.data_loader_kwargs["batch_size"], rank=rank, size=size)
        return self._shared(self.val_idx, batches)


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
