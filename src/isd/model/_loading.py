"""How minibatches reach a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scvi.dataloaders import DataSplitter


class SparseDataSplitter(DataSplitter):
    """scvi's splitter, whose minibatches stay csr where the counts are stored so.

    Parameters
    ----------
    *args, **kwargs
        Of :class:`scvi.dataloaders.DataSplitter`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, load_sparse_tensor=True, **kwargs)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Leave sparse tensors sparse: scvi's own hook makes them dense again."""
        return batch


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
