"""What a file holds, read without its matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from isd._constants import GENE_ID
from isd.io._errors import UnreadableFileError, existing, reading, sound

#: Columns with more values than this are no labels.
_MOST_LABELS = 200
#: Elements of a string column that are read at most, to count its values.
_MOST_READ = 5_000_000


@dataclass
class MatrixInfo:
    """A matrix of a file: ``X`` or a layer.

    Parameters
    ----------
    kind
        ``"csr"``, ``"csc"`` or ``"dense"``.
    shape
        Rows and columns.
    dtype
        Type of the values.
    stored
        Number of stored values.
    on_disk, in_memory
        Bytes in the file, and once read.
    """

    kind: str
    shape: tuple[int, int]
    dtype: str
    stored: int
    on_disk: int
    in_memory: int

    @property
    def density(self) -> float:
        """Share of the values that are stored."""
        size = self.shape[0] * self.shape[1]
        return self.stored / size if size else 0.0

    @property
    def dense(self) -> int:
        """Bytes of the matrix if it were dense float32."""
        return 4 * self.shape[0] * self.shape[1]


@dataclass
class FileInfo:
    """What :func:`isd.io.info` found; ``print`` it.

    Parameters
    ----------
    path
        The file.
    kind
        ``"h5ad"``, ``"zarr"`` or ``"ARCHS4"``.
    shape
        Cells or samples, and transcripts.
    matrices
        ``"X"`` and layers by name.
    obs, var
        Type of each column.
    uns, obsm, varm, obsp
        Keys.
    labels
        For each column of ``obs`` that looks like labels, the number of cells of each value, in order of the categories.
    isoforms
        Isoforms a gene: ``genes``, ``several`` (genes with at least two), ``median``, ``largest``, ``without`` (transcripts that
        have no gene); empty where ``var["gene_id"]`` is missing.

    Examples
    --------
    >>> import tempfile, isd
    >>> path = f"{tempfile.mkdtemp()}/cells.h5ad"
    >>> isd.datasets.simulated(n_obs=30, n_vars=40, n_labels=2).write_h5ad(path)
    >>> info = isd.io.info(path)
    >>> info.shape, info.matrices["X"].kind, info.to_dict()["labels"]["leiden"]
    ((30, 40), 'csr', {'0': 17, '1': 13})
    """

    path: str
    kind: str
    shape: tuple[int, int]
    matrices: dict[str, MatrixInfo] = field(default_factory=dict)
    obs: dict[str, str] = field(default_factory=dict)
    var: dict[str, str] = field(default_factory=dict)
    uns: list[str] = field(default_factory=list)
    obsm: list[str] = field(default_factory=list)
    varm: list[str] = field(default_factory=list)
    obsp: list[str] = field(default_factory=list)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    isoforms: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        out = asdict(self)
        for name, matrix in self.matrices.items():
            out["matrices"][name]["density"] = matrix.density
        return out

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.kind}, {self.shape[0]:,} cells or samples x {self.shape[1]:,} transcripts"]
        for name, m in self.matrices.items():
            lines.append(
                f"  {name}: {m.kind} {m.dtype}, density {m.density:.2%}, {_bytes(m.on_disk)} on disk, "
                f"{_bytes(m.in_memory)} in memory (dense float32: {_bytes(m.dense)})"
            )
        for name in ("obs", "var"):
            columns = getattr(self, name)
            lines.append(f"  {name}: " + (", ".join(f"{c} ({t})" for c, t in columns.items()) or "no columns"))
        for name in ("uns", "obsm", "varm", "obsp"):
            if getattr(self, name):
                lines.append(f"  {name}: {', '.join(getattr(self, name))}")
        for column, sizes in self.labels.items():
            shown = ", ".join(f"{label}: {n:,}" for label, n in list(sizes.items())[:12])
            more = f", ... ({len(sizes)} values)" if len(sizes) > 12 else ""
            lines.append(f"  labels in obs[{column!r}]: {shown}{more}")
        if self.isoforms:
            i = self.isoforms
            lines.append(
                f"  isoforms: {i['genes']:,.0f} genes, {i['several']:,.0f} with several isoforms; a gene has {i['median']:g} "
                f"(median) to {i['largest']:,.0f}; {i['without']:,.0f} transcripts have no gene"
            )
        else:
            lines.append('  isoforms: var["gene_id"] is not there; see isd.pp.annotate_genes')
        return "\n".join(lines)


def info(path: str | PathLike[str]) -> FileInfo:
    """Say what a file holds: shape, types, memory, labels, isoforms a gene. The matrix is not read.

    Parameters
    ----------
    path
        An h5ad file, a zarr store of AnnData, or an ARCHS4 transcript file.

    Returns
    -------
    :class:`FileInfo`; ``print(...)`` shows it, ``.to_dict()`` is for programs.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged or of another kind.

    Examples
    --------
    >>> import isd, pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "cells.h5ad")
    >>> isd.datasets.simulated(60, 40, n_labels=2, seed=0).write_h5ad(path)
    >>> found = isd.io.info(path)
    >>> found.shape, found.matrices["X"].kind, sorted(found.labels["leiden"])
    ((60, 40), 'csr', ['0', '1'])
    >>> folder.cleanup()
    """
    path = existing(path, "an h5ad file, a zarr store or an ARCHS4 file")
    with reading(path, "an h5ad file, a zarr store or an ARCHS4 file"), _opened(path) as (root, kind):
        if kind == "HDF5" and "data/expression" in root:
            return _archs4(path, root)
        if "obs" not in root or "var" not in root:
            raise UnreadableFileError(
                f"{path} holds {sorted(map(str, root))[:8]}, but no obs and var; expected AnnData (h5ad, zarr) or ARCHS4."
            )
        return _anndata(path, root, "zarr" if kind == "zarr" else "h5ad")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, str]]:
    if path.is_dir():
        import zarr

        yield zarr.open_group(str(path), mode="r"), "zarr"
        return
    with h5py.File(path, "r") as file:
        yield file, "HDF5"


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _is_group(element: Any) -> bool:
    return not hasattr(element, "dtype")


def _anndata(path: Path, root: Any, kind: str) -> FileInfo:
    obs, var = (_columns(root[name]) for name in ("obs", "var"))
    shape = _length(root["obs"]), _length(root["var"])
    found = FileInfo(str(path), kind, shape, obs=obs, var=var)
    if "X" in root:
        matrix = _matrix(root["X"])
        if matrix is not None:
            found.matrices["X"] = matrix
    for name in _keys(root, "layers"):
        matrix = _matrix(root["layers"][name])
        if matrix is not None:
            found.matrices[f"layers[{name!r}]"] = matrix
    for name in ("uns", "obsm", "varm", "obsp"):
        setattr(found, name, _keys(root, name))
    for column in obs:
        sizes = _sizes(root["obs"][column], shape[0])
        if sizes is not None:
            found.labels[column] = sizes
    if GENE_ID in var:
        found.isoforms = _isoforms(_values(root["var"][GENE_ID], shape[1]))
    return found


def _keys(root: Any, name: str) -> list[str]:
    return sorted(map(str, root[name])) if name in root and _is_group(root[name]) else []


def _index_name(frame: Any) -> str:
    name = frame.attrs.get("_index", "_index")
    return name.decode() if isinstance(name, bytes) else str(name)


def _length(frame: Any) -> int:
    if not _is_group(frame):
        return int(frame.shape[0])  # anndata before 0.7 wrote one compound array
    index = frame[_index_name(frame)]
    return int((index["codes"] if _is_group(index) else index).shape[0])


def _columns(frame: Any) -> dict[str, str]:
    if not _is_group(frame):
        return {n: str(frame.dtype[n]) for n in frame.dtype.names or ()}
    order = [c.decode() if isinstance(c, bytes) else str(c) for c in frame.attrs.get("column-order", ())]
    names = [c for c in order if c in frame] or [c for c in frame if c != _index_name(frame)]
    return {c: _type(frame[c]) for c in names}


def _type(element: Any) -> str:
    if not _is_group(element):
        return "str" if element.dtype.kind in "OSUT" else str(element.dtype)
    encoding = str(element.attrs.get("encoding-type", "group"))
    if "categories" in element:
        return f"category, {element['categories'].shape[0]} values"
    if "values" in element and not _is_group(element["values"]):
        return _type(element["values"])
    return encoding


def _matrix(element: Any) -> MatrixInfo | None:
    if not _is_group(element):
        if len(element.shape) != 2:
            return None
        n = int(np.prod(element.shape, dtype=np.int64))
        itemsize = element.dtype.itemsize
        return MatrixInfo("dense", _pair(element.shape), str(element.dtype), n, _stored(element), n * itemsize)
    encoding = str(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "")))
    kind = encoding.removesuffix("_matrix")
    if kind not in ("csr", "csc"):
        return None
    shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
    data, indices, indptr = (element[k] for k in ("data", "indices", "indptr"))
    in_memory = sum(int(a.shape[0]) * a.dtype.itemsize for a in (data, indices, indptr))
    on_disk = sum(_stored(a) for a in (data, indices, indptr))
    return MatrixInfo(kind, _pair(shape), str(data.dtype), int(data.shape[0]), on_disk, in_memory)


def _pair(shape: Any) -> tuple[int, int]:
    n_rows, n_columns = (int(n) for n in shape)
    return n_rows, n_columns


def _stored(array: Any) -> int:
    if isinstance(array, h5py.Dataset):
        return int(array.id.get_storage_size())
    return int(array.nbytes_stored()) if callable(getattr(array, "nbytes_stored", None)) else int(array.nbytes)


def _strings(values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "OSUT":
        return values
    return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values], dtype=object)


def _read(array: Any, most: int, *, exactly: bool = True) -> np.ndarray:
    """All of an array that is as long as it must be: a damaged length must not be allocated."""
    if len(array.shape) != 1 or (array.shape[0] != most if exactly else array.shape[0] > most):
        raise UnreadableFileError(f"a column has shape {tuple(array.shape)}; expected ({most},).")
    return np.asarray(sound(array)[()])


def _values(element: Any, n: int) -> pd.Series:
    """A column of ``n`` values; missing ones are NaN."""
    if not _is_group(element):
        return pd.Series(_strings(_read(element, n))).replace("nan", np.nan)
    if "categories" in element:
        codes = pd.Series(_read(element["codes"], n))
        return codes.map(dict(enumerate(_strings(_read(element["categories"], n, exactly=False)))))
    values = pd.Series(_strings(_read(element["values"], n)))
    return values.mask(_read(element["mask"], n)) if "mask" in element else values


def _sizes(element: Any, n: int) -> dict[str, int] | None:
    """Cells of each value of a column that looks like labels: categories, texts and booleans of few values."""
    if _is_group(element):
        if "categories" not in element or element["categories"].shape[0] > _MOST_LABELS:
            return None
        names = _strings(sound(element["categories"])[()])
        codes = _read(element["codes"], n)
        if codes.size and codes.max() >= len(names):
            raise UnreadableFileError(f"a column names {len(names)} categories and uses number {codes.max()}.")
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        sizes = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
        missing = int((codes < 0).sum())
        return sizes | ({"(missing)": missing} if missing else {})
    if element.dtype.kind not in "OSUTb" or element.shape != (n,) or n > _MOST_READ:
        return None
    counts = pd.Series(_strings(sound(element)[()])).value_counts()
    if len(counts) > min(_MOST_LABELS, max(2, n // 2)):
        return None
    return {str(name): int(count) for name, count in counts.items()}


def _isoforms(genes: pd.Series) -> dict[str, float]:
    genes = genes.replace("", np.nan)
    sizes = genes.value_counts()
    return {
        "genes": float(len(sizes)),
        "several": float((sizes > 1).sum()),
        "median": float(sizes.median()) if len(sizes) else 0.0,
        "largest": float(sizes.max()) if len(sizes) else 0.0,
        "without": float(genes.isna().sum()),
    }


def _archs4(path: Path, root: Any) -> FileInfo:
    from isd.io._archs4 import _GENE_FIELDS, _layout

    expression, ids = _layout(root, path)
    found = FileInfo(str(path), "ARCHS4", (int(expression.shape[1]), int(expression.shape[0])))
    n = int(np.prod(expression.shape, dtype=np.int64))
    # transcripts x samples in the file: how much is not zero is not written there
    found.matrices["data/expression"] = MatrixInfo(
        "dense", found.shape, str(expression.dtype), n, _stored(expression), n * expression.dtype.itemsize
    )
    samples, transcripts = root["meta/samples"], root["meta/transcripts"]
    found.obs = {c: _type(samples[c]) for c in samples}
    for column in samples:
        if column in ("library_source", "organism_ch1", "instrument_model", "taxid_ch1"):
            sizes = _sizes(samples[column], found.shape[0])
            if sizes is not None:
                found.labels[column] = sizes
    if isinstance(transcripts, h5py.Group):
        found.var = {c: _type(transcripts[c]) for c in transcripts}
        key = next((k for k in _GENE_FIELDS[GENE_ID] if k in transcripts and transcripts[k].shape == ids.shape), None)
        if key is not None:
            found.isoforms = _isoforms(_values(transcripts[key], found.shape[1]))
    return found
