"""Rows of the table that say whether generated cells carry the label they were asked to have."""

from __future__ import annotations

from typing import Any

import numpy as np

from isd.metrics._arrays import as_sorted_rows
from isd.metrics._classifier import label_agreement
from isd.metrics._labels import Labels

ALL = "all"
_MAX_TRAIN, _MAX_SCORED = 5000, 10_000


def label_agreement_rows(
    train: Any,
    train_labels: np.ndarray,
    reference: Any,
    reference_labels: np.ndarray,
    generated: Any,
    labels: Labels,
    *,
    min_cells: int,
    seed: int,
    n_jobs: int,
) -> list[dict[str, Any]]:
    """Agreement of generated cells (value) and of held-out real cells (floor), overall and per label.

    Intervals are Wilson's. A classifier is trained once, on training cells in the yardstick's features.
    """
    rng = np.random.default_rng(seed)
    known = _thinned(train_labels, _MAX_TRAIN, rng)
    if known.size == 0:
        return []
    scored = {"generated": (generated, labels.of_generated), "reference": (reference, reference_labels)}
    kept = {name: _thinned(values, _MAX_SCORED, rng) for name, (_, values) in scored.items()}
    asked = np.concatenate([values[kept[name]] for name, (_, values) in scored.items()])
    if asked.size == 0:
        return []
    points = np.concatenate([matrix[kept[name]].toarray() for name, (matrix, _) in scored.items()])
    result = label_agreement(
        train[known].toarray(), train_labels[known], points, asked, seed=seed, n_jobs=n_jobs
    )  # one fit, both samples
    found = result.predicted == asked
    is_generated = np.arange(asked.size) < kept["generated"].size
    rows = []
    for group in (ALL, *labels.groups):
        member = np.ones(asked.size, dtype=bool) if group == ALL else asked == group
        hits = {True: found[member & is_generated], False: found[member & ~is_generated]}
        row: dict[str, Any] = {"metric": "label_agreement", "space": "features", "group": group, "p_value": np.nan}
        notes = []
        for prefix, sample in (("", hits[True]), ("floor", hits[False])):
            names = [f"{prefix}_{part}".strip("_") for part in ("", "lower", "upper")]
            names[0] = prefix or "value"
            if sample.size < min_cells:
                row |= dict.fromkeys(names, np.nan)
                notes.append("n too small" if not prefix else "floor: n too small")
            else:
                row |= dict(zip(names, (float(sample.mean()), *_wilson(int(sample.sum()), sample.size)), strict=True))
        rows.append(row | {"n_real": hits[False].size, "n_generated": hits[True].size, "note": "; ".join(notes)})
    return rows


def _thinned(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of cells that have a label, at most ``size``."""
    labelled = np.flatnonzero([label is not None for label in labels])
    return labelled[as_sorted_rows(labelled.size, size, rng)]


def _wilson(successes: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    bounds = binomtest(successes, n).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)
