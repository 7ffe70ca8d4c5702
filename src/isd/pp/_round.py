"""Fractional counts, as EM quantifiers estimate them, become whole numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from isd._counts import classify_counts, resolve_layer, where
from isd.pp._anndata import to_write_on

#: Layer that keeps the estimates.
ESTIMATED_LAYER = "estimated_counts"


def round_counts(adata: AnnData, *, layer: str | None = None, copy: bool = False) -> AnnData | None:
    """Round estimated counts to the nearest whole number, and keep the estimates.

    salmon, kallisto, RSEM and most long-read quantifiers share a read out among isoforms, so that their counts have
    fractions. Models of counts need whole numbers. Rounding is to the nearest (halves to even) with one warning
    that says how many values changed. Whole counts are left as they are.

    Parameters
    ----------
    adata
        Annotated data.
    layer
        Layer that holds the counts; ``None`` takes ``layers["counts"]`` if there, else ``X``; ``"X"`` is ``X``.
    copy
        Whether to return a changed copy and leave ``adata`` as it is.

    Returns
    -------
    ``None``, or the copy. Written where values were not whole: the rounded counts in their place (same kind of matrix,
    same dtype), and the estimates in ``layers["estimated_counts"]``.

    Raises
    ------
    KeyError
        If ``layer`` is not there.
    ValueError
        If the values are no counts, or ``layers["estimated_counts"]`` is taken.

    Examples
    --------
    >>> import anndata as ad, numpy as np, warnings, isd
    >>> adata = ad.AnnData(np.array([[0.0, 1.7, 12.0], [3.2, 0.0, 1.0]], dtype="float32"))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     isd.pp.round_counts(adata)
    >>> adata.X.tolist()
    [[0.0, 2.0, 12.0], [3.0, 0.0, 1.0]]
    """
    adata = to_write_on(adata, copy=copy)
    layer = resolve_layer(adata, layer)
    matrix = adata.X if layer is None else adata.layers[layer]
    if classify_counts(matrix, where(layer)) == "integer":
        return adata if copy else None
    check_estimates_fit(adata)
    rounded = rounded_with_warning(matrix, where(layer))
    adata.layers[ESTIMATED_LAYER] = matrix
    if layer is None:
        adata.X = rounded
    else:
        adata.layers[layer] = rounded
    return adata if copy else None


def check_estimates_fit(adata: AnnData) -> None:
    """Refuse to overwrite the estimates that an earlier rounding kept."""
    if ESTIMATED_LAYER in adata.layers:
        raise ValueError(
            f"adata.layers[{ESTIMATED_LAYER!r}] is there already, and rounding would overwrite it; "
            f"rename it, or drop it: del adata.layers[{ESTIMATED_LAYER!r}]."
        )


def rounded_with_warning(matrix: Any, name: str) -> Any:
    """Return a rounded copy of a matrix in memory; warn how many values changed."""
    rounded = matrix.copy()
    if sparse.issparse(rounded):
        whole = np.rint(rounded.data)
        changed, stored = int((whole != rounded.data).sum()), int(np.count_nonzero(rounded.data))
        rounded.data = whole
        rounded.eliminate_zeros()
    else:
        changed, stored = int((np.rint(matrix) != matrix).sum()), int(np.count_nonzero(matrix))
        np.rint(rounded, out=rounded)
    warnings.warn(
        f"{name} holds estimated counts: {changed:,} of {stored:,} non-zero values ({changed / stored:.0%}) were not "
        f'whole and were rounded. The estimates are kept in adata.layers["{ESTIMATED_LAYER}"]; '
        'isd.pp.recipe(adata, fractional="error") refuses them instead.',
        UserWarning,
        stacklevel=3,
    )
    return rounded
