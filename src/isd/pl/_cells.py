"""Which cells the pictures of counts show: real reference cells and as many generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import SPLIT_KEY, SPLIT_TRAIN, UNS_KEY
from isd._counts import get_counts
from isd._hash import hash_names
from isd.pl._figure import label_colors

Reference = Literal["test", "validation", "all"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of one data set.

    Parameters
    ----------
    counts
        Their counts, csr of shape ``(n, n_vars)``.
    labels
        Their labels as strings, ``None`` where there is none, shape ``(n,)``.
    """

    counts: sparse.csr_matrix
    labels: np.ndarray

    @property
    def n(self) -> int:
        """Number of cells."""
        return int(self.labels.size)


@dataclass(frozen=True, eq=False)
class Pair:
    """Real and generated cells with the same features, and the labels to show.

    Parameters
    ----------
    real, generated
        The cells.
    key
        Column of ``obs`` with the labels, or ``None``.
    groups
        Labels to show, in the order of the real data's categories; empty without labels.
    colors
        A colour for each label.
    """

    real: Sample
    generated: Sample
    key: str | None
    groups: tuple[str, ...]
    colors: dict[str, str]


def find_key(real: AnnData, generated: AnnData, key: str | None, *, what: str = "labels_key") -> str | None:
    """The column asked for, else the one that cells were generated with, else ``"leiden"`` if both have it.

    Raises
    ------
    KeyError
        If a column is asked for and absent.
    """
    if key is not None:
        for name, data in (("real", real), ("generated", generated)):
            if key not in data.obs:
                raise KeyError(f"{what} {key!r} is not in {name}.obs, which has {list(map(str, data.obs.columns))}.")
        return key
    for candidate in (generated.uns.get(UNS_KEY, {}).get("labels_key"), "leiden"):
        if candidate is not None and str(candidate) in real.obs and str(candidate) in generated.obs:
            return str(candidate)
    return None


def reference_rows(real: AnnData, generated: AnnData, reference: Reference) -> np.ndarray:
    """Rows that generated cells are shown beside, the same as :func:`isd.metrics.evaluate` has.

    Those of ``obs["isd_split"]``; without that column, or with ``"all"``, those that the model has not trained on, as
    the generated data tell; all where neither is known.

    Raises
    ------
    ValueError
        For another ``reference``, or a split without such rows.
    """
    if reference not in ("test", "validation", "all"):
        raise ValueError(f"reference={reference!r} is not known; choose 'test', 'validation' or 'all'.")
    if reference == "all" or SPLIT_KEY not in real.obs:
        seen = _seen_in_training(real, generated)
        return np.arange(real.n_obs) if seen.all() else np.flatnonzero(~seen)
    rows = np.flatnonzero(real.obs[SPLIT_KEY].astype(str).to_numpy() == reference)
    if rows.size == 0:
        raise ValueError(
            f'real.obs["{SPLIT_KEY}"] has no row {reference!r}; give reference="all" if all of `real` was held out.'
        )
    return rows


def _seen_in_training(real: AnnData, generated: AnnData) -> np.ndarray:
    """Whether each real row was a training row of the model, as far as the generated data say."""
    hashes = generated.uns.get(UNS_KEY, {}).get("train_obs_hash", ())
    return np.isin(hash_names(real.obs_names), np.asarray(hashes, dtype=np.uint64))


def choose_cells(
    real: AnnData,
    generated: AnnData,
    *,
    labels_key: str | None,
    layer: str | None,
    groups: str | Sequence[str] | None,
    reference: Reference | np.ndarray,
    max_cells: int,
    seed: int,
    features: np.ndarray | None = None,
) -> Pair:
    """Reference cells (or given rows) and generated ones, at most ``max_cells`` of either, of chosen labels and features.

    Raises
    ------
    KeyError
        If the column or a group is absent.
    ValueError
        If features are missing in ``generated`` or there are no cells.
    """
    key = find_key(real, generated, labels_key)
    positions = np.arange(real.n_vars) if features is None else features
    columns = generated.var_names.get_indexer(real.var_names[positions])
    missing = int((columns < 0).sum())
    if missing:
        raise ValueError(
            f"{missing} of the {positions.size} features of `real` are missing in `generated`; "
            "subset the real data first: real[:, generated.var_names]."
        )
    chosen = reference if isinstance(reference, np.ndarray) else reference_rows(real, generated, reference)
    rows = {"real": chosen, "generated": np.arange(generated.n_obs)}
    if key is None:
        if groups is not None:
            raise KeyError(f"groups {groups!r} need labels; give labels_key, a column of obs of both data sets.")
        labels = {name: np.full(found.size, None, dtype=object) for name, found in rows.items()}
        names: list[str] = []
    else:
        labels = {n: _strings(data.obs[key])[rows[n]] for n, data in (("real", real), ("generated", generated))}
        names = _in_order(real.obs[key], set(labels["real"]) | set(labels["generated"]))
        if groups is not None:
            wanted = [str(g) for g in ([groups] if isinstance(groups, str) else groups)]
            absent = [group for group in wanted if group not in names]
            if absent or not wanted:
                raise KeyError(f"groups {absent or wanted} are not labels in obs[{key!r}], which has {names}.")
            names = [name for name in names if name in wanted]
            kept = {name: np.isin(of, names) for name, of in labels.items()}
            rows = {name: found[kept[name]] for name, found in rows.items()}
            labels = {name: of[kept[name]] for name, of in labels.items()}
    rng = np.random.default_rng(seed)
    samples = {}
    for name, data, wanted_columns in (("real", real, positions), ("generated", generated, columns)):
        if rows[name].size == 0:
            raise ValueError(f"`{name}` has no such cells to show.")
        drawn = np.arange(rows[name].size)
        if drawn.size > max_cells:
            drawn = np.sort(rng.choice(drawn.size, size=max_cells, replace=False))
        counts = sparse.csr_matrix(get_counts(data, layer)[rows[name][drawn]])
        if features is not None or not np.array_equal(wanted_columns, np.arange(data.n_vars)):
            counts = counts[:, wanted_columns]
        samples[name] = Sample(counts, labels[name][drawn])
    stored = real.uns.get(f"{key}_colors") if key is not None else None
    colors = label_colors(_in_order(real.obs[key], None), stored) if key is not None else {}
    colors |= {name: color for name, color in label_colors(names).items() if name not in colors}
    return Pair(samples["real"], samples["generated"], key, tuple(names), colors)


def training_cells(
    real: AnnData,
    generated: AnnData,
    *,
    labels_key: str | None,
    layer: str | None,
    reference: Reference,
    max_cells: int,
    seed: int,
) -> tuple[Sample, Pair]:
    """Labelled real cells to train a classifier on, and the cells to show, among which none of them are.

    Raises
    ------
    KeyError
        If the column is absent.
    ValueError
        If there are no labels or no training cells.
    """
    key = find_key(real, generated, labels_key)
    if key is None:
        raise ValueError("there are no labels; give labels_key, a column of obs of both data sets.")
    shown = reference_rows(real, generated, reference)
    rng = np.random.default_rng(seed)
    if SPLIT_KEY in real.obs and reference != "all":
        train = np.flatnonzero(real.obs[SPLIT_KEY].astype(str).to_numpy() == SPLIT_TRAIN)
    else:
        train = np.setdiff1d(np.arange(real.n_obs), shown)
    if train.size < 4:
        order = rng.permutation(shown)
        train, shown = np.sort(order[: order.size // 2]), np.sort(order[order.size // 2 :])
    labels = _strings(real.obs[key])
    train, shown = (rows[[label is not None for label in labels[rows]]] for rows in (train, shown))
    if train.size < 4 or shown.size == 0:
        raise ValueError(f"{train.size} training cells and {shown.size} held-out ones have a label; more are needed.")
    if train.size > max_cells:
        train = np.sort(rng.choice(train, size=max_cells, replace=False))
    sample = Sample(sparse.csr_matrix(get_counts(real, layer)[train]), labels[train])
    names = _in_order(real.obs[key], set(labels) | set(_strings(generated.obs[key])))
    pair = choose_cells(
        real, generated, labels_key=key, layer=layer, groups=names, reference=shown, max_cells=max_cells, seed=seed
    )
    return sample, pair


def label_counts(real: AnnData, generated: AnnData, key: str | None, reference: Reference) -> dict[str, dict[str, int]]:
    """Number of reference cells (``"real"``) and of generated cells with each label."""
    if key is None:
        return {"real": {}, "generated": {}}
    labels = {
        "real": _strings(real.obs[key])[reference_rows(real, generated, reference)],
        "generated": _strings(generated.obs[key]),
    }
    return {
        name: {str(label): int(n) for label, n in pd.Series(of).value_counts().items()} for name, of in labels.items()
    }


def _strings(column: pd.Series) -> np.ndarray:
    return column.astype(object).map(str, na_action="ignore").where(column.notna(), None).to_numpy(dtype=object)


def _in_order(column: pd.Series, present: set[Any] | None) -> list[str]:
    """Labels in the order of categories (else by value), those of generated cells only at the end."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        order = [str(category) for category in column.cat.categories]
    else:
        order = [str(v) for v in sorted(column.dropna().unique().tolist(), key=lambda v: (str(type(v)), v))]
    if present is None:
        return order
    new = sorted(str(label) for label in present if label is not None and label not in order)
    return [label for label in order if label in present] + new
