"""Pictures: plots that read slots and follow scanpy's habits."""

from __future__ import annotations

from isd.pl._history import history
from isd.pl._isoform_usage import isoform_usage
from isd.pl._label_confusion import label_confusion
from isd.pl._library_size import library_size
from isd.pl._metrics import metrics
from isd.pl._moments import mean_variance, zero_fraction
from isd.pl._roc import roc
from isd.pl._switches import switches
from isd.pl._umap import umap_compare
from isd.pl._umap_isoforms import umap_isoforms
from isd.pl._usage_scatter import usage_scatter

__all__ = [
    "history",
    "isoform_usage",
    "label_confusion",
    "library_size",
    "mean_variance",
    "metrics",
    "roc",
    "switches",
    "umap_compare",
    "umap_isoforms",
    "usage_scatter",
    "zero_fraction",
]
