import numpy as np
import pytest
from scipy import stats

from isd.module._sampling import gamma_rates, multinomial_rows


def test_gamma_poisson_is_the_negative_binomial_of_scipy():
    rng = np.random.default_rng(0)
    mean, theta = 4.0, 1.7
    rates = gamma_rates(np.full((20_000, 1), mean, dtype=np.float32), np.full((20_000, 1), theta), rng)
    counts = rng.poisson(rates).ravel()
    values = np.arange(15)
    expected = stats.nbinom(theta, theta / (theta + mean)).pmf(values)
    observed = np.array([(counts == v).mean() for v in values])
    # four standard errors of a share
    assert np.abs(observed - expected).max() < 4 * np.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("total", [7, 500])  # one search per count; one binomial per feature
def test_multinomial_rows_have_exact_totals_and_the_right_mean(total):
    rng = np.random.default_rng(0)
    rates = np.tile([1.0, 0.0, 2.0, 5.0], (3000, 1))
    counts = multinomial_rows(rates, np.full(3000, total), rng)
    assert (counts.sum(1) == total).all()
    assert (counts[:, 1] == 0).all()
    share = np.array([1, 0, 2, 5]) / 8
    error = 4 * np.sqrt(total * share * (1 - share) / 3000) + 1e-9
    assert (np.abs(counts.mean(0) - total * share) < error).all()
    assert counts.var(0)[3] == pytest.approx(total * share[3] * (1 - share[3]), rel=0.15)


def test_a_row_without_rates_still_gets_its_counts():
    counts = multinomial_rows(np.zeros((1, 4)), np.array([40]), np.random.default_rng(0))
    assert counts.sum() == 40
