"""Matrices of long-read tools: IsoQuant, FLAMES, bambu, Isosceles, wf-single-cell."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import COUNTS_LAYER
from isd.io._errors import UnreadableFileError, existing, reading
from isd.io._form import GeneMap, as_anndata, gene_columns
from isd.io._tables import TRANSCRIPT_ALIASES, Counts, read_header, read_linear, read_matrix_market, read_wide

Format = Literal["isoquant", "flames", "bambu", "isosceles", "wf-single-cell"]


class _Tool(NamedTuple):
    """How a tool calls its counts of transcripts (regular expressions, the best first), and what its files mean."""

    files: tuple[str, ...]
    #: column of a features file without header that names genes
    gene_column: int | None = None
    #: cells are the rows of its Matrix Market files
    cells_first: bool = False


_MEX = r"matrix\.mtx"
_TOOLS: dict[str, _Tool] = {
    "isoquant": _Tool(
        (
            r"(?:^|[._])(?<!discovered_)transcript_grouped\w*_counts\.matrix\.mtx",
            r"(?:^|[._])(?<!discovered_)transcript_grouped\w*_counts\.tsv",
            r"(?:^|[._])(?<!discovered_)transcript_grouped\w*_counts\.linear\.tsv",
            r"(?:^|[._])(?<!discovered_)transcript_counts\.tsv",
            r"transcript(?:_model)?_(?:grouped\w*_)?counts\.(?:matrix\.mtx|tsv|linear\.tsv)",
        )
    ),
    "flames": _Tool((r"transcript_count\.csv", r"\.count\.mtx", r"_?counts?\.mtx"), cells_first=True),
    "bambu": _Tool((r"(?:^|[^A-Za-z])counts_transcript\.mtx", r"(?:^|[^A-Za-z])counts_transcript\.txt"), gene_column=1),
    "isosceles": _Tool((r"\.h5ad", _MEX), gene_column=1),
    "wf-single-cell": _Tool((_MEX, r"transcript_expression\.counts\.tsv", r"transcript.*\.counts?\.tsv")),
}
#: Folders of Matrix Market files that belong to a tool (the gene matrices beside them do not).
_FOLDERS = {"wf-single-cell": ("*transcript_raw_feature_bc_matrix", "*/*transcript_raw_feature_bc_matrix")}
_ENDS = r"(?:\.gz)?$"
_FEATURES = ("features", "transcripts", "genes", "txANDgenes")
_BARCODES = ("barcodes", "cells", "sampleData")
_SUFFIXES = (".tsv", ".tsv.gz", ".txt", ".txt.gz", ".csv", ".csv.gz")


def read_long_reads(
    path: str | PathLike[str],
    format: Format | None = None,
    *,
    gene_map: GeneMap = None,
    features: str | PathLike[str] | None = None,
    barcodes: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> AnnData:
    r"""Read the transcript counts of a long-read tool: Matrix Market, tables or h5ad, gzipped or not.

    Parameters
    ----------
    path
        A file of counts, or the folder that the tool wrote.
    format
        The tool; ``None`` recognises it by the names of its files. Understood are, as the tools' own pages and sources say:

        ``"isoquant"`` (docs/output.md and formats.md of ablab/IsoQuant)
            ``*.transcript_grouped*_counts.matrix.mtx`` with ``.features.tsv`` and ``.barcodes.tsv``, the matrix
            ``*_counts.tsv``, ``*_counts.linear.tsv`` (transcript, group, count), ``*.transcript_counts.tsv`` (one sample), and
            the same of discovered transcripts. These files name no genes: give ``gene_map``, for instance IsoQuant's
            ``*.extended_annotation.gtf``. Rows such as ``__ambiguous`` are left out.
        ``"flames"`` (``count_tr.py`` of LuyiTian/FLAMES and mritchielab/FLAMES)
            ``transcript_count.csv.gz`` (transcript_id, gene_id, one column a barcode), and since version 2 oarfish's
            ``*.count.mtx`` (cells x transcripts) with ``.barcodes.txt`` and ``.features.txt``.
        ``"bambu"`` (``writeBambuOutput``, R/readWrite.R of GoekeLab/bambu)
            ``*counts_transcript.txt`` (TXNAME, GENEID, one column a sample), and for single cells ``*counts_transcript.mtx``
            with ``txANDgenes.tsv`` and ``sampleData.tsv`` or ``barcodes.tsv``.
        ``"isosceles"`` (``prepare_transcript_se``, Genentech/Isosceles)
            keeps a SummarizedExperiment in R: write it with ``zellkonverter::writeH5AD(se, "counts.h5ad", X_name = "counts")``,
            or as 10x folder with ``DropletUtils::write10xCounts(gene.symbol = rowData(se)$gene_id)``.
        ``"wf-single-cell"`` (docs/07_outputs.md and ``expression_matrix.py`` of epi2me-labs/wf-single-cell)
            ``*.transcript_raw_feature_bc_matrix/`` with ``matrix.mtx.gz``, ``features.tsv.gz`` (a number, then the
            transcript) and ``barcodes.tsv.gz``; older versions ``*transcript_expression.counts.tsv``. The processed
            matrices beside them are log-normalised, and refused.
    gene_map
        Frame of :func:`read_gene_map`, or the path of a GTF or TSV; fills what the files do not say.
    features, barcodes
        Files of names for a Matrix Market file, where they are called otherwise. The names of cells may be a table: its
        other columns go to ``obs``.
    progress
        Overrides :attr:`isd.settings.progress <isd.settings.Settings.progress>`.

    Returns
    -------
    AnnData: ``X`` csr (int32; float32 for estimates that are not whole); ``obs`` indexed by cell or sample; ``var`` indexed by
    ``transcript_id``, with ``gene_id`` and ``gene_name`` where they are known. Transcripts without a gene are named in a
    warning.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a folder holds none of the tool's.
    ValueError
        If ``format`` is something else, files are damaged or do not belong together, several could be meant, or the values
        are no counts.

    Examples
    --------
    >>> import isd, pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name, "transcript_count.csv")
    >>> _ = path.write_text("transcript_id,gene_id,AACC,GGTT\nENST1,ENSG1,0,2\nENST2,ENSG1,1,0\n")
    >>> adata = isd.io.read_long_reads(path)
    >>> adata.obs_names.tolist(), adata.var["gene_id"].tolist(), adata.X.toarray().tolist()
    (['AACC', 'GGTT'], ['ENSG1', 'ENSG1'], [[0, 1], [2, 0]])
    >>> folder.cleanup()
    """
    if format is not None and format not in _TOOLS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(map(repr, _TOOLS))}, or None.")
    path = existing(path, "a file or folder of transcript counts")
    file, tool = _locate(path, format)
    with reading(file, f"counts of {tool or 'a long-read tool'}"):
        if file.name.endswith(".h5ad"):
            found = _h5ad(file)
        elif re.search(r"\.mtx" + _ENDS, file.name):
            options = _TOOLS.get(tool or "", _Tool(()))
            found = read_matrix_market(
                file,
                _companion(file, _FEATURES, features, "features"),
                _companion(file, _BARCODES, barcodes, "barcodes"),
                gene_column=options.gene_column,
                cells_first=options.cells_first,
            )
        else:
            header = read_header(file)
            found = (read_linear if header.is_linear else read_wide)(file, header, progress)
    return as_anndata(found.counts, found.obs, found.var, path=file, gene_map=gene_map)


def _locate(path: Path, format: str | None) -> tuple[Path, str | None]:
    """The file of counts, and the tool that it looks like."""
    if path.is_file():
        return path, format or _recognised(path)
    tools = [format] if format is not None else list(_TOOLS)
    for tool in tools:
        folders = [path]
        for pattern in _FOLDERS.get(tool, ()):
            folders += sorted(p for p in path.glob(pattern) if p.is_dir())
        for pattern in _TOOLS[tool].files:
            hits = [p for folder in folders for p in sorted(folder.iterdir()) if re.search(pattern + _ENDS, p.name)]
            if format is None and pattern in (_MEX, r"\.h5ad") and len(folders) == 1:
                continue  # any tool may have written it
            if hits:
                return _only(hits, tool), tool
    if format is None:
        hits = sorted(p for p in path.iterdir() if re.search(rf"(?:^|\.){_MEX}{_ENDS}|\.h5ad$", p.name))
        if hits:
            return _only(hits, "a long-read tool"), _recognised(hits[0])
    listed = ", ".join(sorted(p.name for p in path.iterdir())[:8])
    raise FileNotFoundError(
        f"{path} holds no counts of {format or 'a known long-read tool'} (it holds {listed or 'nothing'}); "
        "give the file itself, and format=."
    )


def _only(hits: list[Path], tool: str) -> Path:
    if len(hits) > 1:
        raise ValueError(
            f"{len(hits)} files could be the counts of {tool}: {', '.join(p.name for p in hits[:5])}; give the one that is meant."
        )
    return hits[0]


def _recognised(file: Path) -> str | None:
    if "transcript_raw_feature_bc_matrix" in file.parent.name:
        return "wf-single-cell"
    for tool, options in _TOOLS.items():
        for pattern in options.files:
            if pattern not in (_MEX, r"\.h5ad", r"_?counts?\.mtx") and re.search(pattern + _ENDS, file.name):
                return tool
    return None


def _companion(matrix: Path, kinds: tuple[str, ...], given: Any, argument: str) -> Path:
    """The list of names that lies beside a Matrix Market file."""
    if given is not None:
        return existing(given, f"the names for {matrix.name}")
    stem = re.sub(r"\.mtx" + _ENDS, "", matrix.name)
    prefixes = [stem + ".", stem + "_"]
    for end in ("matrix", "counts", "count", "counts_transcript"):
        if stem.endswith(end):
            prefixes.append(stem.removesuffix(end))
    prefixes.append("")
    for prefix in prefixes:
        for kind in kinds:
            for suffix in _SUFFIXES:
                beside = matrix.with_name(prefix + kind + suffix)
                if beside.is_file():
                    return beside
    raise FileNotFoundError(
        f"beside {matrix} there is no {prefixes[0]}{kinds[0]}.tsv or {kinds[0]}.tsv; give the file with {argument}=."
    )


def _h5ad(path: Path) -> Counts:
    """Counts, cells and transcripts of an h5ad file, such as zellkonverter writes."""
    import anndata

    adata = anndata.read_h5ad(path)
    matrix = adata.layers[COUNTS_LAYER] if COUNTS_LAYER in adata.layers else adata.X
    if matrix is None:
        raise UnreadableFileError(f"{path} has neither X nor layers['counts'].")
    var = gene_columns(adata.var)
    ids = pd.Series(adata.var_names, dtype=object)
    for column in adata.var.columns:
        if str(column).lower() in TRANSCRIPT_ALIASES[:3] and adata.var[column].notna().all():
            ids = pd.Series(adata.var[column].astype(str).to_numpy(dtype=object))
            break
    var.index = pd.Index(ids.to_numpy(dtype=object))
    return Counts(matrix, adata.obs.copy(), var.astype(object).where(var.notna(), np.nan))
