"""How minibatches reach a model."""

from __future__ import annotations

from typing import Any

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
