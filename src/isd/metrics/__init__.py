"""How generated cells are judged: pure functions on arrays, and :func:`evaluate`, which knows AnnData."""

from __future__ import annotations

from isd.metrics._baselines import BASELINES, baselines
from isd.metrics._between_labels import log_fold_change_slope, log_fold_changes, marker_overlap
from isd.metrics._classifier import ClassifierAUC, LabelAgreement, classifier_auc, label_agreement
from isd.metrics._evaluate import evaluate
from isd.metrics._genes import GeneMap
from isd.metrics._kl import kl_gaussian_diagonal, kl_knn
from isd.metrics._lisi import lisi, lisi_mixing
from isd.metrics._memorization import exact_copy_rate, nearest_distance_ratio, row_hashes
from isd.metrics._mmd import MMDTest, median_distance, mmd, mmd_halves, mmd_permutation_test
from isd.metrics._moments import (
    correlation_error,
    ks_distance,
    mean_error,
    pair_correlation_error,
    variance_error,
    zero_fraction_error,
)
from isd.metrics._neighbors import coverage, density, precision, recall
from isd.metrics._registry import METRICS, SEED_METRICS, Metric
from isd.metrics._seed_definitions import seed_classifier, seed_mmd, seed_rf_auc, union_pcs
from isd.metrics._usage import (
    IsoformUsage,
    dominant_isoform,
    isoform_usage,
    usage_change,
    usage_entropy,
    usage_js_distance,
)
from isd.metrics._verdict import verdict
from isd.metrics._wasserstein import sliced_wasserstein, wasserstein2, wasserstein_1d
from isd.metrics._yardstick import Yardstick, log_normalize

__all__ = [
    "BASELINES",
    "METRICS",
    "SEED_METRICS",
    "ClassifierAUC",
    "GeneMap",
    "IsoformUsage",
    "LabelAgreement",
    "MMDTest",
    "Metric",
    "Yardstick",
    "baselines",
    "classifier_auc",
    "correlation_error",
    "coverage",
    "density",
    "dominant_isoform",
    "evaluate",
    "exact_copy_rate",
    "isoform_usage",
    "kl_gaussian_diagonal",
    "kl_knn",
    "ks_distance",
    "label_agreement",
    "lisi",
    "lisi_mixing",
    "log_fold_change_slope",
    "log_fold_changes",
    "log_normalize",
    "marker_overlap",
    "mean_error",
    "median_distance",
    "mmd",
    "mmd_halves",
    "mmd_permutation_test",
    "nearest_distance_ratio",
    "pair_correlation_error",
    "precision",
    "recall",
    "row_hashes",
    "seed_classifier",
    "seed_mmd",
    "seed_rf_auc",
    "sliced_wasserstein",
    "union_pcs",
    "usage_change",
    "usage_entropy",
    "usage_js_distance",
    "variance_error",
    "verdict",
    "wasserstein2",
    "wasserstein_1d",
    "zero_fraction_error",
]
