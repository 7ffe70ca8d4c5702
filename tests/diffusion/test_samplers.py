"""Every sampler against a Gaussian target, whose denoiser, flow and moments are known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from isd.diffusion import (
    DDIM,
    DDPM,
    PARAMETRIZATIONS,
    SAMPLERS,
    CosineSchedule,
    Denoiser,
    DPMSolverPP,
    Euler,
    Heun,
    LinearSchedule,
    Sampler,
    Schedule,
    StraightPath,
    get_sampler,
)

# (sampler, discretisation error in standard deviations that is allowed on top of 4.5 standard errors)
SETTINGS = [
    (DDPM(250), 0.03),
    (DDPM(250, variance="beta"), 0.02),
    (DDIM(250), 0.01),
    (DDIM(250, eta=1.0), 0.03),
    (DDIM(250, eta=0.5), 0.02),
    (DPMSolverPP(40), 0.01),
    (DPMSolverPP(250, order=1), 0.01),
    (Heun(40), 0.01),
    (Euler(250), 0.01),
]
DETERMINISTIC = [DDIM, Euler, DPMSolverPP, Heun]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def label(value: Any) -> str | None:
    return f"{value.name}-{vars(value)}" if isinstance(value, Sampler) else None


@pytest.mark.parametrize(("sampler", "bias"), SETTINGS, ids=label)
def test_recovers_mean_and_covariance(gaussian, noise, schedule: Schedule, sampler: Sampler, bias: float) -> None:
    samples = sampler.sample(gaussian.denoiser(schedule, "v"), noise, generator=seeded())
    assert samples.dtype == noise.dtype and samples.shape == noise.shape and not samples.requires_grad
    gaussian.assert_samples(samples, bias=bias)


def test_the_yardstick_notices_a_wrong_sample(gaussian, noise) -> None:
    # the tolerances above are not empty: too few steps, and the noise itself, are told from the target
    few = Euler(10).sample(gaussian.denoiser(LinearSchedule(), "v"), noise)
    with pytest.raises(AssertionError):
        gaussian.assert_samples(few, bias=0.03)
    with pytest.raises(AssertionError):
        gaussian.assert_samples(noise, bias=0.03)


def test_all_thousand_ddpm_steps(gaussian, noise) -> None:
    sampler = DDPM()
    samples = sampler.sample(gaussian.denoiser(LinearSchedule(), "epsilon"), noise, generator=seeded())
    gaussian.assert_samples(samples, bias=0.01)
    assert sampler.n_network_calls == 1000


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("cls", DETERMINISTIC)
def test_every_parametrization_follows_the_exact_flow(gaussian, noise, schedule, cls, parametrization: str) -> None:
    x = noise[:500]
    denoiser = gaussian.denoiser(schedule, parametrization)
    error = cls(80).sample(denoiser, x) - gaussian.flow(schedule, x, 1.0)
    assert error.pow(2).mean().sqrt() < (0.03 if cls in (DDIM, Euler) else 0.004)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_ddpm_is_the_same_in_every_parametrization(gaussian, noise, parametrization: str) -> None:
    x = noise[:200]
    schedule = LinearSchedule()
    samples, reference = (
        DDPM(100).sample(gaussian.denoiser(schedule, p), x, generator=seeded(5)) for p in (parametrization, "v")
    )
    torch.testing.assert_close(samples, reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("cls", "at", "low", "high"),
    [
        (Heun, "straight", 3.5, 5.5),
        (DPMSolverPP, "straight", 1.9, 3.5),  # order 1 in the first two steps, as alpha(1) = 0
        (Euler, "straight", 1.8, 2.2),
        (DDIM, "straight", 1.8, 2.2),
        (Heun, "linear", 2.8, 4.5),
        (DPMSolverPP, "linear", 3.0, 5.5),
        (DDIM, "linear", 1.8, 2.2),
        (Heun, "cosine", 2.8, 4.5),
        (DPMSolverPP, "cosine", 2.8, 5.5),
        (Euler, "cosine", 1.8, 2.2),
    ],
)
def test_order_of_convergence(gaussian64, noise, cls, at: str, low: float, high: float) -> None:
    schedule = {"straight": StraightPath(), "linear": LinearSchedule(), "cosine": CosineSchedule()}[at]
    x = noise[:1000].double()
    denoiser, exact = gaussian64.denoiser(schedule, "v"), gaussian64.flow(schedule, x, 1.0)
    coarse, fine = ((cls(n).sample(denoiser, x) - exact).pow(2).mean().sqrt() for n in (20, 40))
    assert low < coarse / fine < high


def test_euler_is_ddim_and_first_order_dpm_solver(gaussian, noise, schedule) -> None:
    x, denoiser = noise[:100], gaussian.denoiser(schedule, "v")
    reference = DDIM(15).sample(denoiser, x)
    torch.testing.assert_close(Euler(15).sample(denoiser, x), reference, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(DPMSolverPP(15, order=1).sample(denoiser, x), reference, rtol=1e-4, atol=1e-4)


def test_euler_and_heun_on_the_straight_path_are_the_textbook_methods(gaussian64, noise) -> None:
    path, x = StraightPath(), noise[:50].double()
    denoiser = gaussian64.denoiser(path, "velocity")
    euler, heun, h, n = x, x, 1 / 8, 8
    for i in range(n):
        t, u = 1 - i * h, 1 - (i + 1) * h
        euler = euler - h * denoiser.velocity(euler, t)
        first = denoiser.velocity(heun, t)
        second = denoiser.velocity(heun - h * first, u) if i < n - 1 else first
        heun = heun - h * (first + second) / 2
    torch.testing.assert_close(Euler(n).sample(denoiser, x), euler)
    torch.testing.assert_close(Heun(n).sample(denoiser, x), heun)


@pytest.mark.parametrize(("sampler", "bias"), [SETTINGS[i] for i in (0, 3, 5, 7)], ids=label)
def test_starts_at_an_intermediate_time(gaussian, noise, schedule, sampler: Sampler, bias: float) -> None:
    x0 = gaussian.flow(StraightPath(), noise, 1.0)  # exact samples
    eps = torch.randn(noise.shape, generator=seeded(11))
    x = schedule.add_noise(x0, eps, torch.tensor(0.6))
    times = []
    samples = sampler.sample(
        gaussian.denoiser(schedule, "v"), x, start=0.6, generator=seeded(), callback=lambda i, t, x: times.append(t)
    )
    gaussian.assert_samples(samples, bias=bias)
    assert len(times) == sampler.n_steps and times[0] < 0.6 and times[-1] == 0 and times == sorted(times, reverse=True)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_same_seed_same_samples(gaussian, noise, name: str) -> None:
    x, denoiser, sampler = noise[:50], gaussian.denoiser(CosineSchedule(), "v"), get_sampler(name, n_steps=10)
    before = torch.random.get_rng_state()
    one, two, other = (sampler.sample(denoiser, x, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert torch.equal(one, other) is not sampler.stochastic
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("sampler", [DDPM(20), DDIM(20, eta=0.7)], ids=label)
def test_noise_comes_from_the_generator_or_noise_fn(gaussian, noise, sampler: Sampler) -> None:
    x, denoiser = noise[:20], gaussian.denoiser(StraightPath(), "velocity")
    generator, steps = seeded(3), []

    def noise_fn(step: int, shape: torch.Size) -> torch.Tensor:
        steps.append(step)
        return torch.randn(shape, generator=generator)

    samples = sampler.sample(denoiser, x, noise_fn=noise_fn)
    assert steps == list(range(19))  # the last step is without noise
    assert torch.equal(samples, sampler.sample(denoiser, x, generator=seeded(3)))
    with pytest.raises(ValueError, match=r"draws noise: give generator"):
        sampler.sample(denoiser, x)
    with pytest.raises(ValueError, match="noise_fn gave shape"):
        sampler.sample(denoiser, x, noise_fn=lambda step, shape: torch.zeros(1))


@pytest.mark.parametrize(
    ("sampler", "calls"), [(DDPM(7), 7), (DDIM(7), 7), (DPMSolverPP(7), 7), (Euler(7), 7), (Heun(7), 13)], ids=label
)
def test_counts_network_calls(gaussian, noise, sampler: Sampler, calls: int) -> None:
    assert sampler.n_network_calls == 0
    denoiser = gaussian.denoiser(LinearSchedule(), "epsilon")
    for _ in range(2):
        sampler.sample(denoiser, noise[:3], generator=seeded())
        assert sampler.n_network_calls == calls
    assert denoiser.n_calls == 2 * calls


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_network_sees_trained_times_only(noise, name: str) -> None:
    seen = []

    def fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.shape == (len(x),)
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    get_sampler(name, n_steps=30).sample(Denoiser(fn, LinearSchedule(), "v"), noise[:2], generator=seeded())
    steps = torch.tensor(seen) * 1000
    assert seen[0] == 1 and min(seen) >= 0.001
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


def test_noise_prediction_begins_where_it_knows_the_data(gaussian) -> None:
    # at alpha = 0 predicted noise is x itself, whatever the data
    assert gaussian.denoiser(StraightPath(), "epsilon").t_max == pytest.approx(0.999)
    assert gaussian.denoiser(CosineSchedule(), "epsilon").t_max == pytest.approx(0.999)
    assert gaussian.denoiser(LinearSchedule(), "epsilon").t_max == 1
    assert gaussian.denoiser(StraightPath(), "velocity").t_max == 1
    sampler = DDPM(1000)  # one step more than there are below t_max
    sampler.sample(gaussian.denoiser(CosineSchedule(), "epsilon"), torch.zeros(1, 3), generator=seeded())
    assert sampler.n_network_calls == 999


def test_explicit_timesteps(gaussian, noise) -> None:
    x, denoiser = noise[:5], gaussian.denoiser(LinearSchedule(), "epsilon")
    explicit = DDIM(timesteps=[1.0, 0.75, 0.5, 0.25])
    assert explicit.times(denoiser.schedule) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(explicit.sample(denoiser, x), DDIM(4).sample(denoiser, x))
    assert explicit.times(denoiser.schedule, start=0.5) == [0.5, 0.25, 0.0]
    with pytest.raises(ValueError, match="below all explicit"):
        explicit.times(denoiser.schedule, start=0.1)
    for bad in ([0.5, 0.7], [1.2, 0.3], [0.0], [0.5, 0.5], []):
        with pytest.raises(ValueError, match="decreasing times"):
            DDIM(timesteps=bad)


def test_clipping_bounds_the_last_prediction(noise) -> None:
    denoiser = Denoiser(lambda x, t: torch.full_like(x, 9.0), LinearSchedule(), "x0")
    assert torch.allclose(DDPM(10, clip_x0=2.0).sample(denoiser, noise[:4], generator=seeded()), torch.tensor(2.0))
    assert torch.allclose(DDPM(10).sample(denoiser, noise[:4], generator=seeded()), torch.tensor(9.0))


def test_inputs_stay_as_they_are_and_gradients_are_off(gaussian, noise) -> None:
    x = noise[:10].clone().requires_grad_()
    for name in SAMPLERS:
        samples = get_sampler(name, n_steps=3).sample(gaussian.denoiser(StraightPath(), "v"), x, generator=seeded())
        assert not samples.requires_grad
    assert torch.equal(x.detach(), noise[:10])


def test_registry() -> None:
    for name, cls in SAMPLERS.items():
        assert type(get_sampler(name)) is cls and get_sampler(name, n_steps=3).n_steps == 3
    assert get_sampler("ddim", eta=0.3).eta == 0.3
    with pytest.raises(ValueError, match=r"'plms'.*'ddim', 'ddpm', 'dpm\+\+', 'euler', 'heun'"):
        get_sampler("plms")
    with pytest.raises(ValueError, match="does not take the options"):
        get_sampler("euler", eta=0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(0), "n_steps is 0"),
        (lambda: Heun(2.5), "n_steps is 2.5"),
        (lambda: DDIM(5, eta=2), "eta is 2"),
        (lambda: DDPM(5, variance="learned"), "'posterior', 'beta'"),
        (lambda: DDPM(5, clip_x0=0), "clip_x0 is 0"),
        (lambda: DPMSolverPP(5, order=3), "order is 3"),
    ],
)
def test_bad_options(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_samples(gaussian, noise) -> None:
    denoiser = gaussian.denoiser(LinearSchedule(), "v")
    with pytest.raises(TypeError, match="wrap it as Denoiser"):
        Euler(2).sample(lambda x, t: x, noise)
    with pytest.raises(ValueError, match="shape"):
        Euler(2).sample(denoiser, noise[:, 0])
    with pytest.raises(ValueError, match="float tensor"):
        Euler(2).sample(denoiser, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN"):
        Euler(2).sample(denoiser, torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="at most 1000"):
        Euler(1001).sample(denoiser, noise)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_cuda_gives_what_the_cpu_gives(noise, schedule, name: str) -> None:
    denoiser = Denoiser(lambda x, t: torch.tanh(x) * t[:, None], schedule, "v")
    sampler, x = get_sampler(name, n_steps=10), noise[:100]
    on_gpu = sampler.sample(denoiser, x.cuda(), generator=seeded())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), sampler.sample(denoiser, x, generator=seeded()), rtol=1e-3, atol=1e-4)
