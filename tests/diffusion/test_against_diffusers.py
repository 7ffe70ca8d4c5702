"""DDPM, DDIM and DPM-Solver++ step by step against diffusers' schedulers: same noise, same nonlinear network."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from isd.diffusion import DDIM, DDPM, CosineSchedule, Denoiser, DiscreteSchedule, DPMSolverPP, LinearSchedule, Sampler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers' imports warn of is not ours
    diffusers = pytest.importorskip("diffusers")

PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULES = {
    "linear": (LinearSchedule(), {"beta_schedule": "linear"}),
    "cosine": (CosineSchedule(), {"beta_schedule": "squaredcos_cap_v2"}),
}
N, D = 6, 4


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A dummy that mixes coordinates and depends on time; its values are of order 1."""
    mix = torch.linspace(-1, 1, D * D, dtype=x.dtype).reshape(D, D)
    return torch.tanh(x @ mix + torch.cos(7 * t)[:, None]) * 0.8


def theirs(scheduler: Any, schedule: DiscreteSchedule, x: torch.Tensor, **step: Any) -> list[torch.Tensor]:
    states = []
    for k in scheduler.timesteps:
        t = torch.full((N,), float(schedule.time_of_step(int(k))), dtype=x.dtype)
        x = scheduler.step(network(x, t), k, x, **step).prev_sample
        states.append(x)
    return states


def ours(sampler: Sampler, schedule: DiscreteSchedule, parametrization: str, x: torch.Tensor) -> list[torch.Tensor]:
    states: list[torch.Tensor] = []
    sampler.sample(
        Denoiser(network, schedule, parametrization),
        x,
        generator=torch.Generator().manual_seed(5),
        callback=lambda i, t, x: states.append(x),
    )
    return states


def start() -> torch.Tensor:
    # double precision, so that rounding does not hide a difference of formulas
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def exact(scheduler: Any, schedule: DiscreteSchedule) -> Any:
    """Their tables are float32, computed from float32 betas; ours are put in their place where that alone differs."""
    np.testing.assert_allclose(scheduler.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-3, atol=1e-9)
    scheduler.alphas_cumprod = schedule.alphas_cumprod.clone()
    return scheduler


def assert_same_states(mine: list[torch.Tensor], reference: list[torch.Tensor], tolerance: float) -> None:
    assert len(mine) == len(reference)
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=tolerance, atol=tolerance)


# Without clipping, noise predicted at cosine's end (alpha = 5e-5) is left out: they divide by alpha, and errors grow
# 20,000-fold; our divisor is kept at 1e-3.
WAYS = [(at, p) for at in SCHEDULES for p in PREDICTIONS if (at, p) != ("cosine", "epsilon")]
DDPM_CASES = [
    *((*way, n, variance, None) for way in WAYS for n, variance in ((1000, "posterior"), (1000, "beta"), (50, "beta"))),
    *((at, p, 50, "posterior", 1.0) for at in SCHEDULES for p in PREDICTIONS),
]


@pytest.mark.parametrize(("at", "prediction", "n_steps", "variance", "clip"), DDPM_CASES)
def test_ddpm(at: str, prediction: str, n_steps: int, variance: str, clip: float | None) -> None:
    schedule, names = SCHEDULES[at]
    scheduler = diffusers.DDPMScheduler(
        **names,
        prediction_type=PREDICTIONS[prediction],
        variance_type="fixed_small" if variance == "posterior" else "fixed_large",
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        timestep_spacing="trailing",
    )
    exact(scheduler, schedule).set_timesteps(n_steps)
    times = [schedule.time_of_step(int(k)) for k in scheduler.timesteps]
    reference = theirs(scheduler, schedule, start(), generator=torch.Generator().manual_seed(5))
    sampler = DDPM(variance=variance, clip_x0=clip, timesteps=times)
    states = ours(sampler, schedule, prediction, start())
    if variance == "beta" and n_steps < 1000:
        # they add noise to the data themselves in the last step, unless it leaves from step 0
        states, reference = states[:-1], reference[:-1]
    assert_same_states(states, reference, 1e-5)
    assert DDPM(n_steps).times(schedule)[:-1] == pytest.approx(times)


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n_steps", [10, 50])
def test_ddim(prediction: str, eta: float, n_steps: int) -> None:
    schedule = LinearSchedule()
    scheduler = diffusers.DDIMScheduler(
        prediction_type=PREDICTIONS[prediction], clip_sample=False, timestep_spacing="trailing"
    )
    exact(scheduler, schedule).set_timesteps(n_steps)
    reference = theirs(scheduler, schedule, start(), eta=eta, generator=torch.Generator().manual_seed(5))
    assert_same_states(ours(DDIM(n_steps, eta=eta), schedule, prediction, start()), reference, 1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2
@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("n_steps", "spacing"), [(10, "trailing"), (50, "trailing"), (20, "linspace")])
def test_dpm_solver(prediction: str, order: int, n_steps: int, spacing: str) -> None:
    schedule = LinearSchedule()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="linear",
        prediction_type=PREDICTIONS[prediction],
        algorithm_type="dpmsolver++",
        solver_order=order,
        lower_order_final=True,
        timestep_spacing=spacing,
    )
    exact(scheduler, schedule).set_timesteps(n_steps)
    times = [schedule.time_of_step(int(k)) for k in scheduler.timesteps]
    reference = theirs(scheduler, schedule, start())
    if spacing == "trailing":
        sampler = DPMSolverPP(n_steps, order=order)
        assert sampler.times(schedule)[:-1] == pytest.approx(times)
    else:
        sampler = DPMSolverPP(order=order, timesteps=times)
    # they compute in float32 inside
    assert_same_states(ours(sampler, schedule, prediction, start().float()), reference, 2e-5)
