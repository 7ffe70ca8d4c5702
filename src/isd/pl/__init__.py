"""Pictures: plots that read slots and follow scanpy's habits."""

from __future__ import annotations

from isd.pl._history import history
from isd.pl._roc import roc
from isd.pl._umap import umap_compare

__all__ = ["history", "roc", "umap_compare"]
