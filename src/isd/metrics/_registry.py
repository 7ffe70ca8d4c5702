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
from isd.metrics._mmd import mmd_halves, mmd_permutation_test
from isd.metrics._neighbors import coverage, density
from isd.metrics._wasserstein import sliced_wasserstein, wasserstein2, wasserstein_1d

Space = Literal["features", "pcs"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value with its 95% interval, and what comes with it.

    Parameters
    ----------
    value, lower, upper
        The metric and its interval.
    n
        Number of cells compared from either side.
    p_value
        Of a permutation test, where there is one.
    note
        What a reader has to know to trust it.
    roc
        Curve of a classifier: ``fpr``, ``tpr``, ``tpr_lower``, ``tpr_upper``.
    """

    value: float
    lower: float
    upper: float
    n: int
    p_value: float = np.nan
    note: str = ""
    roc: dict[str, np.ndarray] | None = None


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
        Where good values lie: ``"lower"``, ``"higher"``, or ``"half"`` (0.5 is best).
    compare
        ``(reference, generated, n_floor, options)`` to an :class:`Estimate`; rows are in random order.
    floor
        ``(reference, options)`` to the same between disjoint halves of the reference.
    """

    name: str
    spaces: tuple[Space, ...]
    size_matched: bool
    min_n: int
    max_n: int
    better: Literal["lower", "higher", "half"]
    compare: Compare | None = field(repr=False, default=None)
    floor: Floor | None = field(repr=False, default=None)


def _from_repeats(values: list[float], n: int, bounds: tuple[float, float]) -> Estimate:
    """Mean of repeated sub-samples, with the interval in which one more sub-sample would fall (Student's t)."""
    from scipy.stats import t

    draws = np.asarray(values)
    half = t.ppf(0.975, draws.size - 1) * draws.std(ddof=1) * np.sqrt(1 + 1 / draws.size)
    lower, upper = np.clip([draws.mean() - half, draws.mean() + half], *bounds)
    return Estimate(float(draws.mean()), float(lower), float(upper), n)


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
        return _from_repeats(draws, n, bounds)

    def floor(x: np.ndarray, options: Options) -> Estimate:
        rng = np.random.default_rng(options.seed)
        n = min(x.shape[0] // 2, max_n)
        draws = []
        for repeat in range(n_repeats):
            order = rng.permutation(x.shape[0])
            draws.append(call(x[order[:n]], x[order[n : 2 * n]], repeat))
        return _from_repeats(draws, n, bounds)

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


def _n_trees(n: int, options: Options) -> int:
    """Trees of a forest: 300; fewer where there are many forests, or where trees are large and scores steady anyway."""
    if options.is_group:
        return 100
    return 300 if n <= 1000 else 150


def _auc_compare(
    x: np.ndarray, y: np.ndarray, n_floor: int, options: Options, *, classifier: ClassifierName
) -> Estimate:
    n = min(x.shape[0], y.shape[0])
    result = _auc_run(x[:n], y[:n], options, classifier, options.seed, _n_trees(n, options))
    return Estimate(result.auc, result.lower, result.upper, n, roc=_roc([result]))


def _auc_floor(x: np.ndarray, options: Options, *, classifier: ClassifierName) -> Estimate:
    rng = np.random.default_rng(options.seed)
    half = x.shape[0] // 2
    results = []
    for repeat in range(2 if options.is_group or half >= 500 else 3):  # halvings of many cells vary less and cost more
        order = rng.permutation(x.shape[0])
        halves = x[order[:half]], x[order[half : 2 * half]]
        # where nothing can be told apart the AUC is 0.5 with any number of trees: fewer are enough
        results.append(_auc_run(*halves, options, classifier, options.seed + repeat, 100))
    # bootstrap draws of all halvings together: variation between cells and between halvings
    lower, upper = interval(np.concatenate([r.draws for r in results]))
    return Estimate(float(np.mean([r.auc for r in results])), lower, upper, half, roc=_roc(results))


def _metrics() -> dict[str, Metric]:
    both: tuple[Space, ...] = ("features", "pcs")
    pcs: tuple[Space, ...] = ("pcs",)
    any_sign = (-np.inf, np.inf)
    w1, w1_floor = _size_matched(wasserstein_1d, max_n=5000)
    sliced, sliced_floor = _size_matched(partial(sliced_wasserstein, n_projections=100), max_n=5000, seeded=True)
    w2, w2_floor = _size_matched(wasserstein2, max_n=500)
    kl, kl_floor = _size_matched(kl_gaussian_diagonal, max_n=5000)
    knn, knn_floor = _size_matched(kl_knn, max_n=2500, bounds=any_sign)
    cover, cover_floor = _size_matched(coverage, max_n=2500, bounds=(0.0, 1.0))
    dens, dens_floor = _size_matched(density, max_n=2500)
    forest = partial(_auc_compare, classifier="random_forest")
    forest_floor = partial(_auc_floor, classifier="random_forest")
    listed = [
        Metric("random_forest_auc", both, False, 40, 2000, "half", forest, forest_floor),
        Metric("mmd", both, False, 40, 5000, "lower", _mmd_compare, _mmd_floor),
        Metric("wasserstein_1d", both, True, 40, 10_000, "lower", w1, w1_floor),
        Metric("sliced_wasserstein", pcs, True, 40, 10_000, "lower", sliced, sliced_floor),
        Metric("wasserstein2", pcs, True, 40, 10_000, "lower", w2, w2_floor),
        Metric("kl_gaussian_diagonal", pcs, True, 40, 10_000, "lower", kl, kl_floor),
        Metric("kl_knn", pcs, True, 40, 10_000, "lower", knn, knn_floor),
        Metric("coverage", pcs, True, 20, 10_000, "higher", cover, cover_floor),
        Metric("density", pcs, True, 20, 10_000, "higher", dens, dens_floor),
        Metric("label_agreement", ("features",), False, 10, 10_000, "higher"),
    ]
    return {metric.name: metric for metric in listed}


#: Metrics by name, in the order of the table.
METRICS: dict[str, Metric] = _metrics()
