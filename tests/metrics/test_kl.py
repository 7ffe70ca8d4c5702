from __future__ import annotations

import numpy as np
import pytest

from isd.metrics import kl_gaussian_diagonal, kl_knn


def gaussian_kl(mean: np.ndarray, covariance: np.ndarray) -> float:
    """KL(N(mean, covariance) || N(0, I))."""
    dim = mean.size
    return 0.5 * (np.trace(covariance) + mean @ mean - dim - np.linalg.slogdet(covariance)[1])


def test_diagonal_gaussian_matches_the_closed_form_of_the_fitted_moments():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, size=(300, 3)), rng.normal(0, 1, size=(200, 3))
    scale = y.std(axis=0)
    expected = gaussian_kl((x.mean(axis=0) - y.mean(axis=0)) / scale, np.diag(x.var(axis=0) / y.var(axis=0)))
    assert kl_gaussian_diagonal(x, y) == pytest.approx(expected)
    assert kl_gaussian_diagonal(x, x) == 0
    assert kl_gaussian_diagonal(x, y) != pytest.approx(kl_gaussian_diagonal(y, x))


def test_constant_dimensions_stay_finite():
    x = np.random.default_rng(1).normal(size=(20, 2))
    x[:, 1] = 1.0
    assert kl_gaussian_diagonal(x, x) == 0
    assert np.isfinite(kl_gaussian_diagonal(x, x + np.array([0, 0.001])))


@pytest.mark.parametrize("dim", [1, 3])
def test_nearest_neighbours_recover_the_divergence_of_gaussians(dim: int):
    rng = np.random.default_rng(2)
    mean, factor = np.full(dim, 0.5), np.eye(dim) * 0.8 + 0.1
    truth = gaussian_kl(mean, factor @ factor.T)
    draws = [
        kl_knn(rng.normal(size=(3000, dim)) @ factor.T + mean, rng.normal(size=(3000, dim)), k=5) for _ in range(3)
    ]
    assert np.mean(draws) == pytest.approx(truth, abs=0.06)


def test_nearest_neighbours_give_zero_for_equal_distributions_of_other_sizes():
    rng = np.random.default_rng(3)
    draws = [kl_knn(rng.normal(size=(400, 2)), rng.normal(size=(1200, 2))) for _ in range(10)]
    assert abs(np.mean(draws)) < 0.05


def test_copies_and_too_few_points():
    x = np.random.default_rng(4).normal(size=(30, 2))
    assert np.isfinite(kl_knn(np.repeat(x, 4, axis=0), x, k=2))
    with pytest.raises(ValueError, match="at least 6"):
        kl_knn(x[:5], x)
    with pytest.raises(ValueError, match="All points are the same"):
        kl_knn(np.ones((9, 2)), np.ones((9, 2)))
    with pytest.raises(ValueError, match="k=0"):
        kl_knn(x, x, k=0)
