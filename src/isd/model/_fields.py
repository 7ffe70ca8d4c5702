"""Registration of labels and genes.

The order of categories is kept, missing labels get a code of their own, transcripts without a gene a gene of their own.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data.fields import BaseAnnDataField, CategoricalObsField

#: Key of the genes in the registry of a model.
GENES_KEY = "genes"


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


class GenesField(BaseAnnDataField):
    """Gene of each transcript, from a column of ``adata.var``; nothing is written to the data.

    Other data take the genes of the model: a transcript's gene is a fact about the model and not about cells.

    Parameters
    ----------
    registry_key
        Key in the data registry.
    attr_key
        Column of ``var``.
    """

    NAMES, CODES = "names", "codes"

    def __init__(self, registry_key: str, attr_key: str) -> None:
        self._registry_key, self._attr_key = registry_key, attr_key

    @property
    def registry_key(self) -> str:
        """Key in the data registry."""
        return self._registry_key

    @property
    def attr_name(self) -> str:
        """Where the column is."""
        return "var"

    @property
    def attr_key(self) -> str:
        """The column."""
        return self._attr_key

    @property
    def is_empty(self) -> bool:
        """Never: without genes there is no field."""
        return False

    def validate_field(self, adata: AnnData) -> None:
        """Nothing to check here: ``setup_anndata`` looks for the column."""

    def get_data_registry(self) -> dict[str, Any]:
        """Nothing that a loader of cells should read."""
        return {}

    @classmethod
    def state(cls, names: Any, codes: Any) -> dict[str, np.ndarray]:
        """What the registry holds."""
        return {cls.NAMES: np.asarray(names, dtype=object), cls.CODES: np.asarray(codes, dtype=np.int64)}

    def register_field(self, adata: AnnData) -> dict[str, Any]:
        """Read the column."""
        codes, names, n_without = gene_codes(adata.var[self.attr_key], adata.var_names)
        if n_without:
            warnings.warn(
                f"{n_without} of {adata.n_vars} transcripts have no gene in adata.var[{self.attr_key!r}]; each is taken "
                "for a gene of its own. isd.pp.annotate_genes may know more of them.",
                UserWarning,
                stacklevel=2,
            )
        return self.state(names, codes)

    def transfer_field(self, state_registry: dict[str, Any], adata_target: AnnData, **kwargs: Any) -> dict[str, Any]:
        """Genes are those of the model."""
        return self.state(state_registry[self.NAMES], state_registry[self.CODES])

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """Number of genes."""
        return {"n_genes": len(state_registry[self.NAMES])}

    def view_state_registry(self, state_registry: dict[str, Any]) -> None:
        """No table: there are as many rows as genes."""


def gene_codes(gene_ids: pd.Series, var_names: pd.Index) -> tuple[np.ndarray, np.ndarray, int]:
    """Genes as numbers, those with several isoforms first, each in order of first appearance.

    Parameters
    ----------
    gene_ids
        Gene of each transcript; missing and empty values are none.
    var_names
        Names of the transcripts: one without a gene is a gene of this name.

    Returns
    -------
    Code of each transcript's gene, shape ``(n_vars,)``; names of genes; number of transcripts without a gene.

    Examples
    --------
    >>> codes, names, n_without = gene_codes(pd.Series(["g2", "g1", None, "g1"]), pd.Index(["t1", "t2", "t3", "t4"]))
    >>> codes.tolist(), names.tolist(), n_without
    ([1, 0, 2, 0], ['g1', 'g2', 't3'], 1)
    """
    column = pd.Series(np.asarray(gene_ids, dtype=object))
    missing = (column.isna() | (column.astype(str).str.strip() == "")).to_numpy()
    # a transcript may have the name of some gene: what it is apart from the name says which is meant
    keys = [(True, i) if none else (False, str(v)) for i, (v, none) in enumerate(zip(column, missing, strict=True))]
    codes, unique = pd.factorize(pd.Series(keys, dtype=object))
    names = [str(var_names[key]) if none else key for none, key in unique]
    several = np.bincount(codes) > 1
    order = np.argsort(~several, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[codes], np.asarray(names, dtype=object)[order], int(missing.sum())
