"""What a matrix of counts is: one check that preprocessing, models and metrics share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from scipy import sparse

from isd._constants import COUNTS_LAYER

#: Values above this cannot be told apart as float32 integers, which is what models compute with.
MAX_EXACT_FLOAT32 = 2**24

#: No count is larger: 32 bits hold what sequencing gives, and likelihoods in single precision overflow soon after.
MAX_COUNT = 2**32 - 1

#: Rows that are read to see whether totals are all the same.
_SAMPLED_ROWS = 512
#: A logarithm of counts is below this.
_LARGEST_LOG = 40.0

CountKind = Literal["integer", "fractional"]


def resolve_layer(adata: AnnData, layer: str | None = None) -> str | None:
    """Name of the layer that holds counts: ``layer``, else ``"counts"`` if present, else ``None`` (``X``).

    Raises
    ------
    KeyError
        If ``layer`` is given and absent.
    """
    if layer is None:
        return "counts" if "counts" in adata.layers else None
    if layer == "X":
        return None
    if layer not in adata.layers:
        raise KeyError(
            f"layer {layer!r} is not in adata.layers, which has {sorted(map(str, adata.layers))}. "
            'Give the layer of raw counts, or layer="X" if they are in adata.X.'
        )
    return layer


def get_counts(adata: AnnData, layer: str | None = None) -> Any:
    """Return the counts matrix itself (no copy): see :func:`resolve_layer` for where it is looked for.

    Half precision is the exception: scipy has no sparse matrix of it, so that it is returned as float32.
    """
    layer = resolve_layer(adata, layer)
    return without_float16(adata.X if layer is None else adata.layers[layer])


def without_float16(matrix: Any) -> Any:
    """Return half precision as float32, anything else as it is."""
    return matrix.astype(np.float32) if getattr(matrix, "dtype", None) == np.float16 else matrix


def where(layer: str | None) -> str:
    """How messages name the place: ``adata.X`` or ``adata.layers['counts']``."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _blocks(matrix: Any, values: int = 1 << 22) -> Iterator[Any]:
    """Pieces of a matrix, a few million values at a time: along rows, or along columns where columns are stored."""
    n_obs, n_vars = matrix.shape
    by_column = getattr(matrix, "format", "csr") == "csc"
    length, width = (n_vars, n_obs) if by_column else (n_obs, n_vars)
    indptr = matrix.indptr if sparse.issparse(matrix) and matrix.format in ("csr", "csc") else None
    start = 0
    while start < length:
        if indptr is not None:
            # as many whole rows as hold that many stored values
            stop = int(np.searchsorted(indptr, int(indptr[start]) + values, side="right")) - 1
        else:
            stop = start + values // max(width, 1)
        stop = min(max(stop, start + 1), length)
        yield matrix[:, start:stop] if by_column else matrix[start:stop]
        start = stop


def _value_chunks(matrix: Any, chunk: int = 1 << 22) -> Iterator[np.ndarray]:
    """Yield the stored values of a matrix, a few million at a time, without a copy where it is in memory and sparse."""
    if sparse.issparse(matrix) and hasattr(matrix, "data") and isinstance(matrix.data, np.ndarray):
        for start in range(0, matrix.data.size, chunk):
            yield matrix.data[start : start + chunk]
        return
    for block in _blocks(matrix, chunk):
        yield block.data if sparse.issparse(block) else np.asarray(block).ravel()


def row_sums(matrix: Any) -> np.ndarray:
    """Total of each row as float64, in blocks: dense, sparse and backed matrices.

    Parameters
    ----------
    matrix
        Matrix of shape ``(n_obs, n_vars)``.

    Returns
    -------
    Array of shape ``(n_obs,)``.
    """
    return _row_sums(matrix, lambda values: values)


def _row_sums(matrix: Any, transform: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Row sums of ``transform(values)``, where ``transform(0) == 0``."""
    sums = np.zeros(matrix.shape[0])
    by_column = getattr(matrix, "format", "csr") == "csc"
    start = 0
    for block in _blocks(matrix):
        if sparse.issparse(block):
            block = block.tocoo()
            part = np.bincount(block.coords[0], transform(block.data.astype(np.float64)), block.shape[0])
        else:
            part = transform(np.asarray(block, dtype=np.float64)).sum(axis=1)
        if by_column:
            sums += part
        else:
            sums[start : start + len(part)] = part
            start += len(part)
    return sums


def all_zero_rows(matrix: Any, *, rounded: bool = False) -> np.ndarray:
    """Positions of the rows without a count.

    Parameters
    ----------
    matrix
        Non-negative matrix of shape ``(n_obs, n_vars)``: dense, sparse or backed.
    rounded
        Whether to look at the values rounded to whole numbers.

    Returns
    -------
    Increasing array of row positions.
    """
    return np.flatnonzero(_row_sums(matrix, np.rint if rounded else lambda values: values) == 0)


def _normalised(matrix: Any, share_fractional: float, largest: float) -> str | None:
    """Say what fractional values look like where they are not estimated counts; ``None`` if nothing speaks against these."""
    # log1p of 1e4-normalised values never exceeds log1p(1e4) = 9.21, and hardly one of them is whole, whichever features
    # were kept. Estimated counts have larger values, or many whole ones (reads that fit one transcript only).
    # No logarithm of a count is above log1p(1e9) = 20.7; there, next to no whole value is asked for.
    if (largest <= np.log1p(1e4) + 1e-3 and share_fractional > 0.95) or (largest <= 20.8 and share_fractional > 0.99):
        return f"log-normalised ({share_fractional:.0%} of the values have fractions, the largest is {largest:.3g})"
    # all features there: rows add up to one total (1e4, the median, a million), for the values or under the logarithm
    n_obs = matrix.shape[0]
    if n_obs > _SAMPLED_ROWS:
        # contiguous pieces: quick to read from a file, too
        pieces = np.linspace(0, n_obs - _SAMPLED_ROWS // 8, 8).astype(int)
        rows = np.unique(np.concatenate([np.arange(p, p + _SAMPLED_ROWS // 8) for p in pieces]))
        matrix = matrix[rows]
    names = {"normalised": lambda v: v}
    if largest < _LARGEST_LOG:
        names |= {"log1p-normalised": np.expm1, "log2-normalised": lambda v: np.expm1(v * np.log(2.0))}
    for name, undo in names.items():
        sums = _row_sums(matrix, undo)
        sums = sums[sums > 0]
        if sums.size >= 3 and np.std(sums) < 1e-3 * np.mean(sums):
            return f"{name} (every row adds up to {np.mean(sums):.6g})"
    return None


def classify_counts(matrix: Any, name: str = "adata.X", *, known: bool = False) -> CountKind:
    """Check that a matrix can be read as counts, and say whether its values are whole.

    Parameters
    ----------
    matrix
        Dense, sparse or backed matrix of shape ``(n_obs, n_vars)``; read in blocks.
    name
        How the message names it.
    known
        Whether the values are known to be on the scale of counts, however they look.

    Returns
    -------
    ``"integer"`` or ``"fractional"`` (non-negative values with fractions, as EM quantifiers give).

    Raises
    ------
    ValueError
        For NaN or infinite values, negative values, values of 2^32 and above, values that are no numbers, and fractional
        values that look normalised or log-transformed: more than 95% fractions and none above log1p(1e4), or 99% and none above 20.8, or the
        same total in every row, for the values themselves or after undoing the logarithm.
    """
    dtype = getattr(matrix, "dtype", None)
    if dtype is not None and np.dtype(dtype).kind in "ub" and np.dtype(dtype).itemsize <= 4:
        return "integer"
    n_values = n_fractional = 0
    largest = 0.0
    for values in _value_chunks(matrix):
        if values.size == 0:
            continue
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{name} has dtype {values.dtype}; counts must be numbers.")
        low, high = values.min(), values.max()
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN and infinities all reach the minimum or the maximum
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"{name} holds NaN or infinite values (at least {bad}); counts were expected. "
                "Remove or impute them, or give the layer of raw counts."
            )
        if low < 0:
            raise ValueError(
                f"{name} holds negative values (smallest {low:g}); raw counts were expected. "
                "Scaled or centred data cannot be used: give the layer of raw counts."
            )
        if float(high) > MAX_COUNT:
            raise ValueError(
                f"{name} holds values up to {float(high):.3g}, larger than any count (2^32); raw counts were expected. "
                "Give the layer of raw counts, or divide by the factor that they were multiplied with."
            )
        largest = max(largest, float(high))
        if values.dtype.kind == "f":
            n_values += int(np.count_nonzero(values))
            n_fractional += int(np.count_nonzero(values != np.rint(values)))
    if n_fractional == 0:
        return "integer"
    looks = None if known else _normalised(matrix, n_fractional / n_values, largest)
    if looks is not None:
        raise ValueError(
            f"{name} looks {looks}; raw counts were expected. "
            'Give the layer of raw counts, for instance layer="counts" as isd.pp.recipe keeps it.'
        )
    return "fractional"


def classify_layer(adata: AnnData, layer: str | None) -> CountKind:
    """Check the counts of an AnnData as :func:`classify_counts` does; where ``raw`` may hold them, the error says so."""
    try:
        return classify_counts(adata.X if layer is None else adata.layers[layer], where(layer))
    except ValueError as error:
        if adata.raw is None or not adata.var_names.isin(adata.raw.var_names).all():
            raise
        raise ValueError(
            f"{error} If adata.raw holds them: adata.layers[{COUNTS_LAYER!r}] = adata.raw[:, adata.var_names].X.copy()."
        ) from None
