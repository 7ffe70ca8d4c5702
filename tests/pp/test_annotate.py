from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from isd.pp import annotate_genes


@pytest.fixture
def t2g() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "transcript_id": ["ENST00000263100", "ENST00000220876", "ENST00000999001", "ENST00000999002"],
            "gene_id": ["ENSG00000121410", "ENSG00000104435", "ENSG00000000901", "ENSG00000000902"],
            "gene_name": ["A1BG", "STMN2", "TWIN", "TWIN"],
        }
    )


def make(names: list[str], **columns) -> ad.AnnData:
    return ad.AnnData(np.ones((2, len(names)), dtype=np.float32), var=pd.DataFrame(columns, index=names))


def test_fills_and_counts(t2g, caplog):
    adata = make(["ENST00000263100.8", "TWIN-201", "nothing", "ENST00000220876"])
    with caplog.at_level(logging.INFO, logger="isd"):
        report = annotate_genes(adata, t2g)
    assert report.loc["gene_id"].to_dict() == {"kept": 0, "mapped": 2, "ambiguous": 1, "unmapped": 1}
    assert report.loc["gene_name"].to_dict() == {"kept": 0, "mapped": 3, "ambiguous": 0, "unmapped": 1}
    assert adata.var["gene_id"].fillna("-").tolist() == ["ENSG00000121410", "-", "-", "ENSG00000104435"]
    assert adata.var["gene_name"].fillna("-").tolist() == ["A1BG", "TWIN", "-", "STMN2"]
    assert "1 unmapped" in caplog.text


def test_keeps_what_is_there(t2g):
    adata = make(
        ["ENST00000263100", "x", "y"],
        gene_id=pd.Categorical(["mine", "ENSG00000104435", np.nan]),
        gene_name=["", "own", None],
    )
    report = annotate_genes(adata, t2g)
    assert report.loc["gene_id"].to_dict() == {"kept": 2, "mapped": 0, "ambiguous": 0, "unmapped": 1}
    assert adata.var["gene_id"].fillna("-").tolist() == ["mine", "ENSG00000104435", "-"]
    assert adata.var["gene_name"].fillna("-").tolist() == ["A1BG", "own", "-"]


def test_names_are_found_by_gene(t2g):
    adata = make(["x", "y"], gene_id=["ENSG00000104435.2", "ENSG00000000902"])
    annotate_genes(adata, t2g)
    assert adata.var["gene_name"].tolist() == ["STMN2", "TWIN"]
    complete = adata.var.copy()
    report = annotate_genes(adata, t2g)
    assert report["kept"].tolist() == [2, 2]
    pd.testing.assert_frame_equal(adata.var, complete)


def test_written_and_read(t2g, tmp_path):
    adata = make(["ENST00000263100", "nothing"])
    annotate_genes(adata, t2g.drop(columns="gene_name"))
    assert "gene_name" not in adata.var
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad").var["gene_id"]
    assert back.iloc[0] == "ENSG00000121410" and pd.isna(back.iloc[1])


def test_nothing_found_leaves_no_column_of_gaps(t2g, tmp_path):
    adata = make(["nothing", "at all"])
    report = annotate_genes(adata, t2g)
    assert report["unmapped"].tolist() == [2, 2] and adata.var.empty
    adata.write_h5ad(tmp_path / "a.h5ad")
