"""DDIM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from isd.diffusion._sampler import Run, Sampler, transition


class DDIM(Sampler):
    """Denoising diffusion implicit model: predicted data, noised again to the next time by the predicted noise.

    Parameters
    ----------
    n_steps
        Number of steps.
    eta
        Share of fresh noise, 0 to 1: 0 is deterministic, 1 has the noise of :class:`DDPM`.
    timesteps
        Instead of evenly spaced steps: decreasing times in (0, 1].

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    Song, Meng, Ermon (2021), Denoising diffusion implicit models, equations 12 and 16.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import DDIM, CosineSchedule, Denoiser
    >>> denoiser = Denoiser(lambda x, t: torch.full_like(x, 3.0), CosineSchedule(), "x0")  # all data are 3
    >>> DDIM(10).sample(denoiser, torch.ones(1, 2))
    tensor([[3., 3.]])
    """

    name = "ddim"

    def __init__(self, n_steps: int = 50, *, eta: float = 0.0, timesteps: Sequence[float] | None = None) -> None:
        super().__init__(n_steps, timesteps=timesteps)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}; a number from 0 (deterministic) to 1 (as much noise as DDPM) is expected.")
        self.eta = float(eta)
        self.stochastic = self.eta > 0

    def _step(self, x: Tensor, i: int, run: Run) -> Tensor:
        later = run.coefficients[i + 1]
        x0, epsilon = run.predict(x, i)
        variance = self.eta**2 * transition(run.coefficients[i], later)[1]
        x = later.alpha * x0 + max(later.sigma**2 - variance, 0.0) ** 0.5 * epsilon
        return x + variance**0.5 * run.noise(i, x) if variance > 0 else x
