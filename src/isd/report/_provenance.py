"""How the cells were made, how they were judged, and with which versions."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from isd._constants import UNS_KEY
from isd.report import _html as html
from isd.report._html import Cell

if TYPE_CHECKING:
    from anndata import AnnData

_PACKAGES = ("isodiff", "numpy", "scipy", "pandas", "anndata", "scanpy", "scikit-learn", "torch", "scvi-tools")


def provenance(real: AnnData, generated: AnnData, settings: dict[str, Any]) -> Iterator[str]:
    """How the cells were made, how they were judged, and with which versions."""
    import numpy as np

    yield "<h2>Provenance</h2>"
    made = []
    for name, value in sorted(dict(generated.uns.get(UNS_KEY, {})).items()):
        if isinstance(value, str | int | float | bool | np.generic):
            made.append((str(name), str(value)))
        elif name == "train_obs_hash":
            made.append(("training rows (hashes kept)", f"{np.size(value):,}"))
    versions = []
    for package in _PACKAGES:
        try:
            versions.append((package, version(package)))
        except PackageNotFoundError:
            versions.append((package, "not installed"))
    versions.append(("python", platform.python_version()))
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    data = [("real", f"{real.n_obs:,} x {real.n_vars:,}"), ("generated", f"{generated.n_obs:,} x {generated.n_vars:,}")]
    judged = [(name, str(value)) for name, value in settings.items()]
    sections = (("Generation", made), ("Evaluation", [("written", now), *data, *judged]), ("Versions", versions))
    for name, items in sections:
        yield f"<h3>{name}</h3>"
        if not items:
            yield html.paragraph("The generated data do not say how they were made.", kind="soft")
            continue
        yield html.table(["what", "value"], [[Cell(what), Cell(value)] for what, value in items])
