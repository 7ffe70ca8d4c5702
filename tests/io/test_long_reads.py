"""Matrices of long-read tools: one small table, written as each of them writes it, is always the same AnnData."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.io
from scipy import sparse

import isd
from isd.io import _tables

IDS = ["ENST1", "ENST2", "ENST3", "novel_1"]
GENES = ["ENSG1", "ENSG1", "ENSG2", "ENSG2"]
CELLS = ["AACC", "GGTT", "TTAA"]
#: transcripts x cells
COUNTS = np.array([[0, 2, 0], [1, 0, 0], [0, 0, 5], [4, 0, 1]])


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def mtx(matrix: np.ndarray, field: str = "integer") -> bytes:
    out = io.BytesIO()
    scipy.io.mmwrite(out, sparse.coo_matrix(matrix), field=field)
    return out.getvalue()


def lines(*names: str) -> str:
    return "\n".join(names) + "\n"


def wide(header: list[str], columns: list[list[str]], sep: str, index: str | None = None) -> str:
    rows = [sep.join([*(c[i] for c in columns), *map(str, COUNTS[i])]) for i in range(len(IDS))]
    return lines(sep.join([*header, *CELLS]), *rows)


def isoquant_mtx(folder: Path, gz: str) -> None:
    stem = "run.transcript_grouped_barcode_counts."
    put(folder / f"{stem}matrix.mtx{gz}", mtx(COUNTS.astype(float), "real"))
    put(folder / f"{stem}features.tsv", lines(*(f"{i}\t{i}-201" for i in IDS)))
    put(folder / f"{stem}barcodes.tsv", lines(*CELLS))
    put(folder / f"run.discovered_{stem[4:]}matrix.mtx", mtx(COUNTS))


def isoquant_wide(folder: Path, gz: str) -> None:
    text = wide(["#feature_id"], [IDS], "\t") + "__ambiguous\t9\t9\t9\n"
    put(folder / f"run.transcript_grouped_counts.tsv{gz}", text)


def isoquant_linear(folder: Path, gz: str) -> None:
    rows = [f"{IDS[i]}\t{CELLS[j]}\t{COUNTS[i, j]}.0" for i, j in zip(*np.nonzero(COUNTS), strict=True)]
    put(folder / f"run.transcript_grouped_counts.linear.tsv{gz}", lines("feature_id\tgroup_id\tcount", *rows))


def flames_csv(folder: Path, gz: str) -> None:
    put(folder / f"transcript_count.csv{gz}", wide(["transcript_id", "gene_id"], [IDS, GENES], ","))


def flames_oarfish(folder: Path, gz: str) -> None:
    put(folder / f"oarfish.count.mtx{gz}", mtx(COUNTS.T))
    put(folder / "oarfish.features.txt", lines(*IDS))
    put(folder / "oarfish.barcodes.txt", lines(*CELLS))


def bambu_txt(folder: Path, gz: str) -> None:
    put(folder / f"counts_transcript.txt{gz}", wide(["TXNAME", "GENEID"], [IDS, GENES], "\t"))
    put(folder / "CPM_transcript.txt", "TXNAME\tGENEID\ta\n")
    put(folder / "fullLengthCounts_transcript.txt", "TXNAME\tGENEID\ta\n")


def bambu_mtx(folder: Path, gz: str) -> None:
    put(folder / f"counts_transcript.mtx{gz}", mtx(COUNTS))
    put(folder / "txANDgenes.tsv", lines(*(f"{i}\t{g}" for i, g in zip(IDS, GENES, strict=True))))
    put(folder / "sampleData.tsv", lines("name\tsampleName", *(f"{c}\tdonor1" for c in CELLS)))


def wf_mex(folder: Path, gz: str) -> None:
    inside = folder / "s1" / "s1.transcript_raw_feature_bc_matrix"
    put(inside / "matrix.mtx.gz", mtx(COUNTS))
    put(inside / "features.tsv.gz", lines(*(f"unknown_{k:05d}\t{i}\tGene Expression" for k, i in enumerate(IDS))))
    put(inside / "barcodes.tsv.gz", lines(*CELLS))


def wf_tsv(folder: Path, gz: str) -> None:
    put(folder / f"s1.transcript_expression.counts.tsv{gz}", wide(["transcript"], [IDS], "\t"))


def isosceles_h5ad(folder: Path, gz: str) -> None:
    var = pd.DataFrame({"transcript_id": IDS, "gene_id": GENES}, index=[f"row{i}" for i in range(4)])
    adata = ad.AnnData(sparse.csr_matrix(np.full((3, 4), 0.5)), obs=pd.DataFrame(index=CELLS), var=var)
    adata.layers["counts"] = sparse.csc_matrix(COUNTS.T.astype(float))
    adata.write_h5ad(folder / "isosceles.h5ad")


WRITERS = {
    "isoquant": (isoquant_mtx, isoquant_wide, isoquant_linear),
    "flames": (flames_csv, flames_oarfish),
    "bambu": (bambu_txt, bambu_mtx),
    "wf-single-cell": (wf_mex, wf_tsv),
    "isosceles": (isosceles_h5ad,),
}
#: Files that name genes themselves.
WITH_GENES = (flames_csv, bambu_txt, bambu_mtx, isosceles_h5ad)


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("tool", "write"), [(t, w) for t, writers in WRITERS.items() for w in writers])
def test_every_tool_gives_the_same(tmp_path: Path, tool: str, write, given: bool, gz: str) -> None:
    write(tmp_path, gz)
    adata = isd.io.read_long_reads(tmp_path, tool if given else None)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.int32
    assert sorted(adata.obs_names) == sorted(CELLS)
    table = adata.to_df().loc[CELLS, IDS]
    np.testing.assert_array_equal(table.to_numpy(), COUNTS.T)
    assert adata.var.index.name == "transcript_id"
    if write in WITH_GENES:
        assert adata.var.loc[IDS, "gene_id"].tolist() == GENES
    else:
        assert "gene_id" not in adata.var


def test_metadata_of_cells(tmp_path: Path) -> None:
    bambu_mtx(tmp_path, "")
    adata = isd.io.read_long_reads(tmp_path)
    assert adata.obs["sampleName"].tolist() == ["donor1"] * 3


def test_a_map_fills_genes_and_names_what_is_left(tmp_path: Path, t2g: Path) -> None:
    isoquant_wide(tmp_path, "")
    with pytest.warns(UserWarning, match="1 of 4 transcripts have no gene: 'novel_1'"):
        adata = isd.io.read_long_reads(tmp_path, gene_map=t2g)
    assert adata.var["gene_id"].fillna("-").tolist() == ["ENSG1", "ENSG1", "ENSG2", "-"]


def test_as_many_cells_as_transcripts(tmp_path: Path) -> None:
    square = np.array([[0, 2], [3, 0]])
    for name, matrix in (("a.count.mtx", square.T), ("x.transcript_grouped_counts.matrix.mtx", square)):
        stem = name.removesuffix("count.mtx").removesuffix("matrix.mtx")
        put(tmp_path / name, mtx(matrix))
        put(tmp_path / f"{stem}features.tsv", lines("T1", "T2"))
        put(tmp_path / f"{stem}barcodes.tsv", lines("A", "B"))
        adata = isd.io.read_long_reads(tmp_path / name)
        assert adata.X.toarray().tolist() == [[0, 3], [2, 0]]


def test_rows_of_names_as_r_writes_them(tmp_path: Path) -> None:
    path = put(tmp_path / "counts_transcript.txt", lines("A\tB", "T1\t1\t0", "T2\t0\t2.5"))
    adata = isd.io.read_long_reads(path)
    assert adata.var_names.tolist() == ["T1", "T2"]
    assert adata.X.dtype == np.float32
    assert adata.X.toarray().tolist() == [[1.0, 0.0], [0.0, 2.5]]


def test_one_sample(tmp_path: Path) -> None:
    path = put(
        tmp_path / "run7.transcript_counts.tsv", lines("feature_id\tcount", "T1\t3.0", "T2\t0.0", "__no_feature\t8")
    )
    adata = isd.io.read_long_reads(path)
    assert adata.obs_names.tolist() == ["run7"]
    assert adata.X.toarray().tolist() == [[3, 0]]


def test_tables_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flames_csv(tmp_path, "")
    monkeypatch.setattr(_tables, "_BUDGET", 1)  # a row at a time
    adata = isd.io.read_long_reads(tmp_path)
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS.T)


def test_repeated_barcodes_become_unique(tmp_path: Path) -> None:
    path = put(tmp_path / "transcript_count.csv", lines("transcript_id,gene_id,A,A", "T1,G1,1,2"))
    with pytest.warns(UserWarning, match="1 names of cells or samples occur more than once"):
        adata = isd.io.read_long_reads(path)
    assert adata.obs_names.tolist() == ["A", "A-1"]
    assert adata.X.toarray().tolist() == [[1], [2]]


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of 'isoquant'"):
        isd.io.read_long_reads(tmp_path, "talon")
    with pytest.raises(FileNotFoundError, match="it holds nothing"):
        isd.io.read_long_reads(tmp_path)
    wf_mex(tmp_path, "")
    folder = tmp_path / "s1" / "s1.transcript_raw_feature_bc_matrix"
    put(folder / "barcodes.tsv.gz", lines("A", "B"))
    with pytest.raises(ValueError, match=r"names 4 transcripts and barcodes\.tsv\.gz 2 cells"):
        isd.io.read_long_reads(tmp_path)
    (folder / "barcodes.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match="give the file with barcodes="):
        isd.io.read_long_reads(tmp_path)
    names = put(tmp_path / "cells.txt", lines(*CELLS))
    assert isd.io.read_long_reads(folder, barcodes=names).obs_names.tolist() == CELLS
    put(folder / "matrix.mtx.gz", mtx(np.log1p(COUNTS * 1000 / 7), "real"))
    with pytest.raises(ValueError, match="looks log-normalised"):
        isd.io.read_long_reads(folder, barcodes=names)
    put(folder / "matrix.mtx.gz", b"%%MatrixMarket matrix coordinate integer general\n4 3 999999999999\n1 1 1\n")
    with pytest.raises(ValueError, match="announces 999,999,999,999 entries and holds 1"):
        isd.io.read_long_reads(folder, barcodes=names)
    two = tmp_path / "two"
    for run in ("a", "b"):
        put(two / f"{run}.transcript_grouped_counts.tsv", wide(["feature_id"], [IDS], "\t"))
    with pytest.raises(ValueError, match="2 files could be the counts of isoquant"):
        isd.io.read_long_reads(two)
    long = put(tmp_path / "transcript_count.csv", lines("transcript_id,gene_id,A,B", "T1,G1,1,2", "T2,G1,1,2,3"))
    with pytest.raises(ValueError, match=r"transcript_count\.csv cannot be read"):
        isd.io.read_long_reads(long)
    short = put(tmp_path / "transcript_count.csv", lines("transcript_id,gene_id,A,B", "T1,G1,1,2", "T2,G1,1"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        isd.io.read_long_reads(short)
