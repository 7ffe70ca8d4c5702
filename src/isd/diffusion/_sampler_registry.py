"""Samplers by name."""

from __future__ import annotations

from typing import Any

from isd.diffusion._ddim import DDIM
from isd.diffusion._ddpm import DDPM
from isd.diffusion._dpm_solver import DPMSolverPP
from isd.diffusion._ode import Euler, Heun
from isd.diffusion._sampler import Sampler

SAMPLERS: dict[str, type[Sampler]] = {cls.name: cls for cls in (DDPM, DDIM, DPMSolverPP, Heun, Euler)}


def get_sampler(name: str, n_steps: int | None = None, **options: Any) -> Sampler:
    """Make a sampler by its name.

    Parameters
    ----------
    name
        ``"ddpm"``, ``"ddim"``, ``"dpm++"``, ``"heun"`` or ``"euler"``.
    n_steps
        Number of steps; ``None`` is the sampler's own default (DDPM: all training steps).
    **options
        Further arguments of the class, such as ``eta`` of :class:`DDIM`.

    Returns
    -------
    Sampler

    Raises
    ------
    ValueError
        If there is no such sampler, it has no such option, or a value is out of its range.

    Examples
    --------
    >>> from isd.diffusion import get_sampler
    >>> get_sampler("heun", n_steps=10)
    Heun(n_steps=10)
    """
    if name not in SAMPLERS:
        raise ValueError(f"There is no sampler {name!r}; choose from {sorted(SAMPLERS)}.")
    if n_steps is not None:
        options["n_steps"] = n_steps
    try:
        return SAMPLERS[name](**options)
    except TypeError as error:
        raise ValueError(f"Sampler {name!r} does not take the options {options}: {error}.") from error
