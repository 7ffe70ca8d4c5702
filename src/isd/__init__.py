"""Isoform-resolved expression, generated: counts per transcript for bulk samples and single cells, in AnnData.

Subpackages are imported when they are first used, so that ``import isd`` (and ``isodiff --help``) is quick and
the pure-torch parts never load the rest.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

from isd.report import report
from isd.settings import settings

if TYPE_CHECKING:
    from isd import datasets, diffusion, experiment, io, metrics, model, module, nn, pl, pp, tl

__all__ = [
    "__version__",
    "datasets",
    "diffusion",
    "experiment",
    "io",
    "metrics",
    "model",
    "module",
    "nn",
    "pl",
    "pp",
    "report",
    "settings",
    "tl",
]

__version__ = version("isodiff")


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"isd.{name}")
    raise AttributeError(f"module 'isd' has no attribute {name!r}; it has: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)
