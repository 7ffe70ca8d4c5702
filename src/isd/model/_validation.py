"""Checks of the data that a model is set up with: every message says what was given and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._counts import classify_layer, resolve_layer, row_sums, where
from isd.model._fields import label_categories


def validate_adata(
    adata: AnnData,
    *,
    layer: str | None,
    labels_key: str | None,
    batch_key: str | None,
    categorical_covariate_keys: Sequence[str] | None,
    continuous_covariate_keys: Sequence[str] | None,
    size_factor_key: str | None,
    gene_key: str | None = None,
    min_obs: int = 2,
    unlabeled_category: object = None,
) -> str | None:
    """Check everything that a model needs, before any time is spent.

    Returns
    -------
    The layer of counts, ``None`` for ``adata.X``.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If a key is not where it should be.
    ValueError
        If the values cannot be used.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, got {type(adata).__name__}.")
    if adata.is_view:
        raise ValueError(
            "adata is a view of another AnnData; models write to it. Make a copy first: adata = adata.copy()."
        )
    if adata.n_obs < min_obs:
        raise ValueError(f"adata has {adata.n_obs} cells; at least {min_obs} are needed.")
    if adata.n_vars < 2:
        raise ValueError(f"adata has {adata.n_vars} features; at least 2 are needed to train a model.")
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        raise ValueError(
            f"adata.var_names are not unique: {len(repeated)} names occur more than once "
            f"({', '.join(map(str, repeated[:5]))}). Call adata.var_names_make_unique() or sum the duplicates."
        )
    layer = resolve_layer(adata, layer)
    keys = [("batch_key", batch_key), ("labels_key", labels_key), ("size_factor_key", size_factor_key)]
    keys += [("categorical_covariate_keys", k) for k in categorical_covariate_keys or ()]
    keys += [("continuous_covariate_keys", k) for k in continuous_covariate_keys or ()]
    for argument, key in keys:
        if key is None or key in adata.obs:
            continue
        columns = [str(c) for c in adata.obs.columns if not str(c).startswith("_scvi")]
        hint = ""
        if argument == "labels_key":
            hint = " Run isd.pp.recipe (or sc.tl.leiden) first, name another column, or give labels_key=None for one class."
        raise KeyError(f"{argument} {key!r} is not in adata.obs, which has {columns}.{hint}")
    if gene_key is not None and gene_key not in adata.var:
        raise KeyError(
            f"gene_key {gene_key!r} is not in adata.var, which has {[str(c) for c in adata.var.columns]}. Name the column "
            "that holds the gene of each transcript, or run isd.pp.annotate_genes(adata, ...) first."
        )
    if labels_key is not None:
        labels = label_categories(adata.obs[labels_key], unlabeled_category)
        odd = sorted({type(v).__name__ for v in labels if not isinstance(v, (str, int, float, bool))})
        if odd:
            raise ValueError(
                f"adata.obs[{labels_key!r}] holds values of type {', '.join(odd)}; labels must be text or numbers. "
                f"Convert them: adata.obs[{labels_key!r}] = adata.obs[{labels_key!r}].astype(str)."
            )
        if not len(labels):
            raise ValueError(f"adata.obs[{labels_key!r}] has no labelled cell; give labels_key=None for one class.")
    for key in [batch_key, *(categorical_covariate_keys or ())]:
        if key is not None and adata.obs[key].isna().any():
            raise ValueError(
                f"adata.obs[{key!r}] has {int(adata.obs[key].isna().sum())} missing values; "
                "give these cells a category of their own or drop them."
            )
    for key in continuous_covariate_keys or ():
        if not np.isfinite(pd.to_numeric(adata.obs[key], errors="coerce")).all():
            raise ValueError(f"adata.obs[{key!r}] must be finite numbers to serve as a continuous covariate.")
    if size_factor_key is not None:
        factors = pd.to_numeric(adata.obs[size_factor_key], errors="coerce").to_numpy()
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise ValueError(f"adata.obs[{size_factor_key!r}] must be positive numbers to serve as size factors.")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise ValueError('adata.X is empty; give the layer of raw counts, such as layer="counts".')
    name = where(layer)
    if classify_layer(adata, layer) == "fractional":
        raise ValueError(
            f"{name} holds fractional counts (estimates of an EM quantifier?); models draw whole counts. "
            "Round them first: isd.pp.round_counts(adata) or isd.pp.recipe(adata) do, and keep the estimates."
        )
    totals = row_sums(matrix)
    empty = np.flatnonzero(totals == 0)
    if empty.size:
        names = ", ".join(map(str, adata.obs_names[empty[:5]]))
        raise ValueError(
            f"{empty.size} cells have no counts in {name} ({names}{', ...' if empty.size > 5 else ''}). "
            f"Drop them: adata = adata[{name}.sum(1) > 0].copy()."
        )
    return layer


def as_csr_in_place(adata: AnnData, layer: str | None) -> None:
    """Replace csc matrices and sparse arrays by ``csr_matrix``, and add up values that are stored twice.

    scvi-tools reads only that one fast; logarithms of the parts of a count are not that of the count.
    """
    matrix = adata.X if layer is None else adata.layers[layer]
    if sparse.issparse(matrix) and not isinstance(matrix, sparse.csr_matrix):
        csr = sparse.csr_matrix(matrix)
        if layer is None:
            adata.X = csr
        else:
            adata.layers[layer] = csr
        matrix = csr
    if isinstance(matrix, sparse.csr_matrix) and not matrix.has_canonical_format:
        matrix.sum_duplicates()


def check_features(expected: pd.Index, given: pd.Index) -> None:
    """Raise when features are not the model's, in the model's order.

    Raises
    ------
    ValueError
        Saying how many are missing, or that the order differs, and what to do.
    """
    if len(expected) == len(given) and (np.asarray(expected, dtype=object) == np.asarray(given, dtype=object)).all():
        return
    missing = expected.difference(given)
    if len(missing):
        raise ValueError(
            f"adata lacks {len(missing)} of the model's {len(expected)} features ({', '.join(map(str, missing[:5]))}); "
            "the model can only read data with all of them."
        )
    raise ValueError(
        "adata has the model's features in another order or with others among them. "
        "Align it first: adata = adata[:, model.feature_names].copy()."
    )
