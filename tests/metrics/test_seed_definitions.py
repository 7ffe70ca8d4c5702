from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from isd.metrics import mmd, seed_mmd, seed_rf_auc, union_pcs
from isd.metrics._seed_definitions import seed_classifier


def test_its_mmd_is_that_of_its_kernel():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2)), rng.normal(0.5, 1, size=(30, 2))
    xx, yy, xy = (np.exp(-(cdist(a, b) ** 2)).mean() for a, b in ((x, x), (y, y), (x, y)))
    assert seed_mmd(x, y) == pytest.approx(xx + yy - 2 * xy)


@pytest.mark.parametrize("n", [100, 250])
def test_its_mmd_is_two_over_n_whatever_is_compared_and_ours_is_not(n):
    rng = np.random.default_rng(1)
    scale = np.linspace(12, 2, 30)  # as principal components of log-normalised cells
    x, same, other = rng.normal(size=(n, 30)) * scale, rng.normal(size=(n, 30)) * scale, rng.normal(size=(n, 30)) + 40
    theirs = [seed_mmd(x, y) for y in (same, other)]
    ours = [mmd(x, y) for y in (same, other)]
    np.testing.assert_allclose(theirs, 2 / n, rtol=1e-3)
    assert abs(ours[0]) < 0.02 < 0.5 < ours[1]


def test_components_are_fitted_on_both():
    rng = np.random.default_rng(2)
    x, y = rng.poisson(2.0, size=(40, 15)).astype(float), rng.poisson(3.0, size=(30, 15)).astype(float)
    a, b = union_pcs(sparse.csr_matrix(x), sparse.csr_matrix(y), n_pcs=4)
    expected = PCA(4, svd_solver="full").fit_transform(np.concatenate([x, y]))
    np.testing.assert_allclose(np.abs(np.concatenate([a, b])), np.abs(expected), atol=1e-6)
    assert a.shape == (40, 4) and b.shape == (30, 4)


def test_its_forest_scores_a_quarter_of_the_points():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 3)), rng.normal(1.2, 1, size=(60, 3))
    scores, classes = seed_classifier(x, y, n_estimators=30)
    assert scores.size == 30 and classes.sum() == 15
    expected = roc_auc_score(classes, scores)
    assert 0.5 < seed_rf_auc(x, y, n_estimators=30) == expected < 1
    assert seed_rf_auc(x, y + 30, n_estimators=10) == 1.0
