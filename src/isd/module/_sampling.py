"""Drawing counts from rates, exactly as many as asked for."""

from __future__ import annotations

import numpy as np


def gamma_rates(mean: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    r"""Gamma-distributed rates with the given mean and shape, the mixing part of a negative binomial.

    .. math:: \lambda \sim \mathrm{Gamma}(\theta, \theta / \mu), \quad
              x \mid \lambda \sim \mathrm{Poisson}(\lambda) \;\Rightarrow\; x \sim \mathrm{NB}(\mu, \theta)

    Parameters
    ----------
    mean, theta
        Mean and inverse dispersion, shape ``(n_obs, n_vars)`` (``theta`` may broadcast).
    rng
        Source of randomness.
    """
    theta = np.broadcast_to(theta, mean.shape)
    draws = rng.standard_gamma(theta.astype(np.float32), dtype=np.float32)
    # float32 gamma draws with a tiny shape underflow to 0: a rate of zero, which is what they stand for
    return mean * (draws / theta)


def multinomial_rows(rates: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts per row with probabilities proportional to ``rates`` and exactly ``totals`` counts.

    Poisson counts with these rates, given their sum, follow this distribution; drawing them so makes the total of a
    generated cell the one that was asked for. (With Gamma rates that is near the negative binomial given its sum, and
    not the same: the rates are not drawn given the sum.)

    Parameters
    ----------
    rates
        Non-negative, shape ``(n_obs, n_vars)``. A row without any positive rate falls back to equal rates.
    totals
        Number of counts of each row, shape ``(n_obs,)``.
    rng
        Source of randomness.

    Returns
    -------
    Array of ``float32`` counts, shape ``(n_obs, n_vars)``.

    Examples
    --------
    >>> import numpy as np
    >>> multinomial_rows(np.array([[1.0, 0.0, 3.0]]), np.array([8]), np.random.default_rng(0)).sum()
    np.float32(8.0)
    """
    n_obs, n_vars = rates.shape
    out = np.zeros((n_obs, n_vars), dtype=np.float32)
    for i in range(n_obs):
        total = int(totals[i])
        if total == 0:
            continue
        cumulative = np.cumsum(rates[i], dtype=np.float64)
        if not cumulative[-1] > 0:
            cumulative = np.arange(1, n_vars + 1, dtype=np.float64)
        if total <= 4 * n_vars:
            # one search per count is cheaper than one binomial per feature
            points = rng.random(total) * cumulative[-1]
            index = np.searchsorted(cumulative, points, side="right")
            out[i] = np.bincount(np.minimum(index, n_vars - 1), minlength=n_vars)
        else:
            shares = np.diff(cumulative, prepend=0.0) / cumulative[-1]
            out[i] = rng.multinomial(total, shares / max(shares.sum(), 1.0))
    return out
