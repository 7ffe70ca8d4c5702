from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import linregress

from isd.metrics import log_fold_change_slope, log_fold_changes, marker_overlap


def test_fold_changes_are_differences_of_means_whatever_the_proportions():
    rng = np.random.default_rng(0)
    values, codes = rng.poisson(2.0, size=(90, 7)).astype(float), np.repeat([0, 1, 2, -1], [10, 50, 20, 10])
    found = log_fold_changes(sparse.csr_matrix(values), codes, 3)
    means = [values[codes == code].mean(axis=0) for code in range(3)]
    np.testing.assert_allclose(found[0], means[0] - (means[1] + means[2]) / 2)
    np.testing.assert_allclose(found, log_fold_changes(values, codes, 3))
    empty = log_fold_changes(values, codes, 4)
    assert np.isnan(empty[3]).all()
    np.testing.assert_allclose(empty[:3], found)


def test_slope_is_that_of_a_regression_through_the_origin():
    rng = np.random.default_rng(1)
    real = rng.normal(size=(2, 400))
    real -= real.mean(axis=1, keepdims=True)
    fake = np.array([[0.5], [1.2]]) * real + 0.1 * rng.normal(size=real.shape)
    expected = [linregress(a, b).slope for a, b in zip(real, fake, strict=True)]  # centred: the same line
    np.testing.assert_allclose(log_fold_change_slope(real, fake), expected, rtol=1e-6)
    assert np.isnan(log_fold_change_slope(np.zeros((1, 4)), np.ones((1, 4)))).all()


def test_markers():
    rng = np.random.default_rng(2)
    real = rng.normal(size=(3, 1000))
    np.testing.assert_array_equal(marker_overlap(real, 2 * real), 1.0)
    assert marker_overlap(real, rng.normal(size=(3, 1000)), n_markers=100).mean() == pytest.approx(0.1, abs=0.06)
    half = real.copy()
    top = np.argsort(-real[0])[:20]
    half[0, top[:5]] = -9
    assert marker_overlap(real, half, n_markers=20)[0] == pytest.approx(15 / 20)
    real[1, 0] = np.nan
    assert np.isnan(marker_overlap(real, half)[1])
