from __future__ import annotations

from itertools import product

import pytest
import torch

from isd.diffusion import (
    PARAMETRIZATIONS,
    Denoiser,
    Schedule,
    StraightPath,
    convert,
    to_epsilon,
    to_velocity,
    to_x0,
    training_target,
)

PAIRS = list(product(PARAMETRIZATIONS, PARAMETRIZATIONS))


@pytest.fixture
def triple() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(400, 5, generator=generator) for _ in range(2))


def test_targets_are_the_published_formulas(schedule: Schedule, triple) -> None:
    x0, eps = triple
    t = torch.linspace(0.01, 0.99, len(x0))
    a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    assert torch.equal(training_target("epsilon", schedule, x0, eps, t), eps)
    assert torch.equal(training_target("x0", schedule, x0, eps, t), x0)
    torch.testing.assert_close(training_target("v", schedule, x0, eps, t), a * eps - s * x0)
    # the velocity is the derivative of the path itself
    h = 1e-5
    x0, eps, t = x0.double(), eps.double(), t.double()
    slope = (schedule.add_noise(x0, eps, t + h) - schedule.add_noise(x0, eps, t - h)) / (2 * h)
    torch.testing.assert_close(training_target("velocity", schedule, x0, eps, t), slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_recover_the_targets(schedule: Schedule, triple, source: str, target: str) -> None:
    x0, eps = (value.double() for value in triple)
    t = torch.linspace(0.002, 0.998, len(x0), dtype=torch.float64)
    x = schedule.add_noise(x0, eps, t)
    given = training_target(source, schedule, x0, eps, t)
    wanted = training_target(target, schedule, x0, eps, t)
    torch.testing.assert_close(convert(source, target, schedule, x, given, t), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("edge", [0.0, 1e-6, 1e-3, 1 - 1e-3, 1 - 1e-6, 1.0])
def test_round_trips_in_float32_including_edges(
    schedule: Schedule, triple, source: str, target: str, edge: float
) -> None:
    x0, eps = triple
    t = torch.full((len(x0),), edge)
    x = schedule.add_noise(x0, eps, t)
    given = training_target(source, schedule, x0, eps, t)
    there = convert(source, target, schedule, x, given, t)
    back = convert(target, source, schedule, x, there, t)
    assert torch.isfinite(there).all() and torch.isfinite(back).all()
    # What x_t does not contain at an edge cannot come back through it: noise through x0 at time 0, data through epsilon
    # at time 1; velocity holds both, and on the variance-preserving schedules it is dominated by the noise at 0.
    a, s, *_ = schedule.coefficients(edge)
    noise_is_lost = s < 1.1e-3 and target == "x0" and source != "x0"
    data_are_lost = a < 1.1e-3 and target == "epsilon" and source != "epsilon"
    if not (noise_is_lost or data_are_lost):
        # relative to the size of the values, as velocities are large near 0; 4 digits after the floor of 1e-3
        assert (back - given).abs().max() <= 5e-4 * max(1.0, float(given.abs().max()))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_straight_velocity_needs_no_division(triple, t: float) -> None:
    x0, eps = triple
    path = StraightPath()
    x = (1 - t) * x0 + t * eps
    torch.testing.assert_close(to_x0("velocity", path, x, eps - x0, t), x0, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(to_epsilon("velocity", path, x, eps - x0, t), eps, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(to_velocity("v", path, x, (1 - t) * eps - t * x0, t), eps - x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_denoiser_reads_each_parametrization(schedule: Schedule, triple, parametrization: str) -> None:
    x0, eps = triple
    seen = []

    def fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return training_target(parametrization, schedule, x0, eps, t)

    denoiser = Denoiser(fn, schedule, parametrization)
    x = schedule.add_noise(x0, eps, torch.tensor(0.4))
    for t in (0.4, torch.tensor(0.4), torch.full((len(x0),), 0.4)):
        torch.testing.assert_close(denoiser.x0(x, t), x0, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(denoiser.epsilon(x, t), eps, rtol=1e-4, atol=1e-4)
        velocity = training_target("velocity", schedule, x0, eps, 0.4)
        torch.testing.assert_close(denoiser.velocity(x, t), velocity, rtol=1e-3, atol=1e-3)
    assert denoiser.n_calls == len(seen) == 9
    assert all(t.shape == (len(x0),) and t.dtype == x.dtype for t in seen)


def test_bad_input() -> None:
    path, x = StraightPath(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"no parametrization 'eps'.*epsilon.*velocity"):
        convert("eps", "x0", path, x, x, 0.5)
    with pytest.raises(ValueError, match="no parametrization"):
        training_target("noise", path, x, x, 0.5)
    with pytest.raises(ValueError, match="no parametrization"):
        Denoiser(lambda x, t: x, path, "flow")
    with pytest.raises(ValueError, match="get_schedule"):
        Denoiser(lambda x, t: x, "straight", "velocity")
    with pytest.raises(ValueError, match=r"shape \(2,\).*\(2, 3\)"):
        Denoiser(lambda x, t: x[:, 0], path, "velocity").predict(x, 0.5)
