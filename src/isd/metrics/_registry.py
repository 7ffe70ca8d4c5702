"""The metrics that :func:`isd.metrics.evaluate` knows: what each compares, where, and at which number of cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from isd.metrics._arrays import interval
from isd.metrics._classifier import ClassifierAUC, ClassifierName, classifier_auc
from isd.metrics._kl import kl_gaussian_diagonal, kl_knn
from isd.metrics._lisi import lisi_mixing
from isd.metrics._mmd import mmd_halves, mmd_permutation_test
from isd.metrics._moments import (
    correlation_error,
    ks_distance,
    mean_error,
    pair_correlation_error,
    variance_error,
    zero_fraction_error,
)
from isd.metrics._neighbors import coverage, density, precision, recall
from isd.metrics._rows import Estimate, from_repeats
from isd.metrics._verdict import Better
from isd.metrics._wasserstein import sliced_wasserstein, wasserstein2, wasserstein_1d

Space = Literal["features", "pcs", "counts", "usage", "union_pcs"]
Kind = Literal["samples", "labels", "memory", "between_labels", "usage"]


@dataclass(frozen=True)
class Options:
    """What one comparison may use.

    Parameters
    ----------
    bandwidths
        RBF bandwidths of the space, from training cells.
    n_boot
        Bootstrap samples and permutations.
    n_jobs
        Processor cores.
    seed
        Seed of this comparison.
    is_group
        Whether this is one label's cells: then forests have fewer trees.
    """

    bandwidths: np.ndarray
    n_boot: int
    n_jobs: int
    seed: int
    is_group: bool = False


Compare = Callable[[np.ndarray, np.ndarray, int, Options], Estimate]
Floor = Callable[[np.ndarray, Options], Estimate]


@dataclass(frozen=True)
class Metric:
    """One metric of the table.

    Parameters
    ----------
    name
        Its name in the column ``metric``.
    spaces
        Spaces it is computed in: ``"features"`` (log-normalised values) and ``"pcs"``.
    size_matched
        Whether its value depends on the number of cells, so that real and generated cells are compared at the
        floor's number (half of the reference).
    min_n
        Reference cells and generated cells below this number give no value but the note "n too small".
    max_n
        Cells beyond this number on either side are left out, to bound cost.
    better
        Where good values lie: ``"lower"``, ``"higher"``, ``"half"`` (0.5 is best) or ``"floor"`` (the floor's own value
        is best, as with the distance to training cells).
    compare
        ``(reference, generated, n_floor, options)`` to an :class:`Estimate`; rows are in random order.
    floor
        ``(reference, options)`` to the same between disjoint halves of the reference.
    points
        Which points of a sample it takes, where that is not the space's name.
    kind
        What it needs: two ``"samples"`` of points, ``"labels"``, the training cells (``"memory"``), several labels
        (``"between_labels"``), or genes with several isoforms (``"usage"``).
    default
        Whether ``evaluate`` computes it when no metrics are named.
    tolerance
        Difference from the floor's interval that is still called close, where that interval is narrower.

    Examples
    --------
    >>> from isd.metrics import METRICS
    >>> auc = METRICS["random_forest_auc"]
    >>> auc.better, auc.spaces, auc.min_n
    ('half', ('features', 'pcs'), 40)
    """

    name: str
    spaces: tuple[Space, ...]
    size_matched: bool
    min_n: int
    max_n: int
    better: Better
    compare: Compare | None = field(repr=False, default=None)
    floor: Floor | None = field(repr=False, default=None)
    points: str | None = None
    kind: Kind = "samples"
    default: bool = True
    tolerance: float = 0.0


def _size_matched(
    function: Callable[..., float],
    *,
    max_n: int,
    n_repeats: int = 10,
    seeded: bool = False,
    bounds: tuple[float, float] = (0.0, np.inf),
) -> tuple[Compare, Floor]:
    """``compare`` and ``floor`` of a function of two arrays: the mean over random draws of the same number of cells."""

    def call(x: np.ndarray, y: np.ndarray, seed: int) -> float:
        return function(x, y, seed=seed) if seeded else function(x, y)

    def compare(x: np.ndarray, y: np.ndarray, n_floor: int, options: Options) -> Estimate:
        rng = np.random.default_rng(options.seed)
        n = min(n_floor, y.shape[0], max_n)
        draws = [
            call(x[rng.permutation(x.shape[0])[:n]], y[rng.permutation(y.shape[0])[:n]], repeat)
            for repeat in range(n_repeats)
        ]
        return from_repeats(draws, n, bounds)

    def floor(x: np.ndarray, options: Options) -> Estimate:
        rng = np.random.default_rng(options.seed)
        n = min(x.shape[0] // 2, max_n)
        draws = []
        for repeat in range(n_repeats):
            order = rng.permutation(x.shape[0])
            draws.append(call(x[order[:n]], x[order[n : 2 * n]], repeat))
        return from_repeats(draws, n, bounds)

    return compare, floor


def _mmd_compare(x: np.ndarray, y: np.ndarray, n_floor: int, options: Options) -> Estimate:
    n = min(x.shape[0], y.shape[0])
    test = mmd_permutation_test(
        x[:n],
        y[:n],
        options.bandwidths,
        n_permutations=max(options.n_boot, 20),
        n_boot=max(options.n_boot, 20),
        seed=options.seed,
    )
    note = "degenerate kernel: the value says nothing" if test.degenerate else ""
    return Estimate(test.statistic, *interval(test.bootstrap), n=n, p_value=test.p_value, note=note)


def _mmd_floor(x: np.ndarray, options: Options) -> Estimate:
    draws = mmd_halves(x, options.bandwidths, n_halvings=max(options.n_boot, 20), seed=options.seed)
    return Estimate(float(draws.mean()), *interval(draws), n=x.shape[0] // 2)


def _roc(results: list[ClassifierAUC]) -> dict[str, np.ndarray]:
    """Mean curve of one or several runs, with the interval of their pooled bootstrap draws."""
    lower, upper = np.percentile(np.vstack([r.tpr_draws for r in results]), [2.5, 97.5], axis=0)
    mean = np.mean([r.tpr for r in results], axis=0)
    return {"fpr": results[0].fpr, "tpr": mean, "tpr_lower": lower, "tpr_upper": upper}


def _auc_run(
    x: np.ndarray, y: np.ndarray, options: Options, name: ClassifierName, seed: int, n_estimators: int
) -> ClassifierAUC:
    return classifier_auc(
        x,
        y,
        classifier=name,
        n_estimators=n_estimators,
        n_boot=max(options.n_boot, 20),
        seed=seed,
        n_jobs=options.n_jobs,
    )


def _n_estimators(name: ClassifierName, n: int, options: Options) -> int:
    """Trees of a classifier: fewer where there are many of them, or where they are large and scores steady anyway."""
    if name == "gradient_boosting":
        return 60
    if options.is_group:
        return 60
    return 200 if n <= 1000 else 100


def _auc_compare(
    x: np.ndarray, y: np.ndarray, n_floor: int, options: Options, *, classifier: ClassifierName
) -> Estimate:
    n = min(x.shape[0], y.shape[0])
    result = _auc_run(x[:n], y[:n], options, classifier, options.seed, _n_estimators(classifier, n, options))
    return Estimate(result.auc, result.lower, result.upper, n, roc=_roc([result]))


def _auc_floor(x: np.ndarray, options: Options, *, classifier: ClassifierName) -> Estimate:
    rng = np.random.default_rng(options.seed)
    half = x.shape[0] // 2
    results = []
    for repeat in range(2 if options.is_group or half >= 500 else 3):  # halvings of many cells vary less and cost more
        order = rng.permutation(x.shape[0])
        halves = x[order[:half]], x[order[half : 2 * half]]
        # where nothing can be told apart the AUC is 0.5 with any number of trees: fewer are enough
        results.append(_auc_run(*halves, options, classifier, options.seed + repeat, 60))
    # bootstrap draws of all halvings together: variation between cells and between halvings
    lower, upper = interval(np.concatenate([r.draws for r in results]))
    return Estimate(float(np.mean([r.auc for r in results])), lower, upper, half, roc=_roc(results))


def _auc(classifier: ClassifierName, max_n: int, *, default: bool) -> Metric:
    both: tuple[Space, ...] = ("features", "pcs")
    compare, floor = partial(_auc_compare, classifier=classifier), partial(_auc_floor, classifier=classifier)
    name = f"{classifier}_auc"
    return Metric(name, both, False, 40, max_n, "half", compare, floor, default=default, tolerance=0.02)


def _listed() -> list[Metric]:
    features: tuple[Space, ...] = ("features",)
    pcs: tuple[Space, ...] = ("pcs",)
    any_sign, one = (-np.inf, np.inf), (0.0, 1.0)
    few = 1500  # neighbours in 30 dimensions: cost grows with the square of n, and nothing is learnt from more
    moments = [
        Metric(name, features, True, 40, 10_000, "lower", *_size_matched(function, max_n=2500))
        for name, function in (
            ("mean_error", mean_error),
            ("variance_error", variance_error),
            ("zero_fraction_error", zero_fraction_error),
        )
    ]
    correlations = _size_matched(correlation_error, max_n=2500)
    pairs = _size_matched(pair_correlation_error, max_n=2500)
    usage: tuple[Space, ...] = ("usage",)
    return [
        _auc("random_forest", 2000, default=True),
        _auc("gradient_boosting", 1000, default=False),
        _auc("logistic_regression", 1000, default=False),
        Metric("mmd", ("features", "pcs"), False, 40, 5000, "lower", _mmd_compare, _mmd_floor),
        Metric(
            "wasserstein_1d", ("features", "pcs"), True, 40, 10_000, "lower", *_size_matched(wasserstein_1d, max_n=2500)
        ),
        Metric(
            "sliced_wasserstein",
            pcs,
            True,
            40,
            10_000,
            "lower",
            *_size_matched(partial(sliced_wasserstein, n_projections=100), max_n=2500, seeded=True),
        ),
        Metric("wasserstein2", pcs, True, 40, 10_000, "lower", *_size_matched(wasserstein2, max_n=500)),
        Metric(
            "kl_gaussian_diagonal", pcs, True, 40, 10_000, "lower", *_size_matched(kl_gaussian_diagonal, max_n=5000)
        ),
        Metric("kl_knn", pcs, True, 40, 10_000, "lower", *_size_matched(kl_knn, max_n=few, bounds=any_sign)),
        Metric("coverage", pcs, True, 20, 10_000, "higher", *_size_matched(coverage, max_n=few, bounds=one)),
        # cells that crowd into the middle of the real ones have a density above the floor: no better
        Metric("density", pcs, True, 20, 10_000, "floor", *_size_matched(density, max_n=few)),
        Metric("precision", pcs, True, 20, 10_000, "higher", *_size_matched(precision, max_n=few, bounds=one)),
        Metric("recall", pcs, True, 20, 10_000, "higher", *_size_matched(recall, max_n=few, bounds=one)),
        Metric("lisi", pcs, True, 40, 10_000, "higher", *_size_matched(lisi_mixing, max_n=500, bounds=(1.0, 2.0))),
        *moments,
        Metric(
            "library_size",
            ("counts",),
            True,
            40,
            10_000,
            "lower",
            *_size_matched(ks_distance, max_n=5000, bounds=one),
            points="log_totals",
        ),
        Metric("correlation_error", features, True, 40, 10_000, "lower", *correlations, points="residuals"),
        Metric("nearest_distance_ratio", pcs, False, 20, 10_000, "floor", kind="memory", tolerance=0.02),
        Metric("exact_copy_rate", ("counts",), False, 20, 10_000, "lower", kind="memory", tolerance=0.01),
        Metric("label_agreement", features, False, 10, 10_000, "higher", kind="labels", tolerance=0.02),
        Metric("train_on_synthetic", pcs, False, 10, 5000, "higher", kind="labels", tolerance=0.02),
        Metric("log_fold_change_slope", features, True, 40, 10_000, "floor", kind="between_labels", tolerance=0.02),
        Metric("marker_overlap", features, True, 40, 10_000, "higher", kind="between_labels", tolerance=0.02),
        Metric("usage_js_distance", usage, True, 40, 10_000, "lower", kind="usage"),
        Metric("usage_entropy_error", usage, True, 40, 10_000, "lower", kind="usage"),
        Metric("dominant_isoform", usage, True, 40, 10_000, "higher", kind="usage", tolerance=0.02),
        Metric("usage_switch_slope", usage, True, 40, 10_000, "floor", kind="usage", tolerance=0.02),
        Metric("usage_switch_sign", usage, True, 40, 10_000, "higher", kind="usage", tolerance=0.02),
        Metric("within_gene_correlation", usage, True, 40, 10_000, "lower", *pairs, points="pairs"),
        Metric("gene_total_error", ("counts",), True, 40, 10_000, "lower", kind="usage"),
    ]


#: Metrics by name, in the order of the table.
METRICS: dict[str, Metric] = {metric.name: metric for metric in _listed()}
#: The starting project's definitions, computed by ``evaluate(..., metrics="seed")`` only.
SEED_METRICS: dict[str, Metric] = {
    name: Metric(name, ("union_pcs",), True, 40, 5000, "half" if name == "seed_rf_auc" else "lower", default=False)
    for name in ("seed_mmd", "seed_wasserstein", "seed_kl", "seed_rf_auc")
}
#: Metrics that need ``var["gene_id"]``.
NEED_GENES = frozenset(m.name for m in METRICS.values() if m.kind == "usage" or m.points == "pairs")
