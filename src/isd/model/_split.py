"""Which rows a model is trained on, looked at while it is trained, and judged by."""

from __future__ import annotations

from typing import Any

import numpy as np

from isd._constants import SPLIT_KEY, SPLIT_TEST, SPLIT_TRAIN, SPLIT_VALIDATION


def resolve_split(
    adata: Any, codes: np.ndarray, *, validation_size: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows for training, validation and test.

    ``obs["isd_split"]`` is honoured. Without it, ``validation_size`` of the rows, stratified by label, are set
    aside for validation (none with fewer than 20 rows) and nothing for testing.

    Parameters
    ----------
    adata
        The data.
    codes
        Label code of each row.
    validation_size
        Share of validation rows where there is no split yet.
    seed
        Seed of that choice.

    Returns
    -------
    Three sorted arrays of row positions.
    """
    if SPLIT_KEY in adata.obs:
        split = adata.obs[SPLIT_KEY].astype(object)
        known = {SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_TEST}
        other = sorted({str(v) for v in split.unique() if v not in known})
        if other:
            raise ValueError(
                f"adata.obs[{SPLIT_KEY!r}] has values {other}; expected {sorted(known)}. Run isd.pp.split(adata) again."
            )
        parts = [np.flatnonzero((split == k).to_numpy()) for k in (SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_TEST)]
        if parts[0].size < 2:
            raise ValueError(f"adata.obs[{SPLIT_KEY!r}] leaves {parts[0].size} training cells; at least 2 are needed.")
        return parts[0], parts[1], parts[2]
    n = adata.n_obs
    rng = np.random.default_rng(seed)
    if n < 20 or validation_size <= 0:
        return np.arange(n), np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    # systematic sampling over rows sorted by label: each label gives its share, to within one row; a label's only
    # cell stays in training
    order = np.lexsort((rng.random(n), codes))
    order = order[np.bincount(codes)[codes[order]] > 1]
    every = 1.0 / validation_size
    picks = np.unique(np.floor(np.arange(rng.random() * every, len(order), every)).astype(int))
    picks = picks[picks < len(order)]
    validation = np.sort(order[picks])
    train = np.setdiff1d(np.arange(n), validation)
    return train, validation, np.zeros(0, dtype=int)
