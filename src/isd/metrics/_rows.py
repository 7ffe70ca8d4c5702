"""What all rows of the table share: estimates, halvings of the reference, groups that are too small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from isd.metrics._sample import Context, Sample

_NUMBERS = ("value", "lower", "upper", "floor", "floor_lower", "floor_upper", "p_value")
TOO_SMALL = "n too small"


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


MISSING = Estimate(np.nan, np.nan, np.nan, 0)


def filled(
    name: str, space: str, group: str, value: Estimate, floor: Estimate | None, n_generated: int | None = None
) -> dict[str, Any]:
    """One row; without a floor (for a baseline) its numbers are missing."""
    floor = MISSING if floor is None else floor
    return {
        "metric": name,
        "space": space,
        "group": group,
        "value": value.value,
        "lower": value.lower,
        "upper": value.upper,
        "floor": floor.value,
        "floor_lower": floor.lower,
        "floor_upper": floor.upper,
        "p_value": value.p_value,
        "n_real": value.n,
        "n_generated": value.n if n_generated is None else n_generated,
        "note": "; ".join(part for part in (value.note, floor.note) if part),
        "roc": (value.roc, floor.roc),
    }


def too_small(
    name: str, space: str, group: str, n_real: int, n_generated: int, note: str = TOO_SMALL
) -> dict[str, Any]:
    """A row without a number that looks like one."""
    row = {"metric": name, "space": space, "group": group, "n_real": n_real, "n_generated": n_generated, "note": note}
    return row | dict.fromkeys(_NUMBERS, np.nan) | {"roc": (None, None)}


def from_repeats(values: Any, n: int, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """Mean of repeated sub-samples, with the interval in which one more sub-sample would fall (Student's t)."""
    from scipy.stats import t

    draws = np.asarray(values, dtype=np.float64)
    half = t.ppf(0.975, draws.size - 1) * draws.std(ddof=1) * np.sqrt(1 + 1 / draws.size)
    lower, upper = np.clip([draws.mean() - half, draws.mean() + half], *bounds)
    return Estimate(float(draws.mean()), float(lower), float(upper), n)


def share(successes: int, n: int) -> Estimate:
    """A share with Wilson's interval."""
    from scipy.stats import binomtest

    bounds = binomtest(successes, n).proportion_ci(method="wilson")
    return Estimate(successes / n, float(bounds.low), float(bounds.high), n)


def predicted_share(successes: int, n: int, n_next: int) -> Estimate:
    """A share, with the interval in which that of ``n_next`` more cells falls: beta-binomial, Jeffreys' prior.

    References
    ----------
    Gelman et al. 2013, Bayesian Data Analysis, section 2.4 (posterior predictive of a binomial).
    """
    from scipy.stats import betabinom

    bounds = betabinom(n_next, successes + 0.5, n - successes + 0.5).ppf([0.025, 0.975]) / n_next
    return Estimate(successes / n, min(float(bounds[0]), successes / n), max(float(bounds[1]), successes / n), n)


@dataclass(frozen=True, eq=False)
class Halving:
    """One random halving of the reference within labels, and as many generated cells.

    Parameters
    ----------
    first, second
        Label code of each reference row in one half and in the other, -1 elsewhere.
    matched
        As ``first``, thinned to the number of generated cells where these are fewer.
    generated
        Label code of each generated row that is compared, -1 elsewhere.
    """

    first: np.ndarray
    second: np.ndarray
    matched: np.ndarray
    generated: np.ndarray


def halvings(
    reference: np.ndarray, generated: np.ndarray, labels: tuple[str, ...], n_repeats: int, seed: int
) -> Iterator[Halving]:
    """Random halvings within labels.

    Parameters
    ----------
    reference, generated
        Label of each row; all rows count as one label if ``labels`` is empty.
    labels
        Labels that take part, in the order of their codes.
    n_repeats
        Number of halvings.
    seed
        Seed.
    """
    groups = [(np.flatnonzero(reference == label), np.flatnonzero(generated == label)) for label in labels] or [
        (np.arange(reference.size), np.arange(generated.size))
    ]
    for repeat in range(n_repeats):
        rng = np.random.default_rng([seed, repeat])
        out = [np.full(size, -1) for size in (reference.size,) * 3 + (generated.size,)]
        for code, (of_reference, of_generated) in enumerate(groups):
            order, half = rng.permutation(of_reference), of_reference.size // 2
            n = min(half, of_generated.size)
            chosen = order[:half], order[half : 2 * half], order[:n], rng.permutation(of_generated)[:n]
            for codes, rows in zip(out, chosen, strict=True):
                codes[rows] = code
        yield Halving(*out)


def large_enough(ctx: Context, sample: Sample, min_n: int) -> dict[str, tuple[int, int]]:
    """Numbers of reference and generated cells of every label that has enough of both."""
    sizes = {label: (ctx.reference.rows(label).size, sample.rows(label).size) for label in ctx.labels.known}
    return {label: size for label, size in sizes.items() if min(size) >= ctx.smallest(min_n)}
