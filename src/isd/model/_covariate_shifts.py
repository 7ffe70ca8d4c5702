"""What batches and other categories do to all cells alike, estimated from the training cells' counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

#: Rows in memory at once.
_CHUNK = 4096


def covariate_shifts(
    counts: Any,
    rows: np.ndarray,
    labels: np.ndarray,
    codes: np.ndarray,
    n_categories: Sequence[int],
    *,
    groups: sparse.csr_matrix | None = None,
    prior_counts: float = 1.0,
    n_iter: int = 20,
) -> np.ndarray:
    r"""Log fold changes of features in the categories of each attribute, labels being equal.

    Counts are taken as Poisson with mean :math:`\sum_i n_i\, \pi_{l(i)f}\, e^{s_{c(i)f}}`, for depth :math:`n`, label :math:`l` and
    category :math:`c`. Sums over labels and over categories are all that this needs, and are fitted in turns
    (iterative proportional fitting). A category in which a label is missing is then not taken for the label's effect.

    Parameters
    ----------
    counts
        Matrix of counts, in memory or backed, ``(n_obs, n_vars)``.
    rows
        Training rows.
    labels
        Code of each of ``rows``, shape ``(n_rows,)``.
    codes
        Code of each attribute, shape ``(n_rows, n_attributes)``.
    n_categories
        Number of categories of each attribute. Attributes with one category have no shifts.
    groups
        Matrix of shape ``(n_vars, n_groups)`` that adds features up, such as isoforms to genes.
    prior_counts
        Counts that are added to those observed and to those expected: features with few stay near 0.
    n_iter
        Rounds of fitting, at most.

    Returns
    -------
    Array of shape ``(sum of n_categories over attributes with more than one, n_vars)``, natural logarithm, ``float32``.
    Categories without training cells have 0.

    References
    ----------
    Bishop, Fienberg and Holland, Discrete Multivariate Analysis (1975), chapter 3, for the fitting.
    """
    wanted = [k for k, n in enumerate(n_categories) if n > 1]
    n_vars = counts.shape[1] if groups is None else groups.shape[1]
    if not wanted:
        return np.zeros((0, n_vars), dtype=np.float32)
    of_label, label = np.unique(labels, return_inverse=True)
    by_label = np.zeros((len(of_label), n_vars))
    by_category = [np.zeros((n_categories[k], n_vars)) for k in wanted]
    depth = [np.zeros((len(of_label), n_categories[k])) for k in wanted]
    order = np.argsort(rows)
    for start in range(0, len(rows), _CHUNK):
        some = order[start : start + _CHUNK]
        x = sparse.csr_matrix(counts[rows[some]], dtype=np.float64)
        x = x if groups is None else sparse.csr_matrix(x @ groups)
        total = np.asarray(x.sum(axis=1)).ravel()
        by_label += _sums(x, label[some], len(of_label))
        for j, k in enumerate(wanted):
            by_category[j] += _sums(x, codes[some, k], n_categories[k])
            np.add.at(depth[j], (label[some], codes[some, k]), total)
    return np.concatenate(
        [_fit(by_label, seen, n, prior_counts, n_iter) for seen, n in zip(by_category, depth, strict=True)]
    ).astype(np.float32)


def _fit(by_label: np.ndarray, seen: np.ndarray, depth: np.ndarray, prior: float, n_iter: int) -> np.ndarray:
    """Shifts of one attribute: rows are categories; ``depth`` is counts by label and category."""
    shifts = np.zeros_like(seen)
    empty = ~(depth.sum(axis=0) > 0)
    for _ in range(n_iter):
        share = by_label / np.maximum(depth @ np.exp(shifts), np.finfo(float).tiny)
        new = np.log((seen + prior) / (depth.T @ share + prior))
        # what all categories have in common is the label's
        new -= np.average(new, axis=0, weights=depth.sum(axis=0))
        new[empty] = 0.0
        change = np.abs(new - shifts).max()
        shifts = new
        if change < 1e-4:
            break
    return shifts


def _sums(x: sparse.csr_matrix, codes: np.ndarray, n: int) -> np.ndarray:
    members = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(n, len(codes)))
    return (members @ x).toarray()
