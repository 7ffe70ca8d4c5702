"""Estimates of salmon, kallisto, oarfish, RSEM and piscem-infer: one file a sample."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import GENE_ID, GENE_NAME
from isd._progress import track
from isd.io._errors import UnreadableFileError, existing, is_gzipped, open_text, optional, reading, sound
from isd.io._form import GeneMap, as_anndata
from isd.pp import round_counts as _round_counts

Source = Literal["salmon", "kallisto", "oarfish", "rsem", "piscem"]


class _Layout(NamedTuple):
    """Columns of a tool's table, and how its files are called."""

    id: str
    counts: str
    length: str
    abundance: str
    patterns: tuple[str, ...]


_LAYOUTS: dict[str, _Layout] = {
    "salmon": _Layout("Name", "NumReads", "EffectiveLength", "TPM", ("quant.sf", "quant.sf.gz", "*.sf", "*.sf.gz")),
    "kallisto": _Layout(
        "target_id", "est_counts", "eff_length", "tpm", ("abundance.h5", "abundance.tsv", "abundance.tsv.gz")
    ),
    "oarfish": _Layout("tname", "num_reads", "len", "num_reads", ("*.quant", "*.quant.gz")),
    "rsem": _Layout(
        "transcript_id", "expected_count", "effective_length", "TPM", ("*.isoforms.results", "*.isoforms.results.gz")
    ),
    "piscem": _Layout("target_name", "ecount", "eeln", "tpm", ("*.quant", "*.quant.gz")),
}
#: Names that say nothing about the sample: the folder is named after it.
_PLAIN = ("quant", "abundance", "quant.sf", "abundance.tsv", "abundance.h5")
#: Fields of GENCODE's names of sequences: transcript, gene, two Havana ids, transcript name, gene name, ...
_GENCODE_FIELDS = 6
#: A number, not in the first column, whose exponent has five digits or more.
_EXPONENT = re.compile(r"\t\s*([+-]?[\d.]+[eE][+-]?\d{5,}[\d.]*)\s*(?=\t|$)")


def read_quant(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]] | Mapping[str, str | PathLike[str]],
    source: Source = "salmon",
    *,
    gene_map: GeneMap = None,
    round_counts: bool = False,
    progress: bool | None = None,
) -> AnnData:
    r"""Read transcript-level estimates, one file a sample, through pytximport (extra ``io``).

    Files are read one after another into sparse rows: pytximport's own table is dense, three times over. Counts stay those
    of transcripts; nothing is summed to genes and nothing is scaled by length.

    Parameters
    ----------
    paths
        Files; or a mapping from names of samples to files; or a folder, in which (and in whose folders) the files of
        ``source`` are found by their usual names. A folder of one sample may stand for its file.
    source
        ``"salmon"`` (``quant.sf``), ``"kallisto"`` (``abundance.h5``, ``abundance.tsv``), ``"oarfish"`` (``*.quant``),
        ``"rsem"`` (``*.isoforms.results``) or ``"piscem"`` (``*.quant``); text files may be gzipped.
    gene_map
        Frame of :func:`read_gene_map`, or the path of a GTF or TSV. RSEM's files name genes themselves, and so do ids that
        GENCODE's FASTA files give (``ENST...|ENSG...|...``), of which the first field is kept as name.
    round_counts
        Whether to round estimates to whole counts, which models need: through :func:`isd.pp.round_counts`, which says
        how many values changed and keeps the estimates in ``layers["estimated_counts"]``. Otherwise ``X`` holds the
        estimates; :func:`isd.pp.recipe` would round them later.
    progress
        Overrides :attr:`isd.settings.progress <isd.settings.Settings.progress>`.

    Returns
    -------
    AnnData: ``X`` csr, float32 estimates (int32 where all are whole); ``obs`` indexed by sample, with ``source`` and
    ``file``; ``var`` indexed by ``transcript_id``, with ``gene_id`` and ``gene_name`` where they are known.

    Raises
    ------
    FileNotFoundError
        If a file is missing, or the folder holds none of this source.
    ImportError
        If pytximport is missing.
    ValueError
        If ``source`` is something else, a file is damaged or of another tool, names of samples repeat, or files do not
        list the same transcripts.

    Examples
    --------
    >>> import isd, pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> for sample, reads in (("a", 3.5), ("b", 0.0)):
    ...     path = pathlib.Path(folder.name, sample, "quant.sf")
    ...     path.parent.mkdir()
    ...     _ = path.write_text(
    ...         f"Name\tLength\tEffectiveLength\tTPM\tNumReads\nENST1\t900\t700\t1\t{reads}\nENST2\t800\t600\t1\t2\n"
    ...     )
    >>> adata = isd.io.read_quant(folder.name, "salmon")
    >>> adata.obs_names.tolist(), adata.X.toarray().tolist()
    (['a', 'b'], [[3.5, 2.0], [0.0, 2.0]])
    >>> folder.cleanup()
    """
    if source not in _LAYOUTS:
        raise ValueError(f"source is {source!r}; expected one of {', '.join(map(repr, _LAYOUTS))}.")
    files = _files(paths, source)
    importers = _importers()
    ids: pd.Index | None = None
    genes: pd.Series | None = None
    rows = []
    for path in track(list(files.values()), "reading samples", progress=progress):
        with reading(path, f"a {source} file"):
            here, counts = _one(importers, path, source)
        if ids is None:
            ids, first = here, path
            if source == "rsem":
                genes = _rsem_genes(path)
        elif not here.equals(ids):
            counts = _in_order(here, counts, ids, path, first)
        rows.append(sparse.csr_matrix(counts[None, :]))
    assert ids is not None
    obs = pd.DataFrame(
        {"source": pd.Categorical([source] * len(files)), "file": [p.name for p in files.values()]}, index=list(files)
    )
    var = _var(ids)
    if genes is not None and GENE_ID not in var:
        var[GENE_ID] = genes.reindex(ids).to_numpy()
    adata = as_anndata(sparse.vstack(rows, format="csr"), obs, var, path=first, gene_map=gene_map)
    if round_counts:
        _round_counts(adata)
        adata.X = adata.X.astype(np.int32)
    return adata


def _files(paths: Any, source: str) -> dict[str, Path]:
    """Names of samples and their files."""
    what = f"files of {source} ({', '.join(_LAYOUTS[source].patterns)})"
    if isinstance(paths, Mapping):
        files = {str(name): _file(existing(p, what), source) for name, p in paths.items()}
    elif isinstance(paths, (str, PathLike)):
        path = existing(paths, what)
        found = [path] if path.is_file() else _found(path, source)
        files = _named(found)
    else:
        files = _named([_file(existing(p, what), source) for p in paths])
    if not files:
        raise FileNotFoundError(f"no file was given; expected {what}.")
    return files


def _found(folder: Path, source: str) -> list[Path]:
    """Files of a folder: its own, else those of the folders in it, one for each folder where the tool writes one."""
    for depth in ("", "*/", "*/*/"):
        for pattern in _LAYOUTS[source].patterns:
            found = sorted(p for p in folder.glob(depth + pattern) if p.is_file())
            if found:
                return found
    raise FileNotFoundError(
        f"{folder} holds no file of {source}: expected {' or '.join(_LAYOUTS[source].patterns)} in it or in its folders."
    )


def _file(path: Path, source: str) -> Path:
    if path.is_file():
        return path
    found = _found(path, source)
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} files of {source}; give the files, or this folder alone.")
    return found[0]


def _named(files: list[Path]) -> dict[str, Path]:
    names = []
    for path in files:
        name = path.name.removesuffix(".gz")
        for suffix in (".isoforms.results", ".quant", ".sf", ".tsv", ".h5"):
            if name not in _PLAIN:
                name = name.removesuffix(suffix)
        names.append(path.resolve().parent.name if name in _PLAIN else name)
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise ValueError(
            f"several files belong to the name {', '.join(map(repr, repeated[:5]))}; "
            "give a mapping from names of samples to files."
        )
    return dict(zip(names, files, strict=True))


class _Importers(NamedTuple):
    read_tsv: Callable[..., Any]
    read_kallisto: Callable[..., Any]


def _importers() -> _Importers:
    reason = "reading salmon, kallisto, oarfish, RSEM and piscem files"
    with _quiet():
        module = optional("pytximport.importers", "pytximport", reason)
    return _Importers(module.read_tsv, module.read_kallisto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what pytximport writes to the root logger about itself (which would also set that logger up)."""
    root, handler = logging.getLogger(), logging.NullHandler()
    drop = lambda record: "pytximport" not in record.pathname
    root.addHandler(handler)
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(handler)


def _one(importers: _Importers, path: Path, source: str) -> tuple[pd.Index, np.ndarray]:
    """Ids and counts of a sample."""
    layout = _LAYOUTS[source]
    with _quiet():
        if source == "kallisto" and path.suffix == ".h5":
            _check_lengths(path)
            data = importers.read_kallisto(path)
        else:
            if is_gzipped(path) != (path.suffix == ".gz"):
                raise UnreadableFileError(
                    f"{path} is {'compressed, but its name does not end' if path.suffix != '.gz' else 'not compressed, but its name ends'} in .gz; rename it."
                )
            _check_exponents(path)
            data = importers.read_tsv(path, layout.id, layout.counts, layout.length, layout.abundance)
    ids = pd.Index([str(i) for i in data["transcript_id"]], dtype=object)
    counts = np.asarray(data["counts"], dtype=np.float64)
    if not ids.size:
        raise UnreadableFileError(f"{path} lists no transcripts.")
    if counts.shape != ids.shape:
        raise UnreadableFileError(f"{path} has {ids.size} transcripts and counts of shape {counts.shape}.")
    if not np.isfinite(counts).all():
        raise UnreadableFileError(f"{path} holds {int((~np.isfinite(counts)).sum())} counts that are no numbers.")
    if counts.min() < 0:
        raise UnreadableFileError(f"{path} holds negative counts (smallest {counts.min():g}).")
    return ids, counts


def _check_exponents(path: Path) -> None:
    """Refuse numbers with exponents of five digits and more: pandas, which pytximport reads with, crashes at longer ones."""
    with open_text(path) as file:
        for i, line in enumerate(file, start=1):
            if found := _EXPONENT.search(line):
                raise UnreadableFileError(
                    f"{path} has {found[1]!r} in line {i}, a number that no file of counts holds."
                )


def _check_lengths(path: Path) -> None:
    """Compare the lengths in kallisto's HDF5 file: pytximport reads whatever a damaged one says."""
    with h5py.File(path, "r") as file:
        shapes = {key: sound(file[key]).shape for key in ("aux/ids", "est_counts", "aux/eff_lengths")}
    if len(set(shapes.values())) > 1:
        raise UnreadableFileError(f"{path} holds arrays of different lengths: {shapes}.")


def _in_order(here: pd.Index, counts: np.ndarray, ids: pd.Index, path: Path, first: Path) -> np.ndarray:
    """Counts in the order of the first file; another set of transcripts is another annotation."""
    if here.is_unique and ids.is_unique and len(here) == len(ids):
        order = here.get_indexer(ids)
        if (order >= 0).all():
            return counts[order]
    ours, theirs = set(ids), set(here)
    raise ValueError(
        f"{path} does not list the same transcripts as {first} ({len(here)} and {len(ids)}; {len(theirs - ours)} are only "
        f"in the former, {len(ours - theirs)} only in the latter): they were quantified against different annotations. "
        "Quantify all against one, or read them apart and join them with anndata.concat."
    )


def _rsem_genes(path: Path) -> pd.Series | None:
    """Genes, which RSEM's files name; pytximport leaves them out."""
    table = pd.read_csv(path, sep="\t", usecols=lambda c: c in ("transcript_id", "gene_id"), dtype=str)
    if "gene_id" not in table:
        return None
    return table.drop_duplicates("transcript_id").set_index("transcript_id")["gene_id"]


def _var(ids: pd.Index) -> pd.DataFrame:
    """Transcripts; genes where GENCODE's long names hold them."""
    if not ids.str.contains("|", regex=False).all():
        return pd.DataFrame(index=ids)
    fields = ids.to_series().str.split("|", expand=True)
    var = pd.DataFrame(index=pd.Index(fields[0].to_numpy(), dtype=object))
    if fields.shape[1] > 1:
        var[GENE_ID] = fields[1].replace("", np.nan).to_numpy()
    if fields.shape[1] >= _GENCODE_FIELDS:
        var[GENE_NAME] = fields[5].replace("", np.nan).to_numpy()
    return var
