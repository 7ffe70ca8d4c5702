"""Batches of latents: what latent diffusion and its classifier are trained on."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from isd.model._distributed import SharedBatches, SharedRows, batches_loader, place


class _Rows(Dataset):
    """Rows of several tensors, fetched a batch at a time."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.n = next(iter(tensors.values())).shape[0]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        return {k: v[index] for k, v in self.tensors.items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices)
        return {k: v[rows] for k, v in self.tensors.items()}


def _as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


class LatentDataModule(lightning.LightningDataModule):
    """Training and validation batches of latent means, their spread, log library sizes and codes.

    Parameters
    ----------
    tensors
        Tensors whose first axis is cells of the whole data.
    train_idx, val_idx, test_idx
        Row positions.
    batch_size
        Rows of a training batch, all processes together; a last incomplete batch is left out.
    """

    #: Seed of the order of the rows where several processes share batches.
    seed: int = 0

    def __init__(
        self,
        tensors: dict[str, Tensor],
        train_idx: np.ndarray,
        val_idx: np.ndarray,
        test_idx: np.ndarray,
        *,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.tensors = tensors
        self.train_idx, self.val_idx, self.test_idx = train_idx, val_idx, test_idx
        self.n_train, self.n_val = len(train_idx), len(val_idx)
        self.batch_size = batch_size

    def _loader(self, rows: np.ndarray, *, shuffle: bool) -> DataLoader:
        part = _Rows({k: v[torch.as_tensor(rows)] for k, v in self.tensors.items()})
        rank, size = place(self)
        if size > 1:
            batches: Sampler[list[int]] = (
                SharedBatches(len(rows), min(self.batch_size, len(rows)), rank=rank, size=size, seed=self.seed)
                if shuffle
                else SharedRows(len(rows), 4096, rank=rank, size=size)
            )
            return batches_loader(part, batches)
        options: dict[str, Any] = {"shuffle": shuffle, "drop_last": shuffle, "collate_fn": _as_is}
        return DataLoader(part, batch_size=min(self.batch_size, len(rows)) if shuffle else 4096, **options)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of training rows."""
        return self._loader(self.train_idx, shuffle=True)

    def val_dataloader(self) -> DataLoader | None:
        """Validation rows in large batches."""
        return self._loader(self.val_idx, shuffle=False) if self.n_val else None
