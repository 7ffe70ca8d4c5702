from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics.pairwise import rbf_kernel

from isd.metrics import median_distance, mmd, mmd_halves, mmd_permutation_test


def gaussian_mmd(shift: np.ndarray, sigma: float, dim: int) -> float:
    """MMD^2 of N(0, I) and N(shift, I) under the RBF kernel: Gaussian integrals in closed form."""
    scale = (sigma**2 / (sigma**2 + 2)) ** (dim / 2)
    return 2 * scale * (1 - np.exp(-(shift @ shift) / (2 * (sigma**2 + 2))))


def test_unbiased_and_biased_match_sklearn_kernels():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(0.5, 1.2, size=(25, 3))
    sigmas = [0.7, 2.0]
    expected = {True: 0.0, False: 0.0}
    for sigma in sigmas:
        kxx, kyy, kxy = (rbf_kernel(a, b, gamma=1 / (2 * sigma**2)) for a, b in ((x, x), (y, y), (x, y)))
        expected[False] += kxx.mean() + kyy.mean() - 2 * kxy.mean()
        expected[True] += (kxx.sum() - 40) / (40 * 39) + (kyy.sum() - 25) / (25 * 24) - 2 * kxy.mean()
    for unbiased, value in expected.items():
        assert mmd(x, y, sigmas, unbiased=unbiased) == pytest.approx(value, rel=1e-9)


def test_recovers_the_closed_form_of_gaussians():
    rng = np.random.default_rng(1)
    shift = np.array([0.8, 0.0, -0.4])
    x, y = rng.normal(size=(3000, 3)), rng.normal(size=(3000, 3)) + shift
    assert mmd(x, y, 1.5) == pytest.approx(gaussian_mmd(shift, 1.5, 3), abs=0.01)


def test_unbiased_estimate_averages_to_zero_for_equal_distributions():
    rng = np.random.default_rng(2)
    draws = [mmd(rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), 2.0) for _ in range(200)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(200)
    assert min(draws) < 0 < max(draws)


def test_default_bandwidths_are_multiples_of_the_real_samples_median():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(50, 2)), 10 + rng.normal(size=(50, 2))
    median = np.median(pdist(x))
    assert median_distance(x) == pytest.approx(median)
    assert mmd(x, y) == pytest.approx(mmd(x, y, [0.5 * median, median, 2 * median]))


def test_float32_far_from_the_origin_agrees_with_float64():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, 5)) + 1000, rng.normal(0.3, 1, size=(60, 5)) + 1000
    assert mmd(x.astype(np.float32), y.astype(np.float32), 2.0) == pytest.approx(mmd(x, y, 2.0), abs=1e-3)


def test_permutation_test_separates_and_is_calibrated():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 3))
    assert mmd_permutation_test(x, rng.normal(0.8, 1, size=(60, 3))).p_value < 0.01
    p_values = [
        mmd_permutation_test(rng.normal(size=(25, 2)), rng.normal(size=(25, 2)), n_permutations=99, seed=s).p_value
        for s in range(100)
    ]
    assert np.mean(np.array(p_values) <= 0.2) == pytest.approx(0.2, abs=0.13)


def test_null_of_the_permutation_test_is_the_statistic_of_relabelled_points():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(12, 2)), rng.normal(1, 1, size=(9, 2))
    test = mmd_permutation_test(x, y, 1.0, n_permutations=3, seed=7)
    pooled, again = np.concatenate([x, y]), np.random.default_rng(7)
    for value in test.null:
        order = again.permutation(21)
        first = np.sort(order[:12])
        second = np.setdiff1d(np.arange(21), first)
        assert value == pytest.approx(mmd(pooled[first], pooled[second], 1.0))
    assert test.statistic == pytest.approx(mmd(x, y, 1.0))


def test_bootstrap_is_centred_and_covers_the_truth():
    rng = np.random.default_rng(8)
    shift = np.array([1.0, 0.0])
    truth = gaussian_mmd(shift, 1.0, 2)
    covered = 0
    for seed in range(40):
        x, y = rng.normal(size=(80, 2)), rng.normal(size=(80, 2)) + shift
        test = mmd_permutation_test(x, y, 1.0, n_permutations=1, n_boot=200, seed=seed)
        assert test.bootstrap.mean() == pytest.approx(test.statistic, abs=0.02)
        low, high = np.percentile(test.bootstrap, [2.5, 97.5])
        covered += low <= truth <= high
    assert covered >= 33


def test_the_seeds_kernel_is_degenerate_and_its_biased_estimate_is_two_over_n():
    rng = np.random.default_rng(9)
    sigma = np.sqrt(0.5)  # gamma = 1
    x = rng.normal(size=(100, 30)) * 3
    for y in (rng.normal(size=(100, 30)) * 3, rng.normal(5, 3, size=(100, 30))):
        assert mmd(x, y, sigma, unbiased=False) == pytest.approx(2 / 100, rel=1e-3)
        assert mmd_permutation_test(x, y, sigma, n_permutations=5).degenerate
    ours = [mmd_permutation_test(x, y, n_permutations=50) for y in (x[::-1] + 0.0, rng.normal(5, 3, size=(100, 30)))]
    assert not ours[0].degenerate and ours[1].statistic > 0.1


def test_halves_are_mmds_of_disjoint_halves_and_average_to_zero():
    x = np.random.default_rng(10).normal(size=(21, 2))
    draws = mmd_halves(x, 1.0, n_halvings=2, seed=3)
    again = np.random.default_rng(3)
    for draw in draws:
        chosen = np.sort(again.permutation(20)[:10])
        assert draw == pytest.approx(mmd(x[chosen], x[np.setdiff1d(np.arange(20), chosen)], 1.0))
    many = mmd_halves(x, 1.0, n_halvings=400)
    assert abs(many.mean()) < 4 * many.std() / 20


def test_bad_input_is_refused():
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match="x has 2 dimensions and y has 3"):
        mmd(x, np.zeros((5, 3)))
    with pytest.raises(ValueError, match="positive"):
        mmd(x + np.arange(5)[:, None], x, 0.0)
    with pytest.raises(ValueError, match="All points are the same"):
        mmd(x, x)
    with pytest.raises(ValueError, match="NaN"):
        mmd(x * np.nan, x)
    with pytest.raises(ValueError, match="at least 4"):
        mmd_halves(x[:3])


def test_median_ignores_zero_distances_only_where_they_are_most():
    x = np.array([[0.0]] * 9 + [[3.0]])
    assert np.median(cdist(x, x)) == 0 and median_distance(x) == 3.0
