"""Coverage, density, precision and recall: whether samples lie in the same places, by nearest-neighbour balls."""

from __future__ import annotations

from typing import Any

import numpy as np

from isd.metrics._arrays import as_pair, kth_distance

_BLOCK = 2048


def coverage(real: Any, generated: Any, *, k: int = 5) -> float:
    """Share of real points that have a generated point within the distance to their k-th real neighbour.

    Parameters
    ----------
    real
        Real points, shape ``(n, n_dims)``.
    generated
        Generated points, shape ``(m, n_dims)``.
    k
        Neighbour that sets a ball's radius.

    Returns
    -------
    Between 0 (nothing covered: modes are missing) and 1; about ``1 - 2**-k`` (0.97 for ``k=5``) for equal
    distributions and equal n.

    References
    ----------
    Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative Models, ICML, equation 6 (coverage),
    section 3.2 for its expectation.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> coverage(x, x), coverage(x, x + 100)
    (1.0, 0.0)
    """
    real, generated = as_pair(real, generated, min_points=1)
    _check_k(real, k)
    return float((kth_distance(real, generated, 1) <= kth_distance(real, real, k, same=True)).mean())


def density(real: Any, generated: Any, *, k: int = 5) -> float:
    """Average number of real balls that a generated point lies in, over ``k``.

    Parameters
    ----------
    real
        Real points, shape ``(n, n_dims)``.
    generated
        Generated points, shape ``(m, n_dims)``.
    k
        Neighbour that sets a ball's radius.

    Returns
    -------
    0 or more; about 1 for equal distributions, below 1 where generated points lie away from real ones.

    References
    ----------
    Naeem et al. 2020, ICML, equation 5.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 2))
    >>> round(density(x, rng.normal(size=(500, 2)))), density(x, x + 100)
    (1, 0.0)
    """
    from scipy.spatial.distance import cdist

    real, generated = as_pair(real, generated, min_points=1)
    _check_k(real, k)
    radii = kth_distance(real, real, k, same=True)
    inside = 0
    for start in range(0, generated.shape[0], _BLOCK):
        inside += int((cdist(generated[start : start + _BLOCK], real) <= radii).sum())
    return inside / (k * generated.shape[0])


def precision(real: Any, generated: Any, *, k: int = 5) -> float:
    """Share of generated points that lie within the k-th neighbour's distance of some real point.

    Parameters
    ----------
    real
        Real points, shape ``(n, n_dims)``.
    generated
        Generated points, shape ``(m, n_dims)``.
    k
        Neighbour that sets a ball's radius.

    Returns
    -------
    Between 0 (none looks real) and 1. One real outlier with a large ball raises it: read it beside ``density``.

    References
    ----------
    Kynkäänniemi et al. 2019, Improved Precision and Recall Metric for Assessing Generative Models, NeurIPS,
    equations 1 and 2.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> precision(x, x), precision(x, x + 100)
    (1.0, 0.0)
    """
    from scipy.spatial.distance import cdist

    real, generated = as_pair(real, generated, min_points=1)
    _check_k(real, k)
    radii = kth_distance(real, real, k, same=True)
    inside = 0
    for start in range(0, generated.shape[0], _BLOCK):
        inside += int((cdist(generated[start : start + _BLOCK], real) <= radii).any(axis=1).sum())
    return inside / generated.shape[0]


def recall(real: Any, generated: Any, *, k: int = 5) -> float:
    """Share of real points that lie within the k-th neighbour's distance of some generated point.

    Parameters
    ----------
    real
        Real points, shape ``(n, n_dims)``.
    generated
        Generated points, shape ``(m, n_dims)``.
    k
        Neighbour that sets a ball's radius.

    Returns
    -------
    Between 0 (nothing of the real variety is there) and 1: :func:`precision` with the samples exchanged.

    References
    ----------
    Kynkäänniemi et al. 2019, NeurIPS, equation 3.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> recall(x, x[:1].repeat(100, axis=0))  # one mode, many times
    0.01
    """
    return precision(generated, real, k=k)


def _check_k(real: np.ndarray, k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k!r} must be 1 or more.")
    if real.shape[0] <= k:
        raise ValueError(f"The sample with the balls has {real.shape[0]} points; k={k} needs at least {k + 1}.")
