"""Local inverse Simpson's index: how well two samples mix in every neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isd.metrics._arrays import as_pair, as_points

_ROWS = 512


def lisi(points: Any, labels: Sequence[Any] | np.ndarray, *, perplexity: float = 30.0) -> np.ndarray:
    """Effective number of labels in each point's neighbourhood.

    Parameters
    ----------
    points
        Points of shape ``(n, n_dims)``.
    labels
        Label of each, shape ``(n,)``.
    perplexity
        Effective number of neighbours; ``3 * perplexity`` of them get Gaussian weights of that perplexity (fewer, if
        there are fewer points).

    Returns
    -------
    Array of shape ``(n,)``, from 1 (one label only) to the number of labels (all equally frequent).

    Raises
    ------
    ValueError
        If labels and points differ in number, or there are fewer than 4 points.

    References
    ----------
    Korsunsky et al. 2019, Nature Methods 16:1289 (Harmony), Methods, "LISI". Cost: ``O(n^2 n_dims)``.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> apart = lisi(np.concatenate([x, x + 100]), np.repeat(["a", "b"], 200), perplexity=10)
    >>> round(float(apart.max()), 6)
    1.0
    """
    from scipy.spatial.distance import cdist

    points = as_points(points, "points")
    codes = np.unique(np.asarray([str(label) for label in labels], dtype=object), return_inverse=True)[1]
    n = points.shape[0]
    if codes.size != n:
        raise ValueError(f"points has {n} rows but there are {codes.size} labels.")
    if n < 4 or perplexity <= 1:
        raise ValueError(
            f"{n} points and perplexity={perplexity!r} were given; at least 4, and more than 1, are needed."
        )
    k = min(n - 1, int(3 * perplexity))
    out = np.empty(n)
    for start in range(0, n, _ROWS):
        distances = cdist(points[start : start + _ROWS], points)
        rows = np.arange(distances.shape[0])
        distances[rows, start + rows] = np.inf
        nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]
        weights = _gaussian_weights(np.take_along_axis(distances, nearest, axis=1), min(perplexity, k / 1.5))
        shares = np.zeros((rows.size, codes.max() + 1))
        np.add.at(shares, (np.repeat(rows, k), codes[nearest].ravel()), weights.ravel())
        out[start : start + rows.size] = 1 / (shares**2).sum(axis=1)
    return out


def _gaussian_weights(distances: np.ndarray, perplexity: float, n_steps: int = 40) -> np.ndarray:
    """``exp(-beta d^2)`` normalised by row, with beta such that each row's perplexity is the one asked for."""
    squares = distances**2
    squares -= squares.min(axis=1, keepdims=True)
    # equal distances allow no other weights than equal ones, whatever beta
    scale = np.maximum(squares.mean(axis=1, keepdims=True), np.finfo(float).tiny)
    low, high = np.full_like(scale, -30.0), np.full_like(scale, 30.0)  # log of beta * scale
    weights = np.full_like(squares, 1 / squares.shape[1])
    for _ in range(n_steps):
        middle = (low + high) / 2
        weights = np.exp(-np.exp(middle) * squares / scale)
        weights /= weights.sum(axis=1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1, keepdims=True)
        too_wide = entropy > np.log(perplexity)
        low, high = np.where(too_wide, middle, low), np.where(too_wide, high, middle)
    return weights


def lisi_mixing(x: Any, y: Any, *, perplexity: float = 30.0) -> float:
    """Mean LISI of real and generated points together: 2 where they mix as one sample does, 1 where they are apart.

    Parameters
    ----------
    x
        Real points, shape ``(n, n_dims)``.
    y
        Generated points, shape ``(m, n_dims)``; equal numbers, else 2 is out of reach.
    perplexity
        See :func:`lisi`.

    Returns
    -------
    Between 1 and 2; a little below 2 for finite samples of one distribution.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> lisi_mixing(rng.normal(size=(300, 2)), rng.normal(size=(300, 2))) > 1.8
    True
    """
    x, y = as_pair(x, y)
    return float(
        lisi(np.concatenate([x, y]), np.repeat([0, 1], [x.shape[0], y.shape[0]]), perplexity=perplexity).mean()
    )
