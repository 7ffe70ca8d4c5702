"""Classifier two-sample test with its ROC curve, and agreement of generated cells with the label asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isd.metrics._arrays import as_pair, interval

ClassifierName = Literal["random_forest", "gradient_boosting", "logistic_regression"]
#: False positive rates at which ROC curves are kept.
ROC_GRID = np.linspace(0, 1, 101)


def _make_classifier(name: str, n_estimators: int, seed: int, n_jobs: int) -> Any:
    if name == "random_forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(n_estimators, random_state=seed, n_jobs=n_jobs)
    if name == "gradient_boosting":
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(max_iter=n_estimators, learning_rate=0.05, random_state=seed)
    if name == "logistic_regression":
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, random_state=seed))
    raise ValueError(
        f"classifier {name!r} is not known; choose 'random_forest', 'gradient_boosting' or 'logistic_regression'."
    )


@dataclass(frozen=True, eq=False)
class ClassifierAUC:
    """Outcome of :func:`classifier_auc`.

    Parameters
    ----------
    auc
        Area under the ROC curve of the out-of-fold scores: 0.5 is indistinguishable, 1 is told apart always.
    lower, upper
        Bootstrap interval (95%) over cells, classifiers held fixed.
    fpr
        Grid of false positive rates (a real cell called generated), shape ``(101,)``.
    tpr
        True positive rate (a generated cell found) at each, interpolated.
    tpr_lower, tpr_upper
        Bootstrap interval of ``tpr``.
    draws
        Bootstrap draws of ``auc``, shape ``(n_boot,)``.
    tpr_draws
        Bootstrap draws of ``tpr``, shape ``(n_boot, 101)``.
    scores
        Out-of-fold probability of being generated, real cells first, shape ``(n + m,)``.

    Examples
    --------
    >>> from isd.metrics import classifier_auc
    >>> rng = np.random.default_rng(0)
    >>> found = classifier_auc(rng.normal(size=(60, 2)), rng.normal(5.0, size=(60, 2)), n_estimators=20)
    >>> found.auc, found.tpr.shape
    (1.0, (101,))
    """

    auc: float
    lower: float
    upper: float
    fpr: np.ndarray
    tpr: np.ndarray
    tpr_lower: np.ndarray
    tpr_upper: np.ndarray
    draws: np.ndarray
    tpr_draws: np.ndarray
    scores: np.ndarray


def classifier_auc(
    x: Any,
    y: Any,
    *,
    classifier: ClassifierName = "random_forest",
    n_splits: int = 5,
    n_estimators: int = 300,
    n_boot: int = 200,
    seed: int = 0,
    n_jobs: int = 1,
) -> ClassifierAUC:
    """Classifier two-sample test: how well a cross-validated classifier tells generated points from real ones.

    Parameters
    ----------
    x
        Real points, shape ``(n, n_dims)``. Draw cells without replacement: copies that fall into two folds raise
        the AUC of real cells against themselves.
    y
        Generated points, shape ``(m, n_dims)``; give equal numbers, so that folds are balanced.
    classifier
        ``"random_forest"`` (full depth), ``"gradient_boosting"`` or ``"logistic_regression"``.
    n_splits
        Folds, stratified; every point is scored by a classifier that has not seen it.
    n_estimators
        Number of trees.
    n_boot
        Number of bootstrap samples of the scores.
    seed
        Seed of folds, trees and bootstrap.
    n_jobs
        Processor cores, as in scikit-learn; results do not depend on it.

    Returns
    -------
    :class:`ClassifierAUC`.

    Raises
    ------
    ValueError
        For an unknown classifier or fewer points than folds.

    References
    ----------
    Lopez-Paz and Oquab 2017, Revisiting Classifier Two-Sample Tests, ICLR; Fawcett 2006 for ROC curves.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(60, 2)), rng.normal(3.0, size=(60, 2))
    >>> classifier_auc(x, y, n_estimators=20).auc > 0.95
    True
    """
    from sklearn.model_selection import StratifiedKFold

    _make_classifier(classifier, 1, seed, 1)
    x, y = as_pair(x, y, min_points=n_splits)
    points = np.concatenate([x, y]).astype(np.float32)
    is_generated = np.repeat([0, 1], [x.shape[0], y.shape[0]])
    scores = np.empty(points.shape[0])
    folds = StratifiedKFold(n_splits, shuffle=True, random_state=seed).split(points, is_generated)
    for fold, (train, held_out) in enumerate(folds):
        model = _make_classifier(classifier, n_estimators, seed + fold, n_jobs).fit(points[train], is_generated[train])
        scores[held_out] = model.predict_proba(points[held_out])[:, 1]
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + n_boot, points.shape[0]))
    for value in (0, 1):
        members = np.flatnonzero(is_generated == value)
        weights[1:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), size=n_boot)
    auc, tpr = weighted_roc(scores, is_generated, weights)
    lower, upper = interval(auc[1:]) if n_boot else (np.nan, np.nan)
    band = np.percentile(tpr[1:], [2.5, 97.5], axis=0) if n_boot else np.full((2, ROC_GRID.size), np.nan)
    return ClassifierAUC(float(auc[0]), lower, upper, ROC_GRID, tpr[0], band[0], band[1], auc[1:], tpr[1:], scores)


def weighted_roc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC and ROC curve of scored points under several sets of weights at once.

    Parameters
    ----------
    scores
        Scores, shape ``(n,)``; ties count one half.
    positive
        1 for points that should score high, 0 for others.
    weights
        Weights of the points, shape ``(n_sets, n)``: ones for the sample itself, counts for a bootstrap sample.

    Returns
    -------
    AUCs of shape ``(n_sets,)`` and true positive rates at :data:`ROC_GRID`, shape ``(n_sets, 101)``.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ordered)), ordered.size - 1)
    rates = []
    for value in (0, 1):
        cumulated = np.cumsum(weights[:, order] * (positive[order] == value), axis=1)[:, last_of_tie]
        rates.append(np.hstack([np.zeros((weights.shape[0], 1)), cumulated / cumulated[:, -1:]]))
    fpr, tpr = rates
    auc = (np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(axis=1)
    return auc, np.stack([np.interp(ROC_GRID, f, t) for f, t in zip(fpr, tpr, strict=True)])


@dataclass(frozen=True, eq=False)
class LabelAgreement:
    """Outcome of :func:`label_agreement`.

    Parameters
    ----------
    overall
        Share of points whose label the classifier finds.
    per_label
        The same for each label asked for.
    n_per_label
        Number of points of each.
    predicted
        Label found for each point.

    Examples
    --------
    >>> from isd.metrics import label_agreement
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(["a", "b"], 30)
    >>> cells = rng.normal(np.where(labels == "a", 0.0, 9.0)[:, None], size=(60, 2))
    >>> label_agreement(cells, labels, cells, labels).per_label
    {'a': 1.0, 'b': 1.0}
    """

    overall: float
    per_label: dict[str, float]
    n_per_label: dict[str, int]
    predicted: np.ndarray


def label_finder(
    train_x: np.ndarray,
    train_y: Sequence[str] | np.ndarray,
    *,
    classifier: ClassifierName = "logistic_regression",
    n_estimators: int = 200,
    seed: int = 0,
    n_jobs: int = 1,
) -> Callable[[np.ndarray], np.ndarray]:
    """The classifier of :func:`label_agreement`, fitted once: a function from cells to their labels, as strings."""
    known = np.asarray([str(v) for v in train_y], dtype=object)
    if len(set(known)) < 2:
        return lambda points: np.full(len(points), known[0], dtype=object)
    model = _make_classifier(classifier, n_estimators, seed, n_jobs).fit(train_x, known)
    return lambda points: np.asarray(model.predict(points), dtype=object)


def label_agreement(
    train_x: Any,
    train_y: Sequence[str] | np.ndarray,
    gen_x: Any,
    gen_y: Sequence[str] | np.ndarray,
    *,
    classifier: ClassifierName = "logistic_regression",
    n_estimators: int = 200,
    seed: int = 0,
    n_jobs: int = 1,
) -> LabelAgreement:
    """How often a classifier trained on real training cells finds the label that a generated cell was asked to have.

    Parameters
    ----------
    train_x
        Real training cells, shape ``(n, n_dims)``.
    train_y
        Their labels, shape ``(n,)``.
    gen_x
        Generated cells (or held-out real cells, for the floor), shape ``(m, n_dims)``.
    gen_y
        The labels asked for, shape ``(m,)``; one that training cells lack is never found.
    classifier
        As in :func:`classifier_auc`.
    n_estimators
        Number of trees, where the classifier has any.
    seed
        Seed of the classifier.
    n_jobs
        Processor cores.

    Returns
    -------
    :class:`LabelAgreement`.

    Raises
    ------
    ValueError
        If labels and points differ in number.

    Examples
    --------
    >>> x = np.array([[0.0], [0.1], [1.0], [1.1]])
    >>> found = label_agreement(x, ["a", "a", "b", "b"], x, ["a", "a", "b", "a"])
    >>> found.overall, found.per_label["b"]
    (0.75, 1.0)
    """
    train_x, gen_x = as_pair(train_x, gen_x, min_points=1)
    known, asked = (np.asarray([str(v) for v in labels], dtype=object) for labels in (train_y, gen_y))
    for name, points, labels in (("train", train_x, known), ("gen", gen_x, asked)):
        if points.shape[0] != labels.size:
            raise ValueError(f"{name}_x has {points.shape[0]} rows but {name}_y has {labels.size} labels.")
    predicted = label_finder(
        train_x, known, classifier=classifier, n_estimators=n_estimators, seed=seed, n_jobs=n_jobs
    )(gen_x)
    found = predicted == asked
    labels_asked = sorted(set(asked))
    return LabelAgreement(
        overall=float(found.mean()),
        per_label={label: float(found[asked == label].mean()) for label in labels_asked},
        n_per_label={label: int((asked == label).sum()) for label in labels_asked},
        predicted=predicted,
    )
