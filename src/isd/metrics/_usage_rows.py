"""Rows on isoforms: usage, switches between labels, and gene totals apart from usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isd.metrics._genes import GeneMap
from isd.metrics._registry import Metric
from isd.metrics._rows import Estimate, filled, from_repeats, halvings, large_enough, too_small
from isd.metrics._sample import ALL, Context, Sample
from isd.metrics._usage import (
    dominant_isoform,
    label_sums,
    usage_change,
    usage_entropy,
    usage_js_distance,
    usage_of_sums,
)

_N_REPEATS = 10
#: A gene's counts in half of a label's reference cells below which its usage is not looked at.
MIN_COUNTS = 50.0
#: Genes, or switching isoforms, that a number needs.
_MIN_GENES = 5
_SHARES = ("usage_js_distance", "dominant_isoform", "usage_switch_sign", "gene_total_error")
_TOO_FEW = f"fewer than {_MIN_GENES} genes with enough counts"


def usage_rows(
    ctx: Context, sample: Sample, metrics: Sequence[Metric], *, with_floor: bool = True
) -> list[dict[str, Any]]:
    """Rows of all metrics of kind ``"usage"``.

    A gene counts in a label where half of the reference has :data:`MIN_COUNTS` counts of it on average, and whatever it
    is compared with has any: which genes are looked at does not depend on the depth of the generated cells. ``"all"``
    is over all genes of all labels with enough cells on both sides; without labels, all cells are pooled.
    """
    genes = ctx.frozen.genes
    assert genes is not None and ctx.reference.counts is not None and sample.counts is not None
    named = bool(ctx.labels.known)
    sizes = large_enough(ctx, sample, metrics[0].min_n) if named else {}
    if not named:
        size = (ctx.reference.kept.size, sample.kept.size)
        sizes = {ALL: size} if min(size) >= ctx.smallest(metrics[0].min_n) else {}
    labels = tuple(sizes)
    position = {label: row for row, label in enumerate(ctx.frozen.labels)}
    of_reference, of_sample = (cells.labels[cells.kept] for cells in (ctx.reference, sample))
    codes = np.full(of_reference.size, 0 if labels and not named else -1)
    for code, label in enumerate(labels if named else ()):
        codes[of_reference == label] = code
    covered = genes.sums(label_sums(ctx.reference.counts, codes, len(labels))) >= 2 * MIN_COUNTS
    # usage is looked at for these columns only: the others are in genes with one isoform, or hardly counted at all
    covered = genes.spread(covered.astype(int)) > 0
    columns = np.flatnonzero(genes.in_multi_isoform_gene & covered.any(axis=0))
    inner, covered = genes.subset(columns), covered[:, columns]
    switching = np.zeros((len(labels), columns.size), dtype=bool)
    if named and ctx.frozen.switching is not None:
        switching = ctx.frozen.switching[[position[label] for label in labels]][:, columns]

    draws: dict[tuple[str, str], list[np.ndarray]] = {}
    if labels:
        seed = ctx.seed_of("usage")
        for halving in halvings(of_reference, of_sample, labels if named else (), _N_REPEATS, seed):
            first = label_sums(ctx.reference.counts, halving.first, len(labels))
            trimmed = not np.array_equal(halving.first, halving.matched)
            matched = label_sums(ctx.reference.counts, halving.matched, len(labels)) if trimmed else first
            pairs = {"value": (matched, label_sums(sample.counts, halving.generated, len(labels)))}
            if with_floor:
                pairs["floor"] = (first, label_sums(ctx.reference.counts, halving.second, len(labels)))
            for part, (x, y) in pairs.items():
                for name, values in _compare(x, y, genes, columns, inner, covered, switching).items():
                    draws.setdefault((name, part), []).append(values)

    table = []
    for metric in metrics:
        space = metric.spaces[0]
        for group in (ALL, *ctx.labels.groups):
            size = (ctx.reference.rows(group).size, sample.rows(group).size)
            chosen = labels if group == ALL else (group,)
            if not labels or not set(chosen) <= set(labels):
                table.append(too_small(metric.name, space, group, *size))
                continue
            column = 0 if group == ALL else 1 + labels.index(group)
            n = sum(min(sizes[label][0] // 2, sizes[label][1]) for label in chosen)
            estimates: dict[str, Estimate] = {}
            for part in ("value", "floor") if with_floor else ("value",):
                repeats = np.stack(draws[metric.name, part])[:, column]
                bounds = (0.0, 1.0) if metric.name in _SHARES else (-np.inf, np.inf)
                if np.isfinite(repeats).all():
                    estimates[part] = from_repeats(repeats, n, bounds)
            if "value" not in estimates:
                table.append(too_small(metric.name, space, group, *size, note=_TOO_FEW))
            else:
                table.append(filled(metric.name, space, group, estimates["value"], estimates.get("floor")))
    return table


def _compare(
    x: np.ndarray,
    y: np.ndarray,
    genes: GeneMap,
    columns: np.ndarray,
    inner: GeneMap,
    covered: np.ndarray,
    switching: np.ndarray,
) -> dict[str, np.ndarray]:
    """All metrics of two samples' sums ``(n_labels, n_vars)``: over everything, then per label."""
    totals = [genes.sums(sums) for sums in (x, y)]
    shares = [t / np.maximum(t.sum(axis=1, keepdims=True), 1e-12) for t in totals]
    apart = np.abs(shares[0] - shares[1]).sum(axis=1) / 2
    p, q = (np.where(covered, usage_of_sums(sums[:, columns], inner, 1.0)[0], np.nan) for sums in (x, y))
    main = [dominant_isoform(usage, inner) for usage in (p, q)]
    same = np.where((main[0] >= 0) & (main[1] >= 0), (main[0] == main[1]).astype(float), np.nan)
    changes = [usage_change(usage) for usage in (p, q)]
    changes = [np.where(switching & ~np.isnan(changes[0] * changes[1]), change, np.nan) for change in changes]
    sign = np.where(np.isnan(changes[0]), np.nan, (np.sign(changes[0]) == np.sign(changes[1])).astype(float))
    return {
        "gene_total_error": np.append(apart.mean(), apart),
        "usage_js_distance": _means(usage_js_distance(p, q, inner)),
        "usage_entropy_error": _means(np.abs(usage_entropy(p, inner) - usage_entropy(q, inner))),
        "dominant_isoform": _means(same),
        "usage_switch_slope": _slopes(*changes),
        "usage_switch_sign": _means(sign),
    }


def _means(values: np.ndarray) -> np.ndarray:
    """Mean over all entries that are known, then over those of each row; NaN where there are fewer than five."""
    known = ~np.isnan(values)
    n, total = known.sum(axis=1), np.where(known, values, 0.0).sum(axis=1)
    n, total = np.append(n.sum(), n), np.append(total.sum(), total)
    return np.where(n >= _MIN_GENES, total / np.maximum(n, 1), np.nan)


def _slopes(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Slope through the origin over all entries, then over those of each row."""
    known = ~np.isnan(real)
    n = known.sum(axis=1)
    product, square = (np.where(known, values, 0.0).sum(axis=1) for values in (real * generated, real**2))
    n, product, square = (np.append(values.sum(), values) for values in (n, product, square))
    return np.where((n >= _MIN_GENES) & (square > 0), product / np.where(square > 0, square, 1.0), np.nan)
