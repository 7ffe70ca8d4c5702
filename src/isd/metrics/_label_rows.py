"""Rows that say whether generated cells carry the label they were asked to have, and could teach a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isd.metrics._arrays import as_sorted_rows
from isd.metrics._classifier import label_agreement
from isd.metrics._registry import Metric
from isd.metrics._rows import TOO_SMALL, filled, predicted_share, share, too_small
from isd.metrics._sample import ALL, Context, Sample

_MAX_TRAIN, _MAX_SCORED = 5000, 10_000


def label_rows(
    ctx: Context, sample: Sample, metrics: Sequence[Metric], *, with_floor: bool = True
) -> list[dict[str, Any]]:
    """Rows of ``label_agreement`` and ``train_on_synthetic``; none without labels.

    The floor's interval is where the share would fall if as many real cells took the place of the generated ones.
    """
    if ctx.labels.key is None:
        return []
    table = []
    for metric in metrics:
        function = _agreement_rows if metric.name == "label_agreement" else _transfer_rows
        table += function(ctx, sample, metric, with_floor)
    return table


def _agreement_rows(ctx: Context, sample: Sample, metric: Metric, with_floor: bool) -> list[dict[str, Any]]:
    """Labels found in generated cells (value) and in held-out real cells (floor) by one classifier of training cells."""
    rng = np.random.default_rng(ctx.seed)
    known = _labelled(ctx.train.labels, _MAX_TRAIN, rng)
    scored = {"generated": sample, "reference": ctx.reference}
    kept = {name: _labelled(cells.labels, _MAX_SCORED, rng) for name, cells in scored.items()}
    if known.size == 0:
        return []
    if kept["generated"].size + kept["reference"].size == 0:
        return []
    points = np.concatenate([cells.points["features"][kept[name]].toarray() for name, cells in scored.items()])
    asked = np.concatenate([cells.labels[kept[name]] for name, cells in scored.items()])
    result = label_agreement(
        ctx.train.points["features"][known].toarray(),
        ctx.train.labels[known],
        points,
        asked,
        seed=ctx.seed,
        n_jobs=ctx.n_jobs,
    )  # one fit, both samples
    found = result.predicted == asked
    is_generated = np.arange(asked.size) < kept["generated"].size
    rows = []
    for group in (ALL, *ctx.labels.groups):
        member = np.ones(asked.size, dtype=bool) if group == ALL else asked == group
        ours, real = found[member & is_generated], found[member & ~is_generated]
        smallest = ctx.smallest(metric.min_n)
        if ours.size < smallest:
            row = too_small(metric.name, "features", group, real.size, ours.size)
        else:
            row = filled(metric.name, "features", group, share(int(ours.sum()), ours.size), None)
        if real.size >= smallest and with_floor:
            floor = predicted_share(int(real.sum()), real.size, max(ours.size, 1))
            row |= {"floor": floor.value, "floor_lower": floor.lower, "floor_upper": floor.upper}
        elif real.size < smallest:
            row["note"] = "; ".join(part for part in (row["note"], f"floor: {TOO_SMALL}") if part)
        rows.append(row | {"n_real": real.size, "n_generated": ours.size})
    return rows


def _transfer_rows(ctx: Context, sample: Sample, metric: Metric, with_floor: bool) -> list[dict[str, Any]]:
    """Held-out real cells whose label is found by a classifier of generated cells (value) or of training cells (floor)."""
    rng = np.random.default_rng(ctx.seed_of(metric.name))
    tested = _labelled(ctx.reference.labels, _MAX_SCORED, rng)
    pools = {"value": sample, "floor": ctx.train}
    sizes = {name: _labelled(cells.labels, cells.labels.size, rng).size for name, cells in pools.items()}
    n = min(*sizes.values(), _MAX_TRAIN, ctx.max_cells)  # as many cells to learn from in either case
    smallest = ctx.smallest(metric.min_n)
    groups = (ALL, *ctx.labels.groups)
    if min(n, tested.size) < smallest:
        return [too_small(metric.name, "pcs", group, tested.size, sizes["value"]) for group in groups]
    asked = ctx.reference.labels[tested]
    found = {}
    for name, cells in pools.items():
        if name == "floor" and not with_floor:
            continue
        rows = _labelled(cells.labels, n, rng)
        result = label_agreement(
            cells.points["pcs"][rows],
            cells.labels[rows],
            ctx.reference.points["pcs"][tested],
            asked,
            seed=ctx.seed,
            n_jobs=ctx.n_jobs,
        )
        found[name] = result.predicted == asked
    table = []
    for group in groups:
        member = np.ones(asked.size, dtype=bool) if group == ALL else asked == group
        size = int(member.sum())
        if size < smallest:
            table.append(too_small(metric.name, "pcs", group, size, n))
            continue
        value = share(int(found["value"][member].sum()), size)
        floor = predicted_share(int(found["floor"][member].sum()), size, size) if with_floor else None
        table.append(filled(metric.name, "pcs", group, value, floor, n_generated=n))
    return table


def _labelled(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of cells that have a label, at most ``size``."""
    labelled = np.flatnonzero([label is not None for label in labels])
    return labelled[as_sorted_rows(labelled.size, size, rng)]
