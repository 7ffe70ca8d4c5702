"""One cell of the grid: its numbers and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from isd import metrics, pl
from isd.experiment._config import Config


def judge(
    real: AnnData, fake: AnnData, config: Config, *, labels_key: str | None, with_class: str | None, seed: int
) -> pd.DataFrame:
    """Table of :func:`isd.metrics.evaluate`, with the starting project's definitions below.

    Parameters
    ----------
    real, fake
        Real cells with held-out ones among them, and generated ones.
    config
        The experiment.
    labels_key
        Column of labels, ``None`` where the cells have none.
    with_class
        Label that the starting project's definitions are computed for besides all cells.
    seed
        Seed of every draw.
    """
    ours = config.evaluation
    options: dict[str, Any] = {
        "labels_key": labels_key, "layer": config.data.layer, "n_boot": ours.n_boot, "max_cells": ours.max_cells,
        "n_jobs": ours.n_jobs, "seed": seed, "progress": False,
    }  # fmt: skip
    labelled = labels_key is not None and fake.obs[labels_key].notna().any()
    chosen = ours.metrics
    if chosen is not None and not labelled:
        chosen = [name for name in chosen if metrics.METRICS[name].kind not in ("labels", "between_labels")]
    groups = [with_class] if with_class is not None and labelled else False
    parts = [
        metrics.evaluate(
            real, fake, metrics=chosen, groups=True if labelled and ours.per_label else groups, key_added="metrics", **options
        )
    ]  # fmt: skip
    if ours.seed_metrics:
        parts.append(metrics.evaluate(real, fake, metrics="seed", groups=groups, key_added=None, **options))
    return pd.concat(parts, ignore_index=True)


def draw(real: AnnData, fake: AnnData, folder: Path, *, labels_key: str | None, seed: int) -> None:
    """``umap.png``, and ``roc.png`` where curves were evaluated."""
    color = labels_key if labels_key is not None and fake.obs[labels_key].notna().any() else None
    pl.umap_compare(real, fake, color=color, seed=seed, show=False, save=folder / "umap.png")
    if "roc" in fake.uns.get("isd", {}):
        pl.roc(fake, show=False, save=folder / "roc.png")
