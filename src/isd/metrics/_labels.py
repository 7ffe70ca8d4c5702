"""Labels of real and generated cells: which column, which groups, and whether proportions agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from isd.metrics._reference import provenance


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as strings (categories ``"0", "1", "10", "2"`` and integers keep their meaning), ``None`` where missing.

    Parameters
    ----------
    key
        Column of ``obs``, or ``None`` without labels.
    groups
        Labels that get rows of their own, in the order of the real data's categories.
    of_real, of_generated
        Label of each cell, all rows.
    known
        All labels of reference and generated cells, in the same order.
    proportions_note
        Says so if real and generated cells have other shares of labels.
    """

    key: str | None
    groups: tuple[str, ...]
    of_real: np.ndarray
    of_generated: np.ndarray
    known: tuple[str, ...]
    proportions_note: str


def find_labels_key(real: AnnData, generated: AnnData, labels_key: str | None) -> str | None:
    """The column asked for, else the one that cells were generated with, else ``"leiden"`` if both have it.

    Raises
    ------
    KeyError
        If a column is asked for and absent.
    """
    if labels_key is not None:
        for name, adata in (("real", real), ("generated", generated)):
            if labels_key not in adata.obs:
                raise KeyError(
                    f"labels_key {labels_key!r} is not in {name}.obs, which has {list(map(str, adata.obs.columns))}; "
                    "give the column that holds the labels of both."
                )
        return labels_key
    for key in (provenance(generated).get("labels_key"), "leiden"):
        if key is not None and str(key) in real.obs and str(key) in generated.obs:
            return str(key)
    return None


def resolve_labels(
    real: AnnData, generated: AnnData, labels_key: str | None, groups: bool | Sequence[str], reference: np.ndarray
) -> Labels:
    """Labels of both data sets and the groups to report.

    Raises
    ------
    KeyError
        If the column, or a group asked for, is absent.
    ValueError
        If a group is called ``"all"``.
    """
    key = find_labels_key(real, generated, labels_key)
    if key is None:
        if not isinstance(groups, bool) and len(groups):
            raise KeyError(f"groups {list(groups)} need labels; give labels_key, a column of obs of both data sets.")
        empty = np.full(real.n_obs, None, dtype=object), np.full(generated.n_obs, None, dtype=object)
        return Labels(None, (), *empty, (), "")
    of_real, of_generated = labels_as_strings(real.obs[key]), labels_as_strings(generated.obs[key])
    present = [*_ordered(real.obs[key], of_real[reference]), *_ordered(generated.obs[key], of_generated)]
    known = list(dict.fromkeys(present))
    if isinstance(groups, bool):
        chosen = known if groups else []
    else:
        wanted = [str(group) for group in ([groups] if isinstance(groups, str) else groups)]
        absent = [group for group in wanted if group not in known]
        if absent:
            raise KeyError(f"groups {absent} are not labels in obs[{key!r}], which has {known}.")
        chosen = wanted
    if "all" in chosen:
        raise ValueError(f"A label of obs[{key!r}] is called 'all', which names all cells together; rename it.")
    note = _proportions_note(of_real[reference], of_generated)
    return Labels(key, tuple(chosen), of_real, of_generated, tuple(known), note)


def labels_as_strings(column: pd.Series) -> np.ndarray:
    """Labels as strings, ``None`` where missing."""
    missing = column.isna().to_numpy()
    return np.array([None if gone else str(value) for value, gone in zip(column, missing, strict=True)], dtype=object)


def _ordered(column: pd.Series, present: np.ndarray) -> list[str]:
    """Labels that occur, in the order of the categories (else sorted by value)."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        order = [str(category) for category in column.cat.categories]
    else:
        order = [str(value) for value in sorted(column.dropna().unique().tolist(), key=lambda v: (str(type(v)), v))]
    occurring = set(present.tolist())
    return [label for label in order if label in occurring]


def _proportions_note(real: np.ndarray, generated: np.ndarray) -> str:
    """Says so if shares of labels differ by more than chance (chi-squared, p < 0.001) and by more than 5%."""
    real, generated = (np.array([v for v in labels if v is not None], dtype=object) for labels in (real, generated))
    if not real.size or not generated.size:
        return ""
    names = sorted(set(real) | set(generated))
    counts = np.array([[(labels == name).sum() for name in names] for labels in (real, generated)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    distance = np.abs(shares[0] - shares[1]).sum() / 2
    if len(names) < 2 or distance <= 0.05:
        return ""
    from scipy.stats import chi2_contingency

    if chi2_contingency(counts).pvalue >= 1e-3:
        return ""
    return f"label proportions differ (total variation {distance:.2f})"
