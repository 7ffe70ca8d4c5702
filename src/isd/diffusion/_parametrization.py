"""What a network predicts (noise, data, v or velocity), and how one turns into another."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from isd.diffusion._schedule import Coefficients, Scalar, Schedule

Parametrization = Literal["epsilon", "x0", "v", "velocity"]
PARAMETRIZATIONS: tuple[str, ...] = get_args(Parametrization)

# Where a weight is (nearly) 0, the prediction does not contain what the other weight multiplies: dividing by the
# weight would blow up rounding and network errors. 1e-3 leaves float32 four digits.
FLOOR = 1e-3


class Prediction(NamedTuple):
    """A network's prediction, split into the two things that ``x_t`` is made of.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import Denoiser, StraightPath
    >>> Denoiser(lambda x, t: -x, StraightPath(), "velocity").predict(torch.ones(1, 1), 0.5)
    Prediction(x0=tensor([[1.5000]]), epsilon=tensor([[0.5000]]))
    """

    x0: Tensor
    """Predicted data, shape (n, d)."""
    epsilon: Tensor
    """Predicted noise, shape (n, d)."""


def check_parametrization(parametrization: str) -> None:
    """Raise a ValueError that lists the parametrisations if this is none of them."""
    if parametrization not in PARAMETRIZATIONS:
        raise ValueError(f"There is no parametrization {parametrization!r}; choose from {list(PARAMETRIZATIONS)}.")


def training_target(
    parametrization: Parametrization, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor | float
) -> Tensor:
    """What a network of a parametrisation has to predict at ``x_t = alpha x0 + sigma eps``.

    ``"epsilon"`` is the noise, ``"x0"`` the data, ``"v"`` is ``alpha eps - sigma x0`` (Salimans & Ho) and
    ``"velocity"`` is the time derivative ``d_alpha x0 + d_sigma eps`` (flow matching).

    Parameters
    ----------
    parametrization
        ``"epsilon"``, ``"x0"``, ``"v"`` or ``"velocity"``.
    schedule
        The forward process.
    x0
        Data, shape (n, d).
    eps
        Noise, shape (n, d).
    t
        Times in [0, 1], shape (n,), or one for all.

    Returns
    -------
    Tensor
        Shape (n, d).

    Raises
    ------
    ValueError
        If there is no such parametrisation.

    References
    ----------
    Ho, Jain, Abbeel (2020), equation 14; Salimans, Ho (2022), Progressive distillation, appendix D;
    Lipman et al. (2023), equation 9.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath, training_target
    >>> x0, eps = torch.zeros(1, 2), torch.ones(1, 2)
    >>> training_target("velocity", StraightPath(), x0, eps, torch.tensor([0.3]))
    tensor([[1., 1.]])
    """
    check_parametrization(parametrization)
    return join(parametrization, Prediction(x0, eps), _coefficients(schedule, t, x0))


def to_x0(
    parametrization: Parametrization, schedule: Schedule, x: Tensor, prediction: Tensor, t: Tensor | float
) -> Tensor:
    """Data that a prediction stands for. See :func:`convert` for parameters and edges.

    Returns
    -------
    Tensor
        Shape (n, d).

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath, to_x0
    >>> to_x0("velocity", StraightPath(), torch.ones(1, 1), -torch.ones(1, 1), 0.5)
    tensor([[1.5000]])
    """
    return convert(parametrization, "x0", schedule, x, prediction, t)


def to_epsilon(
    parametrization: Parametrization, schedule: Schedule, x: Tensor, prediction: Tensor, t: Tensor | float
) -> Tensor:
    """Noise that a prediction stands for. See :func:`convert` for parameters and edges.

    Returns
    -------
    Tensor
        Shape (n, d).

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath, to_epsilon
    >>> to_epsilon("velocity", StraightPath(), torch.ones(1, 1), -torch.ones(1, 1), 0.5)
    tensor([[0.5000]])
    """
    return convert(parametrization, "epsilon", schedule, x, prediction, t)


def to_velocity(
    parametrization: Parametrization, schedule: Schedule, x: Tensor, prediction: Tensor, t: Tensor | float
) -> Tensor:
    """Velocity ``dx/dt`` that a prediction stands for. See :func:`convert` for parameters and edges.

    Returns
    -------
    Tensor
        Shape (n, d).

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath, to_velocity
    >>> to_velocity("velocity", StraightPath(), torch.ones(1, 1), -torch.ones(1, 1), 0.5)
    tensor([[-1.]])
    """
    return convert(parametrization, "velocity", schedule, x, prediction, t)


def convert(
    source: Parametrization,
    target: Parametrization,
    schedule: Schedule,
    x: Tensor,
    prediction: Tensor,
    t: Tensor | float,
) -> Tensor:
    """Turn a prediction of one parametrisation into another.

    ``"v"`` and, on the straight path, ``"velocity"`` are well-conditioned at all times. ``"epsilon"`` says nothing
    about the data where ``alpha`` is 0, and ``"x0"`` nothing about the noise where ``sigma`` is 0: there the divisor
    is kept at 1e-3, so that the result stays finite.

    Parameters
    ----------
    source, target
        ``"epsilon"``, ``"x0"``, ``"v"`` or ``"velocity"``.
    schedule
        The forward process.
    x
        Noised data at which the prediction was made, shape (n, d).
    prediction
        In parametrisation `source`, shape (n, d).
    t
        Times in [0, 1], shape (n,), or one for all.

    Returns
    -------
    Tensor
        In parametrisation `target`, shape (n, d).

    Raises
    ------
    ValueError
        If there is no such parametrisation.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath, convert
    >>> x, velocity = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    >>> convert("velocity", "x0", StraightPath(), x, velocity, torch.tensor([0.25]))
    tensor([[0.5000]])
    """
    check_parametrization(source)
    check_parametrization(target)
    if source == target:
        return prediction
    coefficients = _coefficients(schedule, t, x)
    return join(target, split(source, x, prediction, coefficients), coefficients)


def split(parametrization: str, x: Tensor, prediction: Tensor, coefficients: Coefficients) -> Prediction:
    """Data and noise from a prediction at `x` (the coefficients are floats, or broadcast against `x`)."""
    a, s, da, ds = coefficients
    match parametrization:
        case "epsilon":
            return Prediction((x - s * prediction) / _floored(a), prediction)
        case "x0":
            return Prediction(prediction, (x - a * prediction) / _floored(s))
        case "v":
            norm = a * a + s * s  # 1 if variance is preserved, never below 1/2 on the straight path
            return Prediction((a * x - s * prediction) / norm, (s * x + a * prediction) / norm)
        case _:  # velocity: solve [a s; da ds] [x0 eps] = [x velocity]
            det = a * ds - s * da
            return Prediction((ds * x - s * prediction) / det, (a * prediction - da * x) / det)


def join(parametrization: str, pair: Prediction, coefficients: Coefficients) -> Tensor:
    """The reverse of :func:`split`."""
    a, s, da, ds = coefficients
    match parametrization:
        case "epsilon":
            return pair.epsilon
        case "x0":
            return pair.x0
        case "v":
            return a * pair.epsilon - s * pair.x0
        case _:
            return da * pair.x0 + ds * pair.epsilon


def _coefficients(schedule: Schedule, t: Tensor | float, like: Tensor) -> Coefficients:
    if isinstance(t, Tensor):
        return schedule.coefficients(t.to(like.dtype), like)
    return schedule.coefficients(t)


def _floored(weight: Scalar) -> Scalar:
    return torch.clamp(weight, min=FLOOR) if isinstance(weight, Tensor) else max(weight, FLOOR)
