"""A Gaussian target: denoiser, likelihood of a measurement, flow map and posterior are all known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from isd.diffusion import CosineSchedule, Denoiser, LinearSchedule, Schedule, StraightPath
from isd.diffusion._parametrization import Prediction, join

SCHEDULES = {"linear": LinearSchedule(), "cosine": CosineSchedule(), "straight": StraightPath()}


@dataclass
class Gaussian:
    """``x0 ~ N(mean, cov)`` in float32 or float64."""

    mean: torch.Tensor
    cov: torch.Tensor

    def denoise(self, schedule: Schedule, x: torch.Tensor, t: torch.Tensor) -> Prediction:
        """``E[x0 | x_t]`` and ``E[eps | x_t]``; one time for the whole batch."""
        c = schedule.coefficients(float(t.reshape(-1)[0]))
        marginal = c.alpha**2 * self.cov + c.sigma**2 * torch.eye(len(self.mean), dtype=x.dtype)
        whitened = torch.linalg.solve(marginal, (x - c.alpha * self.mean).T).T
        return Prediction(self.mean + c.alpha * whitened @ self.cov, c.sigma * whitened)

    def denoiser(self, schedule: Schedule, parametrization: str) -> Denoiser:
        def fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            coefficients = schedule.coefficients(float(t[0]))
            return join(parametrization, self.denoise(schedule, x, t), coefficients)

        return Denoiser(fn, schedule, parametrization)

    def flow(self, schedule: Schedule, x: torch.Tensor, t: float) -> torch.Tensor:
        """Exact solution of the probability-flow ODE from time t to 0."""
        c = schedule.coefficients(t)
        values, vectors = torch.linalg.eigh(self.cov)
        scale = (values / (c.alpha**2 * values + c.sigma**2)).sqrt()
        return self.mean + (x - c.alpha * self.mean) @ (vectors * scale) @ vectors.T

    def log_prob(self, schedule: Schedule, y: torch.Tensor, H: torch.Tensor, R: torch.Tensor):
        """``log p(y | x_t)`` for a measurement ``y = H x0 + N(0, R)``, up to a constant of x_t."""

        def log_prob(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            c = schedule.coefficients(float(t[0]))
            eye = torch.eye(len(self.mean), dtype=x.dtype)
            gain = c.alpha * self.cov @ torch.linalg.inv(c.alpha**2 * self.cov + c.sigma**2 * eye)
            left = self.cov - c.alpha * gain @ self.cov
            residual = y - (self.mean + (x - c.alpha * self.mean) @ gain.T) @ H.T
            return -0.5 * (residual @ torch.linalg.inv(H @ left @ H.T + R) * residual).sum(1)

        return log_prob

    def posterior(self, y: torch.Tensor, H: torch.Tensor, R: torch.Tensor) -> Gaussian:
        gain = self.cov @ H.T @ torch.linalg.inv(H @ self.cov @ H.T + R)
        return Gaussian(self.mean + (y - H @ self.mean) @ gain.T, self.cov - gain @ H @ self.cov)

    def assert_samples(self, samples: torch.Tensor, *, bias: float) -> None:
        """Moments agree up to 4.5 standard errors plus `bias` (discretisation, in units of the standard deviations)."""
        x, mean, cov = (a.double().numpy() for a in (samples, self.mean, self.cov))
        n, sd = len(x), np.sqrt(np.diag(cov))
        assert np.isfinite(x).all()
        assert np.all(np.abs(x.mean(0) - mean) <= (4.5 / np.sqrt(n) + bias) * sd)
        error = np.abs(np.cov(x.T) - cov)
        assert np.all(error <= 4.5 * np.sqrt((np.outer(sd**2, sd**2) + cov**2) / n) + 2 * bias * np.outer(sd, sd))


@pytest.fixture
def gaussian() -> Gaussian:
    mean = torch.tensor([1.5, -0.7, 0.3])
    factor = torch.tensor([[1.1, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.2, 0.4]])
    return Gaussian(mean, factor @ factor.T)


@pytest.fixture
def gaussian64(gaussian: Gaussian) -> Gaussian:
    return Gaussian(gaussian.mean.double(), gaussian.cov.double())


@pytest.fixture
def noise() -> torch.Tensor:
    """20,000 standard normal rows, the start of sampling."""
    return torch.randn(20_000, 3, generator=torch.Generator().manual_seed(7))


@pytest.fixture(params=list(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]
