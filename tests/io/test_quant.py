"""Quantifiers' files: counts as written, read through pytximport and checked against its own table."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd

IDS = ["ENST1", "ENST2", "ENST3", "ENST4"]
COUNTS = {"s1": [0.0, 3.5, 10.0, 0.25], "s2": [2.0, 0.0, 7.0, 0.0]}
#: source -> (file of a sample, header, columns from id and count)
TABLES: dict[str, tuple[str, str, Callable[[str, float], list[object]]]] = {
    "salmon": ("{s}/quant.sf", "Name\tLength\tEffectiveLength\tTPM\tNumReads", lambda i, n: [i, 900, 700.5, 1.5, n]),
    "kallisto": ("{s}/abundance.tsv", "target_id\tlength\teff_length\test_counts\ttpm", lambda i, n: [i, 900, 700.5, n, 1.5]),
    "oarfish": ("{s}.quant", "tname\tlen\tnum_reads", lambda i, n: [i, 900, n]),
    "rsem": (
        "{s}.isoforms.results",
        "transcript_id\tgene_id\tlength\teffective_length\texpected_count\tTPM\tFPKM\tIsoPct",
        lambda i, n: [i, "ENSG" + i[-1], 900, 700.5, n, 1.5, 1.0, 50.0],
    ),
    "piscem": ("{s}.quant", "target_name\tlen\teeln\ttpm\tecount", lambda i, n: [i, 900, 700.5, 1.5, n]),
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path):
    def run(source: str, sample: str = "s1", ids=IDS, counts=None, zipped: bool = False) -> Path:
        name, header, row = TABLES[source]
        path = tmp_path / (name.format(s=sample) + (".gz" if zipped else ""))
        path.parent.mkdir(exist_ok=True)
        values = COUNTS[sample] if counts is None else counts
        text = "\n".join([header, *("\t".join(map(str, row(i, n))) for i, n in zip(ids, values, strict=True))]) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
        return path

    return run


def as_table(adata) -> pd.DataFrame:
    return adata.to_df().astype(float)


EXPECTED = pd.DataFrame(COUNTS, index=pd.Index(IDS, name="transcript_id")).T


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("source", list(TABLES))
def test_a_folder_of_samples(write, tmp_path: Path, source: str, zipped: bool) -> None:
    for sample in COUNTS:
        write(source, sample, zipped=zipped)
    adata = isd.io.read_quant(tmp_path, source)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    pd.testing.assert_frame_equal(as_table(adata), EXPECTED)
    assert adata.obs["source"].tolist() == [source] * 2
    if source == "rsem":
        assert adata.var["gene_id"].tolist() == ["ENSG1", "ENSG2", "ENSG3", "ENSG4"]


@pytest.mark.parametrize("source", list(TABLES))
def test_pytximport_itself_agrees(write, source: str) -> None:
    from pytximport import tximport

    files = [write(source, sample) for sample in COUNTS]
    theirs = tximport(
        [str(f) for f in files],
        data_type=source,
        return_transcript_data=True,
        ignore_transcript_version=False,
        existence_optional=False,
    )
    ours = isd.io.read_quant(dict(zip(COUNTS, files, strict=True)), source)
    order = [list(theirs.var_names).index(i) for i in ours.var_names]
    np.testing.assert_allclose(ours.X.toarray(), np.asarray(theirs.X)[:, order])


def test_kallisto_hdf5(tmp_path: Path) -> None:
    for sample, counts in COUNTS.items():
        (tmp_path / sample).mkdir()
        with h5py.File(tmp_path / sample / "abundance.h5", "w") as file:
            file["est_counts"], file["aux/eff_lengths"] = counts, [700.0] * 4
            file["aux/ids"] = [i.encode() for i in IDS]
    pd.testing.assert_frame_equal(as_table(isd.io.read_quant(tmp_path, "kallisto")), EXPECTED)


def test_kallisto_lengths_are_compared_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "abundance.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("est_counts", shape=(10**12,), dtype="f8", chunks=(16,))
        file["aux/eff_lengths"], file["aux/ids"] = [700.0] * 4, [i.encode() for i in IDS]
    with pytest.raises(ValueError, match="arrays of different lengths"):
        isd.io.read_quant(path, "kallisto")


def test_files_in_another_order(write) -> None:
    files = [write("salmon", "s1"), write("salmon", "s2", ids=IDS[::-1], counts=COUNTS["s2"][::-1])]
    pd.testing.assert_frame_equal(as_table(isd.io.read_quant(files)), EXPECTED)


def test_whole_counts_are_integers_and_rounding_is_asked_for(write) -> None:
    whole = isd.io.read_quant(write("salmon", "s2"))
    assert whole.X.dtype == np.int32
    with pytest.warns(UserWarning, match="2 of 3 non-zero values"):
        rounded = isd.io.read_quant(write("salmon", "s1"), round_counts=True)
    assert rounded.X.dtype == np.int32
    assert rounded.X.toarray().tolist() == [[0, 4, 10, 0]]
    assert rounded.layers["estimated_counts"].toarray().tolist() == [COUNTS["s1"]]


def test_genes_of_gencode_names_and_of_a_map(write, t2g: Path) -> None:
    long = [f"{i}|ENSG{i[-1]}.3|-|-|G{i[-1]}-201|G{i[-1]}|900|protein_coding|" for i in IDS]
    adata = isd.io.read_quant(write("salmon", "s1", ids=long))
    assert adata.var_names.tolist() == IDS
    assert adata.var["gene_id"].tolist() == ["ENSG1.3", "ENSG2.3", "ENSG3.3", "ENSG4.3"]
    assert adata.var["gene_name"].tolist() == ["G1", "G2", "G3", "G4"]
    mapped = isd.io.read_quant(write("salmon", "s2"), gene_map=t2g)
    assert mapped.var["gene_name"].tolist() == ["G1", "G1", "G2", "G2"]


def test_repeated_transcripts_are_added_up(write) -> None:
    path = write("salmon", "s1", ids=["ENST1", "ENST2", "ENST2", "ENST3"])
    with pytest.warns(UserWarning, match="1 transcripts occur more than once.*added up"):
        adata = isd.io.read_quant(path)
    assert adata.to_df().iloc[0].to_dict() == {"ENST1": 0.0, "ENST2": 13.5, "ENST3": 0.25}


def test_the_root_logger_is_left_alone(write) -> None:
    root = logging.getLogger()
    before = list(root.handlers), list(root.filters)
    isd.io.read_quant(write("salmon"))
    assert (list(root.handlers), list(root.filters)) == before


def test_what_it_refuses(write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of 'salmon'"):
        isd.io.read_quant(tmp_path, "sailfish")
    with pytest.raises(FileNotFoundError, match="holds no file of salmon"):
        isd.io.read_quant(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        isd.io.read_quant([tmp_path / "gone.sf"])
    path = write("salmon", "s1")
    with pytest.raises(ValueError, match="cannot be read as a kallisto file"):
        isd.io.read_quant(path, "kallisto")
    with pytest.raises(ValueError, match="several files belong to the name 's1'"):
        isd.io.read_quant([path, path])
    other = write("salmon", "s2", ids=["ENST1", "ENST2", "ENST3", "ENST5"])
    with pytest.raises(ValueError, match=r"does not list the same transcripts.*1 are only in the former"):
        isd.io.read_quant([path, other])
    negative = write("salmon", "s1", counts=[1, -2, 3, 4])
    with pytest.raises(ValueError, match="negative counts"):
        isd.io.read_quant(negative)
    wrong = tmp_path / "s1" / "renamed.sf"
    wrong.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"does not end in \.gz"):
        isd.io.read_quant(wrong)
