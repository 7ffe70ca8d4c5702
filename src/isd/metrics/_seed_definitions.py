"""The starting project's metrics, exactly as it defined them: for comparison with its published table only."""

from __future__ import annotations

from typing import Any

import numpy as np

from isd.metrics._arrays import as_pair
from isd.metrics._mmd import mmd


def seed_mmd(x: Any, y: Any, *, gamma: float = 1.0) -> float:
    """Biased MMD squared with one RBF kernel ``exp(-gamma d^2)``, as the starting project computed it.

    Parameters
    ----------
    x, y
        Real and generated points, shapes ``(n, n_dims)`` and ``(m, n_dims)``.
    gamma
        Inverse squared width.

    Returns
    -------
    In 30 principal components the kernel is the identity, and this is ``1/n + 1/m`` **whatever is compared**: it
    measures nothing. Use :func:`isd.metrics.mmd`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(0, 9, size=(100, 30)), rng.normal(50, 20, size=(100, 30))
    >>> round(seed_mmd(x, y), 6)  # 2/n
    0.02
    """
    return mmd(x, y, np.sqrt(0.5 / gamma), unbiased=False)


def seed_classifier(
    x: Any, y: Any, *, n_estimators: int = 1000, max_depth: int = 5, seed: int = 0, n_jobs: int = 1
) -> np.ndarray:
    """Scores and classes of the starting project's random forest on the 25% of points that it held out.

    Parameters
    ----------
    x, y
        Real and generated points.
    n_estimators, max_depth
        Trees and their depth.
    seed
        Seed of the split and of the forest.
    n_jobs
        Processor cores.

    Returns
    -------
    Shape ``(2, n_held_out)``: the probability of being generated, and 1 for generated points.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> scores, classes = seed_classifier(rng.normal(size=(40, 2)), rng.normal(5.0, size=(40, 2)), n_estimators=20)
    >>> scores.shape, bool(scores[classes == 1].min() > scores[classes == 0].max())
    ((20,), True)
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import train_test_split

    x, y = as_pair(x, y, min_points=4)
    points, classes = np.concatenate([x, y]), np.repeat([0, 1], [x.shape[0], y.shape[0]])
    train_x, test_x, train_y, test_y = train_test_split(
        points, classes, test_size=0.25, random_state=seed, stratify=classes
    )
    forest = RandomForestClassifier(n_estimators, max_depth=max_depth, random_state=seed, n_jobs=n_jobs)
    return np.stack([forest.fit(train_x, train_y).predict_proba(test_x)[:, 1], test_y])


def seed_rf_auc(x: Any, y: Any, **options: Any) -> float:
    """AUC of the starting project's random forest: 1000 trees of depth 5, 25% of the points held out.

    Parameters
    ----------
    x, y
        Real and generated points.
    **options
        Those of :func:`seed_classifier`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> seed_rf_auc(rng.normal(size=(60, 2)), rng.normal(5.0, size=(60, 2)), n_estimators=20)
    1.0
    """
    from sklearn.metrics import roc_auc_score

    scores, classes = seed_classifier(x, y, **options)
    return float(roc_auc_score(classes, scores))


def union_pcs(real: Any, generated: Any, *, n_pcs: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Principal components fitted on real and generated cells together, as the starting project did.

    Parameters
    ----------
    real, generated
        Log-normalised values of all features, dense or csr, shapes ``(n, n_vars)`` and ``(m, n_vars)``.
    n_pcs
        Number of components.
    seed
        Seed of the solver's start.

    Returns
    -------
    Coordinates of either. They move with what is compared, so that values of two comparisons cannot be compared.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> real, generated = union_pcs(rng.normal(size=(20, 8)), rng.normal(size=(10, 8)), n_pcs=3)
    >>> real.shape, generated.shape
    ((20, 3), (10, 3))
    """
    from scipy import sparse
    from sklearn.decomposition import PCA

    both = sparse.csr_matrix(sparse.vstack([sparse.csr_matrix(real), sparse.csr_matrix(generated)]), dtype=np.float64)
    n_pcs = min(n_pcs, min(both.shape) - 1)
    points = PCA(n_pcs, svd_solver="arpack", random_state=seed).fit_transform(both)
    return points[: real.shape[0]], points[real.shape[0] :]
