"""Negative binomial counts that come in clumps."""

import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomial

from isd.module import ClumpedNegativeBinomial

CASES = [(3.0, 0.7, 0.4), (0.2, 5.0, 1.0), (8.0, 40.0, 0.1)]


def px(mean, theta, clump):
    return ClumpedNegativeBinomial(*(torch.tensor([v], dtype=torch.float64) for v in (mean, theta, clump)))


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_probabilities(case):
    torch.manual_seed(0)
    distribution = px(*case)
    counts = distribution.sample((20_000,)).squeeze(1)
    assert counts.mean() == pytest.approx(case[0], abs=4 * float((distribution.variance / 20_000).sqrt()))
    assert counts.var() == pytest.approx(float(distribution.variance), rel=0.1)
    values = torch.arange(17, dtype=torch.float64)
    expected = distribution.log_prob(values[:, None]).exp().squeeze(1)
    often = expected * 20_000 > 20
    observed = torch.stack([(counts == v).sum() for v in values])[often].numpy()
    expected = (expected[often] * 20_000).numpy()
    rest = [20_000 - observed.sum(), 20_000 - expected.sum()]
    test = stats.chisquare([*observed, rest[0]], [*expected, rest[1]])
    assert test.pvalue > 0.001


@pytest.mark.parametrize("case", CASES)
def test_probabilities_add_up(case):
    values = torch.arange(400, dtype=torch.float64)[:, None]
    probabilities = px(*case).log_prob(values).exp()
    # above 16 they are those of another distribution of the same mean and variance
    assert probabilities.sum() == pytest.approx(1.0, abs=2e-3)
    assert (values * probabilities).sum() == pytest.approx(case[0], rel=1e-2)


def test_single_counts_are_scvis_negative_binomial():
    values = torch.tensor([0.0, 1.0, 2.0, 7.0, 90.0], dtype=torch.float64)[:, None]
    plain = NegativeBinomial(mu=torch.tensor([4.0]).double(), theta=torch.tensor([0.6]).double())
    torch.testing.assert_close(px(4.0, 0.6, 1e-12).log_prob(values), plain.log_prob(values), rtol=1e-6, atol=1e-6)


def test_shapes_shares_and_gradients():
    mean = torch.tensor([[1.0, 0.0, 3.0]], requires_grad=True)
    distribution = ClumpedNegativeBinomial(mean, torch.ones(3), torch.full((3,), 0.2), scale=mean / 4)
    assert distribution.sample().shape == (1, 3) and distribution.sample((2,)).shape == (2, 1, 3)
    assert (distribution.sample((50,))[..., 1] == 0).all()
    torch.testing.assert_close(distribution.get_normalized("scale"), mean / 4)
    assert distribution.get_normalized("mu") is distribution.mean
    with pytest.raises(ValueError, match="'mu'"):
        distribution.get_normalized("theta")
    (gradient,) = torch.autograd.grad(distribution.log_prob(torch.tensor([[2.0, 0.0, 0.0]])).sum(), mean)
    assert torch.isfinite(gradient).all() and gradient[0, 0] > 0 > gradient[0, 2]
