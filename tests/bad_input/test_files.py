"""Files that are read, described and loaded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import isd
from isd.model import LatentDiffusion

from .conftest import ARCHS4, GENES, INFER, INFO, LOAD, LONG, QUANT, Case, Given, check, cut, h5ad

TABLE = "transcript_id,gene_id,A,B\nENST1,ENSG1,1,0\nENST2,ENSG1,0,3\n"
SALMON = "Name\tLength\tEffectiveLength\tTPM\tNumReads\nENST1\t900\t700\t1\t3\nENST2\t800\t600\t1\t2\n"
MTX = "%%MatrixMarket matrix coordinate integer general\n2 2 2\n1 1 1\n2 2 3\n"
GTF = 'chr1\tx\ttranscript\t1\t2\t.\t+\t.\tgene_id "g1"; transcript_id "t1";\n'


def table(given: Given, content: str | bytes) -> list[list[float]]:
    return isd.io.read_long_reads(given.put("transcript_count.csv", content)).X.toarray().tolist()


def mtx(given: Given, content: str | bytes, transcripts: str = "T1\nT2\n") -> list[list[float]]:
    given.put("features.tsv", transcripts)
    given.put("barcodes.tsv", "A\nB\n")
    return isd.io.read_long_reads(given.put("matrix.mtx", content)).X.toarray().tolist()


def salmon(given: Given, *contents: str | bytes, **kwargs: Any) -> list[list[float]]:
    paths = [given.put(f"s{i}/quant.sf", content) for i, content in enumerate(contents)]
    return isd.io.read_quant(paths, **kwargs).X.toarray().tolist()


def archs4(given: Given, change: Callable[[h5py.File], None] = lambda file: None, **kwargs: Any) -> list[list[int]]:
    path = given.tmp / "human_transcript_v2.5.h5"
    with h5py.File(path, "w") as file:
        file["data/expression"] = np.array([[0, 3], [5, 0], [0, 7]], dtype="uint32")
        file["meta/transcripts/ensembl_id"] = ["ENST1", "ENST2", "ENST3"]
        file["meta/samples/geo_accession"] = ["GSM1", "GSM2"]
        file["meta/samples/title"] = ["liver", "brain"]
        change(file)
    return isd.io.read_archs4(path, **kwargs).X.toarray().tolist()


def moved(file: h5py.File, old: str, new: str) -> None:
    file.move(old, new)


def loaded(given: Given, change: Callable[[Path], Any], cls: Any = LatentDiffusion) -> Any:
    path = given.saved()
    change(path)
    return cls.load(path)


def rewritten(path: Path, **entries: Any) -> None:
    document = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(document | entries))


def _cut_archs4(given: Given) -> Path:
    archs4(given)
    return cut(given.tmp / "human_transcript_v2.5.h5")


CASES = [
    Case("n_samples of 0", INFER, "refused: at least 1", lambda g: isd.tl.infer_isoforms(g.model, g.genes, 0), ValueError, "n_samples must be at least 1"),
    # tables and matrices of long-read tools
    Case("an empty file", LONG, "refused, with its name", lambda g: table(g, ""), ValueError, r"transcript_count\.csv"),
    Case("a header and nothing else", LONG, "refused: no transcript", lambda g: table(g, TABLE.splitlines()[0] + "\n"), ValueError, "a header and no transcript"),
    Case("a gzipped file cut short", LONG, "refused: damaged or cut short", lambda g: table(g, gzip.compress(TABLE.encode())[:-12]), ValueError, "cut short"),
    Case("a gzipped file without .gz in its name", LONG, "accepted", lambda g: table(g, gzip.compress(TABLE.encode())), gives=[[1, 0], [0, 3]]),
    Case("Windows line ends and a byte-order mark", LONG, "accepted", lambda g: table(g, b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode()), gives=[[1, 0], [0, 3]]),
    Case("quoted names", LONG, "accepted", lambda g: table(g, TABLE.replace("A,B", '"A","B"').replace("ENST1", '"ENST1"')), gives=[[1, 0], [0, 3]]),
    Case("a line with too few counts", LONG, "refused: holds NaN", lambda g: table(g, TABLE + "ENST3,ENSG2,1\n"), ValueError, "NaN or infinite"),
    Case("a line with too many counts", LONG, "refused: damaged", lambda g: table(g, TABLE + "ENST3,ENSG2,1,2,3\n"), ValueError, "cannot be read"),
    Case("a word in place of a count", LONG, "refused, with the word", lambda g: table(g, TABLE + "ENST3,ENSG2,1,many\n"), ValueError, "many"),
    Case("a number with an exponent of ten digits", LONG, "refused, with the number", lambda g: table(g, TABLE + "ENST3,ENSG2,1,1e308000000002.1\n"), ValueError, "1e308000000002.1"),
    Case("a negative count", LONG, "refused: raw counts were expected", lambda g: table(g, TABLE + "ENST3,ENSG2,1,-1\n"), ValueError, "negative values"),
    Case("a transcript without a name", LONG, "refused, with their number", lambda g: table(g, TABLE + ",ENSG2,1,1\n"), ValueError, "1 of 3 lines hold no name"),
    Case("a transcript that is listed twice", LONG, "accepted with a warning: added up", lambda g: table(g, TABLE + "ENST1,ENSG1,2,0\n"), gives=[[3, 0], [0, 3]], warns="added up"),
    Case("unicode names", LONG, "accepted", lambda g: table(g, TABLE.replace("ENST1", "τρ-転写").replace("A,B", "Größe,β")), gives=[[1, 0], [0, 3]]),
    Case("bytes that are no UTF-8", LONG, "refused: damaged", lambda g: table(g, TABLE.encode().replace(b"ENST1", b"\xff\xfe\xfa")), ValueError, "cannot be read"),
    Case("an image in place of a table", LONG, "refused: damaged or of another kind", lambda g: table(g, b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4), ValueError, r"transcript_count\.csv"),
    Case("names that do not fit the matrix", LONG, "refused: the files do not belong together", lambda g: mtx(g, MTX, "T1\nT2\nT3\n"), ValueError, "do not belong together"),
    Case("a matrix cut short", LONG, "refused: damaged or cut short", lambda g: mtx(g, MTX[:-6]), ValueError, "cut short"),
    Case("an index beyond the matrix", LONG, "refused, with the index", lambda g: mtx(g, MTX.replace("2 2 3\n", "7 2 3\n")), ValueError, "entry at row 7"),
    Case("a matrix that announces 10^12 entries", LONG, "refused, and never allocated", lambda g: mtx(g, MTX.replace("2 2 2\n", "2 2 1000000000000\n")), ValueError, "announces 1,000,000,000,000 entries and holds 2"),
    Case("a dense Matrix Market file", LONG, "refused: expected coordinate", lambda g: mtx(g, "%%MatrixMarket matrix array real general\n2 2\n1\n0\n0\n3\n"), ValueError, "expected coordinate"),
    Case("a gzipped matrix cut short", LONG, "refused: damaged or cut short", lambda g: mtx(g, gzip.compress(MTX.encode())[:-12]), ValueError, "cut short"),
    # estimates
    Case("a file of another tool", QUANT, "refused: cannot be read as a kallisto file", lambda g: salmon(g, SALMON, source="kallisto"), ValueError, "as a kallisto file"),
    Case("files of different annotations", QUANT, "refused, with how many transcripts differ", lambda g: salmon(g, SALMON, SALMON.replace("ENST2", "ENST9")), ValueError, "different annotations"),
    Case("a gzipped file without .gz in its name", QUANT, "refused: rename it", lambda g: salmon(g, gzip.compress(SALMON.encode())), ValueError, "rename it"),
    Case("NaN in the counts", QUANT, "refused: no numbers", lambda g: salmon(g, SALMON.replace("\t3\n", "\tNaN\n")), ValueError, "1 counts that are no numbers"),
    Case("a number with an exponent of ten digits", QUANT, "refused, with the number", lambda g: salmon(g, SALMON.replace("\t3\n", "\t1e308000000002\n")), ValueError, "1e308000000002' in line"),
    Case("a header and nothing else", QUANT, "refused: lists no transcripts", lambda g: salmon(g, SALMON.splitlines()[0] + "\n"), ValueError, "lists no transcripts"),
    # ARCHS4
    Case("a file cut short", ARCHS4, "refused: damaged or cut short", lambda g: isd.io.read_archs4(_cut_archs4(g)), ValueError, "cut short"),
    Case("a file of genes", ARCHS4, "refused: expected one of transcripts", lambda g: archs4(g, lambda f: moved(f, "meta/transcripts", "meta/genes")), ValueError, "file of genes"),
    Case("an h5ad file", ARCHS4, "refused, with what it lacks", lambda g: isd.io.read_archs4(h5ad(g)), ValueError, "has no data/expression"),
    Case("a matrix that does not fit its metadata", ARCHS4, "refused, with both shapes", lambda g: archs4(g, lambda f: (f.pop("meta/samples/geo_accession"), f.create_dataset("meta/samples/geo_accession", data=["GSM1"]))), ValueError, r"but meta/samples/geo_accession has shape \(1,\)"),
    Case("samples that are not in the file", ARCHS4, "refused, with their ids", lambda g: archs4(g, samples=["GSM2", "GSM404"]), KeyError, "1 of 2 samples.*GSM404"),
    Case("a term that is no regular expression", ARCHS4, "refused, with the way to write it", lambda g: archs4(g, search="liver (tumor"), ValueError, "no regular expression.*backslash"),
    Case("terms that no sample matches", ARCHS4, "refused: loosen them", lambda g: archs4(g, search="kidney"), ValueError, "no sample.*kidney"),
    # annotation
    Case("GFF3 in place of GTF", GENES, "refused, with the command that converts it", lambda g: isd.io.read_gene_map(g.put("a.gtf", "##gff-version 3\n")), ValueError, "gffread"),
    Case("a GTF line cut short", GENES, "refused: damaged or cut short", lambda g: isd.io.read_gene_map(g.put("a.gtf", GTF + GTF[:20] + "\n")), ValueError, "cut short"),
    Case("a table without a column of genes", GENES, "refused, with the columns that are", lambda g: isd.io.read_gene_map(g.put("t.tsv", "transcript_id\tlength\nENST1\t3\n")), ValueError, "no column 'gene_id'"),
    Case("an empty file", GENES, "refused: is empty", lambda g: isd.io.read_gene_map(g.put("t.tsv", "")), ValueError, "is empty"),
    # files of data and of models
    Case("an h5ad file cut short", INFO, "refused: damaged or cut short", lambda g: isd.io.info(cut(h5ad(g))), ValueError, "cut short"),
    Case("a text file named .h5ad", INFO, "refused: of another kind", lambda g: isd.io.info(g.put("a.h5ad", "cells")), ValueError, "of another kind"),
    Case("a folder without a model", LOAD, "refused: not a folder that save() wrote", lambda g: LatentDiffusion.load(g.tmp), FileNotFoundError, "model.json"),
    Case("weights cut short", LOAD, "refused: changed or cut short", lambda g: loaded(g, lambda p: cut(p / "weights.safetensors")), ValueError, "cut short"),
    Case("weights that are missing", LOAD, "refused: not saved whole", lambda g: loaded(g, lambda p: (p / "weights.safetensors").unlink()), FileNotFoundError, "weights.safetensors"),
    Case("a description that is no JSON", LOAD, "refused: damaged", lambda g: loaded(g, lambda p: cut(p / "model.json")), ValueError, "damaged|JSON"),
    Case("a model of another class", LOAD, "refused, with the class that reads it", lambda g: loaded(g, lambda p: None, isd.model.Classifier), ValueError, "LatentDiffusion"),
    Case("a model of a newer format", LOAD, "refused: update isodiff", lambda g: loaded(g, lambda p: rewritten(p, format_version=99)), ValueError, "[Uu]pdate isodiff"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Observation names are not unique")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.to}: {c.name}")
def test_case(case: Case, given: Given) -> None:
    check(case, given)
