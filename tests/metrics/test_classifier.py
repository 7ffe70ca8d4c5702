from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from isd.metrics import classifier_auc, label_agreement
from isd.metrics._classifier import ROC_GRID, weighted_roc


def test_roc_and_auc_match_sklearn_with_ties_and_weights():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 12, size=200) / 12, rng.integers(0, 2, size=200)
    weights = np.vstack([np.ones(200), rng.integers(0, 4, size=200)])
    auc, tpr = weighted_roc(scores, positive, weights)
    for row in range(2):
        assert auc[row] == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights[row]))
        fpr_sk, tpr_sk, _ = roc_curve(positive, scores, sample_weight=weights[row], drop_intermediate=False)
        np.testing.assert_allclose(tpr[row], np.interp(ROC_GRID, fpr_sk, tpr_sk), atol=1e-9)


def test_logistic_regression_reaches_the_optimal_auc_of_shifted_gaussians():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(1500, 3)), rng.normal(size=(1500, 3)) + np.array([1.0, 0, 0])
    result = classifier_auc(x, y, classifier="logistic_regression")
    truth = norm.cdf(1 / np.sqrt(2))  # score difference is N(1, 2)
    assert result.auc == pytest.approx(truth, abs=0.025)
    assert result.lower < truth < result.upper


@pytest.mark.parametrize("classifier", ["random_forest", "gradient_boosting"])
def test_trees_find_what_a_line_cannot(classifier):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(250, 2)), 2.5 * rng.normal(size=(250, 2))
    assert classifier_auc(x, y, classifier=classifier, n_estimators=60).auc > 0.8
    assert classifier_auc(x, y, classifier="logistic_regression").auc < 0.6


def test_equal_distributions_are_not_told_apart_and_the_interval_says_so():
    rng = np.random.default_rng(3)
    results = [
        classifier_auc(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), n_estimators=30, seed=s) for s in range(12)
    ]
    assert np.mean([r.auc for r in results]) == pytest.approx(0.5, abs=0.05)
    assert sum(r.lower <= 0.5 <= r.upper for r in results) >= 9


def test_scores_are_out_of_fold():
    rng = np.random.default_rng(4)
    # noise that a full-depth forest learns by heart: in-sample the AUC would be 1
    assert classifier_auc(rng.normal(size=(80, 30)), rng.normal(size=(80, 30)), n_estimators=50).auc < 0.7


def test_result_depends_on_the_seed_only():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(50, 3)), rng.normal(0.4, 1, size=(50, 3))
    one, two = (classifier_auc(x, y, n_estimators=20, n_jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.scores, two.scores)
    assert one.auc != classifier_auc(x, y, n_estimators=20, seed=1).auc
    np.testing.assert_allclose(one.auc, roc_auc_score([0] * 50 + [1] * 50, one.scores))
    assert one.fpr.shape == one.tpr.shape == one.tpr_lower.shape
    assert (one.tpr_lower <= one.tpr + 1e-9).mean() > 0.95


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="'svm' is not known"):
        classifier_auc(np.ones((9, 2)), np.ones((9, 2)), classifier="svm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 5"):
        classifier_auc(np.ones((4, 2)), np.ones((9, 2)))


def test_label_agreement_counts_what_the_classifier_finds():
    rng = np.random.default_rng(6)
    centres = {"0": -5.0, "10": 0.0, "2": 5.0}
    train_y = np.repeat(list(centres), 40)
    train_x = np.array([centres[v] for v in train_y])[:, None] + rng.normal(size=(120, 1))
    asked = np.array(["0"] * 10 + ["10"] * 10 + ["new"] * 5)
    points = np.concatenate([np.full(10, -5.0), np.full(5, 0.0), np.full(5, 5.0), np.full(5, 5.0)])[:, None]
    result = label_agreement(train_x, train_y, points, asked)
    assert result.per_label == {"0": 1.0, "10": 0.5, "new": 0.0}
    assert result.overall == pytest.approx(15 / 25)
    assert result.n_per_label == {"0": 10, "10": 10, "new": 5}
    assert set(result.predicted[15:]) == {"2"}


def test_label_agreement_with_one_label_and_wrong_lengths():
    x = np.zeros((3, 1))
    assert label_agreement(x, ["a"] * 3, x, ["a", "b", "a"]).overall == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"gen_x has 3 rows but gen_y has 2 labels"):
        label_agreement(x, ["a"] * 3, x, ["a", "b"])
