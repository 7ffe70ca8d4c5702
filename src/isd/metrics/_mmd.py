"""Maximum mean discrepancy with a sum of RBF kernels, its bootstrap, its permutation test and its floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isd.metrics._arrays import as_pair, as_points, as_sorted_rows

_BLOCK = 1024
_SCALES = (0.5, 1.0, 2.0)


def median_distance(x: Any, *, max_points: int = 1000, seed: int = 0) -> float:
    """Median Euclidean distance between different points: the median heuristic for RBF bandwidths.

    Parameters
    ----------
    x
        Points of shape ``(n, n_dims)``, dense or sparse.
    max_points
        Larger samples are thinned to this number.
    seed
        Seed of the thinning.

    Raises
    ------
    ValueError
        If all points are the same.

    Examples
    --------
    >>> median_distance(np.array([[0.0], [1.0], [3.0]]))
    2.0
    """
    from scipy.spatial.distance import pdist

    x = as_points(x, "x")
    distances = pdist(x[as_sorted_rows(x.shape[0], max_points, np.random.default_rng(seed))].astype(np.float64))
    median = float(np.median(distances)) if distances.size else 0.0
    if median == 0.0 and (distances > 0).any():  # more than half of the pairs are the same point
        median = float(np.median(distances[distances > 0]))
    if median == 0.0:
        raise ValueError("All points are the same, so no kernel bandwidth can be chosen; give bandwidths.")
    return median


def _kernel_products(z: np.ndarray, bandwidths: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``K @ weights``, K the sum of the RBF kernels over ``bandwidths``, its diagonal zero; K is never held whole."""
    z = z - z.mean(axis=0)  # distances from dot products lose digits far from the origin
    squares = np.einsum("ij,ij->i", z, z)
    out = np.empty((z.shape[0], weights.shape[1]), dtype=np.float64)
    weights = weights.astype(z.dtype)
    for start in range(0, z.shape[0], _BLOCK):
        rows = slice(start, min(start + _BLOCK, z.shape[0]))
        distances = squares[rows, None] + squares[None, :] - 2 * (z[rows] @ z.T)
        np.maximum(distances, 0, out=distances)
        kernel = np.zeros_like(distances)
        for bandwidth in bandwidths:
            kernel += np.exp(distances * z.dtype.type(-0.5 / bandwidth**2))
        kernel[np.arange(rows.stop - start), np.arange(start, rows.stop)] = 0
        out[rows] = kernel @ weights
    return out


def _bandwidths(x: np.ndarray, bandwidths: Sequence[float] | np.ndarray | float | None) -> np.ndarray:
    if bandwidths is None:
        return np.asarray(_SCALES) * median_distance(x)
    values = np.atleast_1d(np.asarray(bandwidths, dtype=np.float64))
    if values.size == 0 or not (values > 0).all():
        raise ValueError(f"bandwidths {bandwidths!r} must be positive numbers (sigma of each RBF kernel).")
    return values


def _mmd_of_indicators(products: np.ndarray, row_sums: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Unbiased MMD^2 of each column's points against all others, from ``K @ chosen`` and ``K @ 1``."""
    n = chosen.sum(axis=0)
    m = chosen.shape[0] - n
    xx = (chosen * products).sum(axis=0)
    xy = ((1 - chosen) * products).sum(axis=0)
    yy = ((1 - chosen) * (row_sums[:, None] - products)).sum(axis=0)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def mmd(
    x: Any, y: Any, bandwidths: Sequence[float] | np.ndarray | float | None = None, *, unbiased: bool = True
) -> float:
    """Squared maximum mean discrepancy under a sum of RBF kernels ``exp(-d^2 / (2 sigma^2))``.

    Parameters
    ----------
    x
        Real points, shape ``(n, n_dims)``.
    y
        Generated points, shape ``(m, n_dims)``.
    bandwidths
        One sigma or several, in units of distance; by default 0.5, 1 and 2 times the median distance in ``x``.
    unbiased
        Leave out each point's kernel with itself (the U-statistic, zero on average for equal distributions and so
        sometimes negative). The biased V-statistic is about ``len(bandwidths) * (1/n + 1/m)`` too high.

    Returns
    -------
    MMD squared; between 0 and ``2 * len(bandwidths)`` for large samples.

    Raises
    ------
    ValueError
        For samples of fewer than 2 points, other dimensions, or bandwidths that are not positive.

    References
    ----------
    Gretton et al. 2012, A Kernel Two-Sample Test, JMLR 13, lemma 6 (unbiased: equation 3, biased: equation 5).
    Cost: ``O((n + m)^2 n_dims)`` time, memory of one block of rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(200, 2)), rng.normal(size=(200, 2))
    >>> abs(mmd(x, y)) < 0.02 < mmd(x, y + 1)
    True
    """
    x, y = as_pair(x, y)
    sigma = _bandwidths(x, bandwidths)
    n, m = x.shape[0], y.shape[0]
    chosen = np.repeat([1.0, 0.0], [n, m])[:, None]
    products = _kernel_products(np.concatenate([x, y]), sigma, np.hstack([chosen, np.ones_like(chosen)]))
    if unbiased:
        return float(_mmd_of_indicators(products[:, :1], products[:, 1], chosen)[0])
    in_x, in_y = chosen[:, 0], 1 - chosen[:, 0]
    to_x, to_y = products[:, 0], products[:, 1] - products[:, 0]
    xx, yy = in_x @ to_x + n * sigma.size, in_y @ to_y + m * sigma.size
    return float(xx / n**2 + yy / m**2 - 2 * (in_x @ to_y) / (n * m))


@dataclass(frozen=True, eq=False)
class MMDTest:
    """Outcome of :func:`mmd_permutation_test`.

    Parameters
    ----------
    statistic
        Unbiased MMD squared.
    p_value
        Share of permutations (the observed one counted) with a statistic at least as large.
    null
        Statistics of the permutations.
    bootstrap
        Statistics of bootstrap samples; empty if none were asked for.
    degenerate
        Whether the kernel is (nearly) the identity or constant, so that the statistic says nothing.

    Examples
    --------
    >>> from isd.metrics import mmd_permutation_test
    >>> rng = np.random.default_rng(0)
    >>> test = mmd_permutation_test(rng.normal(size=(40, 2)), rng.normal(3.0, size=(40, 2)), n_permutations=99)
    >>> test.p_value, test.degenerate, test.null.shape
    (0.01, False, (99,))
    """

    statistic: float
    p_value: float
    null: np.ndarray
    bootstrap: np.ndarray
    degenerate: bool


def mmd_permutation_test(
    x: Any,
    y: Any,
    bandwidths: Sequence[float] | np.ndarray | float | None = None,
    *,
    n_permutations: int = 200,
    n_boot: int = 0,
    seed: int = 0,
) -> MMDTest:
    """Unbiased MMD squared with a permutation p-value, and optionally bootstrap draws.

    Parameters
    ----------
    x
        Real points, shape ``(n, n_dims)``.
    y
        Generated points, shape ``(m, n_dims)``.
    bandwidths
        As in :func:`mmd`.
    n_permutations
        Number of random relabellings.
    n_boot
        Number of bootstrap samples; pairs of a point with its own copy are left out, so that they add no bias.
    seed
        Seed of both.

    Returns
    -------
    :class:`MMDTest`; ``degenerate`` warns of a kernel whose mean between different points is below 0.01 or above
    0.99 (as gamma = 1 in 30 principal components is: then the biased estimate is 2/n whatever is compared).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> test = mmd_permutation_test(rng.normal(size=(60, 2)), rng.normal(1.0, size=(60, 2)))
    >>> test.p_value < 0.01, test.degenerate
    (True, False)
    """
    x, y = as_pair(x, y)
    sigma = _bandwidths(x, bandwidths)
    n, m = x.shape[0], y.shape[0]
    rng = np.random.default_rng(seed)
    chosen = np.zeros((n + m, n_permutations + 1))
    chosen[:n, 0] = 1
    for column in range(1, n_permutations + 1):
        chosen[rng.permutation(n + m)[:n], column] = 1
    boot = np.zeros((n + m, 2 * n_boot))
    boot[:n, :n_boot] = rng.multinomial(n, np.full(n, 1 / n), size=n_boot).T
    boot[n:, n_boot:] = rng.multinomial(m, np.full(m, 1 / m), size=n_boot).T

    products = _kernel_products(np.concatenate([x, y]), sigma, np.hstack([chosen, boot, np.ones((n + m, 1))]))
    row_sums = products[:, -1]
    statistics = _mmd_of_indicators(products[:, : n_permutations + 1], row_sums, chosen)
    to_x, to_y = np.split(products[:, n_permutations + 1 : -1], 2, axis=1)
    in_x, in_y = boot[:, :n_boot], boot[:, n_boot:]
    xx = (in_x * to_x).sum(axis=0) / np.maximum(n**2 - (in_x**2).sum(axis=0), 1)
    yy = (in_y * to_y).sum(axis=0) / np.maximum(m**2 - (in_y**2).sum(axis=0), 1)
    xy = (in_x * to_y).sum(axis=0) / (n * m)
    mean_kernel = row_sums.sum() / ((n + m) * (n + m - 1) * sigma.size)
    null = statistics[1:]
    return MMDTest(
        statistic=float(statistics[0]),
        p_value=float((1 + (null >= statistics[0]).sum()) / (1 + n_permutations)),
        null=null,
        bootstrap=xx + yy - 2 * xy,
        degenerate=bool(mean_kernel < 0.01 or mean_kernel > 0.99),
    )


def mmd_halves(
    x: Any, bandwidths: Sequence[float] | np.ndarray | float | None = None, *, n_halvings: int = 200, seed: int = 0
) -> np.ndarray:
    """Unbiased MMD squared between disjoint random halves of one sample: what equal distributions give.

    Parameters
    ----------
    x
        Points, shape ``(n, n_dims)`` with at least 4 rows; one row is left out if ``n`` is odd.
    bandwidths
        As in :func:`mmd`.
    n_halvings
        Number of random halvings; the kernel is computed once for all.
    seed
        Seed of the halvings.

    Returns
    -------
    Array of shape ``(n_halvings,)``.

    Examples
    --------
    >>> mmd_halves(np.random.default_rng(0).normal(size=(40, 2)), n_halvings=3).shape
    (3,)
    """
    x = as_points(x, "x")
    if x.shape[0] < 4:
        raise ValueError(f"x has {x.shape[0]} rows; at least 4 are needed for two halves.")
    x = x[: 2 * (x.shape[0] // 2)]
    n = x.shape[0]
    rng = np.random.default_rng(seed)
    chosen = np.zeros((n, n_halvings))
    for column in range(n_halvings):
        chosen[rng.permutation(n)[: n // 2], column] = 1
    products = _kernel_products(x, _bandwidths(x, bandwidths), np.hstack([chosen, np.ones((n, 1))]))
    return _mmd_of_indicators(products[:, :-1], products[:, -1], chosen)
