"""Differences between labels: log fold changes, and the features that mark each label."""

from __future__ import annotations

from typing import Any

import numpy as np

from isd.metrics._usage import label_sums


def log_fold_changes(values: Any, codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Mean of each label's log-normalised values minus the mean over the other labels.

    Parameters
    ----------
    values
        Log-normalised values, shape ``(n, n_features)``, csr or dense.
    codes
        Label of each cell as a number from 0, -1 for none, shape ``(n,)``.
    n_labels
        Number of labels.

    Returns
    -------
    Shape ``(n_labels, n_features)``, natural logarithm; NaN for labels without cells. The other labels count equally,
    whatever their number of cells, so that proportions of labels play no part.

    Examples
    --------
    >>> log_fold_changes(np.array([[1.0], [3.0], [2.0]]), np.array([0, 0, 1]), 2).tolist()
    [[0.0], [0.0]]
    """
    codes = np.asarray(codes)
    n = np.bincount(codes[codes >= 0], minlength=n_labels).astype(np.float64)
    present = n > 0
    means = label_sums(values, codes, n_labels) / np.where(present, n, np.nan)[:, None]
    others = present.sum() - 1
    if others < 1:
        return np.full(means.shape, np.nan)
    rest = (np.nansum(means, axis=0) - means) / others
    return means - rest


def log_fold_change_slope(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Slope (through the origin) of generated log fold changes on real ones, per label.

    Parameters
    ----------
    real, generated
        Outcomes of :func:`log_fold_changes`, shape ``(n_labels, n_features)``.

    Returns
    -------
    Shape ``(n_labels,)``: 1 for differences of the right size, below 1 where labels resemble each other too much, 0
    for labels without meaning. Noise in the real values lowers it, in the floor as well.

    Examples
    --------
    >>> log_fold_change_slope(np.array([[1.0, -2.0]]), np.array([[0.5, -1.0]])).tolist()
    [0.5]
    """
    squares = (real**2).sum(axis=1)
    return (real * generated).sum(axis=1) / np.where(squares > 0, squares, np.nan)


def marker_overlap(real: np.ndarray, generated: np.ndarray, *, n_markers: int = 50) -> np.ndarray:
    """Share of each label's markers (largest log fold changes) that are markers in the generated cells too.

    Parameters
    ----------
    real, generated
        Outcomes of :func:`log_fold_changes`, shape ``(n_labels, n_features)``.
    n_markers
        Number of markers per label; at most a quarter of the features.

    Returns
    -------
    Shape ``(n_labels,)``, between 0 and 1; NaN where a label has no cells.

    Examples
    --------
    >>> real = np.array([[3.0, 2.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0]])
    >>> marker_overlap(real, real[:, ::-1], n_markers=2).tolist()
    [0.0]
    """
    k = max(1, min(n_markers, real.shape[1] // 4))
    out = np.full(real.shape[0], np.nan)
    for label, (ours, theirs) in enumerate(zip(real, generated, strict=True)):
        if np.isfinite(ours).all() and np.isfinite(theirs).all():
            first, second = (np.argsort(-values, kind="stable")[:k] for values in (ours, theirs))
            out[label] = np.isin(first, second).mean()
    return out
