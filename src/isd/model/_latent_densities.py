"""Simple densities of training latents and log library size: a Gaussian per label, a mixture of Gaussians per label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

#: Most cells of a label that a mixture is fitted to, and most components that it may have.
MAX_CELLS, MAX_COMPONENTS = 5_000, 5
#: Below so many training cells, a Gaussian per label is the safer choice than a diffusion model.
FEW_CELLS = 100
#: Random streams of the seed: posterior draws that densities are fitted to, and the cells of a mixture.
_DRAW_STREAM, _MIXTURE_STREAM = 21, 22


@dataclass(frozen=True)
class LatentDensity:
    """A mixture of Gaussians for each label; a Gaussian is one of a single component.

    Parameters
    ----------
    weights
        Weights of the components of each label, arrays of shape ``(k,)``; empty for labels without training cells.
    means
        Of shape ``(k, d)`` each: latent, then log library size.
    covariances
        Of shape ``(k, d, d)`` each.
    """

    weights: Sequence[np.ndarray]
    means: Sequence[np.ndarray]
    covariances: Sequence[np.ndarray]
    _factors: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def draw(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One vector for each code, shape ``(n, d)``.

        Raises
        ------
        ValueError
            If a code has no density.
        """
        d = next(m.shape[1] for m in self.means if len(m))
        which, noise = rng.random(len(codes)), rng.standard_normal((len(codes), d))
        out = np.empty((len(codes), d))
        for code in np.unique(codes):
            if not len(self.weights[code]):
                raise ValueError(f"the label of code {code} has no training cells; no density was fitted to it.")
            mine = np.flatnonzero(codes == code)
            ends = np.cumsum(self.weights[code])
            component = np.minimum(np.searchsorted(ends, which[mine] * ends[-1], side="right"), len(ends) - 1)
            for k in np.unique(component):
                rows = mine[component == k]
                out[rows] = self.means[code][k] + noise[rows] @ self._factor(int(code), int(k)).T
        return out

    def _factor(self, code: int, k: int) -> np.ndarray:
        """Symmetric root of a covariance: unlike Cholesky's, it is there for singular ones too."""
        if (code, k) not in self._factors:
            values, vectors = np.linalg.eigh(np.asarray(self.covariances[code][k], dtype=np.float64))
            self._factors[code, k] = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        return self._factors[code, k]


def latent_draws(mean: np.ndarray, std: np.ndarray, log_library: np.ndarray, seed: int) -> np.ndarray:
    """A draw from the posterior of each cell, with its log library size, shape ``(n, n_latent + 1)``."""
    rng = np.random.default_rng([seed, _DRAW_STREAM])
    return np.column_stack([mean + std * rng.standard_normal(mean.shape), log_library]).astype(np.float64)


def fit_gaussians(points: np.ndarray, codes: np.ndarray, n_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and shrunk covariance of each label.

    Coordinates are put on the scale of the spread within labels. The covariance pooled over labels is shrunk towards the
    identity, and each label's towards the pooled one, both with the weight ``d / (d + n)`` of a prior as strong as ``d``
    cells: few cells give no covariance. Ledoit and Wolf's weight is not used. Posterior draws are mostly noise of unit
    variance, so that it shrinks by a third to two thirds at some hundred cells, and with the noise the few correlations
    that matter.

    Parameters
    ----------
    points
        Shape ``(n, d)``.
    codes
        Label of each point.
    n_codes
        Number of codes.

    Returns
    -------
    Means ``(n_codes, d)`` and covariances ``(n_codes, d, d)``, ``float32``; NaN for codes without points.
    """
    d = points.shape[1]
    means, covariances = np.full((n_codes, d), np.nan), np.full((n_codes, d, d), np.nan)
    present = np.unique(codes)
    for code in present:
        means[code] = points[codes == code].mean(axis=0)
    residual = points - means[codes]
    scale = within_scale(residual)
    residual = residual / scale
    outer = np.outer(scale, scale)
    degrees = max(len(points) - len(present), 1)
    pooled = (residual.T @ residual * (len(points) / degrees) + d * np.eye(d)) / (len(points) + d)
    for code in present:
        own = residual[codes == code]
        weight = d / (d + len(own)) if len(own) > 1 else 1.0
        covariance = weight * pooled
        if weight < 1:
            covariance = covariance + (1 - weight) * own.T @ own / (len(own) - 1)
        covariances[code] = covariance * outer
    return means.astype(np.float32), covariances.astype(np.float32)


def within_scale(residual: np.ndarray) -> np.ndarray:
    """Standard deviation of each coordinate within labels; 1 for one that does not vary."""
    std = residual.std(axis=0)
    return np.where(std > 1e-6, std, 1.0)


def gaussian_density(means: np.ndarray, covariances: np.ndarray) -> LatentDensity:
    """Density of what :func:`fit_gaussians` gave."""
    there = np.isfinite(means).all(axis=1)
    n = there.astype(int)
    return LatentDensity(
        weights=[np.ones(k) for k in n],
        means=[mean[None][:k] for mean, k in zip(means, n, strict=True)],
        covariances=[covariance[None][:k] for covariance, k in zip(covariances, n, strict=True)],
    )


def fit_mixtures(
    points: np.ndarray, codes: np.ndarray, means: np.ndarray, covariances: np.ndarray, *, seed: int
) -> LatentDensity:
    """A mixture of Gaussians for each label: 1 to 5 components, as many as the Bayesian information criterion says.

    A label of one component, or of fewer cells than two components need (four for each dimension), has the
    shrunk Gaussian.

    Parameters
    ----------
    points, codes
        As in :func:`fit_gaussians`.
    means, covariances
        What that gave.
    seed
        Seed of the cells drawn where a label has more than 5,000, and of the fits.
    """
    from sklearn.mixture import GaussianMixture

    density = gaussian_density(means, covariances)
    weights, centres, spreads = list(density.weights), list(density.means), list(density.covariances)
    scale = within_scale(points - means[codes])
    d = points.shape[1]
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        if len(rows) > MAX_CELLS:
            rng = np.random.default_rng([seed, _MIXTURE_STREAM, code])
            rows = np.sort(rng.choice(rows, MAX_CELLS, replace=False))
        scaled = points[rows] / scale
        fits = []
        for k in range(1, min(MAX_COMPONENTS, len(rows) // (2 * d)) + 1):
            fit = GaussianMixture(k, reg_covar=1e-3, max_iter=300, tol=1e-3, random_state=seed % 2**32).fit(scaled)
            fits.append((fit.bic(scaled), k, fit))
        _, k, best = min(fits, key=lambda f: f[:2], default=(0.0, 1, None))
        if k > 1 and best is not None:
            weights[code] = best.weights_
            centres[code] = best.means_ * scale
            spreads[code] = best.covariances_ * np.outer(scale, scale)
    return LatentDensity(weights, centres, spreads)
