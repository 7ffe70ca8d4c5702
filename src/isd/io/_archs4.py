"""ARCHS4 transcript files: public RNA-seq samples, counted alike, in one HDF5 file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import GENE_ID, GENE_NAME
from isd._progress import track
from isd.io._errors import NothingLeftError, NotInFileError, UnreadableFileError, existing, reading
from isd.io._form import GeneMap, as_anndata
from isd.pp import strip_version

#: Columns of ``obs``, where the file has them.
OBS_FIELDS = (
    "geo_accession", "series_id", "characteristics_ch1", "extract_protocol_ch1", "source_name_ch1", "title", "contact_city",
    "contact_country", "contact_institute", "instrument_model", "library_source", "organism_ch1", "platform_id",
    "singlecellprobability", "submission_date", "taxid_ch1",
)  # fmt: skip
#: Fields that terms are looked for in, as the project's own package does.
SEARCH_FIELDS = (
    "geo_accession",
    "series_id",
    "characteristics_ch1",
    "extract_protocol_ch1",
    "source_name_ch1",
    "title",
)

_EXPRESSION = "data/expression"
_TRANSCRIPT_IDS = ("ensembl_id", "transcripts", "transcript_id", "ensembl_transcript_id", "transcript")
_GENE_FIELDS = {
    GENE_ID: ("ensembl_gene_id", "gene_id", "ensembl_gene", "gene"),
    GENE_NAME: ("gene_symbol", "symbol", "symbols", "gene_name"),
}
#: A sample is taken for a single cell above this, as ARCHS4 advises.
_SINGLE_CELL = 0.5

Terms = str | Sequence[str] | Mapping[str, str | Sequence[str]]


def read_archs4(
    path: str | PathLike[str],
    *,
    samples: Sequence[str] | Sequence[int] | None = None,
    search: Terms | None = None,
    single_cell: bool | None = None,
    transcripts: Sequence[str] | None = None,
    obs_fields: Sequence[str] | None = None,
    gene_map: GeneMap = None,
    chunk_mb: float = 64.0,
    progress: bool | None = None,
) -> AnnData:
    """Read samples of an ARCHS4 transcript file (``human_transcript_v2.x.h5``) by their ids or by what they are.

    The layout: ``data/expression``, transcripts x samples, unsigned integers; ``meta/samples/*``, one array a field;
    ``meta/transcripts/ensembl_id`` (or ``transcripts``) and, in some versions, symbols. It is read in blocks that follow the
    file's own chunks, so that no chunk is unpacked twice and no more than ``chunk_mb`` is dense at any time.

    Parameters
    ----------
    path
        The HDF5 file.
    samples
        GEO accessions (``"GSM1158284"``), or positions (integers). ``None`` takes all samples that the other arguments
        leave: about 100 GB in a whole file, so give at least one of them.
    search
        What the metadata must say, as regular expressions in which case does not matter: a term, several terms (each must
        be found, in any of the fields that archs4py searches, too), or a mapping from fields to terms
        (``{"source_name_ch1": "liver"}``). Within a term, ``|`` means or.
    single_cell
        ``True`` keeps samples whose ``singlecellprobability`` is at least 0.5, ``False`` the others.
    transcripts
        Ids of the transcripts to keep; versions are ignored. The file's order stays.
    obs_fields
        Fields of ``meta/samples`` for ``obs``; ``None`` takes the usual sixteen, as far as the file has them.
    gene_map
        Frame of :func:`read_gene_map`, or the path of a GTF or TSV, for ``var["gene_id"]`` and ``var["gene_name"]``.
    chunk_mb
        Megabytes of counts that are dense at a time.
    progress
        Overrides :attr:`isd.settings.progress <isd.settings.Settings.progress>`.

    Returns
    -------
    AnnData: ``X`` csr of the file's integers; ``obs`` indexed by accession, in the file's order (that of ``samples`` where it
    is given); ``var`` indexed by ``transcript_id``, with ``gene_id`` and ``gene_name`` where they are known.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If samples, transcripts or fields are not in the file (some are named).
    ValueError
        If the file is damaged or of another kind, a term is no regular expression, or no sample is left.

    Examples
    --------
    >>> import h5py, isd, numpy as np, pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "human_transcript_v2.5.h5")
    >>> with h5py.File(path, "w") as f:
    ...     f["data/expression"] = np.array([[0, 3], [5, 0], [0, 7]], dtype="uint32")
    ...     f["meta/transcripts/ensembl_id"] = ["ENST1", "ENST2", "ENST3"]
    ...     f["meta/samples/geo_accession"] = ["GSM1", "GSM2"]
    ...     f["meta/samples/source_name_ch1"] = ["Liver", "brain"]
    >>> adata = isd.io.read_archs4(path, search="liver")
    >>> adata.obs_names.tolist(), adata.X.toarray().tolist()
    (['GSM1'], [[0, 5, 0]])
    >>> folder.cleanup()
    """
    path = existing(path, "an ARCHS4 HDF5 file")
    if chunk_mb <= 0:
        raise ValueError(f"chunk_mb is {chunk_mb}; expected megabytes above 0.")
    terms = _compiled(search)
    with reading(path, "an ARCHS4 file"), h5py.File(path, "r") as file:
        expression, ids = _layout(file, path)
        fields = file["meta/samples"]
        accessions = _strings(fields["geo_accession"])
        order = _chosen(path, fields, accessions, samples, terms, single_cell)
        rows = _chosen_transcripts(path, ids, transcripts)
        obs = _obs(path, fields, accessions, order, obs_fields)
        var = _var(file["meta/transcripts"], ids, rows)
        counts = _csr(expression, order, rows, int(chunk_mb * 2**20), progress)
    return as_anndata(counts, obs, var, path=path, gene_map=gene_map, keep_dtype=True)


def _layout(file: h5py.File, path: Path) -> tuple[h5py.Dataset, np.ndarray]:
    """The matrix and the ids of transcripts, after a look at every shape: a damaged length must not be allocated."""
    if "meta/genes" in file:
        raise UnreadableFileError(
            f"{path} is an ARCHS4 file of genes; expected one of transcripts (human_transcript_v2.x.h5)."
        )
    absent = [k for k in (_EXPRESSION, "meta/samples/geo_accession", "meta/transcripts") if k not in file]
    if absent:
        raise UnreadableFileError(
            f"{path} has no {' and no '.join(absent)}, only {sorted(map(str, file))}; "
            "expected an ARCHS4 transcript file (human_transcript_v2.x.h5)."
        )
    expression = file[_EXPRESSION]
    if not isinstance(expression, h5py.Dataset) or expression.ndim != 2 or expression.dtype.kind not in "ui":
        raise UnreadableFileError(f"{path}: {_EXPRESSION} is no matrix of integers (transcripts x samples).")
    group = file["meta/transcripts"]
    if isinstance(group, h5py.Dataset):
        ids = group
    else:
        key = next((k for k in _TRANSCRIPT_IDS if k in group), None)
        if key is None:
            raise UnreadableFileError(
                f"{path}: meta/transcripts has {sorted(group)}, but none of {list(_TRANSCRIPT_IDS)}."
            )
        ids = group[key]
    lengths = {"meta/transcripts": ids.shape, "meta/samples/geo_accession": file["meta/samples/geo_accession"].shape}
    for (what, shape), expected in zip(lengths.items(), expression.shape, strict=True):
        if shape != (expected,):
            raise UnreadableFileError(
                f"{path}: {_EXPRESSION} is {expression.shape[0]} x {expression.shape[1]} (transcripts x samples), "
                f"but {what} has shape {shape}."
            )
    return expression, _strings(ids)


def _strings(dataset: h5py.Dataset) -> np.ndarray:
    values = dataset[()]
    if values.dtype.kind in "iufb":
        return values
    out = np.empty(values.shape, dtype=object)
    out[:] = [v.decode("utf-8", errors="replace") if isinstance(v, bytes) else str(v) for v in values]
    return out


def _compiled(search: Terms | None) -> list[tuple[str | None, re.Pattern[str]]]:
    """Pairs of field (``None``: any of the usual ones) and pattern."""
    if search is None:
        return []
    pairs = search.items() if isinstance(search, Mapping) else [(None, search)]
    out: list[tuple[str | None, re.Pattern[str]]] = []
    for field, terms in pairs:
        for term in [terms] if isinstance(terms, str) else terms:
            try:
                out.append((field, re.compile(term, re.IGNORECASE)))
            except re.error as error:
                raise ValueError(
                    f"search term {term!r} is no regular expression ({error}); put a backslash before characters such "
                    "as ( + * that are meant as they are."
                ) from error
    return out


def _field(path: Path, fields: h5py.Group, name: str, n: int) -> np.ndarray:
    if name not in fields:
        raise NotInFileError(f"meta/samples of {path.name} has no field {name!r}; it has {sorted(fields)}.")
    if fields[name].shape != (n,):
        raise UnreadableFileError(f"{path}: meta/samples/{name} has shape {fields[name].shape}; expected ({n},).")
    return _strings(fields[name])


def _chosen(
    path: Path,
    fields: h5py.Group,
    accessions: np.ndarray,
    samples: Sequence[str] | Sequence[int] | None,
    terms: list[tuple[str | None, re.Pattern[str]]],
    single_cell: bool | None,
) -> np.ndarray:
    """Positions of the samples, in the order asked for."""
    n = accessions.size
    if samples is None:
        order = np.arange(n)
    else:
        order = _positions(path, accessions, samples)
    keep = np.ones(n, dtype=bool)
    cache: dict[str, np.ndarray] = {}
    for field, pattern in terms:
        names = [field] if field is not None else [f for f in SEARCH_FIELDS if f in fields]
        hit = np.zeros(n, dtype=bool)
        for name in names:
            if name not in cache:
                cache[name] = _field(path, fields, name, n)
            rows = np.flatnonzero(keep & ~hit)
            hit[rows] = [pattern.search(str(v)) is not None for v in cache[name][rows]]
        keep &= hit
    if single_cell is not None:
        probability = _field(path, fields, "singlecellprobability", n).astype(float)
        keep &= (probability >= _SINGLE_CELL) == single_cell
    order = order[keep[order]]
    if not order.size:
        asked = ", ".join(p.pattern for _, p in terms)
        raise NothingLeftError(
            f"no sample of {path.name} ({n} in all) is left by the selection"
            f"{f' (terms: {asked})' if asked else ''}; loosen samples=, search= or single_cell=."
        )
    return order


def _positions(path: Path, accessions: np.ndarray, samples: Any) -> np.ndarray:
    if isinstance(samples, str):
        samples = [samples]
    asked = np.asarray(list(samples))
    if asked.size == 0:
        raise NothingLeftError("samples is empty; give accessions or positions, or leave it out for all samples.")
    if asked.dtype == bool:
        raise NothingLeftError("samples is a mask; give accessions, or positions: numpy.flatnonzero(mask).")
    if asked.dtype.kind in "iu":
        if asked.min() < 0 or asked.max() >= accessions.size:
            raise NotInFileError(
                f"samples: positions must lie in 0 ... {accessions.size - 1}, got {asked.min()} to {asked.max()}."
            )
        return asked
    order = pd.Index(accessions).drop_duplicates().get_indexer(asked.astype(object))
    first = np.flatnonzero(~pd.Index(accessions).duplicated())
    if (order < 0).any():
        gone = [str(s) for s in asked[order < 0]]
        raise NotInFileError(
            f"{len(gone)} of {asked.size} samples are not in {path.name}: {', '.join(gone[:5])}"
            f"{', ...' if len(gone) > 5 else ''}. It holds {accessions.size}, such as {accessions[0]}."
        )
    return first[order]


def _chosen_transcripts(path: Path, ids: np.ndarray, transcripts: Sequence[str] | None) -> np.ndarray | None:
    if transcripts is None:
        return None
    wanted = strip_version([transcripts] if isinstance(transcripts, str) else transcripts).unique()
    have = strip_version(ids)
    rows = np.flatnonzero(have.isin(wanted))
    gone = wanted[~wanted.isin(have)]
    if len(gone):
        raise NotInFileError(
            f"{len(gone)} of {len(wanted)} transcripts are not in {path.name}: {', '.join(gone[:5])}"
            f"{', ...' if len(gone) > 5 else ''}. It holds {ids.size}, such as {ids[0]}."
        )
    return rows


def _obs(
    path: Path, fields: h5py.Group, accessions: np.ndarray, order: np.ndarray, obs_fields: Sequence[str] | None
) -> pd.DataFrame:
    n = accessions.size
    names = [f for f in OBS_FIELDS if f in fields] if obs_fields is None else list(obs_fields)
    columns: dict[str, Any] = {}
    for name in names:
        values = _field(path, fields, name, n)[order]
        columns[name] = values.astype(np.float32) if values.dtype.kind == "f" else values
    return pd.DataFrame(columns, index=pd.Index(accessions[order].astype(str)))


def _var(group: Any, ids: np.ndarray, rows: np.ndarray | None) -> pd.DataFrame:
    var = pd.DataFrame(index=pd.Index(ids.astype(str)))
    if isinstance(group, h5py.Group):
        for ours, names in _GENE_FIELDS.items():
            key = next((k for k in names if k in group and group[k].shape == ids.shape), None)
            if key is not None:
                values = pd.Series(_strings(group[key]), index=var.index, dtype=object)
                var[ours] = values.replace({"": np.nan, "nan": np.nan, "NA": np.nan})
    return var if rows is None else var.iloc[rows]


def _blocks(shape: tuple[int, int], chunks: tuple[int, int] | None, itemsize: int, most: int) -> tuple[int, int]:
    """Rows and columns of a block: whole chunks of the file, as many as fit into ``most`` bytes."""
    n_rows, n_columns = shape
    if chunks is None:  # rows lie one after another
        return max(1, most // max(1, n_columns * itemsize)), n_columns
    height, width = min(chunks[0], n_rows), min(chunks[1], n_columns)
    # whole columns of chunks where they fit: each is then read once for all transcripts
    wide = max(1, most // max(1, n_rows * itemsize * width)) * width
    tall = max(1, most // max(1, wide * itemsize * height)) * height
    return min(tall, n_rows), min(wide, n_columns)


def _csr(
    expression: h5py.Dataset, order: np.ndarray, rows: np.ndarray | None, most: int, progress: bool | None
) -> sparse.csr_matrix:
    """Samples x transcripts, block by block."""
    n_transcripts = expression.shape[0] if rows is None else rows.size
    wanted = np.unique(order)
    tall, wide = _blocks(expression.shape, expression.chunks, expression.dtype.itemsize, most)
    groups = np.split(wanted, np.flatnonzero(np.diff(wanted // wide)) + 1)
    parts = [_group(expression, columns, rows, tall) for columns in _tracked(groups, progress)]
    data = np.concatenate([p.data for p in parts])
    indices = np.concatenate([p.indices for p in parts])
    lengths = np.concatenate([np.diff(p.indptr) for p in parts])
    del parts
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if data.size < np.iinfo(np.int32).max:
        indices, indptr = indices.astype(np.int32, copy=False), indptr.astype(np.int32)
    counts = sparse.csr_matrix((data, indices, indptr), shape=(wanted.size, n_transcripts))
    if order.size == wanted.size and (order == wanted).all():
        return counts
    return counts[np.searchsorted(wanted, order)]


def _tracked(groups: list[np.ndarray], progress: bool | None) -> Iterator[np.ndarray]:
    # a bar for one or two blocks says nothing
    return iter(groups) if len(groups) < 3 else track(groups, "reading samples", progress=progress)


def _group(expression: h5py.Dataset, columns: np.ndarray, rows: np.ndarray | None, tall: int) -> sparse.csr_matrix:
    """Some neighbouring samples, all transcripts: read in blocks of rows, turned once."""
    first, last = int(columns[0]), int(columns[-1]) + 1
    inside = columns - first
    pieces = []
    for start in range(0, expression.shape[0], tall):
        stop = min(start + tall, expression.shape[0])
        chosen: slice | np.ndarray = slice(None)
        if rows is not None:
            a, b = np.searchsorted(rows, [start, stop])
            if a == b:
                continue
            chosen = rows[a:b] - start
        block = expression[start:stop, first:last]
        pieces.append(sparse.csr_matrix(block[chosen][:, inside]))
    return sparse.csr_matrix(sparse.vstack(pieces, format="csc").T)
