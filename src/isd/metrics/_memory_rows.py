"""Rows that say whether generated cells are training cells, given back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isd.metrics._arrays import interval, kth_distance
from isd.metrics._registry import Metric
from isd.metrics._rows import Estimate, filled, predicted_share, share, too_small
from isd.metrics._sample import ALL, Context, Sample


def memory_rows(
    ctx: Context, sample: Sample, metrics: Sequence[Metric], *, with_floor: bool = True
) -> list[dict[str, Any]]:
    """Rows of ``nearest_distance_ratio`` (on PCs) and ``exact_copy_rate`` (on counts)."""
    table = []
    for metric in metrics:
        function = _distance_row if metric.name == "nearest_distance_ratio" else _copy_row
        for group in (ALL, *ctx.labels.groups):
            n_real, n_generated = ctx.reference.rows(group).size, sample.rows(group).size
            if min(n_real, n_generated) < ctx.smallest(metric.min_n):
                table.append(too_small(metric.name, metric.spaces[0], group, n_real, n_generated))
            else:
                table.append(function(ctx, sample, metric, group, with_floor))
    return table


def _nearest(ctx: Context, sample: Sample) -> np.ndarray:
    """Distance to the nearest training cell; NaN for cells beyond ``max_cells``."""
    key = ("nearest", id(sample))
    if key not in ctx.cache:
        points = sample.points["pcs"]
        rows = np.random.default_rng(ctx.seed_of("nearest")).permutation(len(points))[: ctx.max_cells]
        distances = np.full(len(points), np.nan)
        distances[rows] = kth_distance(points[rows], ctx.train.points["pcs"], 1)
        ctx.cache[key] = sample, distances  # the sample as well: the identity of one that is gone may come again
    return ctx.cache[key][1]


def _distance_row(ctx: Context, sample: Sample, metric: Metric, group: str, with_floor: bool) -> dict[str, Any]:
    real, ours = (_nearest(ctx, cells)[cells.rows(group)] for cells in (ctx.reference, sample))
    real, ours = real[~np.isnan(real)], ours[~np.isnan(ours)]
    if min(real.size, ours.size) < ctx.smallest(metric.min_n):  # after thinning
        return too_small(metric.name, "pcs", group, real.size, ours.size)
    below = np.median(real)
    if not below > 0:
        note = "held-out cells coincide with training cells"
        return too_small(metric.name, "pcs", group, real.size, ours.size, note)
    rng = np.random.default_rng(ctx.seed_of(group, metric.name))

    def medians(values: np.ndarray, n: int) -> np.ndarray:
        return np.median(values[rng.integers(values.size, size=(max(ctx.n_boot, 500), n))], axis=1)

    denominators = np.maximum(medians(real, real.size), np.finfo(float).tiny)
    value = Estimate(float(np.median(ours) / below), *interval(medians(ours, ours.size) / denominators), n=real.size)
    # as many real cells in the place of the generated ones
    floor = Estimate(1.0, *interval(medians(real, ours.size) / denominators), n=real.size) if with_floor else None
    return filled(metric.name, "pcs", group, value, floor, n_generated=ours.size)


def _copy_row(ctx: Context, sample: Sample, metric: Metric, group: str, with_floor: bool) -> dict[str, Any]:
    assert sample.hashes is not None and ctx.reference.hashes is not None and ctx.train_hashes is not None
    real, ours = (
        np.isin(np.asarray(cells.hashes)[cells.rows(group)], ctx.train_hashes) for cells in (ctx.reference, sample)
    )
    value = share(int(ours.sum()), ours.size)
    floor = predicted_share(int(real.sum()), real.size, ours.size) if with_floor else None
    row = filled(metric.name, "counts", group, value, floor, n_generated=ours.size)
    return row | {"n_real": real.size}
