"""Diffusion and flow matching in pure torch: schedules, parametrisations, samplers and guides.

The four are independent: a sampler takes any callable denoiser (:class:`Denoiser` says in which schedule and
parametrisation it speaks), and guides wrap one or are given beside it. No network and no AnnData are known here.
"""

from __future__ import annotations

from isd.diffusion._ddim import DDIM
from isd.diffusion._ddpm import DDPM
from isd.diffusion._denoiser import Denoiser, DenoiserFn
from isd.diffusion._discrete import CosineSchedule, DiscreteSchedule, LinearSchedule
from isd.diffusion._dpm_solver import DPMSolverPP
from isd.diffusion._guidance import ClassifierFree, ClassifierGuide, ConditionMix, Guide
from isd.diffusion._ode import Euler, Heun
from isd.diffusion._parametrization import (
    PARAMETRIZATIONS,
    Parametrization,
    Prediction,
    convert,
    to_epsilon,
    to_velocity,
    to_x0,
    training_target,
)
from isd.diffusion._sampler import Sampler
from isd.diffusion._sampler_registry import SAMPLERS, get_sampler
from isd.diffusion._schedule import Coefficients, Schedule
from isd.diffusion._schedule_registry import SCHEDULES, get_schedule, schedule_from_config
from isd.diffusion._straight import StraightPath

__all__ = [
    "DDIM",
    "DDPM",
    "PARAMETRIZATIONS",
    "SAMPLERS",
    "SCHEDULES",
    "ClassifierFree",
    "ClassifierGuide",
    "Coefficients",
    "ConditionMix",
    "CosineSchedule",
    "DPMSolverPP",
    "Denoiser",
    "DenoiserFn",
    "DiscreteSchedule",
    "Euler",
    "Guide",
    "Heun",
    "LinearSchedule",
    "Parametrization",
    "Prediction",
    "Sampler",
    "Schedule",
    "StraightPath",
    "convert",
    "get_sampler",
    "get_schedule",
    "schedule_from_config",
    "to_epsilon",
    "to_velocity",
    "to_x0",
    "training_target",
]
