"""Means, variances, zeros, library size and correlations of features: what a picture of the data would show first."""

from __future__ import annotations

from typing import Any

import numpy as np

from isd.metrics._arrays import as_pair


def mean_error(x: Any, y: Any) -> float:
    """Relative error of the features' means: ``sum |mean_y - mean_x| / sum |mean_x|``.

    Parameters
    ----------
    x
        Real cells, shape ``(n, n_features)``.
    y
        Generated cells, shape ``(m, n_features)``.

    Returns
    -------
    0 or more; above 0 for finite samples of one distribution.

    Examples
    --------
    >>> mean_error(np.array([[1.0, 3.0], [1.0, 3.0]]), np.array([[2.0, 3.0], [2.0, 3.0]]))
    0.25
    """
    x, y = as_pair(x, y, min_points=1)
    return _relative(x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64))


def variance_error(x: Any, y: Any) -> float:
    """Relative error of the features' variances: ``sum |var_y - var_x| / sum var_x``; arguments as in `mean_error`.

    Examples
    --------
    >>> variance_error(np.array([[0.0], [2.0]]), np.array([[0.0], [4.0]]))
    3.0
    """
    x, y = as_pair(x, y)
    return _relative(x.var(axis=0, dtype=np.float64, ddof=1), y.var(axis=0, dtype=np.float64, ddof=1))


def zero_fraction_error(x: Any, y: Any) -> float:
    """Mean over features of the absolute difference in the share of zeros; arguments as in :func:`mean_error`.

    Examples
    --------
    >>> zero_fraction_error(np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    0.25
    """
    x, y = as_pair(x, y, min_points=1)
    return float(np.abs((x == 0).mean(axis=0) - (y == 0).mean(axis=0)).mean())


def _relative(real: np.ndarray, generated: np.ndarray) -> float:
    scale = np.abs(real).sum()
    return float(np.abs(generated - real).sum() / scale) if scale > 0 else float("nan")


def ks_distance(x: Any, y: Any) -> float:
    """Largest Kolmogorov-Smirnov distance over the columns: how far apart cumulative distributions get.

    Parameters
    ----------
    x
        Real values, shape ``(n, n_columns)`` (one column for library sizes).
    y
        Generated values, shape ``(m, n_columns)``.

    Returns
    -------
    Between 0 and 1.

    References
    ----------
    Smirnov 1948, Ann. Math. Statist. 19:279; ``scipy.stats.ks_2samp`` gives the same statistic.

    Examples
    --------
    >>> ks_distance(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    1.0
    """
    x, y = as_pair(x, y, min_points=1)
    largest = 0.0
    for a, b in zip(np.sort(x, axis=0).T, np.sort(y, axis=0).T, strict=True):
        at = np.concatenate([a, b])
        difference = np.searchsorted(a, at, side="right") / a.size - np.searchsorted(b, at, side="right") / b.size
        largest = max(largest, float(np.abs(difference).max()))
    return largest


def correlation_error(x: Any, y: Any) -> float:
    """Root mean squared difference between the feature-feature correlations (Pearson) of two samples.

    Parameters
    ----------
    x
        Real cells, shape ``(n, n_features)``. A few hundred features: all pairs are compared.
    y
        Generated cells, shape ``(m, n_features)``.

    Returns
    -------
    Between 0 and 2; about ``sqrt(1/n + 1/m)`` for finite samples of one distribution without correlations. A feature
    that does not vary counts as uncorrelated.

    Examples
    --------
    >>> x = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> round(correlation_error(x, np.array([[0.0, 1.0], [1.0, 0.0]])), 6)
    2.0
    """
    x, y = as_pair(x, y)
    if x.shape[1] < 2:
        raise ValueError("Only one feature was given; correlations need at least 2.")
    upper = np.triu_indices(x.shape[1], 1)
    difference = (_correlations(y) - _correlations(x))[upper]
    return float(np.sqrt((difference**2).mean()))


def _standardised(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and length 1; zero where they do not vary."""
    centred = x - x.mean(axis=0, dtype=np.float64)
    length = np.sqrt((centred**2).sum(axis=0))
    varies = length > 1e-9 * np.sqrt(x.shape[0]) * (1 + np.abs(x).max(axis=0))
    return np.where(varies, centred / np.where(varies, length, 1.0), 0.0)


def _correlations(x: np.ndarray) -> np.ndarray:
    z = _standardised(x)
    return z.T @ z


def pair_correlation_error(x: Any, y: Any) -> float:
    """Mean absolute difference between the correlations of given pairs of features.

    Parameters
    ----------
    x
        Real cells, shape ``(n, 2 * n_pairs)``: column ``i`` and column ``n_pairs + i`` are a pair, as the two main
        isoforms of a gene.
    y
        Generated cells, shape ``(m, 2 * n_pairs)``.

    Returns
    -------
    Between 0 and 2.

    Examples
    --------
    >>> x = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> round(pair_correlation_error(x, np.array([[0.0, 1.0], [1.0, 0.0]])), 6)
    2.0
    """
    x, y = as_pair(x, y)
    if x.shape[1] % 2:
        raise ValueError(f"x has {x.shape[1]} columns; an even number (first members, then second ones) was expected.")
    pairs = []
    for sample in (x, y):
        first, second = np.split(_standardised(sample), 2, axis=1)
        pairs.append((first * second).sum(axis=0))
    return float(np.abs(pairs[1] - pairs[0]).mean())
