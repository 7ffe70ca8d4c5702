"""Schedules by name, and from a saved configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isd.diffusion._discrete import CosineSchedule, LinearSchedule
from isd.diffusion._schedule import Schedule
from isd.diffusion._straight import StraightPath

SCHEDULES: dict[str, type[Schedule]] = {cls.name: cls for cls in (LinearSchedule, CosineSchedule, StraightPath)}


def get_schedule(name: str, **options: Any) -> Schedule:
    """Make a schedule by its name.

    Parameters
    ----------
    name
        ``"linear"``, ``"cosine"`` or ``"straight"``.
    **options
        Arguments of the class (:class:`LinearSchedule`, :class:`CosineSchedule`, :class:`StraightPath`).

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If there is no such schedule, or it has no such option.

    Examples
    --------
    >>> from isd.diffusion import get_schedule
    >>> get_schedule("cosine", n_timesteps=100)
    CosineSchedule(n_timesteps=100, s=0.008, max_beta=0.999)
    """
    if name not in SCHEDULES:
        raise ValueError(f"There is no schedule {name!r}; choose from {sorted(SCHEDULES)}.")
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise ValueError(f"Schedule {name!r} does not take the options {options}: {error}.") from error


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Make a schedule from what :meth:`Schedule.to_config` gave.

    Parameters
    ----------
    config
        A mapping with ``"name"`` and the parameters of that schedule.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If the name is missing or unknown, or a parameter does not belong to the schedule.

    Examples
    --------
    >>> from isd.diffusion import LinearSchedule, schedule_from_config
    >>> schedule_from_config(LinearSchedule(100).to_config()) == LinearSchedule(100)
    True
    """
    if "name" not in config:
        raise ValueError(f"A schedule's configuration needs 'name'; this one has {sorted(config)}.")
    return get_schedule(config["name"], **{key: value for key, value in config.items() if key != "name"})
