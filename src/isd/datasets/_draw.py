"""Random draws of the simulator: streams, sizes, and counts in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from isd._progress import track

#: Values of one dense block; fixed, because the random numbers of a row depend on its block.
_BLOCK_VALUES = 1 << 21
#: A bar is shown above this many values.
_LARGE = 50_000_000


def stream(seed: int, *key: int) -> np.random.Generator:
    """Make an independent generator for each purpose, so that one more draw in one place changes nothing elsewhere."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def label_proportions(n_labels: int, rng: np.random.Generator) -> np.ndarray:
    """Unequal label sizes, largest first, none below 0.3 of an equal share."""
    return np.sort(0.7 * rng.dirichlet(np.full(n_labels, 2.0)) + 0.3 / n_labels)[::-1]


def allot(proportions: np.ndarray, n: int) -> np.ndarray:
    """Whole sizes that sum to ``n``, by largest remainder, at least one each, largest first."""
    exact = proportions * (n - len(proportions))
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(sizes - exact, kind="stable")[: n - len(proportions) - sizes.sum()]] += 1
    return np.sort(sizes + 1)[::-1]


def row_blocks(n_obs: int, n_vars: int) -> list[slice]:
    rows = int(np.clip(_BLOCK_VALUES // n_vars, 1, 512))
    return [slice(start, min(start + rows, n_obs)) for start in range(0, n_obs, rows)]


def draw_counts(
    expected: Callable[[slice], np.ndarray],
    n_obs: int,
    dispersion: np.ndarray,
    seed: int,
    key: int,
    progress: bool | None,
    description: str,
) -> sparse.csr_matrix:
    """Negative binomial counts (gamma, then Poisson) around ``expected(rows)``, block by block into one csr matrix."""
    n_vars = dispersion.size
    theta = 1.0 / dispersion
    blocks = row_blocks(n_obs, n_vars)
    if progress is None and n_obs * n_vars < _LARGE:
        progress = False
    indptr = np.zeros(n_obs + 1, dtype=np.int64)
    data, indices = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int32)
    filled = 0
    for number, rows in enumerate(track(blocks, description, progress=progress)):
        rng = stream(seed, key, number)
        rate = expected(rows)
        empty_rate = rate / rate.sum(axis=1, keepdims=True) if rate.sum(axis=1).min() < 50 else None
        rate *= rng.standard_gamma(np.broadcast_to(theta, rate.shape), dtype=np.float32)
        rate *= dispersion
        block = rng.poisson(rate)
        if empty_rate is not None:
            for row in np.flatnonzero(block.sum(axis=1) == 0):  # a cell without a count would not have been called one
                share = empty_rate[row].astype(np.float64)
                block[row, rng.choice(n_vars, p=share / share.sum())] = 1
        row_of, column = np.nonzero(block)
        end = filled + column.size
        if end > data.size:
            # room for the rest at the present density; resize moves pages and needs no second copy
            room = int(end / rows.stop * n_obs * 1.02) + 1024
            data.resize(room, refcheck=False)
            indices.resize(room, refcheck=False)
        data[filled:end] = block[row_of, column]
        indices[filled:end] = column
        indptr[rows.start + 1 : rows.stop + 1] = filled + np.cumsum(np.bincount(row_of, minlength=len(block)))
        filled = end
    data.resize(filled, refcheck=False)
    indices.resize(filled, refcheck=False)
    return sparse.csr_matrix((data, indices, indptr), shape=(n_obs, n_vars))
