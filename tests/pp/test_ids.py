from __future__ import annotations

import gzip
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from isd.datasets import simulated
from isd.pp import map_ids, read_t2g, strip_version

NOVEL = "ENSG00000104435.13_78616340_78665843_1"


@pytest.fixture
def t2g() -> pd.DataFrame:
    return pd.DataFrame(
        [
            ("ENST00000263100", "ENSG00000121410", "A1BG"),
            ("ENST00000595014", "ENSG00000121410", "A1BG"),
            ("ENST00000220876", "ENSG00000104435", "STMN2"),
            ("ENST00000408577", "ENSG00000221504", "AC011456.1"),
            ("ENST00000999001", "ENSG00000000901", "TWIN"),
            ("ENST00000999002", "ENSG00000000902", "TWIN"),
            ("ENST00000999003", "ENSG00000000903", np.nan),
            ("ENSMUST00000000001", "ENSMUSG00000000001", "Nkx2-5"),
        ],
        columns=["transcript_id", "gene_id", "gene_name"],
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ENST00000456328.2", "ENST00000456328"),
        ("ENST00000456328.12", "ENST00000456328"),
        ("ENST00000456328", "ENST00000456328"),
        (NOVEL, NOVEL),
        ("A1BG-203", "A1BG-203"),
        ("ENST00000359512.8_PAR_Y", "ENST00000359512.8_PAR_Y"),
        ("t:chr19:+:comp-100:iso-1", "t:chr19:+:comp-100:iso-1"),
        ("a.1.2", "a.1"),
    ],
)
def test_strip_version(given, expected):
    assert strip_version(given) == expected
    assert strip_version(pd.Index([given, "x.3"])).tolist() == [expected, "x"]


@pytest.mark.parametrize(
    ("given", "target", "expected", "id_type", "status"),
    [
        ("ENST00000263100", "gene_id", "ENSG00000121410", "transcript_id", "mapped"),
        ("ENST00000263100.8", "gene_name", "A1BG", "transcript_id", "mapped"),
        ("ENST00000263100.8", "transcript_id", "ENST00000263100", "transcript_id", "mapped"),
        ("ENSG00000121410.12", "gene_id", "ENSG00000121410", "gene_id", "mapped"),
        ("ENSG00000121410", "gene_name", "A1BG", "gene_id", "mapped"),
        ("ENSG00000104435", "transcript_id", "ENST00000220876", "gene_id", "mapped"),
        ("ENSG00000121410", "transcript_id", None, "gene_id", "ambiguous"),
        ("A1BG", "gene_id", "ENSG00000121410", "gene_name", "mapped"),
        ("A1BG-203", "gene_id", "ENSG00000121410", "transcript_name", "mapped"),
        ("A1BG-203", "gene_name", "A1BG", "transcript_name", "mapped"),
        ("A1BG-203", "transcript_id", None, "transcript_name", "unmapped"),
        ("A1BG-2", "gene_id", None, "unknown", "unmapped"),
        ("Nkx2-5", "gene_id", "ENSMUSG00000000001", "gene_name", "mapped"),
        ("Nkx2-5-201", "gene_id", "ENSMUSG00000000001", "transcript_name", "mapped"),
        ("AC011456.1", "gene_id", "ENSG00000221504", "gene_name", "mapped"),
        ("AC011456.1-201", "gene_id", "ENSG00000221504", "transcript_name", "mapped"),
        ("AC011456", "gene_id", None, "unknown", "unmapped"),
        ("ENSMUST00000000001.4", "gene_name", "Nkx2-5", "transcript_id", "mapped"),
        (NOVEL, "gene_id", "ENSG00000104435", "novel", "mapped"),
        (NOVEL, "gene_name", "STMN2", "novel", "mapped"),
        (NOVEL, "transcript_id", None, "novel", "unmapped"),
        ("TWIN", "gene_id", None, "gene_name", "ambiguous"),
        ("ENST00000999003", "gene_name", None, "transcript_id", "unmapped"),
        ("ENST00000999003", "gene_id", "ENSG00000000903", "transcript_id", "mapped"),
        ("ENST09999999999.1", "gene_id", None, "unknown", "unmapped"),
    ],
)
def test_map_ids(t2g, given, target, expected, id_type, status):
    found = map_ids([given], target, t2g=t2g)
    assert list(found.columns) == [target, "id_type", "status"] and found.index.tolist() == [given]
    row = found.iloc[0]
    assert (None if pd.isna(row[target]) else row[target]) == expected
    assert (row["id_type"], row["status"]) == (id_type, status)


def test_order_repeats_and_counts(t2g):
    ids = ["XYZ", "A1BG", "ENST00000263100.1", "XYZ", "TWIN"]
    found = map_ids(iter(ids), "gene_id", t2g=t2g)
    assert found.index.tolist() == ids
    assert found["status"].tolist() == ["unmapped", "mapped", "mapped", "unmapped", "ambiguous"]
    assert found["status"].value_counts().to_dict() == {"mapped": 2, "unmapped": 2, "ambiguous": 1}
    assert map_ids([], "gene_id", t2g=t2g).shape == (0, 3)


def test_first_of_several(t2g):
    found = map_ids(["TWIN", "ENSG00000121410"], "transcript_id", t2g=t2g, ambiguous="first")
    assert found["transcript_id"].tolist() == ["ENST00000999001", "ENST00000263100"]
    assert (found["status"] == "ambiguous").all()


def test_versions_in_the_table(t2g):
    t2g["transcript_id"] += ".7"
    t2g["gene_id"] += ".3"
    found = map_ids(["ENST00000263100", "ENST00000263100.1", "ENST00000263100.7"], "gene_id", t2g=t2g)
    assert (found["gene_id"] == "ENSG00000121410.3").all()
    assert map_ids([NOVEL], "gene_id", t2g=t2g)["gene_id"].tolist() == ["ENSG00000104435.3"]


def test_transcript_names_of_the_table(t2g):
    t2g["transcript_name"] = [f"{n}-{201 + i}" for i, n in enumerate(t2g["gene_name"])]
    found = map_ids(["A1BG-202", "A1BG-209"], "transcript_id", t2g=t2g)
    assert found["transcript_id"].iloc[0] == "ENST00000595014" and pd.isna(found["transcript_id"].iloc[1])


def test_simulated_data_map_to_themselves():
    adata = simulated(20, 200, 2)
    table = adata.var[["gene_id", "gene_name", "transcript_name"]].reset_index()
    for ids in (adata, strip_version(adata.var_names), adata.var["transcript_name"]):
        found = map_ids(ids, "gene_id", t2g=table)
        assert (found["gene_id"].to_numpy() == adata.var["gene_id"].to_numpy()).all()
    found = map_ids(adata.var["transcript_name"], "transcript_id", t2g=table)
    assert (found["transcript_id"].to_numpy() == adata.var_names).all()


def test_map_ids_errors(t2g):
    with pytest.raises(ValueError, match="target is 'symbol'"):
        map_ids(["a"], "symbol", t2g=t2g)
    with pytest.raises(ValueError, match="ambiguous is 'last'"):
        map_ids(["a"], t2g=t2g, ambiguous="last")
    with pytest.raises(ValueError, match="no column 'gene_id'"):
        map_ids(["a"], t2g=t2g.drop(columns="gene_id"))
    with pytest.raises(ValueError, match="no column 'gene_name'"):
        map_ids(["a"], "gene_name", t2g=t2g.drop(columns="gene_name"))


@pytest.mark.parametrize("zipped", [True, False])
def test_read_t2g_with_the_columns_of_others(tmp_path, zipped):
    text = "enst,ensgene,symbol,biotype\nENST1,ENSG1,NA\nENST2,ENSG1,\nENST1,ENSG1,NA,again\n,ENSG2,x,\n"
    path = tmp_path / "table.csv"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    table = read_t2g(path)
    assert list(table.columns) == ["transcript_id", "gene_id", "gene_name", "biotype"]
    assert table["transcript_id"].tolist() == ["ENST1", "ENST2"]
    assert table["gene_name"].iloc[0] == "NA"  # a name, not a gap
    assert pd.isna(table["gene_name"].iloc[1])


@pytest.mark.parametrize("n_columns", [2, 3, 4])
def test_read_t2g_without_a_header(tmp_path, n_columns):
    rows = [["ENST00000263100.8", "ENSG00000121410.12", "A1BG", "extra"][:n_columns]] * 2
    path = tmp_path / "tx2gene.tsv"
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    table = read_t2g(path)
    assert len(table) == 1 and list(table.columns)[:2] == ["transcript_id", "gene_id"]
    assert ("gene_name" in table) == (n_columns > 2)
    assert map_ids(["ENST00000263100"], t2g=path)["gene_id"].tolist() == ["ENSG00000121410.12"]


def test_read_t2g_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_t2g(tmp_path / "none.tsv")
    (tmp_path / "genes.tsv").write_text("gene_id\tgene_name\nENSG1\tA\n")
    with pytest.raises(ValueError, match=r"genes\.tsv: no column 'transcript_id'"):
        read_t2g(tmp_path / "genes.tsv")


DATA = os.environ.get("ISD_DATA_DIR")


@pytest.fixture(scope="module")
def human() -> pd.DataFrame:
    return read_t2g(Path(DATA or "") / "t2g_human_grch38.tsv.gz")


@pytest.mark.skipif(not DATA, reason="ISD_DATA_DIR is unset")
@pytest.mark.parametrize(
    ("name", "mapped", "agree"),
    [("sc_five_cell_lines_longread", 0.99, 1.0), ("sc_colorectal_longread", 0.93, 1.0), ("bulk_macrophage", 0.98, 1.0)],
)
def test_genes_of_real_files(human, name, mapped, agree):
    adata = ad.read_h5ad(Path(DATA) / f"{name}.h5ad", backed="r")
    assert len(human) == 274_578
    found = map_ids(adata, "gene_id", t2g=human)
    ok = found["gene_id"].notna().to_numpy()
    assert ok.mean() >= mapped
    assert (found["gene_id"].to_numpy()[ok] == adata.var["gene_id"].to_numpy()[ok]).mean() >= agree
    adata.file.close()
