"""Wasserstein distances: per dimension, sliced, and exact in all dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from isd.metrics._arrays import as_pair


def _per_column(x: np.ndarray, y: np.ndarray, p: int) -> np.ndarray:
    """``W_p^p`` of each column's two samples, by matching quantiles."""
    x, y = np.sort(x, axis=0), np.sort(y, axis=0)
    if x.shape[0] == y.shape[0]:
        return (np.abs(x - y) ** p).mean(axis=0)
    # both quantile functions are steps: integrate over the union of their jumps
    n, m = x.shape[0], y.shape[0]
    levels = np.union1d(np.arange(1, n + 1) / n, np.arange(1, m + 1) / m)
    widths = np.diff(levels, prepend=0.0)
    middle = levels - widths / 2
    rows_x = np.minimum((middle * n).astype(int), n - 1)
    rows_y = np.minimum((middle * m).astype(int), m - 1)
    return widths @ (np.abs(x[rows_x] - y[rows_y]) ** p)


def wasserstein_1d(x: Any, y: Any) -> float:
    """Mean over dimensions of the 1-Wasserstein (earth mover's) distance between the two marginals.

    Parameters
    ----------
    x
        Points of shape ``(n, n_dims)``, dense or sparse.
    y
        Points of shape ``(m, n_dims)``.

    Returns
    -------
    Mean distance, in the units of the data; never negative, and above 0 for finite samples of one distribution.

    Raises
    ------
    ValueError
        For empty samples or other dimensions.

    References
    ----------
    Ramdas et al. 2017, On Wasserstein Two-Sample Testing, Entropy 19(2):47, equation 3. Cost: one sort per dimension.

    Examples
    --------
    >>> wasserstein_1d(np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]]))
    2.0
    """
    x, y = as_pair(x, y, min_points=1)
    return float(_per_column(x, y, 1).mean())


def sliced_wasserstein(
    x: Any, y: Any, *, n_projections: int = 200, p: int = 1, seed: int = 0, projections: np.ndarray | None = None
) -> float:
    """Sliced p-Wasserstein distance: the average over random directions of the one-dimensional distance.

    Parameters
    ----------
    x
        Points of shape ``(n, n_dims)``.
    y
        Points of shape ``(m, n_dims)``.
    n_projections
        Number of random directions.
    p
        Order of the distance, 1 or 2 (any positive whole number).
    seed
        Seed of the directions.
    projections
        Directions of shape ``(n_dims, n_projections)`` to use instead.

    Returns
    -------
    ``(mean over directions of W_p^p)^(1/p)``.

    References
    ----------
    Bonneel et al. 2015, Sliced and Radon Wasserstein Barycenters of Measures, JMIV 51, equation 8.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> sliced_wasserstein(x, x)
    0.0
    """
    x, y = as_pair(x, y, min_points=1)
    if p < 1:
        raise ValueError(f"p={p!r} must be 1 or more.")
    if projections is None:
        projections = np.random.default_rng(seed).normal(size=(x.shape[1], n_projections))
        projections /= np.linalg.norm(projections, axis=0)
    return float(_per_column(x @ projections, y @ projections, p).mean() ** (1 / p))


def wasserstein2(x: Any, y: Any, *, max_points: int = 1000, seed: int = 0) -> float:
    """Exact 2-Wasserstein distance between two samples.

    Parameters
    ----------
    x
        Points of shape ``(n, n_dims)``.
    y
        Points of shape ``(m, n_dims)``.
    max_points
        Larger samples are thinned to this number each, without replacement: the cost grows with about its cube.
    seed
        Seed of the thinning.

    Returns
    -------
    Square root of the smallest mean squared distance over all couplings. Its bias falls slowly with n in many
    dimensions, so that only values of the same n can be compared.

    Raises
    ------
    ImportError
        If the samples differ in size and POT is not installed (equal sizes need only scipy).

    References
    ----------
    Peyré and Cuturi 2019, Computational Optimal Transport, section 2.2 (proposition 2.1: for equal sizes an
    assignment is optimal).

    Examples
    --------
    >>> wasserstein2(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 2.0], [0.0, 2.0]]))
    2.0
    """
    from scipy.spatial.distance import cdist

    x, y = as_pair(x, y, min_points=1)
    rng = np.random.default_rng(seed)
    x, y = (z if z.shape[0] <= max_points else z[rng.choice(z.shape[0], max_points, replace=False)] for z in (x, y))
    cost = cdist(x, y, "sqeuclidean")
    if x.shape[0] == y.shape[0]:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(cost)
        return float(np.sqrt(cost[rows, columns].mean()))
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            f"x has {x.shape[0]} points and y has {y.shape[0]}: samples of different sizes need POT "
            "(pip install POT). Draw equal numbers, or install it."
        ) from error
    uniform = [np.full(z.shape[0], 1 / z.shape[0]) for z in (x, y)]
    return float(np.sqrt(max(float(ot.emd2(*uniform, cost, numItermax=1_000_000)), 0.0)))
