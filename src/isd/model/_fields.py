"""Registration of labels: the order of categories is kept, missing labels get a code of their own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data.fields import CategoricalObsField


class LabelsField(CategoricalObsField):
    """Labels in ``adata.obs``, with the code ``n_labels`` for cells without one.

    Unlike :class:`scvi.data.fields.LabelsWithUnlabeledObsField`, missing values (NaN) count as unlabelled, the
    unlabelled code is there whether or not such cells exist, and the categories keep the order that they have
    in ``obs`` and the type of their values.

    Parameters
    ----------
    registry_key
        Key in the data registry.
    attr_key
        Column of ``obs``, or ``None`` for one class.
    unlabeled_category
        Value that marks cells without a label, besides NaN.
    """

    UNLABELED_CATEGORY = "unlabeled_category"
    #: the one category when there are no labels
    ONE_CLASS = "all"

    def __init__(self, registry_key: str, attr_key: str | None, unlabeled_category: Any = "Unknown") -> None:
        super().__init__(registry_key, attr_key)
        self.one_class = attr_key is None
        self._unlabeled_category = unlabeled_category

    def validate_field(self, adata: AnnData) -> None:
        """Nothing to check here: an absent column means unlabelled cells (see :meth:`transfer_field`)."""

    def _write_codes(self, adata: AnnData, mapping: np.ndarray, *, warn: bool) -> None:
        column = adata.obs[self._original_attr_key]
        values = pd.Series(np.asarray(column, dtype=object), index=adata.obs_names)
        codes = pd.Index(mapping, dtype=object).get_indexer(values)
        known_missing = values.isna().to_numpy() | (values == self._unlabeled_category).to_numpy()
        unseen = (codes < 0) & ~known_missing
        if unseen.any() and warn:
            names = sorted({str(v) for v in values[unseen]})
            warnings.warn(
                f"{int(unseen.sum())} cells have labels that the model has not seen ({', '.join(names[:5])}); "
                "they are treated as unlabelled.",
                UserWarning,
                stacklevel=2,
            )
        codes = np.where(codes < 0, len(mapping), codes).astype(np.int64)
        adata.obs[self.attr_key] = codes

    def _state(self, mapping: np.ndarray) -> dict[str, Any]:
        return {
            self.CATEGORICAL_MAPPING_KEY: mapping,
            self.ORIGINAL_ATTR_KEY: None if self.one_class else self._original_attr_key,
            self.UNLABELED_CATEGORY: self._unlabeled_category,
        }

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Write codes to ``obs["_scvi_labels"]`` and return the mapping."""
        if self.one_class:
            adata.obs[self.attr_key] = np.zeros(adata.n_obs, dtype=np.int64)
            return self._state(np.array([self.ONE_CLASS], dtype=object))
        mapping = label_categories(adata.obs[self._original_attr_key], self._unlabeled_category)
        self._write_codes(adata, mapping, warn=False)
        return self._state(mapping)

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Apply a known mapping to other data; a missing column gives unlabelled cells."""
        mapping = np.asarray(state_registry[self.CATEGORICAL_MAPPING_KEY], dtype=object)
        if self.one_class:
            adata_target.obs[self.attr_key] = np.zeros(adata_target.n_obs, dtype=np.int64)
        elif self._original_attr_key not in adata_target.obs:
            adata_target.obs[self.attr_key] = np.full(adata_target.n_obs, len(mapping), dtype=np.int64)
        else:
            self._write_codes(adata_target, mapping, warn=True)
        return self._state(mapping)

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Number of labels, the unlabelled code not counted."""
        return {self.count_stat_key: len(state_registry[self.CATEGORICAL_MAPPING_KEY])}


def label_categories(column: pd.Series, unlabeled_category: Any) -> np.ndarray:
    """Categories of a label column in their own order, without the unlabelled one and without empty ones.

    Parameters
    ----------
    column
        Column of ``obs``.
    unlabeled_category
        Value that marks cells without a label.

    Returns
    -------
    Object array of values as they are in the column.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        used = set(column.cat.remove_unused_categories().cat.categories)
        values = [c for c in column.cat.categories if c in used]
    else:
        values = column.dropna().unique().tolist()
        # leiden's "0", "1", "2", "10" read back as plain strings are numbers to whoever reads them
        numeric = all(isinstance(v, str) and v.isdigit() for v in values)
        values = sorted(values, key=int if numeric else lambda v: (type(v).__name__, v))
    values = [v for v in values if not (isinstance(v, type(unlabeled_category)) and v == unlabeled_category)]
    out = np.empty(len(values), dtype=object)
    out[:] = [v.item() if isinstance(v, np.generic) else v for v in values]
    return out
