"""Ancestral sampling (DDPM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from isd.diffusion._sampler import Run, Sampler, transition

Variance = Literal["posterior", "beta"]


class DDPM(Sampler):
    """Ancestral sampling: each step draws from the posterior ``q(x_s | x_t, x0)`` at the predicted data.

    With all steps this is the published sampler of scDiffusion; a smaller `n_steps` takes an evenly spaced subset.
    Guides shift the mean of a step by ``variance * scale * gradient``. Works on every schedule.

    Parameters
    ----------
    n_steps
        Number of steps; ``None`` takes all training steps of the schedule (1000 on the straight path).
    variance
        ``"posterior"`` is the variance given the data ("fixed small"), ``"beta"`` that of the forward step.
    clip_x0
        Predicted data are clipped to plus or minus this; ``None`` does not clip.
    timesteps
        Instead of evenly spaced steps: decreasing times in (0, 1].

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    Ho, Jain, Abbeel (2020), algorithm 2 and equations 6, 7; Dhariwal, Nichol (2021), algorithm 1 for the guide.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import DDPM, Denoiser, LinearSchedule
    >>> denoiser = Denoiser(lambda x, t: torch.zeros_like(x), LinearSchedule(), "x0")  # all data are 0
    >>> sampler = DDPM(50)
    >>> sampler.sample(denoiser, torch.ones(1, 2), generator=torch.Generator().manual_seed(0))
    tensor([[0., 0.]])
    """

    name = "ddpm"
    stochastic = True

    def __init__(
        self,
        n_steps: int | None = None,
        *,
        variance: Variance = "posterior",
        clip_x0: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        super().__init__(n_steps, timesteps=timesteps)
        if variance not in get_args(Variance):
            raise ValueError(f"There is no variance {variance!r}; choose from {list(get_args(Variance))}.")
        if clip_x0 is not None and not clip_x0 > 0:
            raise ValueError(f"clip_x0 is {clip_x0}; a positive number, or None, is expected.")
        self.variance: Variance = variance
        self.clip_x0 = clip_x0

    def _step(self, x: Tensor, i: int, run: Run) -> Tensor:
        now, later = run.coefficients[i], run.coefficients[i + 1]
        forward, posterior = transition(now, later)
        x0 = run.predict(x, i, guided=False).x0
        if self.clip_x0 is not None:
            x0 = x0.clamp(-self.clip_x0, self.clip_x0)
        mean = (later.alpha * forward / now.sigma**2) * x0
        mean = mean + (now.alpha / later.alpha * (later.sigma / now.sigma) ** 2) * x
        variance = posterior if self.variance == "posterior" else forward
        gradient = run.gradient(x, i)
        if gradient is not None:
            mean = mean + variance * gradient
        if later.sigma == 0:  # the last step is to the data themselves: no noise
            return mean
        return mean + variance**0.5 * run.noise(i, x)
