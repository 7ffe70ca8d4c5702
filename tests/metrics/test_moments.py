from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from isd.metrics import (
    correlation_error,
    ks_distance,
    mean_error,
    pair_correlation_error,
    variance_error,
    zero_fraction_error,
)


def test_ks_matches_scipy_with_ties_and_other_sizes():
    rng = np.random.default_rng(0)
    x, y = rng.poisson(4, size=(150, 3)), rng.poisson(5, size=(90, 3))
    expected = max(ks_2samp(x[:, j], y[:, j]).statistic for j in range(3))
    assert ks_distance(x, y) == pytest.approx(expected)
    assert ks_distance(x, x) == 0


def test_moments_by_hand():
    rng = np.random.default_rng(1)
    x = rng.gamma(2.0, size=(200, 5))
    assert mean_error(x, 1.5 * x) == pytest.approx(0.5)
    assert variance_error(x, 1.5 * x) == pytest.approx(1.25)
    zeros = x.copy()
    zeros[:50, 0] = 0
    assert zero_fraction_error(x, zeros) == pytest.approx(0.25 / 5)
    # each is blind to what the others see
    assert variance_error(x, x + 3.0) == pytest.approx(0, abs=1e-9)
    assert zero_fraction_error(x, 2 * x) == 0
    assert mean_error(x, 2 * x.mean(axis=0) - x) == pytest.approx(0, abs=1e-9)


def test_correlations_match_numpy_and_a_constant_feature_is_uncorrelated():
    rng = np.random.default_rng(2)
    mixing = rng.normal(size=(6, 6))
    x, y = rng.normal(size=(300, 6)) @ mixing, rng.normal(size=(200, 6))
    upper = np.triu_indices(6, 1)
    difference = (np.corrcoef(y, rowvar=False) - np.corrcoef(x, rowvar=False))[upper]
    assert correlation_error(x, y) == pytest.approx(np.sqrt((difference**2).mean()))
    expected = np.abs([difference[list(zip(*upper, strict=True)).index((j, j + 3))] for j in range(3)]).mean()
    assert pair_correlation_error(x, y) == pytest.approx(expected)
    y[:, 0] = 3.0
    real = np.corrcoef(x[:, [0, 3]], rowvar=False)[0, 1]
    assert pair_correlation_error(x[:, [0, 3]], y[:, [0, 3]]) == pytest.approx(abs(real))
    # scale and shift of a feature do not matter
    assert correlation_error(x, 5 + x * np.arange(1, 7)) == pytest.approx(0, abs=1e-7)


def test_expectation_for_equal_distributions():
    rng = np.random.default_rng(3)
    found = np.mean([correlation_error(rng.normal(size=(100, 20)), rng.normal(size=(200, 20))) for _ in range(10)])
    assert found == pytest.approx(np.sqrt(1 / 100 + 1 / 200), rel=0.05)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="even number"):
        pair_correlation_error(np.ones((4, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="at least 2"):
        correlation_error(np.ones((4, 1)), np.ones((4, 1)))
