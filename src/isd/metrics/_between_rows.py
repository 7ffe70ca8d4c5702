"""Rows on differences between labels: their size, and which features mark a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isd.metrics._between_labels import log_fold_change_slope, log_fold_changes, marker_overlap
from isd.metrics._registry import Metric
from isd.metrics._rows import Estimate, filled, from_repeats, halvings, large_enough, too_small
from isd.metrics._sample import ALL, Context, Sample

_N_REPEATS = 10
_FUNCTIONS = {"log_fold_change_slope": log_fold_change_slope, "marker_overlap": marker_overlap}
_BOUNDS = {"log_fold_change_slope": (-np.inf, np.inf), "marker_overlap": (0.0, 1.0)}


def between_rows(
    ctx: Context, sample: Sample, metrics: Sequence[Metric], *, with_floor: bool = True
) -> list[dict[str, Any]]:
    """Rows of ``log_fold_change_slope`` and ``marker_overlap``; none with fewer than two labels.

    Labels with enough cells on both sides take part; ``"all"`` is their mean.
    """
    if len(ctx.labels.known) < 2 or not metrics:
        return []
    sizes = large_enough(ctx, sample, metrics[0].min_n)
    labels = tuple(sizes)
    draws: dict[tuple[str, str], list[np.ndarray]] = {}
    if len(labels) >= 2:
        values = {"reference": ctx.reference.points["features"], "generated": sample.points["features"]}
        seed = ctx.seed_of("between labels")
        for halving in halvings(ctx.reference.labels, sample.labels, labels, _N_REPEATS, seed):
            real = log_fold_changes(values["reference"], halving.matched, len(labels))
            ours = log_fold_changes(values["generated"], halving.generated, len(labels))
            pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {"value": (real, ours)}
            if with_floor:
                first = log_fold_changes(values["reference"], halving.first, len(labels))
                pairs["floor"] = first, log_fold_changes(values["reference"], halving.second, len(labels))
            for metric in metrics:
                for part, (x, y) in pairs.items():
                    draws.setdefault((metric.name, part), []).append(_FUNCTIONS[metric.name](x, y))
    table = []
    for metric in metrics:
        for group in (ALL, *ctx.labels.groups):
            size = (ctx.reference.rows(group).size, sample.rows(group).size)
            chosen = labels if group == ALL else (group,)
            if len(labels) < 2 or not set(chosen) <= set(labels):
                table.append(too_small(metric.name, "features", group, *size))
                continue
            columns = [labels.index(label) for label in chosen]
            n = sum(min(sizes[label][0] // 2, sizes[label][1]) for label in chosen)
            estimates: dict[str, Estimate] = {}
            for part in ("value", "floor") if with_floor else ("value",):
                repeats = np.stack(draws[metric.name, part])[:, columns].mean(axis=1)
                estimates[part] = from_repeats(repeats, n, _BOUNDS[metric.name])
            table.append(filled(metric.name, "features", group, estimates["value"], estimates.get("floor")))
    return table
