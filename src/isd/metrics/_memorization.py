"""Whether generated cells are copies of training cells: nearest distances, and rows that are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from isd.metrics._arrays import as_pair, as_points, kth_distance


def nearest_distance_ratio(generated: Any, held_out: Any, train: Any) -> float:
    """Median distance of generated cells to the nearest training cell, over that of held-out real cells.

    Parameters
    ----------
    generated
        Generated points, shape ``(n, n_dims)``.
    held_out
        Real points that the model has not seen, shape ``(m, n_dims)``.
    train
        Training points, shape ``(k, n_dims)``.

    Returns
    -------
    About 1 for cells as new as held-out ones; towards 0 for copies; above 1 for cells away from all real ones.

    References
    ----------
    Meehan, Chaudhuri and Dasgupta 2020, A Non-Parametric Test to Detect Data-Copying in Generative Models, AISTATS,
    section 3 (the same distances, there as a rank test).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> train, test = rng.normal(size=(100, 3)), rng.normal(size=(80, 3))
    >>> nearest_distance_ratio(train[:50], test, train)
    0.0
    """
    generated, held_out = as_pair(generated, held_out, min_points=1)
    train = as_points(train, "train")
    ours, theirs = (float(np.median(kth_distance(sample, train, 1))) for sample in (generated, held_out))
    return ours / theirs if theirs > 0 else float("nan")


def row_hashes(counts: Any) -> np.ndarray:
    """64-bit hash of each row's values and their columns: equal rows have equal hashes, however they are stored.

    Parameters
    ----------
    counts
        Matrix of shape ``(n, n_vars)``, dense or sparse; stored zeros do not count.

    Returns
    -------
    ``uint64`` array of shape ``(n,)``. Two different rows share one with a chance of about 1 in 10^19.

    Examples
    --------
    >>> hashes = row_hashes(np.array([[0, 1, 2], [0, 1, 2], [2, 1, 0]]))
    >>> bool(hashes[0] == hashes[1]), bool(hashes[0] == hashes[2])
    (True, False)
    """
    matrix = sparse.csr_matrix(counts)
    values = matrix.data.astype(np.float64)
    keys = np.random.default_rng(20240917).integers(1, 2**64, size=matrix.shape[1], dtype=np.uint64)
    mixed = _mix(keys[matrix.indices] ^ _mix(values.view(np.uint64)))
    mixed[values == 0] = 0  # a stored zero is no entry
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return sums[matrix.indptr[1:]] - sums[matrix.indptr[:-1]]  # wraps around, as it should


def _mix(values: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the input changes half of the output's."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def exact_copy_rate(generated: Any, train: Any) -> float:
    """Share of generated cells whose counts are those of some training cell, in every feature.

    Parameters
    ----------
    generated
        Counts, shape ``(n, n_vars)``, dense or sparse.
    train
        Counts of training cells, shape ``(k, n_vars)``, same columns.

    Returns
    -------
    Between 0 and 1. Cells of hardly any counts may be equal by chance: compare with held-out real cells.

    Raises
    ------
    ValueError
        If the numbers of features differ.

    Examples
    --------
    >>> exact_copy_rate(np.array([[1, 0], [5, 5]]), np.array([[1, 0], [0, 2]]))
    0.5
    """
    if generated.shape[1] != train.shape[1]:
        raise ValueError(f"generated has {generated.shape[1]} features and train {train.shape[1]}; align them first.")
    return float(np.isin(row_hashes(generated), row_hashes(train)).mean())
