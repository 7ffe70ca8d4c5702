"""Guides against finite differences and against the posterior of a Gaussian target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isd.diffusion import (
    DDIM,
    DDPM,
    ClassifierFree,
    ClassifierGuide,
    ConditionMix,
    Denoiser,
    DPMSolverPP,
    Euler,
    Guide,
    Heun,
    LinearSchedule,
    StraightPath,
)

# one measurement of two mixed coordinates and one of the third
H = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
R = torch.tensor([[0.3, 0.05], [0.05, 0.1]])
Y = torch.tensor([2.5, 0.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# (sampler, discretisation error allowed, in standard deviations); DDPM uses algorithm 1, the others algorithm 2
SETTINGS = [
    (DDPM(500), 0.04),
    (DDIM(250), 0.01),
    (DDIM(250, eta=1.0), 0.03),
    (DPMSolverPP(50), 0.01),
    (Heun(50), 0.02),
    (Euler(250), 0.01),
]


@pytest.mark.parametrize(("sampler", "bias"), SETTINGS, ids=lambda v: repr(v))
def test_guide_of_scale_one_samples_the_posterior(gaussian, noise, schedule, sampler, bias: float) -> None:
    posterior = gaussian.posterior(Y, H, R)
    guide = ClassifierGuide(gaussian.log_prob(schedule, Y, H, R))
    samples = sampler.sample(gaussian.denoiser(schedule, "v"), noise, guide=guide, generator=seeded())
    posterior.assert_samples(samples, bias=bias)
    with pytest.raises(AssertionError):  # prior and posterior differ by more than the tolerance
        gaussian.assert_samples(samples, bias=bias)


@pytest.mark.parametrize("parametrization", ["epsilon", "x0", "v", "velocity"])
@pytest.mark.parametrize("sampler", [DPMSolverPP(50), Heun(50)], ids=repr)
def test_guides_hold_in_every_parametrization(gaussian, noise, schedule, sampler, parametrization: str) -> None:
    guide = ClassifierGuide(gaussian.log_prob(schedule, Y, H, R))
    samples = sampler.sample(gaussian.denoiser(schedule, parametrization), noise, guide=guide)
    gaussian.posterior(Y, H, R).assert_samples(samples, bias=0.02)


@pytest.mark.parametrize("sampler", [DDPM(100), Heun(30)], ids=repr)
def test_several_guides_are_summed(gaussian, noise, sampler) -> None:
    # two guides of half the weight are one guide
    schedule, diagonal = LinearSchedule(), torch.diag(torch.tensor([0.3, 0.1]))
    first = gaussian.log_prob(schedule, Y, H, diagonal)
    twice = [ClassifierGuide(first, 0.5), ClassifierGuide(first, 0.5)]
    denoiser = gaussian.denoiser(schedule, "v")
    one, two = (
        sampler.sample(denoiser, noise, guide=guide, generator=seeded()) for guide in (ClassifierGuide(first), twice)
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    gaussian.posterior(Y, H, diagonal).assert_samples(two, bias=0.08)


def test_guides_combine_with_classifier_free(gaussian, noise) -> None:
    # the conditional prior is tilted by a measurement through classifier-free guidance, then by another one by a guide
    schedule = StraightPath()
    conditional = gaussian.posterior(Y[1:], H[1:], R[1:, 1:])
    fn = ClassifierFree(conditional.denoiser(schedule, "v").fn, gaussian.denoiser(schedule, "v").fn, scale=1.0)
    guide = ClassifierGuide(conditional.log_prob(schedule, Y[:1], H[:1], R[:1, :1]))
    samples = Heun(50).sample(Denoiser(fn, schedule, "v"), noise, guide=guide)
    conditional.posterior(Y[:1], H[:1], R[:1, :1]).assert_samples(samples, bias=0.01)


def test_gradient_agrees_with_finite_differences() -> None:
    generator = seeded(2)
    w1, w2 = torch.randn(4, 8, generator=generator).double(), torch.randn(8, 3, generator=generator).double()
    w1.requires_grad_()  # a classifier's parameters

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        return torch.log_softmax(torch.tanh(x @ w1 + t[:, None]) @ w2, 1)[:, 1]

    x, h = torch.randn(6, 4, generator=generator).double(), 1e-6
    gradient = ClassifierGuide(log_prob, scale=2.5).gradient(x, 0.3)
    t = torch.full((6,), 0.3, dtype=torch.float64)
    for j in range(4):
        step = torch.zeros(4).double()
        step[j] = h
        slope = (log_prob(x + step, t) - log_prob(x - step, t)) / (2 * h)
        torch.testing.assert_close(gradient[:, j], 2.5 * slope.detach(), rtol=1e-6, atol=1e-8)
    assert w1.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_guides_work_where_gradients_are_off(noise, mode) -> None:
    guide = ClassifierGuide(lambda x, t: -(x**2).sum(1) / 2)
    with mode():
        x = noise[:5] * 1
        torch.testing.assert_close(guide.gradient(x, 0.5), -noise[:5])
        Heun(3).sample(Denoiser(lambda x, t: x, StraightPath(), "velocity"), x, guide=guide)
    assert guide.n_calls == 1 + 4  # start and end of two steps, the first of which is at pure noise, and one Euler step


def _window(sampler, guide: ClassifierGuide) -> list[float]:
    """Times at which a guide is called."""
    times: list[float] = []

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return x.sum(1)

    guide.log_prob = log_prob
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), LinearSchedule(), "epsilon")
    sampler.sample(denoiser, torch.zeros(2, 3), guide=guide, generator=seeded())
    return times


def test_window_is_the_published_one() -> None:
    def unused(x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError

    steps = [round(t * 1000) - 1 for t in _window(DDPM(), ClassifierGuide(unused, 2.0, start_guide_step=500))]
    assert steps == list(range(499, -1, -1))  # scDiffusion: t < start_guide_time, where t counts steps from 0
    steps = [round(t * 1000) - 1 for t in _window(DDPM(), ClassifierGuide(unused, 2.0, start=0.3))]
    assert steps == list(range(298, -1, -1))  # times below 0.3: step 299 lies at 0.3
    assert len(_window(DDPM(), ClassifierGuide(unused, start_guide_step=1000))) == 1000
    assert _window(DDPM(), ClassifierGuide(unused, start_guide_step=0)) == []
    assert _window(DDPM(), ClassifierGuide(unused, 0.0)) == []
    assert len(_window(DDIM(10), ClassifierGuide(unused, start_guide_step=500))) == 5


def test_samples_are_untouched_before_the_window(gaussian, noise) -> None:
    def states(guide: ClassifierGuide | None) -> list[Tensor]:
        kept: list[Tensor] = []
        DDPM(20).sample(
            gaussian.denoiser(LinearSchedule(), "epsilon"),
            noise[:10],
            guide=guide,
            generator=seeded(4),
            callback=lambda i, t, x: kept.append(x),
        )
        return kept

    free, guided = states(None), states(ClassifierGuide(lambda x, t: x.sum(1), 2.0, start_guide_step=500))
    same = [torch.equal(a, b) for a, b in zip(free, guided, strict=True)]
    assert same == [True] * 10 + [False] * 10  # ten steps leave from t = 1 ... 0.55, ten from 0.5 on


def test_ddpm_shifts_the_mean_by_variance_times_gradient() -> None:
    schedule = LinearSchedule()
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), schedule, "epsilon")
    slope = torch.tensor([1.0, -2.0])
    free, guided = (
        DDPM(timesteps=[0.4, 0.3]).sample(denoiser, torch.ones(1, 2), guide=guide, noise_fn=lambda i, s: torch.zeros(s))
        for guide in (None, ClassifierGuide(lambda x, t: x @ slope, 2.0, start=0.35 + 0.06))
    )
    bar = schedule.alphas_cumprod[[399, 299]]
    variance = (1 - bar[1]) / (1 - bar[0]) * (1 - bar[0] / bar[1])  # equation 7 of Ho et al. for a stride
    # the last step divides by alpha, as no noise is predicted; it has no variance, so its gradient does not count
    shift = (variance * 2.0 * slope / bar[1].sqrt()).float()
    torch.testing.assert_close(guided - free, shift[None], rtol=1e-4, atol=1e-5)


def test_others_shift_the_noise_by_sigma_times_gradient() -> None:
    schedule, slope = LinearSchedule(), torch.tensor([1.0, -2.0])
    x = torch.ones(1, 2)
    guided = DDIM(timesteps=[0.4]).sample(
        Denoiser(lambda x, t: torch.zeros_like(x), schedule, "epsilon"),
        x,
        guide=ClassifierGuide(lambda x, t: x @ slope, 2.0),
    )
    a, s, *_ = schedule.coefficients(0.4)
    torch.testing.assert_close(guided, (x + s * (s * 2.0 * slope)) / a)


def test_own_guides(gaussian, noise) -> None:
    class Pull:
        def active(self, t: float) -> bool:
            return t < 0.5

        def gradient(self, x: Tensor, t: float) -> Tensor:
            return 1 - x

    assert isinstance(Pull(), Guide)
    assert isinstance(ClassifierGuide(lambda x, t: x.sum(1)), Guide)
    denoiser = gaussian.denoiser(StraightPath(), "v")
    same = ClassifierGuide(lambda x, t: -((1 - x) ** 2).sum(1) / 2, start=0.5)
    samples, reference = (Heun(10).sample(denoiser, noise[:50], guide=guide) for guide in (Pull(), [same]))
    torch.testing.assert_close(samples, reference)


def test_classifier_free_calls_only_what_it_needs() -> None:
    calls = {"cond": 0, "uncond": 0}

    def make(key: str, value: float):
        def fn(x: Tensor, t: Tensor) -> Tensor:
            calls[key] += 1
            return x * value

        return fn

    x, t = torch.ones(2, 3), torch.ones(2)
    for scale, expected, counted in ((1.0, 3.0, (1, 0)), (0.0, 2.0, (0, 1)), (1.5, 3.5, (1, 1)), (4.0, 6.0, (1, 1))):
        calls.update(cond=0, uncond=0)
        fn = ClassifierFree(make("cond", 3.0), make("uncond", 2.0), scale)
        torch.testing.assert_close(fn(x, t), torch.full((2, 3), expected))
        assert (calls["cond"], calls["uncond"]) == counted
        assert fn.calls_per_evaluation == sum(counted)


def test_scale_one_is_conditional_sampling(gaussian, noise) -> None:
    schedule = LinearSchedule()
    cond = gaussian.posterior(Y, H, R).denoiser(schedule, "v")
    fn = ClassifierFree(cond.fn, gaussian.denoiser(schedule, "v").fn, 1.0)
    sampler = Heun(10)
    guided = sampler.sample(Denoiser(fn, schedule, "v"), noise[:50])
    assert sampler.n_network_calls == 19
    assert torch.equal(guided, sampler.sample(cond, noise[:50]))
    fn = ClassifierFree(cond.fn, gaussian.denoiser(schedule, "v").fn, 1.5)
    sampler.sample(Denoiser(fn, schedule, "v"), noise[:50])
    assert sampler.n_network_calls == 38  # both passes count


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_batched_is_the_same_in_one_pass(scale: float) -> None:
    generator, passes = seeded(1), []
    w = torch.randn(3, 3, generator=generator)

    def fn(x: Tensor, t: Tensor, condition: dict) -> Tensor:
        passes.append(len(x))
        label, (shift, nothing) = condition["label"], condition["more"]
        assert nothing is None
        return torch.tanh(x @ w + label[:, None] + t[:, None]) + shift

    x, t = torch.randn(4, 3, generator=generator), torch.rand(4, generator=generator)
    cond = {"label": torch.arange(4.0), "more": (torch.ones(4, 3), None)}
    uncond = {"label": torch.zeros(4), "more": (torch.zeros(4, 3), None)}
    batched = ClassifierFree.batched(fn, cond, uncond, scale)(x, t)
    assert passes == ([4] if scale in (0.0, 1.0) else [8])
    split = ClassifierFree(lambda x, t: fn(x, t, cond), lambda x, t: fn(x, t, uncond), scale)
    torch.testing.assert_close(batched, split(x, t))


def test_bad_guides() -> None:
    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        return x.sum(1)

    with pytest.raises(ValueError, match="scale is -1"):
        ClassifierGuide(log_prob, -1.0)
    with pytest.raises(ValueError, match="scale is nan"):
        ClassifierFree(log_prob, log_prob, float("nan"))
    with pytest.raises(ValueError, match="give one of them"):
        ClassifierGuide(log_prob, start=0.5, start_guide_step=500)
    with pytest.raises(ValueError, match="there is start_guide_step"):
        ClassifierGuide(log_prob, start=500)
    with pytest.raises(ValueError, match=r"0 \.\.\. 1000"):
        ClassifierGuide(log_prob, start_guide_step=1001)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        ClassifierGuide(lambda x, t: x).gradient(x, 0.1)
    with pytest.raises(ValueError, match="detach"):
        ClassifierGuide(lambda x, t: x.detach().sum(1)).gradient(x, 0.1)
    with pytest.raises(ValueError, match="cannot be batched"):
        ClassifierFree.batched(lambda x, t, c: x, "T cell", "", 2.0)


def test_a_scale_a_row_in_pure_torch() -> None:
    cond, uncond = (lambda x, t: x + 2), (lambda x, t: x)
    guided = ClassifierFree(cond, uncond, torch.tensor([0.0, 1.0, 3.0]))
    torch.testing.assert_close(guided(torch.zeros(3, 1), torch.ones(3)), torch.tensor([[0.0], [2.0], [6.0]]))
    assert guided.calls_per_evaluation == 2
    assert ClassifierFree(cond, uncond, torch.ones(3)).calls_per_evaluation == 1
    with pytest.raises(ValueError, match="shape"):
        ClassifierFree(cond, uncond, torch.ones(3, 1))
    with pytest.raises(ValueError, match="not negative"):
        ClassifierFree(cond, uncond, torch.tensor([1.0, -1.0]))


def test_a_mix_of_conditions() -> None:
    network = lambda x, t, c: x * t[:, None] + c[:, None]
    x, t = torch.randn(4, 2), torch.rand(4)
    a, b, null = (torch.full((4,), v) for v in (1.0, 5.0, -2.0))
    free = ClassifierFree.batched(network, a, null, 1.7)
    torch.testing.assert_close(ConditionMix(network, [a], [1.0], null, 1.7)(x, t), free(x, t))
    mix = ConditionMix(network, [a, b], [0.3, 0.7], null)
    torch.testing.assert_close(mix(x, t), 0.3 * network(x, t, a) + 0.7 * network(x, t, b))
    assert mix.calls_per_evaluation == 2
    assert ConditionMix(network, [a, b], [0.0, 1.0], null).calls_per_evaluation == 1
    assert ConditionMix(network, [a, b], [0.25, 0.25], null).calls_per_evaluation == 3
    with pytest.raises(ValueError, match="one weight a condition"):
        ConditionMix(network, [a, b], [1.0], null)
