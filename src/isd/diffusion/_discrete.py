"""Variance-preserving schedules that are defined by the betas of discrete steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from isd.diffusion._schedule import Schedule


class DiscreteSchedule(Schedule):
    """Base of schedules with `T` steps and their betas: ``alpha^2 + sigma^2 = 1``.

    Step ``k`` in ``0 ... T - 1`` lies at time ``(k + 1) / T``, where ``alpha(t)^2`` is the k-th entry of
    ``alphas_cumprod``. In between, ``log alpha^2`` is interpolated by monotone cubics, so that it has a continuous
    derivative (which the velocity needs); ``alpha(0) = 1``.

    Parameters
    ----------
    betas
        Variances of the steps, in (0, 1), float64, shape (T,).

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import LinearSchedule
    >>> schedule = LinearSchedule(1000)
    >>> t = torch.tensor([0.5])
    >>> bool(torch.isclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones(1)))
    True
    >>> schedule.betas[[0, -1]].tolist()
    [0.0001, 0.02]
    """

    betas: Tensor
    """float64, shape (T,)."""
    alphas_cumprod: Tensor
    """float64, shape (T,); cumulated product of ``1 - betas``."""

    def __init__(self, betas: Tensor) -> None:
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"betas of shape {tuple(betas.shape)} between {float(betas.min()):.3g} and {float(betas.max()):.3g} are "
                "no schedule; at least two steps, each beta strictly between 0 and 1, are expected."
            )
        self.betas = betas.to(torch.float64)
        self.n_timesteps = len(betas)
        log_alpha_bar = torch.cumsum(torch.log1p(-self.betas), 0)
        self.alphas_cumprod = log_alpha_bar.exp()
        values = torch.cat([log_alpha_bar.new_zeros(1), log_alpha_bar])
        # values at the knots t = i / T and slopes per step, (T + 1, 2); one copy a device and dtype, made when needed
        self._table = torch.stack([values, _monotone_slopes(values)], dim=1)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}  # a pickle needs no device copies

    def _log_alpha_bar(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``log alpha(t)^2`` and its derivative by t (cubic Hermite)."""
        key = (t.device, t.dtype)
        table = self._copies.get(key)
        if table is None:
            table = self._copies[key] = self._table.to(device=t.device, dtype=t.dtype)
        position = t * self.n_timesteps
        left = position.detach().floor().clamp(0, self.n_timesteps - 1)
        f = position - left
        index = left.long()
        (y0, m0), (y1, m1) = table[index].unbind(-1), table[index + 1].unbind(-1)
        rise = y1 - y0
        value = y0 + f * (m0 + f * (3 * rise - 2 * m0 - m1 + f * (m0 + m1 - 2 * rise)))
        slope = m0 + f * (2 * (3 * rise - 2 * m0 - m1) + f * 3 * (m0 + m1 - 2 * rise))
        return value, slope * self.n_timesteps

    def alpha(self, t: Tensor) -> Tensor:
        return (0.5 * self._log_alpha_bar(t)[0]).exp()

    def sigma(self, t: Tensor) -> Tensor:
        # expm1 keeps the precision that 1 - alpha^2 would lose near the data
        return (-torch.expm1(self._log_alpha_bar(t)[0])).clamp(min=0).sqrt()

    def d_alpha(self, t: Tensor) -> Tensor:
        value, slope = self._log_alpha_bar(t)
        return 0.5 * slope * (0.5 * value).exp()

    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of :meth:`sigma` by time; it is infinite at 0, so below :attr:`t_min` the one at `t_min` is given."""
        value, slope = self._log_alpha_bar(t.clamp(min=self.t_min))
        return -0.5 * slope * value.exp() / (-torch.expm1(value)).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        value = self._log_alpha_bar(t)[0]
        return value - (-torch.expm1(value)).clamp(min=0).log()

    def _grid(self, n_steps: int, start: float) -> Tensor:
        first = max(1, round(start * self.n_timesteps))
        if n_steps > first:
            raise ValueError(
                f"n_steps is {n_steps}, but {self!r} has {first} steps from t={start:g} on; "
                f"ask for at most {first}, or None for all."
            )
        # only times that the network was trained on ("trailing" spacing: the first step is always `start`)
        return torch.linspace(first, 0, n_steps + 1, dtype=torch.float64).round() / self.n_timesteps


class LinearSchedule(DiscreteSchedule):
    """Betas that rise linearly, as in DDPM (and scDiffusion).

    Parameters
    ----------
    n_timesteps
        Number of training steps.
    beta_start, beta_end
        First and last beta. They belong to 1000 steps: with fewer, raise them in proportion, so that noise is reached.

    References
    ----------
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models, section 4.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import LinearSchedule
    >>> schedule = LinearSchedule()
    >>> schedule.alpha(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.2803, 0.0064])
    """

    name = "linear"

    def __init__(self, n_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        _check_steps(n_timesteps)
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                f"beta_start={beta_start}, beta_end={beta_end}; 0 < beta_start <= beta_end < 1 is expected."
            )
        self.beta_start, self.beta_end = float(beta_start), float(beta_end)
        super().__init__(torch.linspace(beta_start, beta_end, n_timesteps, dtype=torch.float64))

    def to_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "n_timesteps": self.n_timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
        }


class CosineSchedule(DiscreteSchedule):
    """Squared-cosine ``alpha^2``: noise is added more evenly than by the linear schedule.

    Parameters
    ----------
    n_timesteps
        Number of training steps.
    s
        Offset that keeps the first betas from vanishing.
    max_beta
        Betas are cut here, against the singularity at the end.

    References
    ----------
    Nichol, Dhariwal (2021), Improved denoising diffusion probabilistic models, equation 17.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import CosineSchedule
    >>> CosineSchedule().alpha(torch.tensor([0.0, 0.5]))
    tensor([1.0000, 0.7027])
    """

    name = "cosine"

    def __init__(self, n_timesteps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> None:
        _check_steps(n_timesteps)
        if s < 0 or not 0 < max_beta < 1:
            raise ValueError(f"s={s}, max_beta={max_beta}; s >= 0 and 0 < max_beta < 1 are expected.")
        self.s, self.max_beta = float(s), float(max_beta)
        t = torch.linspace(0, 1, n_timesteps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
        super().__init__((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))

    def to_config(self) -> dict[str, Any]:
        return {"name": self.name, "n_timesteps": self.n_timesteps, "s": self.s, "max_beta": self.max_beta}


def _check_steps(n_timesteps: int) -> None:
    if n_timesteps < 2:
        raise ValueError(f"n_timesteps is {n_timesteps}; a discrete schedule needs at least 2 steps.")


def _monotone_slopes(values: Tensor) -> Tensor:
    """Slopes of a monotone cubic at evenly spaced knots (Fritsch, Butland 1984: harmonic means of the neighbours)."""
    rise = values.diff()
    before, after = rise[:-1], rise[1:]
    inner = torch.where(before * after > 0, 2 * before * after / (before + after), torch.zeros_like(before))
    slopes = torch.cat([_end_slope(rise[0], rise[1]), inner, _end_slope(rise[-1], rise[-2])])
    return slopes


def _end_slope(nearest: Tensor, next_one: Tensor) -> Tensor:
    """One-sided three-point slope, limited so that the curve stays monotone."""
    slope = (3 * nearest - next_one) / 2
    slope = torch.where(slope * nearest > 0, slope, torch.zeros_like(slope))
    return torch.where(slope.abs() > 3 * nearest.abs(), 3 * nearest, slope).reshape(1)
