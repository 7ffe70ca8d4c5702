"""A network together with what is needed to read its predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isd.diffusion._parametrization import FLOOR, Parametrization, Prediction, check_parametrization, join, split
from isd.diffusion._schedule import Coefficients, Schedule

DenoiserFn = Callable[[Tensor, Tensor], Tensor]
"""``fn(x, t)``: x of shape (n, d), times t of shape (n,) in [0, 1], gives a prediction of shape (n, d)."""


class Denoiser:
    """A callable ``fn(x, t)`` with its schedule and parametrisation; counts the network's calls.

    Parameters
    ----------
    fn
        Any callable that takes noised data (n, d) and times (n,) and gives a prediction (n, d): a network, a closure
        that adds labels to one, :class:`ClassifierFree`. It may state how many passes of a network one call costs in an
        attribute ``calls_per_evaluation``.
    schedule
        The forward process that the network was trained with.
    parametrization
        What it predicts: ``"epsilon"``, ``"x0"``, ``"v"`` or ``"velocity"``.

    Attributes
    ----------
    n_calls
        Passes of the network so far.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import Denoiser, StraightPath
    >>> denoiser = Denoiser(lambda x, t: -x, StraightPath(), "velocity")
    >>> x0, epsilon = denoiser.predict(torch.ones(4, 2), 0.5)
    >>> float(x0[0, 0]), float(epsilon[0, 0]), denoiser.n_calls
    (1.5, 0.5, 1)
    >>> x = torch.ones(4, 2)
    >>> float(denoiser.x0(x, 0.5)[0, 0]), float(denoiser.epsilon(x, 0.5)[0, 0]), float(denoiser.velocity(x, 0.5)[0, 0])
    (1.5, 0.5, -1.0)
    """

    def __init__(self, fn: DenoiserFn, schedule: Schedule, parametrization: Parametrization) -> None:
        check_parametrization(parametrization)
        if not isinstance(schedule, Schedule):
            raise ValueError(
                f"schedule is a {type(schedule).__name__}; a Schedule is expected, as isd.diffusion.get_schedule makes."
            )
        self.fn = fn
        self.schedule = schedule
        self.parametrization: Parametrization = parametrization
        self.n_calls = 0

    @property
    def t_max(self) -> float:
        """Largest time at which a prediction says something about the data.

        It is 1, except for ``"epsilon"`` on schedules whose ``alpha(1)`` is (nearly) 0: predicted noise does not
        contain the data there, so that samplers begin a step (1e-3 of the time) later.
        """
        last = self.schedule.coefficients(1.0)
        below = self.parametrization == "epsilon" and last.alpha < FLOOR
        return 1.0 - self.schedule.t_min if below else 1.0

    def predict(self, x: Tensor, t: Tensor | float, coefficients: Coefficients | None = None) -> Prediction:
        """Predicted data and noise from one call.

        Parameters
        ----------
        x
            Noised data, shape (n, d).
        t
            Times in [0, 1], shape (n,), or one for all rows.
        coefficients
            Those of the schedule at `t`, where they are at hand already.

        Returns
        -------
        Prediction
            ``x0`` and ``epsilon``, shape (n, d) each.
        """
        prediction, coefficients = self._call(x, t, coefficients)
        return split(self.parametrization, x, prediction, coefficients)

    def x0(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Predicted data, shape (n, d), from one call."""
        return self.predict(x, t).x0

    def epsilon(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Predicted noise, shape (n, d), from one call."""
        return self.predict(x, t).epsilon

    def velocity(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Predicted ``dx/dt`` of the probability-flow ODE, shape (n, d), from one call."""
        prediction, coefficients = self._call(x, t, None)
        if self.parametrization == "velocity":
            return prediction
        return join("velocity", split(self.parametrization, x, prediction, coefficients), coefficients)

    def _call(self, x: Tensor, t: Tensor | float, coefficients: Coefficients | None) -> tuple[Tensor, Coefficients]:
        times = t.to(x.dtype) if isinstance(t, Tensor) else torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        times = times.expand(len(x)) if times.ndim == 0 else times
        if coefficients is None:
            coefficients = (
                self.schedule.coefficients(times, x) if isinstance(t, Tensor) else self.schedule.coefficients(t)
            )
        prediction = self.fn(x, times)
        self.n_calls += getattr(self.fn, "calls_per_evaluation", 1)
        if prediction.shape != x.shape:
            raise ValueError(
                f"The denoiser gave shape {tuple(prediction.shape)} for data of shape {tuple(x.shape)}; "
                "a prediction has the shape of the data."
            )
        return prediction, coefficients

    def __repr__(self) -> str:
        return f"Denoiser({self.fn!r}, {self.schedule!r}, {self.parametrization!r})"
