"""Counts in clumps."""

import numpy as np
import pytest
import torch
from scipy import stats

from isd.nn import clump_terms
from isd.nn._clumps import MOST


def pmf(mean, theta, clump, most=3000):
    """By convolution: clumps of scipy's geometric distribution, as many as scipy's negative binomial says."""
    rate = mean / (1 + clump)
    n = np.arange(most)
    number = stats.nbinom.pmf(n, theta, theta / (theta + rate))
    out = np.zeros(most)
    out[0] = number[0]
    for i in range(1, most):
        if i > MOST and stats.nbinom.sf(i, theta, theta / (theta + rate)) < 1e-12:
            break
        # i clumps of geometric size: i and a negative binomial number
        out[i:] += number[i] * stats.nbinom.pmf(n[: most - i], i, 1 / (1 + clump))
    return out


def of(x, mean, theta, clump, dtype=torch.float64):
    x = torch.as_tensor(np.asarray(x), dtype=dtype)
    return clump_terms(x, *(torch.full_like(x, v).log() for v in (mean, theta, clump)))


@pytest.mark.parametrize(
    ("mean", "theta", "clump"), [(0.05, 0.2, 0.3), (2.0, 1.5, 0.25), (6.0, 30.0, 0.6), (1.0, 0.1, 0.01)]
)
def test_probabilities_are_those_of_the_convolution(mean, theta, clump):
    expected = pmf(mean, theta, clump)
    assert expected.sum() == pytest.approx(1.0, abs=1e-6)
    x = np.arange(1, MOST + 1)
    np.testing.assert_allclose(of(x, mean, theta, clump).values, np.log(expected[x] / expected[0]), rtol=1e-7)


def test_without_clumps_it_is_the_negative_binomial():
    x = np.arange(1, 60)
    expected = stats.nbinom.logpmf(x, 2.5, 2.5 / 11.5) - stats.nbinom.logpmf(0, 2.5, 2.5 / 11.5)
    np.testing.assert_allclose(of(x, 9.0, 2.5, 1e-12).values, expected, rtol=1e-6)


@pytest.mark.parametrize(("mean", "theta", "clump"), [(20.0, 5.0, 0.3), (40.0, 1.0, 0.2)])
def test_large_counts_are_told_by_the_same_mean_and_variance(mean, theta, clump):
    expected = pmf(mean, theta, clump)
    n = np.arange(len(expected))
    assert (expected * n).sum() == pytest.approx(mean, rel=1e-4)
    variance = (expected * (n - mean) ** 2).sum()
    assert variance == pytest.approx(mean * (1 + 2 * clump) + mean**2 / theta, rel=1e-3)
    x = np.arange(MOST + 1, 3 * int(mean))
    difference = of(x, mean, theta, clump).values.numpy() - np.log(expected[x] / expected[0])
    assert np.abs(difference).max() < 0.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_are_those_of_finite_differences(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.arange(1, 40), torch.randint(1, 3000, (60,), generator=generator)]).to(torch.float64)
    logs = [torch.randn(len(x), generator=generator, dtype=torch.float64) for _ in range(3)]
    logs[0] += x.log() * 0.7
    logs[2] -= 1.0
    terms = clump_terms(*(t.to(dtype) for t in (x, *logs)))
    tolerance = 2e-3 if dtype == torch.float32 else 1e-5
    h = 1e-5
    for k, found in enumerate((terms.by_mean, terms.by_theta, terms.by_clump)):
        below, above = [*logs], [*logs]
        below[k], above[k] = logs[k] - h, logs[k] + h
        expected = (clump_terms(x, *above).values - clump_terms(x, *below).values) / (2 * h)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_zeros_that_are_stored_are_zeros():
    terms = clump_terms(torch.tensor([0.0, 3.0, 0.0]), *torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    for values in terms:
        assert (values == 0).tolist() == [True, False, True]


@pytest.mark.parametrize("log_theta", [-8.0, 12.0])
@pytest.mark.parametrize("log_clump", [-12.0, 3.0])
@pytest.mark.parametrize("log_mean", [-87.3, -40.0, 9.0])
def test_extremes_are_finite_in_single_precision(log_mean, log_theta, log_clump):
    x = torch.tensor([1.0, 2.0, 5.0, 16.0, 17.0, 30_000.0, 1e6])
    terms = clump_terms(x, *(torch.full_like(x, v) for v in (log_mean, log_theta, log_clump)))
    exact = clump_terms(x.double(), *(torch.full_like(x.double(), v) for v in (log_mean, log_theta, log_clump)))
    for found, expected in zip(terms, exact, strict=True):
        assert torch.isfinite(found).all()
        # derivatives of a million counts lose a digit or two
        torch.testing.assert_close(found.double()[:-1], expected[:-1], rtol=1e-3, atol=2e-2)
