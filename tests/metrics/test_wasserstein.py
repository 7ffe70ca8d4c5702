from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from isd.metrics import sliced_wasserstein, wasserstein2, wasserstein_1d

ot = pytest.importorskip("ot")


@pytest.mark.parametrize("n_y", [50, 37])
def test_per_feature_distance_matches_scipy(n_y: int):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.poisson(2.0, size=(n_y, 4)).astype(float)
    expected = np.mean([wasserstein_distance(x[:, j], y[:, j]) for j in range(4)])
    assert wasserstein_1d(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n_y", "p"), [(40, 1), (40, 2), (31, 1), (31, 2)])
def test_sliced_distance_matches_pot(n_y: int, p: int):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 5)), rng.normal(1, 2, size=(n_y, 5))
    directions = rng.normal(size=(5, 30))
    directions /= np.linalg.norm(directions, axis=0)
    expected = ot.sliced_wasserstein_distance(x, y, projections=directions, p=p)
    assert sliced_wasserstein(x, y, p=p, projections=directions) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("n_y", [60, 45])
def test_exact_distance_matches_pot(n_y: int):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 3)), rng.normal(0.5, 1, size=(n_y, 3))
    expected = np.sqrt(ot.emd2(np.full(60, 1 / 60), np.full(n_y, 1 / n_y), ot.dist(x, y)))
    assert wasserstein2(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_shifts_have_their_length_as_distance():
    x = np.random.default_rng(3).normal(size=(200, 4))
    shift = np.array([3.0, 0.0, 4.0, 0.0])
    assert wasserstein2(x, x + shift) == pytest.approx(5.0)
    assert wasserstein_1d(x, x + shift) == pytest.approx(7 / 4)
    # a direction u sees |<u, shift>|; for p = 2 the average of its square is |shift|^2 / n_dims
    assert sliced_wasserstein(x, x + shift, p=2, n_projections=5000) == pytest.approx(2.5, rel=0.03)


def test_one_dimensional_gaussians():
    rng = np.random.default_rng(4)
    x, y = rng.normal(0, 1, size=(20_000, 1)), rng.normal(1, 2, size=(20_000, 1))
    assert wasserstein2(x[:1000], y[:1000]) == pytest.approx(np.sqrt(2), rel=0.1)  # sqrt(dmean^2 + dsd^2)
    assert sliced_wasserstein(x, y, p=2) == pytest.approx(np.sqrt(2), rel=0.03)


def test_large_samples_are_thinned_without_replacement():
    x = np.arange(500.0)[:, None]
    assert wasserstein2(x, x, max_points=500) == 0
    assert 0 < wasserstein2(x, x, max_points=50) < 100


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="p=0"):
        sliced_wasserstein(np.ones((3, 2)), np.ones((3, 2)), p=0)
    with pytest.raises(ValueError, match="shape"):
        wasserstein_1d(np.ones((0, 2)), np.ones((3, 2)))
