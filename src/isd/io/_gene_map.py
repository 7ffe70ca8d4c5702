"""Which gene a transcript belongs to: from the annotation that it was counted with."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import pandas as pd

from isd._constants import GENE_ID, GENE_NAME
from isd.io._errors import UnreadableFileError, existing, open_text, optional, reading
from isd.pp import read_t2g

_TRANSCRIPT_ID, _TRANSCRIPT_NAME = "transcript_id", "transcript_name"
#: GENCODE's and Ensembl's names of the same attribute.
_BIOTYPES = ("gene_biotype", "gene_type")
_KEPT = (_TRANSCRIPT_ID, GENE_ID, GENE_NAME, _TRANSCRIPT_NAME, *_BIOTYPES)


def read_gene_map(path: str | PathLike[str]) -> pd.DataFrame:
    r"""Read which gene each transcript belongs to, from a GTF annotation or a table.

    Parameters
    ----------
    path
        A GTF file (through gtfparse, extra ``io``), or a tab- or comma-separated table as :func:`isd.pp.read_t2g` reads
        it; gzipped or not. What it is, is read from its content.

    Returns
    -------
    Frame indexed by ``transcript_id`` (versions as in the file), one row a transcript, with ``gene_id``, and where the
    file has them ``gene_name``, ``transcript_name`` and ``gene_biotype``; missing values are NaN. Every reader of
    :mod:`isd.io` takes it as ``gene_map``, :func:`isd.pp.annotate_genes` and :func:`isd.pp.map_ids` as ``t2g``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the file is a GTF and gtfparse is missing.
    ValueError
        If it is neither, is damaged, names no transcripts, or is GFF3.

    Examples
    --------
    >>> import isd, pathlib, tempfile
    >>> line = (
    ...     'chr1\tHAVANA\ttranscript\t1\t9\t.\t+\t.\tgene_id "ENSG1.2"; transcript_id "ENST1.1"; gene_name "A1BG";\n'
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "annotation.gtf")
    ...     _ = path.write_text(line)
    ...     isd.io.read_gene_map(path)
                   gene_id gene_name
    transcript_id
    ENST1.1        ENSG1.2      A1BG
    """
    path = existing(path, "a GTF annotation or a transcript-to-gene table")
    if path.is_dir():
        raise UnreadableFileError(f"{path} is a folder; expected one GTF file or one table.")
    with reading(path, "a GTF annotation or a table"):
        kind = _kind(path)
        table = _from_gtf(path) if kind == "gtf" else read_t2g(path)
    if table.empty:
        raise UnreadableFileError(f"{path} names no transcript that has a gene; expected a GTF file or a table.")
    table = table.drop_duplicates(_TRANSCRIPT_ID).set_index(_TRANSCRIPT_ID)
    return table[[c for c in (GENE_ID, GENE_NAME) if c in table] + [c for c in table if c not in (GENE_ID, GENE_NAME)]]


def _kind(path: Path) -> str:
    """``"gtf"`` or ``"table"``, by the first line that is no comment."""
    with open_text(path) as file:
        for _ in range(10_000):
            line = file.readline(1 << 20)
            if not line:
                break
            if line.startswith("##gff-version 3") or (line.count("\t") == 8 and "\tID=" in line):
                raise UnreadableFileError(
                    f"{path} is GFF3; expected GTF or a table. Convert it: gffread {path.name} -T -o annotation.gtf"
                )
            if line.startswith("#") or not line.strip():
                continue
            if line.count("\t") == 8 and "gene_id" in line.rsplit("\t", 1)[1]:
                return "gtf"
            return "table"
    raise UnreadableFileError(f"{path} is empty; expected a GTF annotation or a transcript-to-gene table.")


def _from_gtf(path: Path) -> pd.DataFrame:
    gtfparse = optional("gtfparse", "gtfparse", "reading GTF")
    # the lines of transcripts say it all; StringTie and old files have exons only
    for feature in ("transcript", "exon"):
        table = gtfparse.read_gtf(
            path, features={feature}, usecols=list(_KEPT), result_type="pandas", cast_version_columns=False
        )
        if len(table):
            break
    missing = [c for c in (_TRANSCRIPT_ID, GENE_ID) if c not in table]
    if missing:
        raise UnreadableFileError(f"{path} has no attribute {' and '.join(missing)} in its lines of transcripts.")
    table = table.rename(columns={"gene_type": "gene_biotype"}) if "gene_biotype" not in table else table
    table = table[[c for c in table if c in _KEPT and c != "gene_type"]].astype(object)
    table = table.where(table != "", float("nan")).dropna(subset=[_TRANSCRIPT_ID, GENE_ID])
    return table.drop_duplicates().reset_index(drop=True)
