"""Euler's and Heun's methods for the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from isd.diffusion._parametrization import Prediction
from isd.diffusion._sampler import Run, Sampler
from isd.diffusion._schedule import Coefficients


class Euler(Sampler):
    """Euler's method for the probability-flow ODE ``dx = x0 d(alpha) + eps d(sigma)``.

    The increments of ``alpha`` and ``sigma`` over a step are taken exactly, not as slope times step: on the straight
    path that is the ordinary Euler method, and on the variance-preserving schedules, whose slope at time 0 is
    infinite, it is :class:`DDIM` without noise.

    Parameters
    ----------
    n_steps
        Number of steps, and of network calls.
    timesteps
        Instead of evenly spaced steps: decreasing times in (0, 1].

    References
    ----------
    Song et al. (2021), Score-based generative modeling through stochastic differential equations, equation 13.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import Denoiser, Euler, StraightPath
    >>> denoiser = Denoiser(lambda x, t: torch.full_like(x, -2.0), StraightPath(), "velocity")
    >>> Euler(4).sample(denoiser, torch.ones(1, 2))
    tensor([[3., 3.]])
    """

    name = "euler"

    def __init__(self, n_steps: int = 50, *, timesteps: Sequence[float] | None = None) -> None:
        super().__init__(n_steps, timesteps=timesteps)

    def _step(self, x: Tensor, i: int, run: Run) -> Tensor:
        return _move(x, run.predict(x, i), run.coefficients[i], run.coefficients[i + 1])


class Heun(Sampler):
    """Heun's method (improved Euler) for the probability-flow ODE: second order, two network calls a step.

    Predictions at both ends of a step are averaged, with increments as in :class:`Euler`. The last step, to time 0, is
    an Euler step, as networks are not trained there: ``2 n_steps - 1`` calls.

    Parameters
    ----------
    n_steps
        Number of steps.
    timesteps
        Instead of evenly spaced steps: decreasing times in (0, 1].

    References
    ----------
    Karras et al. (2022), Elucidating the design space of diffusion-based generative models, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import Denoiser, Heun, StraightPath
    >>> denoiser = Denoiser(lambda x, t: torch.full_like(x, -2.0), StraightPath(), "velocity")
    >>> Heun(4).sample(denoiser, torch.ones(1, 2))
    tensor([[3., 3.]])
    """

    name = "heun"

    def __init__(self, n_steps: int = 25, *, timesteps: Sequence[float] | None = None) -> None:
        super().__init__(n_steps, timesteps=timesteps)

    def _step(self, x: Tensor, i: int, run: Run) -> Tensor:
        now, later = run.coefficients[i], run.coefficients[i + 1]
        first = run.predict(x, i)
        euler = _move(x, first, now, later)
        if later.sigma == 0:
            return euler
        second = run.predict(euler, i + 1)
        mean = Prediction((first.x0 + second.x0) / 2, (first.epsilon + second.epsilon) / 2)
        return _move(x, mean, now, later)


def _move(x: Tensor, pair: Prediction, now: Coefficients, later: Coefficients) -> Tensor:
    return x + (later.alpha - now.alpha) * pair.x0 + (later.sigma - now.sigma) * pair.epsilon
