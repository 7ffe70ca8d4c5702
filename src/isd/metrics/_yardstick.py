"""The space in which real and generated cells are compared: fitted on training cells once, then frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from isd._constants import TARGET_SUM
from isd.metrics._arrays import as_sorted_rows
from isd.metrics._mmd import median_distance

#: Bandwidths of the RBF kernels, as multiples of the median distance between real cells.
KERNEL_SCALES = (0.5, 1.0, 2.0)
_CHUNK = 4096


def log_normalize(
    counts: Any, *, target_sum: float = TARGET_SUM, totals: np.ndarray | None = None
) -> sparse.csr_matrix:
    """``log1p(counts / total * target_sum)`` per cell, sparse in and sparse out.

    Parameters
    ----------
    counts
        Counts of shape ``(n_obs, n_vars)``, dense or sparse; not changed.
    target_sum
        Total per cell after scaling.
    totals
        Totals to divide by, of shape ``(n_obs,)``; by default the row sums. Cells without counts stay zero.

    Returns
    -------
    Matrix in csr format, ``float32``.

    Examples
    --------
    >>> log_normalize(np.array([[1, 1]])).toarray().round(3)
    array([[8.517, 8.517]], dtype=float32)
    """
    out = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    if totals is None:
        totals = np.asarray(out.sum(axis=1)).ravel()
    factor = np.divide(target_sum, totals, out=np.zeros(out.shape[0]), where=np.asarray(totals) > 0)
    out.data *= np.repeat(factor, np.diff(out.indptr)).astype(np.float32)
    np.log1p(out.data, out=out.data)
    return out


def _moments(counts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of cells that detect each feature, and mean and variance of its log-normalised values, in row chunks."""
    n_obs, n_vars = counts.shape
    detected, total, squares = np.zeros(n_vars, dtype=np.int64), np.zeros(n_vars), np.zeros(n_vars)
    for start in range(0, n_obs, _CHUNK):
        block = log_normalize(counts[start : start + _CHUNK])
        block.eliminate_zeros()
        detected += np.bincount(block.indices, minlength=n_vars)
        total += np.bincount(block.indices, weights=block.data, minlength=n_vars)
        squares += np.bincount(block.indices, weights=block.data.astype(np.float64) ** 2, minlength=n_vars)
    mean = total / n_obs
    return detected, mean, np.maximum(squares / n_obs - mean**2, 0.0)


def _choose_features(counts: Any, n_features: int, min_cells: int, n_bins: int = 20) -> np.ndarray:
    """Columns that enough cells detect, at most ``n_features`` of them: the most variable for their mean.

    The trend of log variance with log mean is taken out by the median of ``n_bins`` equally filled bins of the mean.
    """
    detected, mean, variance = _moments(counts)
    kept = np.flatnonzero((detected >= min_cells) & (variance > 0))
    if kept.size == 0:
        raise ValueError(
            f"No feature is detected in at least {min_cells} of the {counts.shape[0]} training cells and varies; "
            "give more training cells or lower min_cells."
        )
    if kept.size <= n_features:
        return kept
    log_mean, log_variance = np.log(mean[kept]), np.log(variance[kept])
    edges = np.quantile(log_mean, np.linspace(0, 1, n_bins + 1)[1:-1])
    bins = np.searchsorted(edges, log_mean, side="right")
    trend = np.array([np.median(log_variance[bins == b]) if (bins == b).any() else 0.0 for b in range(n_bins)])
    excess = log_variance - trend[bins]
    return np.sort(kept[np.argsort(-excess, kind="stable")[:n_features]])


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Features, principal components and kernel bandwidths, fitted on training cells only.

    Made by :meth:`fit`; nothing of it changes afterwards, so that held-out and generated cells are measured with a
    yardstick that has seen neither.

    Parameters
    ----------
    var_names
        Names of all features that a cell's total is taken over, in the order of the training cells.
    feature_index
        Positions in ``var_names`` of the chosen features.
    mean
        Mean of each chosen feature's log-normalised value, shape ``(n_features,)``.
    components
        Principal axes, shape ``(n_pcs, n_features)``.
    bandwidths
        RBF bandwidths (sigma, in units of distance) per space, ``{"features": ..., "pcs": ...}``.
    n_train
        Number of training cells that it was fitted on.

    Examples
    --------
    >>> counts = np.random.default_rng(0).poisson(2.0, size=(50, 20))
    >>> names = [f"t{i}" for i in range(20)]
    >>> yardstick = Yardstick.fit(counts, names, n_pcs=5)
    >>> yardstick.pcs(counts).shape
    (50, 5)
    >>> features = yardstick.features(counts[:5, ::-1], names[::-1])  # other cells, columns in another order
    >>> bool(np.allclose(yardstick.project(features), yardstick.pcs(counts[:5])))
    True
    >>> yardstick.align(names[::-1])[:3].tolist()
    [19, 18, 17]
    """

    var_names: np.ndarray
    feature_index: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    bandwidths: dict[str, np.ndarray] = field(repr=False)
    n_train: int

    @classmethod
    def fit(
        cls,
        counts: Any,
        var_names: Sequence[str],
        *,
        n_features: int = 2000,
        n_pcs: int = 30,
        min_cells: int = 3,
        max_cells: int = 10_000,
        scales: Sequence[float] = KERNEL_SCALES,
        seed: int = 0,
    ) -> Yardstick:
        """Fit on the counts of training cells.

        Parameters
        ----------
        counts
            Raw counts of training cells, dense or csr, shape ``(n_train, n_vars)``.
        var_names
            Names of the features, unique.
        n_features
            Largest number of features; where more are detected, those with the largest variance for their mean.
        n_pcs
            Largest number of principal components (fewer if there are fewer cells or features).
        min_cells
            Number of training cells that must detect a feature.
        max_cells
            Training cells beyond this number are left out (drawn with ``seed``), to bound cost.
        scales
            Multiples of the median distance between training cells that are the kernels' bandwidths.
        seed
            Seed of the sub-samples and of the solver's start.

        Raises
        ------
        ValueError
            For fewer than 4 cells, names that are not unique or of another number, or no usable feature.
        """
        from sklearn.decomposition import PCA

        names = np.asarray([str(name) for name in var_names], dtype=object)
        if counts.shape[1] != names.size:
            raise ValueError(f"counts has {counts.shape[1]} columns but {names.size} var_names were given.")
        _check_unique(names)
        if counts.shape[0] < 4:
            raise ValueError(f"{counts.shape[0]} training cells were given; a yardstick needs at least 4.")
        rng = np.random.default_rng(seed)
        counts = counts[as_sorted_rows(counts.shape[0], max_cells, rng)]
        index = _choose_features(counts, n_features, min(min_cells, counts.shape[0]))
        values = _select(counts, index, None)
        n_components = min(n_pcs, values.shape[0] - 1, values.shape[1] - 1)
        if n_components < 1:
            raise ValueError(f"Only {index.size} feature varies in the training cells; at least 2 are needed.")
        # arpack works on the sparse matrix, centred implicitly: nothing dense of n_obs x n_vars is made
        pca = PCA(n_components, svd_solver="arpack", random_state=seed).fit(values.astype(np.float64))
        pcs = pca.transform(values.astype(np.float64))
        rows = as_sorted_rows(values.shape[0], 1000, rng)
        medians = {"features": median_distance(values[rows]), "pcs": median_distance(pcs[rows])}
        return cls(
            var_names=names,
            feature_index=index,
            mean=pca.mean_,
            components=pca.components_,
            bandwidths={space: np.asarray(scales) * median for space, median in medians.items()},
            n_train=int(counts.shape[0]),
        )

    @property
    def feature_names(self) -> np.ndarray:
        """Names of the chosen features."""
        return self.var_names[self.feature_index]

    def features(self, counts: Any, var_names: Sequence[str] | None = None) -> sparse.csr_matrix:
        """Log-normalised values of the chosen features (the total is over all of the yardstick's features).

        Parameters
        ----------
        counts
            Raw counts, dense or csr, shape ``(n_obs, n_vars)``.
        var_names
            Names of its columns, in any order, with or without further features; by default the yardstick's own.

        Returns
        -------
        csr matrix, ``float32``, shape ``(n_obs, n_features)``.

        Raises
        ------
        ValueError
            If features of the yardstick are missing (with their number), or names are not unique.
        """
        columns = None if var_names is None else self.align(var_names)
        if columns is None and counts.shape[1] != self.var_names.size:
            raise ValueError(
                f"counts has {counts.shape[1]} columns and the yardstick {self.var_names.size} features; "
                "give var_names to align them."
            )
        parts = [
            _select(counts[start : start + _CHUNK], self.feature_index, columns)
            for start in range(0, max(counts.shape[0], 1), _CHUNK)
        ]
        return sparse.csr_matrix(sparse.vstack(parts, format="csr"))

    def pcs(self, counts: Any, var_names: Sequence[str] | None = None) -> np.ndarray:
        """Coordinates on the training cells' principal components, shape ``(n_obs, n_pcs)``; see :meth:`features`."""
        return self.project(self.features(counts, var_names))

    def project(self, features: Any) -> np.ndarray:
        """Principal components of values that :meth:`features` made."""
        return np.asarray(features @ self.components.T) - self.mean @ self.components.T

    def align(self, var_names: Sequence[str]) -> np.ndarray | None:
        """Columns of ``var_names`` that hold the yardstick's features; ``None`` if they are the same in the same order.

        Raises
        ------
        ValueError
            If features are missing, or names are not unique.
        """
        import pandas as pd

        names = np.asarray([str(name) for name in var_names], dtype=object)
        if np.array_equal(names, self.var_names):
            return None
        _check_unique(names)
        columns = pd.Index(names).get_indexer(pd.Index(self.var_names))
        missing = np.flatnonzero(columns < 0)
        if missing.size:
            examples = ", ".join(self.var_names[missing[:3]])
            raise ValueError(
                f"{missing.size} of the {self.var_names.size} features are missing (e.g. {examples}); "
                "both data sets must have the same features: subset the real data to generated.var_names first."
            )
        return columns


def _check_unique(names: np.ndarray) -> None:
    duplicated = names.size - len(set(names.tolist()))
    if duplicated:
        raise ValueError(f"{duplicated} var_names are duplicates; call adata.var_names_make_unique() first.")


def _select(counts: Any, index: np.ndarray, columns: np.ndarray | None) -> sparse.csr_matrix:
    """Log-normalised values of features ``index``; ``columns`` maps the yardstick's features to columns."""
    counts = sparse.csr_matrix(counts)
    if columns is None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        return log_normalize(counts[:, index], totals=totals)
    known = np.zeros(counts.shape[1])
    known[columns] = 1.0
    return log_normalize(counts[:, columns[index]], totals=np.asarray(counts @ known).ravel())
