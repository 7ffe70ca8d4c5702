"""Kullback-Leibler divergence of two samples: as diagonal Gaussians, and by nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from isd.metrics._arrays import as_pair, kth_distance


def kl_gaussian_diagonal(x: Any, y: Any, *, epsilon: float = 1e-6) -> float:
    """KL(x || y) of Gaussians with diagonal covariance fitted to the two samples, summed over dimensions.

    Parameters
    ----------
    x
        Real points, shape ``(n, n_dims)``.
    y
        Generated points, shape ``(m, n_dims)``.
    epsilon
        Smallest variance: keeps constant dimensions finite.

    Returns
    -------
    Divergence in nats. Blind to everything but means and variances: a check, not a proof.

    References
    ----------
    ``sum 0.5 (log(vy / vx) + (vx + (mx - my)^2) / vy - 1)``; Bishop 2006, exercise 2.13 with diagonal covariances.

    Examples
    --------
    >>> x = np.array([[-1.0], [1.0]])
    >>> kl_gaussian_diagonal(x, x + 2.0)
    2.0
    """
    x, y = as_pair(x, y)
    vx, vy = (np.maximum(z.var(axis=0, dtype=np.float64), epsilon) for z in (x, y))
    shift = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    return float(0.5 * (np.log(vy / vx) + (vx + shift**2) / vy - 1).sum())


def kl_knn(x: Any, y: Any, *, k: int = 5) -> float:
    """KL(x || y) from distances to the k-th nearest neighbour in either sample; no density is fitted.

    Parameters
    ----------
    x
        Real points, shape ``(n, n_dims)``.
    y
        Generated points, shape ``(m, n_dims)``.
    k
        Neighbour: larger is smoother (less variance, more bias).

    Returns
    -------
    Divergence in nats; may be slightly negative. Biased in many dimensions, by an amount that depends on n: compare
    it only with the floor at the same n.

    Raises
    ------
    ValueError
        If a sample has too few points for ``k``, or all distances are zero.

    References
    ----------
    Wang, Kulkarni and Verdú 2009, IEEE Trans. Inf. Theory 55(5), equation 5; Pérez-Cruz 2008, ISIT, equation 14.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> round(kl_knn(rng.normal(size=(2000, 1)), rng.normal(1.0, size=(2000, 1))), 1)  # the truth is 0.5
    0.5
    """
    if k < 1:
        raise ValueError(f"k={k!r} must be 1 or more.")
    x, y = as_pair(x, y, min_points=k + 1)
    own, other = kth_distance(x, x, k, same=True), kth_distance(x, y, k)
    positive = np.concatenate([own[own > 0], other[other > 0]])
    if positive.size == 0:
        raise ValueError("All points are the same, so no density can be estimated.")
    # copies of one point have distance 0, whose logarithm is infinite: use the smallest distance seen
    own, other = (np.maximum(d, positive.min()) for d in (own, other))
    n, m = x.shape[0], y.shape[0]
    return float(x.shape[1] * np.log(other / own).mean() + np.log(m / (n - 1)))
