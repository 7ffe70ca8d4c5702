"""ARCHS4 files: the same samples and counts, whatever the chunks; the project's own package as the peer."""

from __future__ import annotations

import tracemalloc
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd


def by_hand(counts: np.ndarray, columns, rows=slice(None)) -> np.ndarray:
    return counts[rows][:, columns].T


@pytest.mark.parametrize("chunks", [(10, 4), (1, 23), (37, 1), None, (5, 5)])
@pytest.mark.parametrize("chunk_mb", [64.0, 0.0002])
def test_counts_are_the_files_whatever_its_chunks(write_archs4, chunks, chunk_mb) -> None:
    path, counts = write_archs4(chunks=chunks)
    adata = isd.io.read_archs4(path, chunk_mb=chunk_mb)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.uint32
    np.testing.assert_array_equal(adata.X.toarray(), counts.T)
    wanted = ["GSM1015", "GSM1002", "GSM1003", "GSM1022"]
    some = isd.io.read_archs4(path, samples=wanted, chunk_mb=chunk_mb)
    assert some.obs_names.tolist() == wanted
    np.testing.assert_array_equal(some.X.toarray(), by_hand(counts, [15, 2, 3, 22]))
    ids = ["ENST00000000030", "ENST00000000002.99"]
    part = isd.io.read_archs4(path, samples=[4, 1], transcripts=ids, chunk_mb=chunk_mb)
    np.testing.assert_array_equal(part.X.toarray(), by_hand(counts, [4, 1], [2, 30]))


def test_metadata_and_names(write_archs4) -> None:
    path, _ = write_archs4()
    adata = isd.io.read_archs4(path, samples=["GSM1001"])
    assert adata.var.index.name == "transcript_id"
    assert adata.var_names[3] == "ENST00000000003.4"
    assert adata.var["gene_name"].tolist()[:3] == ["GENE0", "GENE0", "GENE1"]
    assert "gene_id" not in adata.var
    row = adata.obs.loc["GSM1001"]
    assert (row["series_id"], row["source_name_ch1"]) == ("GSE0", "brain cortex")
    assert row["characteristics_ch1"] == "tissue: brain cortex, Größe: 1"
    assert adata.obs["singlecellprobability"].dtype == np.float32
    only = isd.io.read_archs4(path, samples=[1], obs_fields=["title"])
    assert list(only.obs) == ["title"]


@pytest.mark.parametrize("field", ["ensembl_id", "transcripts", "ensembl_transcript_id"])
def test_names_of_the_field_of_ids(write_archs4, field) -> None:
    path, _ = write_archs4(id_field=field)
    assert isd.io.read_archs4(path, samples=[0]).var_names[0] == "ENST00000000000.1"


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("LIVER", lambda i: i % 4 in (0, 2)),
        (["liver", r"\(tumor\)"], lambda i: i % 4 == 2),
        ({"source_name_ch1": "brain|heart"}, lambda i: i % 4 in (1, 3)),
        ({"series_id": "^GSE1$", "source_name_ch1": ["liver", "tumor"]}, lambda i: i // 6 == 1 and i % 4 == 2),
    ],
)
def test_search(write_archs4, search, expected) -> None:
    path, counts = write_archs4()
    adata = isd.io.read_archs4(path, search=search)
    columns = [i for i in range(23) if expected(i)]
    assert adata.obs_names.tolist() == [f"GSM{1000 + i}" for i in columns]
    np.testing.assert_array_equal(adata.X.toarray(), by_hand(counts, columns))


def test_single_cells_and_search_together(write_archs4) -> None:
    path, _ = write_archs4()
    single = isd.io.read_archs4(path, single_cell=True)
    bulk = isd.io.read_archs4(path, single_cell=False)
    assert sorted([*single.obs_names, *bulk.obs_names]) == [f"GSM{1000 + i}" for i in range(23)]
    assert (single.obs["singlecellprobability"] >= 0.5).all()
    both = isd.io.read_archs4(path, single_cell=True, search="heart", samples=["GSM1003", "GSM1000", "GSM1015"])
    assert both.obs_names.tolist() == ["GSM1003", "GSM1015"]


def test_genes_from_a_map(write_archs4) -> None:
    path, _ = write_archs4(5, chunks=(5, 5))
    genes = pd.DataFrame(
        {"gene_id": ["ENSG1", "ENSG2"]}, index=pd.Index(["ENST00000000001", "ENST00000000002"], name="transcript_id")
    )
    with pytest.warns(UserWarning, match=r"3 of 5 transcripts have no gene: 'ENST00000000000.1'"):
        adata = isd.io.read_archs4(path, gene_map=genes)
    assert adata.var["gene_id"].fillna("-").tolist() == ["-", "ENSG1", "ENSG2", "-", "-"]


def test_the_matrix_is_never_dense(write_archs4) -> None:
    path, counts = write_archs4(2000, 1500, chunks=(200, 50))
    with h5py.File(path, "r+") as file:  # 12 MB dense, hardly anything in it
        file["data/expression"][...] = 0
        file["data/expression"][::50, ::50] = 3
    tracemalloc.start()
    adata = isd.io.read_archs4(path, chunk_mb=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert adata.X.nnz == 40 * 30
    assert peak < counts.nbytes / 2


def test_the_peer_finds_the_same(write_archs4) -> None:
    """archs4py asks for an old python-dateutil, so that it is no part of the test extra: run where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("archs4py")
        path, _ = write_archs4()
        theirs = peer.data.index(str(path), [1, 5, 22], silent=True)
        found = peer.data.meta(str(path), "liver", silent=True)
    ours = isd.io.read_archs4(path, samples=[1, 5, 22])
    pd.testing.assert_frame_equal(ours.to_df().T, theirs, check_names=False)
    ours = isd.io.read_archs4(path, search="liver")
    pd.testing.assert_frame_equal(ours.to_df().T, found, check_names=False)
