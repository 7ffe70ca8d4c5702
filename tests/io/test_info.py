"""What a file holds, told without its matrix."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd


@pytest.fixture
def small() -> ad.AnnData:
    """6 cells x 5 transcripts of 2 genes and one transcript without a gene."""
    x = sparse.csr_matrix(np.array([[1, 0, 0, 2, 0]] * 6, dtype=np.int32))
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["b", "b", "a", None, "a", "b"], categories=["b", "a", "unused"]),
            "name": [f"n{i}" for i in range(6)],
            "flag": [True] * 4 + [False] * 2,
            "depth": np.arange(6.0),
        },
        index=[f"c{i}" for i in range(6)],
    )
    genes = pd.DataFrame({"gene_id": ["g1", "g1", "g1", "g2", None]}, index=[f"t{i}" for i in range(5)])
    adata = ad.AnnData(x, obs=obs, var=genes, uns={"note": "x"}, obsm={"X_pca": np.zeros((6, 2))})
    adata.layers["counts"] = sparse.csc_matrix(x)
    adata.layers["full"] = np.ones((6, 5), dtype=np.float32)
    return adata


@pytest.mark.parametrize(("kind", "version"), [("h5ad", None), ("zarr", 2), ("zarr", 3)])
@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning", "ignore:Consolidated metadata:UserWarning")
def test_anndata(small: ad.AnnData, tmp_path: Path, kind: str, version: int | None) -> None:
    path = tmp_path / f"cells.{kind}"
    if version is None:
        small.write_h5ad(path)
    else:
        with ad.settings.override(zarr_write_format=version):
            small.write_zarr(path)
    found = isd.io.info(path)
    assert (found.kind, found.shape) == (kind, (6, 5))
    x = found.matrices["X"]
    assert (x.kind, x.dtype, x.stored, x.shape) == ("csr", "int32", 12, (6, 5))
    assert x.density == pytest.approx(12 / 30)
    assert x.in_memory == small.X.data.nbytes + small.X.indices.nbytes + small.X.indptr.nbytes
    assert x.dense == 120
    assert x.on_disk > 0
    assert found.matrices["layers['counts']"].kind == "csc"
    assert found.matrices["layers['full']"].kind == "dense"
    assert found.obs["kind"] == "category, 3 values"
    assert found.obs["depth"] == "float64"
    assert found.labels["kind"] == {"b": 3, "a": 2, "unused": 0, "(missing)": 1}
    assert found.labels["flag"] == {"True": 4, "False": 2}
    assert "name" not in found.labels
    assert "depth" not in found.labels
    assert found.isoforms == {"genes": 2.0, "several": 1.0, "median": 2.0, "largest": 3.0, "without": 1.0}
    assert (found.uns, found.obsm) == (["note"], ["X_pca"])
    text = str(found)
    for part in (
        "6 cells or samples x 5 transcripts",
        "csr int32, density 40.00%",
        "b: 3, a: 2",
        "2 genes, 1 with several",
    ):
        assert part in text
    assert found.to_dict()["matrices"]["X"]["density"] == pytest.approx(0.4)


def test_without_genes_or_matrix(small: ad.AnnData, tmp_path: Path) -> None:
    bare = ad.AnnData(obs=small.obs[[]], var=small.var[[]])
    bare.write_h5ad(tmp_path / "bare.h5ad")
    found = isd.io.info(tmp_path / "bare.h5ad")
    assert (found.matrices, found.isoforms, found.labels) == ({}, {}, {})
    assert "annotate_genes" in str(found)


def test_archs4(write_archs4) -> None:
    path, counts = write_archs4()
    found = isd.io.info(path)
    assert (found.kind, found.shape) == ("ARCHS4", (23, 37))
    assert found.matrices["data/expression"].in_memory == counts.nbytes
    assert {"geo_accession", "title"} <= set(found.obs)


def test_the_matrix_is_not_read(small: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    small.write_h5ad(path)
    with h5py.File(path, "r+") as file:  # values that cannot be there: reading them would fail
        del file["X/data"]
        file["X"].create_dataset("data", shape=(10**13,), dtype="f4", chunks=(1000,))
    assert isd.io.info(path).matrices["X"].stored == 10**13


def test_what_it_refuses(small: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        isd.io.info(tmp_path / "gone.h5ad")
    text = tmp_path / "text.h5ad"
    text.write_text("no HDF5")
    with pytest.raises(ValueError, match=r"text\.h5ad cannot be read"):
        isd.io.info(text)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["things"] = [1, 2]
    with pytest.raises(ValueError, match=r"holds \['things'\], but no obs and var"):
        isd.io.info(tmp_path / "other.h5")
    path = tmp_path / "cells.h5ad"
    small.write_h5ad(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut short"):
        isd.io.info(path)
