"""What every sampler shares: the grid of times, guides, noise and the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from isd.diffusion._denoiser import Denoiser
from isd.diffusion._guidance import Guide
from isd.diffusion._parametrization import FLOOR, Prediction
from isd.diffusion._schedule import Coefficients, Schedule

NoiseFn = Callable[[int, torch.Size], Tensor]
"""``noise_fn(step, shape)`` gives the standard normal noise of a step (counted from 0)."""

Callback = Callable[[int, float, Tensor], None]
"""``callback(step, t, x)`` after each step (counted from 0), with the time that is reached and the samples there."""


@dataclass
class Run:
    """One sampling run: what the steps of a sampler read."""

    denoiser: Denoiser
    guides: Sequence[Guide]
    times: list[float]
    """From the start to 0."""
    coefficients: list[Coefficients]
    """Of the schedule at these times, as floats: a step does no arithmetic on tiny tensors."""
    noise: Callable[[int, Tensor], Tensor]
    """Standard normal noise of a step, like a tensor."""
    history: list[Tensor] = field(default_factory=list)
    """For multistep solvers: earlier predictions of the data."""

    def gradient(self, x: Tensor, i: int) -> Tensor | None:
        """Sum of the active guides' scaled gradients at the i-th time, or None where none is active."""
        total = None
        for guide in self.guides:
            if guide.active(self.times[i]):
                gradient = guide.gradient(x, self.times[i])
                total = gradient if total is None else total + gradient
        return total

    def predict(self, x: Tensor, i: int, *, guided: bool = True) -> Prediction:
        """Data and noise predicted at the i-th time, moved by the guides: ``eps - sigma * gradient``.

        Dhariwal & Nichol (2021), algorithm 2. Data move along, so that ``x = alpha x0 + sigma eps`` stays true.
        """
        c = self.coefficients[i]
        pair = self.denoiser.predict(x, self.times[i], c)
        gradient = self.gradient(x, i) if guided and self.guides else None
        if gradient is None:
            return pair
        return Prediction(
            pair.x0 + (c.sigma**2 / max(c.alpha, FLOOR)) * gradient,
            pair.epsilon - c.sigma * gradient,
        )


class Sampler(ABC):
    """Base of the samplers: turns noise into data by calling a :class:`Denoiser`.

    Parameters
    ----------
    n_steps
        Number of steps from the start to time 0.
    timesteps
        Instead of evenly spaced steps: decreasing times in (0, 1]; 0 is added at the end.

    Attributes
    ----------
    n_network_calls
        Passes of the denoising network in the last :meth:`sample` (classifier-free guidance counts twice).

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import Denoiser, Euler, StraightPath
    >>> sampler = Euler(4)
    >>> sampler.times(StraightPath())
    [1.0, 0.75, 0.5, 0.25, 0.0]
    >>> denoiser = Denoiser(lambda x, t: x / t[:, None], StraightPath(), "velocity")  # all data are at 0
    >>> sampler.sample(denoiser, torch.ones(2, 3)).abs().max(), sampler.n_network_calls
    (tensor(0.), 4)
    """

    name: ClassVar[str]
    """Name in :func:`get_sampler`."""

    stochastic: bool = False
    """Whether the steps draw noise, so that :meth:`sample` needs a generator."""

    def __init__(self, n_steps: int | None, *, timesteps: Sequence[float] | None = None) -> None:
        if n_steps is not None and (int(n_steps) != n_steps or n_steps < 1):
            raise ValueError(f"n_steps is {n_steps}; a whole number of at least 1 is expected.")
        self.timesteps = None if timesteps is None else _check_times(timesteps)
        self.n_steps = n_steps if self.timesteps is None else len(self.timesteps) - 1
        self.n_network_calls = 0

    def times(self, schedule: Schedule, *, start: float = 1.0) -> list[float]:
        """Times that the sampler visits.

        Parameters
        ----------
        schedule
            The forward process; a discrete one is visited at its training steps only.
        start
            First time. Explicit `timesteps` are used from there on.

        Returns
        -------
        list of float
            Decreasing; the last is 0.

        Raises
        ------
        ValueError
            If `start` is outside (0, 1], before all explicit times, or leaves fewer training steps than `n_steps`.
        """
        if self.timesteps is None:
            return schedule.timesteps(self.n_steps, start=start).tolist()
        times = [t for t in self.timesteps if t <= start + 1e-9]
        if len(times) < 2:
            raise ValueError(f"start is {start}, below all explicit timesteps ({self.timesteps[-2]:g} is the last).")
        return times

    def sample(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        *,
        generator: torch.Generator | None = None,
        start: float = 1.0,
        guide: Guide | Sequence[Guide] | None = None,
        callback: Callback | None = None,
        noise_fn: NoiseFn | None = None,
    ) -> Tensor:
        """Turn noise into samples.

        Parameters
        ----------
        denoiser
            Network, schedule and parametrisation.
        x_T
            Standard normal noise, shape (n, d); where `start` is below 1, data noised to that time by
            :meth:`Schedule.add_noise`.
        generator
            Source of the noise of stochastic samplers. It may live on the CPU while the data do not: the same
            seed then gives the same noise on every device.
        start
            Time at which `x_T` lies, in (0, 1]; on a discrete schedule, the nearest training step.
        guide
            One :class:`ClassifierGuide` or several, whose gradients are summed. Classifier-free guidance is not given
            here: it wraps the network, and the two combine.
        callback
            Called as ``callback(step, t, x)`` after each step.
        noise_fn
            Instead of `generator`: ``noise_fn(step, shape)`` gives the noise of a step.

        Returns
        -------
        Tensor
            Samples at time 0, shape (n, d), without gradient.

        Raises
        ------
        TypeError
            If `denoiser` is a bare callable.
        ValueError
            If `x_T` has fewer than two axes or is not finite, or a stochastic sampler has no source of noise.

        Examples
        --------
        >>> import torch
        >>> from isd.diffusion import Denoiser, Heun, StraightPath
        >>> denoiser = Denoiser(lambda x, t: x / t[:, None], StraightPath(), "velocity")  # all data are 0
        >>> sampler = Heun(10)
        >>> x0 = sampler.sample(denoiser, torch.ones(4, 2))
        >>> bool(x0.abs().max() < 1e-6), sampler.n_network_calls
        (True, 19)
        """
        self._check(denoiser, x_T, generator, noise_fn)
        times = self.times(denoiser.schedule, start=start)
        if (latest := denoiser.t_max) < times[0] and self.timesteps is None:
            # noise alone does not say where the data are: begin where it does (Denoiser.t_max)
            n_steps = self.n_steps
            if n_steps is not None and n_steps > round(latest * denoiser.schedule.n_timesteps):
                n_steps = None
            times = denoiser.schedule.timesteps(n_steps, start=latest).tolist()
        run = Run(
            denoiser=denoiser,
            guides=[] if guide is None else list(guide) if isinstance(guide, Sequence) else [guide],
            times=times,
            coefficients=_table(denoiser.schedule, times),
            noise=_noise_source(generator, noise_fn),
        )
        before = denoiser.n_calls
        x = x_T
        with torch.no_grad():
            for i in range(len(times) - 1):
                x = self._step(x, i, run)
                if callback is not None:
                    callback(i, times[i + 1], x)
        self.n_network_calls = denoiser.n_calls - before
        return x

    @abstractmethod
    def _step(self, x: Tensor, i: int, run: Run) -> Tensor:
        """Samples at time i + 1 from those at time i."""

    def _check(
        self, denoiser: Denoiser, x: Tensor, generator: torch.Generator | None, noise_fn: NoiseFn | None
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(
                f"denoiser is a {type(denoiser).__name__}; wrap it as Denoiser(fn, schedule, parametrization)."
            )
        if x.ndim < 2 or not x.is_floating_point():
            raise ValueError(f"x_T is {x.dtype} of shape {tuple(x.shape)}; a float tensor of shape (n, d) is expected.")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("x_T has NaN or infinite values; standard normal noise is expected.")
        if self.stochastic and generator is None and noise_fn is None:
            raise ValueError(
                f"{type(self).__name__} draws noise: give generator=torch.Generator().manual_seed(seed), or noise_fn."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_steps={self.n_steps})"


def transition(now: Coefficients, later: Coefficients) -> tuple[float, float]:
    """Variances of the forward step from a less noisy time (`later` in sampling) to `now`, and of its reversal.

    ``q(x_now | x_later)`` has variance ``sigma_now^2 - (alpha_now / alpha_later)^2 sigma_later^2`` (a beta, where
    the steps are neighbours), and the posterior ``q(x_later | x_now, x0)`` that times ``(sigma_later / sigma_now)^2``:
    Kingma et al. (2021), Variational diffusion models, equations 22 to 25; they hold for every schedule.
    """
    forward = float(now.sigma**2 - (now.alpha / later.alpha) ** 2 * later.sigma**2)
    return forward, forward * float(later.sigma / now.sigma) ** 2


def _table(schedule: Schedule, times: list[float]) -> list[Coefficients]:
    columns = schedule.coefficients(torch.tensor(times, dtype=torch.float64))
    return [Coefficients(*row) for row in zip(*(torch.as_tensor(c).tolist() for c in columns), strict=True)]


def _check_times(timesteps: Sequence[float]) -> list[float]:
    times = [float(t) for t in timesteps]
    if times and times[-1] != 0.0:
        times.append(0.0)
    if len(times) < 2 or times[0] > 1 or any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"timesteps are {list(timesteps)}; decreasing times in (0, 1] are expected.")
    return times


def _noise_source(generator: torch.Generator | None, noise_fn: NoiseFn | None) -> Callable[[int, Tensor], Tensor]:
    def draw(step: int, like: Tensor) -> Tensor:
        if noise_fn is not None:
            noise = noise_fn(step, like.shape)
            if noise.shape != like.shape:
                raise ValueError(f"noise_fn gave shape {tuple(noise.shape)}; {tuple(like.shape)} was asked for.")
        else:
            assert generator is not None  # Sampler._check
            noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
        return noise.to(device=like.device, dtype=like.dtype)

    return draw
