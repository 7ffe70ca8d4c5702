"""What the array functions of :mod:`isd.metrics` share: checks, and sub-samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse


def as_points(values: Any, name: str) -> np.ndarray:
    """Dense, finite, two-dimensional float array (float32 is kept, anything else becomes float64).

    Parameters
    ----------
    values
        Dense or sparse matrix of shape ``(n, n_dims)``.
    name
        How the message names it.

    Raises
    ------
    ValueError
        If it is not two-dimensional, is empty or holds values that are not finite.
    """
    if sparse.issparse(values):
        values = values.toarray()
    array = np.asarray(values)
    if array.dtype != np.float32:
        array = array.astype(np.float64, copy=False)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; a non-empty matrix (n_points, n_dimensions) was expected.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values; remove these rows or features first.")
    return array


def as_pair(x: Any, y: Any, *, min_points: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of points in the same space, each of at least ``min_points`` rows.

    Raises
    ------
    ValueError
        If the numbers of dimensions differ or a sample is too small.
    """
    x, y = as_points(x, "x"), as_points(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} dimensions and y has {y.shape[1]}; both must have the same features.")
    for name, sample in (("x", x), ("y", y)):
        if sample.shape[0] < min_points:
            raise ValueError(f"{name} has {sample.shape[0]} rows; at least {min_points} are needed.")
    return x, y


def as_sorted_rows(n_rows: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """``size`` of ``n_rows`` row numbers drawn without replacement, in increasing order (all if there are fewer)."""
    if n_rows <= size:
        return np.arange(n_rows)
    return np.sort(rng.choice(n_rows, size=size, replace=False))


def kth_distance(queries: np.ndarray, points: np.ndarray, k: int, *, same: bool = False) -> np.ndarray:
    """Distance from each query to its ``k``-th nearest point, in blocks of rows.

    Brute force on purpose: trees do not help in tens of dimensions, and threads of a neighbour search cost more than
    they save at the few thousand points that metrics compare.

    Parameters
    ----------
    queries, points
        Points of the same space.
    k
        1 for the nearest.
    same
        Whether the queries are the points themselves, which are then not their own neighbours.
    """
    from scipy.spatial.distance import cdist

    out = np.empty(queries.shape[0])
    rows = max(1, (1 << 22) // points.shape[0])
    for start in range(0, queries.shape[0], rows):
        distances = cdist(queries[start : start + rows], points)
        if same:
            block = np.arange(distances.shape[0])
            distances[block, start + block] = np.inf
        out[start : start + rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return out


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap (or permutation) draws."""
    tail = 100 * (1 - level) / 2
    lower, upper = np.percentile(draws, [tail, 100 - tail])
    return float(lower), float(upper)
