"""What a noise schedule is: the forward process ``x_t = alpha(t) x0 + sigma(t) eps``."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor

Scalar = Tensor | float


class Coefficients(NamedTuple):
    """The numbers of a schedule at one time: Python floats for a whole batch, or tensors that broadcast against it.

    Examples
    --------
    >>> from isd.diffusion import StraightPath
    >>> StraightPath().coefficients(0.25)
    Coefficients(alpha=0.75, sigma=0.25, d_alpha=-1.0, d_sigma=1.0)
    """

    alpha: Scalar
    """Weight of the data."""
    sigma: Scalar
    """Weight of the noise."""
    d_alpha: Scalar
    """Derivative of ``alpha`` by time."""
    d_sigma: Scalar
    """Derivative of ``sigma`` by time."""


class Schedule(ABC):
    """A Gaussian forward process ``x_t = alpha(t) x0 + sigma(t) eps`` with ``eps ~ N(0, I)`` and ``t`` in [0, 1].

    Time 0 is data (``alpha = 1``, ``sigma = 0``), time 1 is (nearly) noise. Methods take a tensor of times and give
    a tensor of the same shape, dtype and device. A schedule holds no weights: :meth:`to_config` is all that has
    to be saved.

    See Also
    --------
    LinearSchedule, CosineSchedule : variance-preserving, with discrete training steps.
    StraightPath : flow matching.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath
    >>> path = StraightPath()
    >>> t = torch.tensor([0.25, 0.5])
    >>> path.alpha(t), path.sigma(t), path.log_snr(t)
    (tensor([0.7500, 0.5000]), tensor([0.2500, 0.5000]), tensor([2.1972, 0.0000]))
    >>> path.d_alpha(t), path.d_sigma(t)
    (tensor([-1., -1.]), tensor([1., 1.]))
    >>> path.coefficients(0.25).alpha
    0.75
    >>> path.timesteps(4).tolist(), path.time_of_step(499)
    ([1.0, 0.75, 0.5, 0.25, 0.0], 0.5)
    >>> path.step_of_time(torch.tensor([0.5])).tolist()
    [499]
    >>> path.to_config()
    {'name': 'straight'}
    """

    name: ClassVar[str]
    """Name in a configuration and in :func:`get_schedule`."""

    n_timesteps: int
    """Number of training steps (1000 where the schedule is continuous: the unit in which steps are counted)."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at times `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at times `t`."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of :meth:`alpha` by time."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of :meth:`sigma` by time."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Name and parameters, JSON-writable; :func:`schedule_from_config` reads it.

        Returns
        -------
        dict
        """

    @property
    def t_min(self) -> float:
        """Smallest time that a network has to be trained on; below it samplers only take their last step."""
        return 1.0 / self.n_timesteps

    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio ``log(alpha^2 / sigma^2)``; infinite where one of them is 0.

        Parameters
        ----------
        t
            Times in [0, 1], any shape.

        Returns
        -------
        Tensor
            Same shape as `t`.
        """
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @overload
    def coefficients(self, t: float) -> Coefficients: ...
    @overload
    def coefficients(self, t: Tensor, like: Tensor | None = None) -> Coefficients: ...
    def coefficients(self, t: Tensor | float, like: Tensor | None = None) -> Coefficients:
        """All four functions of the schedule at once.

        Parameters
        ----------
        t
            A float (computed in double precision, given back as Python floats: no work for an accelerator), or a
            tensor of times.
        like
            For a tensor `t` of shape (n,): data of shape (n, ...) against which the results shall broadcast.

        Returns
        -------
        Coefficients
        """
        if not isinstance(t, Tensor):
            at = torch.tensor(float(t), dtype=torch.float64)
            return Coefficients(*(float(f(at)) for f in (self.alpha, self.sigma, self.d_alpha, self.d_sigma)))
        values = [self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t)]
        return Coefficients(*(value if like is None else expand(value, like) for value in values))

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Diffuse data: ``alpha(t) x0 + sigma(t) eps``.

        Parameters
        ----------
        x0
            Data, shape (n, d).
        eps
            Standard normal noise, shape (n, d).
        t
            Times in [0, 1], shape (n,) or a scalar tensor.

        Returns
        -------
        Tensor
            Noised data, shape (n, d).

        Examples
        --------
        >>> import torch
        >>> from isd.diffusion import StraightPath
        >>> x0, eps = torch.ones(2, 3), torch.zeros(2, 3)
        >>> StraightPath().add_noise(x0, eps, torch.tensor([0.0, 0.25]))
        tensor([[1.0000, 1.0000, 1.0000],
                [0.7500, 0.7500, 0.7500]])
        """
        t = t.to(x0.dtype)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def timesteps(self, n_steps: int | None = None, *, start: float = 1.0) -> Tensor:
        """Times that a sampler visits: evenly spaced from `start` down to 0.

        Parameters
        ----------
        n_steps
            Number of steps; ``None`` takes every training step below `start`.
        start
            First time, in (0, 1].

        Returns
        -------
        Tensor
            float64, shape (n_steps + 1,), decreasing, the last is 0.

        Raises
        ------
        ValueError
            If `n_steps` is not positive, `start` is outside (0, 1], or a discrete schedule has fewer steps.
        """
        if not 0.0 < start <= 1.0:
            raise ValueError(f"start is {start}; a time in (0, 1] is expected (1 is pure noise, 0 is data).")
        if n_steps is None:
            n_steps = max(1, round(start * self.n_timesteps))
        if n_steps < 1:
            raise ValueError(f"n_steps is {n_steps}; at least 1 is needed.")
        return self._grid(n_steps, start)

    def _grid(self, n_steps: int, start: float) -> Tensor:
        return torch.linspace(start, 0.0, n_steps + 1, dtype=torch.float64)

    def time_of_step(self, step: Tensor | int) -> Tensor | float:
        """Time of the training step with a 0-based index: ``(step + 1) / n_timesteps``.

        Parameters
        ----------
        step
            Index as in discrete diffusion code: 0 is the least noise, ``n_timesteps - 1`` the most.

        Returns
        -------
        Tensor or float
        """
        return (step + 1) / self.n_timesteps

    def step_of_time(self, t: Tensor) -> Tensor:
        """0-based index of the training step nearest to times `t`: ``round(t * n_timesteps) - 1``, at least 0.

        Parameters
        ----------
        t
            Times in [0, 1], any shape.

        Returns
        -------
        Tensor
            int64, same shape.
        """
        return ((t * self.n_timesteps).round().long() - 1).clamp_(min=0)

    def __repr__(self) -> str:
        config = self.to_config()
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in config.items() if k != 'name')})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_config(), sort_keys=True))


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Append axes of length 1, so that one value a row broadcasts against data.

    Parameters
    ----------
    values
        Shape (n,) or a scalar.
    like
        Data of shape (n, ...).

    Returns
    -------
    Tensor
        Shape (n, 1, ...), or the scalar as it came.

    Raises
    ------
    ValueError
        If there is neither one value nor one a row.
    """
    if values.ndim == 0:
        return values
    if values.ndim != 1 or values.shape[0] not in (1, like.shape[0]):
        raise ValueError(
            f"times have shape {tuple(values.shape)} and the data {tuple(like.shape)}; one time a row, shape "
            f"({like.shape[0]},), or a scalar is expected."
        )
    return values.reshape(-1, *(1,) * (like.ndim - 1))
