from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch

from isd.diffusion import (
    CosineSchedule,
    DiscreteSchedule,
    LinearSchedule,
    Schedule,
    StraightPath,
    get_schedule,
    schedule_from_config,
)

DISCRETE = [LinearSchedule(), CosineSchedule(), LinearSchedule(100, 1e-3, 0.2)]


def test_linear_and_cosine_are_the_published_ones() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(LinearSchedule().alphas_cumprod, np.cumprod(1 - betas), rtol=1e-12)

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [min(1 - alpha_bar((k + 1) / 1000) / alpha_bar(k / 1000), 0.999) for k in range(1000)]
    np.testing.assert_allclose(CosineSchedule().betas, expected, rtol=1e-9)
    assert float(CosineSchedule().betas.max()) == 0.999


@pytest.mark.parametrize("schedule", DISCRETE, ids=repr)
def test_steps_lie_at_their_times(schedule: DiscreteSchedule) -> None:
    steps = torch.arange(schedule.n_timesteps)
    t = schedule.time_of_step(steps.double())
    torch.testing.assert_close(schedule.alpha(t) ** 2, schedule.alphas_cumprod, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - schedule.alphas_cumprod, rtol=1e-9, atol=1e-15)
    assert torch.equal(schedule.step_of_time(t), steps)
    assert torch.equal(schedule.step_of_time(t.float()), steps)
    assert schedule.step_of_time(torch.tensor(0.0)) == 0
    # float32 keeps the small sigmas of the first steps, which 1 - alpha^2 would lose
    torch.testing.assert_close(schedule.sigma(t.float()).double(), schedule.sigma(t), rtol=2e-5, atol=0)


def test_edges(schedule: Schedule) -> None:
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert schedule.alpha(t)[0] == 1 and schedule.sigma(t)[0] == 0
    assert schedule.alpha(t)[1] < 0.01 and schedule.sigma(t)[1] > 0.9999
    assert schedule.log_snr(t)[0] == math.inf
    assert torch.isfinite(torch.stack(list(schedule.coefficients(t)))).all()


def test_between_steps_alpha_falls_and_sigma_rises(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 20_011, dtype=torch.float64)
    assert (schedule.alpha(t).diff() < 0).all() and (schedule.sigma(t).diff() > 0).all()
    assert (schedule.log_snr(t[1:-1]).diff() < 0).all()
    inner = t[1:-1]
    snr = (schedule.alpha(inner) / schedule.sigma(inner)) ** 2
    torch.testing.assert_close(schedule.log_snr(inner).exp(), snr, rtol=1e-8, atol=0)


def test_derivatives_agree_with_finite_differences(schedule: Schedule) -> None:
    t, h = torch.linspace(0.0131, 0.9871, 501, dtype=torch.float64), 1e-6
    for f, df in ((schedule.alpha, schedule.d_alpha), (schedule.sigma, schedule.d_sigma)):
        torch.testing.assert_close(df(t), (f(t + h) - f(t - h)) / (2 * h), rtol=1e-5, atol=1e-7)


def test_derivative_is_continuous_and_close_to_the_smooth_schedule() -> None:
    # linear betas: in the limit of many steps, -d log alpha_bar / dt = T * beta(t)
    schedule, t = LinearSchedule(), torch.linspace(0.1, 0.9, 4001, dtype=torch.float64)
    rate = -2 * schedule.d_alpha(t) / schedule.alpha(t)
    beta = 1e-4 + (0.02 - 1e-4) * (t * 1000 - 0.5) / 999  # beta of step k covers times k/T to (k+1)/T
    torch.testing.assert_close(rate, -torch.log1p(-beta) * 1000, rtol=2e-4, atol=0)


def test_add_noise_takes_a_time_a_row(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 2, generator=generator) for _ in range(2))
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    x = schedule.add_noise(x0, eps, t)
    for i in range(5):
        a, s, *_ = schedule.coefficients(float(t[i]))
        torch.testing.assert_close(x[i], a * x0[i] + s * eps[i], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x[0], x0[0])
    torch.testing.assert_close(schedule.add_noise(x0, eps, t[2]), schedule.add_noise(x0, eps, t[2].expand(5)))
    with pytest.raises(ValueError, match="one time a row"):
        schedule.add_noise(x0, eps, t[:3])


@pytest.mark.parametrize("n_steps", [1, 7, 25, 1000])
def test_timesteps_are_trained_steps(schedule: Schedule, n_steps: int) -> None:
    times = schedule.timesteps(n_steps)
    assert len(times) == n_steps + 1 and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    if isinstance(schedule, DiscreteSchedule):
        torch.testing.assert_close(times * 1000, (times * 1000).round(), rtol=0, atol=1e-9)
    assert len(schedule.timesteps(None)) == 1001
    assert len(schedule.timesteps(None, start=0.6)) == 601 and schedule.timesteps(10, start=0.6)[0] == 0.6


def test_bad_grids() -> None:
    with pytest.raises(ValueError, match="at most 600"):
        LinearSchedule().timesteps(601, start=0.6)
    with pytest.raises(ValueError, match="start is 0"):
        StraightPath().timesteps(10, start=0.0)
    with pytest.raises(ValueError, match="at least 1"):
        StraightPath().timesteps(0)


@pytest.mark.parametrize("schedule", [*DISCRETE, CosineSchedule(50, s=0.01), StraightPath()], ids=repr)
def test_config_round_trip(schedule: Schedule) -> None:
    again = schedule_from_config(json.loads(json.dumps(schedule.to_config())))
    assert again == schedule and type(again) is type(schedule) and hash(again) == hash(schedule)
    assert again != LinearSchedule(77)
    schedule.alpha(torch.rand(2))  # a cache is filled
    for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert other == schedule
        assert torch.equal(other.alpha(torch.tensor([0.3])), schedule.alpha(torch.tensor([0.3])))


def test_bad_schedules() -> None:
    with pytest.raises(ValueError, match="'cosine', 'linear', 'straight'"):
        get_schedule("sigmoid")
    with pytest.raises(ValueError, match="does not take"):
        get_schedule("straight", n_timesteps=10)
    with pytest.raises(ValueError, match="needs 'name'"):
        schedule_from_config({"s": 1})
    with pytest.raises(ValueError, match="beta_start"):
        LinearSchedule(beta_start=0.1, beta_end=0.01)
    with pytest.raises(ValueError, match="max_beta"):
        CosineSchedule(max_beta=1.0)
    with pytest.raises(ValueError, match="at least 2"):
        LinearSchedule(1)
    with pytest.raises(ValueError, match="n_timesteps is 0"):
        CosineSchedule(0)
