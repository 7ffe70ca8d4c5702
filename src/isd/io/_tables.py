"""Text forms of a count matrix: Matrix Market with its lists of names, wide tables, and tables of one count a line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from isd._progress import track
from isd.io._errors import UnreadableFileError, is_gzipped, open_text
from isd.io._form import gene_columns

#: How pandas reads numbers: its own way of it crashes at exponents of ten digits, and this one refuses them.
FLOATS: Literal["round_trip"] = "round_trip"
#: Bytes of a table that are dense at a time.
_BUDGET = 64 * 2**20
#: Kinds of numbers of Matrix Market files that may be counts.
_FIELDS = ("integer", "unsigned-integer", "real", "double")
TRANSCRIPT_ALIASES = (
    "transcript_id", "transcriptid", "feature_id", "#feature_id", "txname", "transcript", "transcript_name", "tname",
    "isoform", "isoform_id", "feature", "target_id",
)  # fmt: skip
_GENE_ALIASES = ("gene_id", "geneid", "gene", "gene_name", "gene_symbol", "symbol", "associated_gene")
#: Columns of such tables that are neither names nor counts.
_OTHER = ("nbexons", "fsm_match", "seqnames", "strand", "tx.id", "txid", "eqclassbyid", "readcount")
_GROUPS = ("group_id", "group", "barcode", "cell", "sample_id")
#: Rows in which counters say what they could not count.
_TALLIES = r"^__|^(?:no_feature|ambiguous|not_aligned|too_low_aqual|alignment_not_unique)$"
_UNKNOWN = r"^unknown_\d+$"


class Counts(NamedTuple):
    """A matrix as it was found, turned to cells or samples x transcripts."""

    counts: Any
    obs: pd.DataFrame
    var: pd.DataFrame


def separator(line: str) -> str:
    """Tab where there is one, else comma."""
    return "\t" if "\t" in line else ","


def read_matrix_market(
    path: Path, features: Path, barcodes: Path, *, gene_column: int | None, cells_first: bool
) -> Counts:
    """Read a sparse matrix and the names of its rows and columns.

    Parameters
    ----------
    path, features, barcodes
        The three files.
    gene_column
        Column of a headless ``features`` file that holds genes.
    cells_first
        Which side cells are on where the numbers of cells and transcripts are the same.
    """
    var, obs = _features(features, gene_column), _barcodes(barcodes)
    head = _mtx_head(path)
    shape, expected = (head.n_rows, head.n_columns), (len(var), len(obs))
    if shape not in (expected, expected[::-1]):
        raise UnreadableFileError(
            f"{path} is {shape[0]} x {shape[1]}, but {features.name} names {len(var)} transcripts and {barcodes.name} "
            f"{len(obs)} cells; the files do not belong together."
        )
    matrix = _mtx_entries(path, head)
    cells_are_rows = shape == expected[::-1] and (shape != expected or cells_first)
    return Counts(sparse.csr_matrix(matrix if cells_are_rows else matrix.T), obs, var)


class _Head(NamedTuple):
    """What a Matrix Market file announces, and lines before its first entry."""

    n_rows: int
    n_columns: int
    n_entries: int
    n_lines: int


def _mtx_head(path: Path) -> _Head:
    # scipy's reader is C++ that ends the process where a stream fails, as a gzipped file that was cut short does
    with open_text(path) as file:
        banner = file.readline(1 << 16).split()
        kind = [word.lower() for word in banner]
        if kind[:2] != ["%%matrixmarket", "matrix"] or len(kind) != 5:
            raise UnreadableFileError(
                f"{path} does not start as a Matrix Market file does (%%MatrixMarket matrix ...)."
            )
        if kind[2] != "coordinate" or kind[3] not in _FIELDS or kind[4] != "general":
            raise UnreadableFileError(
                f"{path} is a Matrix Market file of kind {' '.join(kind[2:])}; expected coordinate integer (or real) general."
            )
        n_lines, line = 1, "%"
        while line.startswith("%") or not line.strip():
            line = file.readline(1 << 16)
            n_lines += 1
            if not line:
                raise UnreadableFileError(f"{path} ends before its sizes; it was cut short.")
    sizes = line.split()
    if len(sizes) != 3 or not all(word.isdigit() for word in sizes):
        raise UnreadableFileError(f"{path} has sizes {line.strip()[:60]!r}; expected rows, columns and entries.")
    return _Head(int(sizes[0]), int(sizes[1]), int(sizes[2]), n_lines)


def _mtx_entries(path: Path, head: _Head) -> sparse.coo_matrix:
    """Entries, in pieces; what a damaged number announces is never allocated."""
    parts: list[list[np.ndarray]] = [[], [], []]
    found = 0
    if head.n_entries:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            reader = pd.read_csv(
                path, sep=r"\s+", header=None, skiprows=head.n_lines, names=[0, 1, 2], index_col=False, engine="c",
                dtype={0: np.int64, 1: np.int64, 2: np.float64}, chunksize=1 << 20, comment="%", float_precision=FLOATS,
                compression="gzip" if is_gzipped(path) else None,
            )  # fmt: skip
            with reader as pieces:
                for piece in pieces:
                    found += len(piece)
                    for column, size, out in ((0, head.n_rows, parts[0]), (1, head.n_columns, parts[1])):
                        index = piece[column].to_numpy()
                        if len(index) and not (index.min() >= 1 and index.max() <= size):
                            raise UnreadableFileError(
                                f"{path} has an entry at {'row' if column == 0 else 'column'} "
                                f"{index.max() if index.max() > size else index.min()}, but {size} of them."
                            )
                        out.append((index - 1).astype(np.int32 if size < 2**31 else np.int64))
                    parts[2].append(piece[2].to_numpy())
    if found != head.n_entries:
        raise UnreadableFileError(
            f"{path} announces {head.n_entries:,} entries and holds {found:,}; it was cut short or damaged."
        )
    rows, columns, values = (np.concatenate(part) if part else np.zeros(0, dtype=np.int32) for part in parts)
    return sparse.coo_matrix((values, (rows, columns)), shape=(head.n_rows, head.n_columns))


def _names(path: Path) -> tuple[pd.DataFrame, bool]:
    """A small table of strings, and whether its first line names the columns."""
    with open_text(path) as file:
        first = file.readline().rstrip("\r\n")
    if not first:
        raise UnreadableFileError(f"{path} is empty; expected one name a line.")
    cells = [c.strip().strip('"').lower() for c in first.split(separator(first))]
    known = (*TRANSCRIPT_ALIASES, *_GENE_ALIASES, *_GROUPS, "barcodes", "name", "id", "samplename")
    header = 0 if any(c in known for c in cells) else None
    table = pd.read_csv(
        path,
        sep=separator(first),
        header=header,
        dtype=str,
        keep_default_na=False,
        na_values=[""],
        compression="gzip" if is_gzipped(path) else None,
    )
    return table, header is not None


def _features(path: Path, gene_column: int | None) -> pd.DataFrame:
    table, headed = _names(path)
    ids = table.iloc[:, 0]
    if headed:
        ids = table[next((c for c in table.columns if str(c).lower() in TRANSCRIPT_ALIASES), table.columns[0])]
    elif table.shape[1] > 1 and ids.str.match(_UNKNOWN, na=False).all():
        ids = table.iloc[:, 1]  # wf-single-cell numbers the first column and names the second
    _all_there(ids, path)
    var = gene_columns(table) if headed else pd.DataFrame(index=table.index)
    if not headed and gene_column is not None and table.shape[1] > gene_column:
        var["gene_id"] = table.iloc[:, gene_column].to_numpy()
    var.index = pd.Index(ids.to_numpy(dtype=object))
    return var


def _barcodes(path: Path) -> pd.DataFrame:
    table, headed = _names(path)
    if not headed:
        ids, obs = table.iloc[:, 0], pd.DataFrame(index=table.index)
    else:
        ids = table[
            next(
                (c for c in table.columns if str(c).lower() in ("name", "id", "barcode", "barcodes")), table.columns[0]
            )
        ]
        obs = table.drop(columns=ids.name)
    _all_there(ids, path)
    obs.index = pd.Index(ids.to_numpy(dtype=object))
    return obs


def _all_there(ids: pd.Series, path: Path) -> None:
    if ids.isna().any():
        raise UnreadableFileError(f"{path}: {int(ids.isna().sum())} of {len(ids)} lines hold no name.")


class Header(NamedTuple):
    """The first line of a table."""

    separator: str
    names: list[str]
    #: columns that hold transcripts, genes, something else, and counts
    transcript: int
    genes: list[int]
    other: list[int]
    counts: list[int]

    @property
    def is_linear(self) -> bool:
        """Whether each line holds one count of one cell."""
        return len(self.names) == 3 and self.names[1].lower().lstrip("#") in _GROUPS


def read_header(path: Path) -> Header:
    """Say which column of a table is what."""
    with open_text(path) as file:
        first, second = file.readline().rstrip("\r\n"), file.readline().rstrip("\r\n")
    sep = separator(first)
    names = [c.strip().strip('"') for c in first.split(sep)]
    if second and len(second.split(sep)) == len(names) + 1:
        names = ["transcript_id", *names]  # as R writes names of rows
    if len(names) < 2:
        raise UnreadableFileError(f"{path} has one column; expected transcripts and the counts of at least one cell.")
    lower = [n.lower() for n in names]
    ids = [i for i, n in enumerate(lower) if n in TRANSCRIPT_ALIASES]
    transcript = ids[0] if ids else 0
    genes = [i for i, n in enumerate(lower[:6]) if n in _GENE_ALIASES and i != transcript]
    other = [i for i, n in enumerate(lower) if n in _OTHER or (i in ids[1:])]
    counts = [i for i in range(len(names)) if i not in (transcript, *genes, *other)]
    if not counts:
        raise UnreadableFileError(f"{path} has no column of counts beside {names}.")
    return Header(sep, names, transcript, genes, other, counts)


def _chunks(path: Path, header: Header, n_rows: int) -> Iterator[pd.DataFrame]:
    text = {header.names[i]: str for i in (header.transcript, *header.genes, *header.other)}
    if header.is_linear:
        text[header.names[1]] = str
    numbers = {n: np.float64 for n in header.names if n not in text}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # lines that are too long would lose their end
        reader = pd.read_csv(
            path, sep=header.separator, header=None, skiprows=1, names=_distinct(header.names), index_col=False,
            dtype=_by_position(header.names, text | numbers), chunksize=n_rows, keep_default_na=False, na_values=["", "NA"],
            float_precision=FLOATS, compression="gzip" if is_gzipped(path) else None,
        )  # fmt: skip
        with reader:
            yield from reader


def _distinct(names: list[str]) -> list[int]:
    # barcodes may repeat, and pandas wants names that do not
    return list(range(len(names)))


def _by_position(names: list[str], types: dict[str, Any]) -> dict[int, Any]:
    return {i: types[name] for i, name in enumerate(names)}


def read_wide(path: Path, header: Header, progress: bool | None) -> Counts:
    """Read a table of transcripts x cells in pieces, each of which turns sparse before the next is read."""
    n_rows = max(1, _BUDGET // (8 * len(header.names)))
    blocks, ids, genes = [], [], []
    for chunk in track(_chunks(path, header, n_rows), "reading transcripts", progress=progress):
        keep = ~chunk[header.transcript].str.match(_TALLIES, na=False).to_numpy()
        chunk = chunk[keep]
        blocks.append(sparse.csr_matrix(chunk[header.counts].to_numpy(dtype=np.float64)))
        ids.append(chunk[header.transcript])
        genes.append(chunk[header.genes])
    if not any(len(part) for part in ids):
        raise UnreadableFileError(f"{path} holds a header and no transcript.")
    names = pd.concat(ids)
    _all_there(names, path)
    table = pd.concat(genes).set_axis([header.names[i] for i in header.genes], axis=1)
    var = gene_columns(table.rename(columns={c: "gene_id" for c in table.columns if c.lower() == "gene"}))
    var.index = pd.Index(names.to_numpy(dtype=object))
    cells = [header.names[i] for i in header.counts]
    if len(cells) == 1 and cells[0].lower() in ("count", "counts", "tpm"):
        cells = [path.name.split(".")[0]]  # one sample, named by its file
    counts = sparse.csr_matrix(sparse.vstack(blocks, format="csc").T)
    return Counts(counts, pd.DataFrame(index=pd.Index(cells, dtype=object)), var)


def read_linear(path: Path, header: Header, progress: bool | None) -> Counts:
    """Read a table of transcript, cell and count."""
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    ids: dict[str, int] = {}
    cells: dict[str, int] = {}
    for chunk in track(_chunks(path, header, 1 << 20), "reading counts", progress=progress):
        chunk = chunk[~chunk[0].str.match(_TALLIES, na=False).to_numpy()]
        _all_there(chunk[0], path)
        _all_there(chunk[1], path)
        for column, seen, out in ((0, ids, columns), (1, cells, rows)):
            codes, names = pd.factorize(chunk[column])
            known = np.array([seen.setdefault(n, len(seen)) for n in names], dtype=np.int64)
            out.append(known[codes] if len(names) else np.zeros(0, dtype=np.int64))
        values.append(chunk[2].to_numpy(dtype=np.float64))
    if not ids:
        raise UnreadableFileError(f"{path} holds a header and no count.")
    counts = sparse.coo_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(len(cells), len(ids))
    )
    frame = lambda names: pd.DataFrame(index=pd.Index(list(names), dtype=object))
    return Counts(counts.tocsr(), frame(cells), frame(ids))
