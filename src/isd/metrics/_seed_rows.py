"""Rows of the starting project's metrics, by its own definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from isd._progress import track
from isd.metrics._kl import kl_gaussian_diagonal
from isd.metrics._registry import Metric
from isd.metrics._rows import Estimate, filled, from_repeats, too_small
from isd.metrics._sample import ALL, Context, Sample
from isd.metrics._seed_definitions import seed_mmd, seed_rf_auc, union_pcs
from isd.metrics._wasserstein import wasserstein_1d
from isd.metrics._yardstick import log_normalize

_N_REPEATS = 3
_NOTE = "the starting project's definition, for its published table only"


def seed_rows(
    ctx: Context, sample: Sample, metrics: Sequence[Metric], *, with_floor: bool = True, progress: bool | None = None
) -> list[dict[str, Any]]:
    """Rows in principal components that are fitted anew on the union of the cells compared.

    Values are means over three random draws of as many cells as half of the reference.
    """
    assert ctx.reference.counts is not None and sample.counts is not None
    table: list[dict[str, Any]] = []
    for group in track((ALL, *ctx.labels.groups), "Comparing", progress=progress):
        cells = {"reference": ctx.reference, "generated": sample}
        rows = {
            name: np.arange(c.kept.size) if group == ALL else np.flatnonzero(c.labels[c.kept] == group)
            for name, c in cells.items()
        }
        n_real, n_generated = rows["reference"].size, rows["generated"].size
        if min(n_real, n_generated) < ctx.smallest(metrics[0].min_n):
            table += [too_small(m.name, "union_pcs", group, n_real, n_generated) for m in metrics]
            continue
        half = rows["reference"].size // 2
        n = min(half, rows["generated"].size)
        draws: dict[tuple[str, str], list[float]] = {}
        for repeat in range(_N_REPEATS):
            rng = np.random.default_rng([ctx.seed_of("seed definitions", group), repeat])
            real, ours = (rng.permutation(r) for r in rows.values())
            pairs = {"value": (ctx.reference.counts[real[:n]], sample.counts[ours[:n]])}
            if with_floor:
                pairs["floor"] = (ctx.reference.counts[real[:half]], ctx.reference.counts[real[half : 2 * half]])
            for part, pair in pairs.items():
                for name, number in _values(*pair, [m.name for m in metrics], repeat, ctx.n_jobs).items():
                    draws.setdefault((name, part), []).append(number)
        for metric in metrics:
            value = from_repeats(draws[metric.name, "value"], n)
            degenerate = metric.name == "seed_mmd" and abs(value.value * n / 2 - 1) < 0.02
            note = f"{_NOTE}; degenerate kernel: the value is 2/n whatever is compared" if degenerate else _NOTE
            value = Estimate(value.value, value.lower, value.upper, n, note=note)
            floor = from_repeats(draws[metric.name, "floor"], half) if with_floor else None
            table.append(filled(metric.name, "union_pcs", group, value, floor))
    return table


def _values(
    real: sparse.csr_matrix, generated: sparse.csr_matrix, names: Sequence[str], seed: int, n_jobs: int
) -> dict[str, float]:
    x, y = union_pcs(log_normalize(real), log_normalize(generated), seed=seed)
    functions = {
        "seed_mmd": lambda: seed_mmd(x, y),
        "seed_wasserstein": lambda: wasserstein_1d(x, y),
        "seed_kl": lambda: kl_gaussian_diagonal(x, y),
        "seed_rf_auc": lambda: seed_rf_auc(x, y, seed=seed, n_jobs=n_jobs),
    }
    return {name: functions[name]() for name in names}
