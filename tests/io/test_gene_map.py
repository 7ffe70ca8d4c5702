"""GTF and tables: the same genes, and frames that isd.pp takes."""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import isd

GTF = """#!genome-build GRCh38
chr1\tHAVANA\tgene\t1\t99\t.\t+\t.\tgene_id "ENSG1.2"; gene_type "protein_coding"; gene_name "A1; B";
chr1\tHAVANA\ttranscript\t1\t99\t.\t+\t.\tgene_id "ENSG1.2"; transcript_id "ENST00000000001.1"; gene_type "lncRNA"; gene_name "A1; B"; transcript_name "A1-201"; tag "basic"; tag "CCDS";
chr1\tHAVANA\texon\t1\t9\t.\t+\t.\tgene_id "ENSG1.2"; transcript_id "ENST00000000001.1"; exon_number 1;
chr1\tHAVANA\ttranscript\t1\t99\t.\t+\t.\tgene_id "ENSG1.2"; transcript_id "ENST00000000002"; gene_type "lncRNA"; gene_name "A1; B"; transcript_name "A1-202";
"""
EXONS_ONLY = """chr1\tStringTie\texon\t1\t9\t1000\t+\t.\tgene_id "MSTRG.1"; transcript_id "MSTRG.1.1"; exon_number "1";
chr1\tStringTie\texon\t20\t29\t1000\t+\t.\tgene_id "MSTRG.1"; transcript_id "MSTRG.1.1"; exon_number "2";
"""


def written(tmp_path: Path, text: str, name: str = "a.gtf") -> Path:
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.gtf", "a.gtf.gz"])
def test_gtf(tmp_path: Path, name: str) -> None:
    table = isd.io.read_gene_map(written(tmp_path, GTF, name))
    assert table.index.tolist() == ["ENST00000000001.1", "ENST00000000002"]
    assert table.index.name == "transcript_id"
    assert table["gene_id"].tolist() == ["ENSG1.2"] * 2
    assert table["gene_name"].tolist() == ["A1; B"] * 2
    assert table["transcript_name"].tolist() == ["A1-201", "A1-202"]
    assert table["gene_biotype"].tolist() == ["lncRNA"] * 2


def test_gtf_of_exons_only(tmp_path: Path) -> None:
    table = isd.io.read_gene_map(written(tmp_path, EXONS_ONLY))
    assert table.to_dict() == {"gene_id": {"MSTRG.1.1": "MSTRG.1"}}


def test_table_and_gtf_agree(tmp_path: Path) -> None:
    text = "transcript_id\tgene_id\tgene_name\nENST00000000001.1\tENSG1.2\tA1; B\nENST00000000002\tENSG1.2\tA1; B\n"
    table = isd.io.read_gene_map(written(tmp_path, text, "t2g.tsv.gz"))
    gtf = isd.io.read_gene_map(written(tmp_path, GTF))
    pd.testing.assert_frame_equal(table, gtf[["gene_id", "gene_name"]])


def test_what_it_gives_annotates(tmp_path: Path) -> None:
    table = isd.io.read_gene_map(written(tmp_path, GTF))
    adata = ad.AnnData(np.ones((1, 3)), var=pd.DataFrame(index=["ENST00000000002.7", "ENST00000000001", "novel"]))
    report = isd.pp.annotate_genes(adata, table)
    assert adata.var["gene_id"].fillna("-").tolist() == ["ENSG1.2", "ENSG1.2", "-"]
    assert report.loc["gene_id", "unmapped"] == 1
    assert isd.pp.map_ids(["ENST00000000001"], t2g=table)["gene_id"].tolist() == ["ENSG1.2"]


def test_real_table(data_dir: Path) -> None:
    table = isd.io.read_gene_map(data_dir / "t2g_human_grch38.tsv.gz")
    assert table.index.is_unique
    assert table.loc["ENST00000373020", "gene_name"] == "TSPAN6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("##gff-version 3\nchr1\tx\tmRNA\t1\t2\t.\t+\t.\tID=t1;Parent=g1\n", "GFF3"),
        ('chr1\tx\ttranscript\t1\t2\t.\t+\t.\tgene_id "g1";\n', "no attribute transcript_id"),
        ('chr1\tx\ttranscript\t1\t2\t.\t+\t.\tgene_id "g1"; transcript_id "t1";\nchr1\tx\n', "nine GTF fields"),
    ],
)
def test_what_it_refuses(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        isd.io.read_gene_map(path)
