"""DPM-Solver++ (multistep)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from isd.diffusion._sampler import Run, Sampler
from isd.diffusion._schedule import Coefficients


class DPMSolverPP(Sampler):
    """DPM-Solver++(2M): a second-order multistep solver that costs one network call a step.

    It extrapolates the predicted data in ``lambda = log(alpha / sigma)``. Where lambda is infinite the order falls to 1:
    in the last step, to time 0 (as with ``lower_order_final`` elsewhere), and next to a start at pure noise.

    Parameters
    ----------
    n_steps
        Number of steps.
    order
        1 (the same as :class:`DDIM` without noise) or 2.
    timesteps
        Instead of evenly spaced steps: decreasing times in (0, 1].

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    Lu et al. (2022), DPM-Solver++, algorithm 2.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import CosineSchedule, Denoiser, DPMSolverPP
    >>> denoiser = Denoiser(lambda x, t: torch.full_like(x, 3.0), CosineSchedule(), "x0")  # all data are 3
    >>> DPMSolverPP(10).sample(denoiser, torch.ones(1, 2))
    tensor([[3., 3.]])
    """

    name = "dpm++"

    def __init__(self, n_steps: int = 20, *, order: int = 2, timesteps: Sequence[float] | None = None) -> None:
        super().__init__(n_steps, timesteps=timesteps)
        if order not in (1, 2):
            raise ValueError(f"order is {order}; 1 or 2 is expected.")
        self.order = order

    def _step(self, x: Tensor, i: int, run: Run) -> Tensor:
        now, later = run.coefficients[i], run.coefficients[i + 1]
        x0 = data = run.predict(x, i).x0
        if self.order == 2 and run.history:
            step = _half_log_snr(later) - _half_log_snr(now)
            step_before = _half_log_snr(now) - _half_log_snr(run.coefficients[i - 1])
            if math.isfinite(step) and math.isfinite(step_before):
                weight = 0.5 * step / step_before
                data = (1 + weight) * x0 - weight * run.history[-1]
        run.history[:] = [x0]
        # -alpha (exp(-h) - 1), written such that neither alpha = 0 nor sigma = 0 needs a limit
        shrink = later.sigma / now.sigma
        return shrink * x + (later.alpha - now.alpha * shrink) * data


def _half_log_snr(c: Coefficients) -> float:
    if c.alpha <= 0:
        return -math.inf
    return math.inf if c.sigma <= 0 else math.log(c.alpha / c.sigma)
