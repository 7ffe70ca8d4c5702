"""Which real cells generated ones are compared with, and on which the yardstick is fitted: never the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from anndata import AnnData

from isd._constants import SPLIT_KEY, SPLIT_TEST, SPLIT_TRAIN, SPLIT_VALIDATION, UNS_KEY
from isd._hash import hash_names

Reference = Literal["test", "validation", "all"]


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """Rows of the real data.

    Parameters
    ----------
    reference
        Rows that generated cells are compared with.
    train
        Rows that the yardstick is fitted on; disjoint from ``reference``.
    note
        What is wrong with the choice, empty if nothing is.
    """

    reference: np.ndarray
    train: np.ndarray
    note: str


def provenance(generated: AnnData) -> dict[str, Any]:
    """What ``isd.tl.generate`` wrote about how the cells were made; empty if nothing."""
    found = generated.uns.get(UNS_KEY, {})
    return dict(found) if hasattr(found, "items") else {}


def _seen_in_training(real: AnnData, generated: AnnData) -> np.ndarray | None:
    """Whether each real row was a training row of the model; ``None`` if the generated data do not say."""
    hashes = provenance(generated).get("train_obs_hash")
    if hashes is None or np.size(hashes) == 0:
        return None
    return np.isin(hash_names(real.obs_names), np.asarray(hashes).astype(np.uint64))


def training_rows(real: AnnData) -> np.ndarray:
    """Rows with ``obs["isd_split"] == "train"``; all rows without that column.

    Raises
    ------
    ValueError
        If there is the column, but no such row.
    """
    if SPLIT_KEY not in real.obs:
        return np.arange(real.n_obs)
    rows = np.flatnonzero(real.obs[SPLIT_KEY].astype(str).to_numpy() == SPLIT_TRAIN)
    if rows.size == 0:
        raise ValueError(f'real.obs["{SPLIT_KEY}"] has no row {SPLIT_TRAIN!r}; baselines are made from training cells.')
    return rows


def choose_rows(real: AnnData, generated: AnnData, reference: Reference, seed: int) -> ReferenceRows:
    """Reference rows and training rows of ``real``.

    The reference is the rows of ``obs["isd_split"]``; without that column (or with ``reference="all"``) the rows that
    the model has not seen in training, as the hashes of their names tell; without those, a random half. The yardstick
    has the training rows of either, else a random half of what else would be the reference.

    Raises
    ------
    ValueError
        For another ``reference``, or a split without such rows.
    """
    if reference not in (SPLIT_TEST, SPLIT_VALIDATION, "all"):
        raise ValueError(f"reference={reference!r} is not known; choose 'test', 'validation' or 'all'.")
    seen = _seen_in_training(real, generated)
    notes: list[str] = []
    if SPLIT_KEY in real.obs and reference != "all":
        split = real.obs[SPLIT_KEY].astype(str).to_numpy()
        chosen, train = np.flatnonzero(split == reference), np.flatnonzero(split == SPLIT_TRAIN)
        if chosen.size == 0:
            raise ValueError(
                f'real.obs["{SPLIT_KEY}"] has no row {reference!r} (it has {sorted(set(split))}); run '
                'isd.pp.split(adata) before training, or give reference="all" if all of `real` was held out.'
            )
    elif seen is None:
        chosen, train = np.arange(real.n_obs), np.empty(0, dtype=int)
        notes.append("no held-out split: reference cells may have been seen in training")
    elif seen.all():
        chosen, train = np.arange(real.n_obs), np.empty(0, dtype=int)
    else:
        chosen, train = np.flatnonzero(~seen), np.flatnonzero(seen)
    if train.size < 4:
        order = np.random.default_rng(seed).permutation(chosen)
        train, chosen = np.sort(order[: chosen.size // 2]), np.sort(order[chosen.size // 2 :])
        notes.append("no training cells in the real data: yardstick fitted on a random half of it")
    if seen is not None and seen[chosen].any():
        notes.insert(0, f"reference cells seen in training ({int(seen[chosen].sum())} of {chosen.size})")
    return ReferenceRows(chosen, train, "; ".join(notes))
