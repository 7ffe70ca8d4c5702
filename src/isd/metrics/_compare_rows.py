"""Rows of metrics that compare two samples of points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from isd._progress import track
from isd.metrics._registry import Metric, Options
from isd.metrics._rows import filled, too_small
from isd.metrics._sample import ALL, Context, Sample


def compare_rows(
    ctx: Context, sample: Sample, metrics: Sequence[Metric], *, with_floor: bool = True, progress: bool | None = None
) -> list[dict[str, Any]]:
    """One row per group, metric and space.

    Parameters
    ----------
    ctx
        What the comparisons share.
    sample
        Generated cells (or a baseline's).
    metrics
        Metrics of kind ``"samples"``.
    with_floor
        Whether to compute the floor too.
    progress
        Show a progress bar.
    """
    tasks = [
        (group, metric, space)
        for group in (ALL, *ctx.labels.groups)
        for metric in metrics
        for space in metric.spaces
        if (metric.points or space) in sample.points
    ]
    table: list[dict[str, Any]] = []
    for group, metric, space in track(tasks, "Comparing", progress=progress):
        members = {"reference": ctx.reference.rows(group), "generated": sample.rows(group)}
        if min(rows.size for rows in members.values()) < ctx.smallest(metric.min_n):
            table.append(too_small(metric.name, space, group, members["reference"].size, members["generated"].size))
            continue
        source = metric.points or space
        limit = min(ctx.max_cells, metric.max_n)
        # one draw of cells per group, so that metrics of a group speak of the same cells
        chosen = {
            name: np.random.default_rng(ctx.seed_of(group, name)).permutation(rows)[:limit]
            for name, rows in members.items()
        }
        in_reference = _dense(ctx.reference.points[source], chosen["reference"])
        in_generated = _dense(sample.points[source], chosen["generated"])
        options = Options(
            bandwidths=ctx.yardstick.bandwidths.get(space, np.ones(1)),
            n_boot=ctx.n_boot,
            n_jobs=ctx.n_jobs,
            seed=ctx.seed_of(group, metric.name, space),
            is_group=group != ALL,
        )
        assert metric.compare is not None and metric.floor is not None
        value = metric.compare(in_reference, in_generated, in_reference.shape[0] // 2, options)
        floor = metric.floor(in_reference, options) if with_floor else None
        table.append(filled(metric.name, space, group, value, floor))
    return table


def _dense(points: Any, rows: np.ndarray) -> np.ndarray:
    """Points of at most ``max_cells`` rows in the given order: a block of bounded size."""
    return points[rows].toarray() if sparse.issparse(points) else np.asarray(points)[rows]
