"""How generated cells are judged: pure functions on arrays, and :func:`evaluate`, which knows AnnData."""

from __future__ import annotations

from isd.metrics._classifier import ClassifierAUC, LabelAgreement, classifier_auc, label_agreement
from isd.metrics._evaluate import evaluate
from isd.metrics._kl import kl_gaussian_diagonal, kl_knn
from isd.metrics._mmd import MMDTest, median_distance, mmd, mmd_halves, mmd_permutation_test
from isd.metrics._neighbors import coverage, density
from isd.metrics._registry import METRICS, Metric
from isd.metrics._wasserstein import sliced_wasserstein, wasserstein2, wasserstein_1d
from isd.metrics._yardstick import Yardstick, log_normalize

__all__ = [
    "METRICS",
    "ClassifierAUC",
    "LabelAgreement",
    "MMDTest",
    "Metric",
    "Yardstick",
    "classifier_auc",
    "coverage",
    "density",
    "evaluate",
    "kl_gaussian_diagonal",
    "kl_knn",
    "label_agreement",
    "log_normalize",
    "median_distance",
    "mmd",
    "mmd_halves",
    "mmd_permutation_test",
    "sliced_wasserstein",
    "wasserstein2",
    "wasserstein_1d",
]
