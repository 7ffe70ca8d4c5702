"""``isodiff info`` and ``isodiff prepare``, run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import isd
from isd.cli import app


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


@pytest.fixture
def cells() -> ad.AnnData:
    adata = isd.datasets.simulated(60, 40, n_labels=3, n_batches=4, seed=1)
    return ad.AnnData(adata.X, obs=adata.obs[["leiden", "batch"]], var=adata.var[["gene_id", "gene_name"]])


def write_table(adata: ad.AnnData, path: Path) -> Path:
    table = adata.to_df().T.astype(int)
    table.insert(0, "gene_id", adata.var["gene_id"])
    table.to_csv(path, index_label="transcript_id")
    return path


def ok(result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_info(runner: CliRunner, cells: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    text = ok(runner.invoke(app, ["info", str(path)]))
    assert "60 cells or samples x 40 transcripts" in text
    assert "labels in obs['leiden']: 0: " in text
    found = json.loads(ok(runner.invoke(app, ["info", str(path), "--json"])))
    assert found["shape"] == [60, 40]
    assert sum(found["labels"]["leiden"].values()) == 60


def test_info_loads_nothing_heavy(cells: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    code = (
        "import sys; from isd.cli import app; from typer.testing import CliRunner; "
        f"assert CliRunner().invoke(app, ['info', {str(path)!r}]).exit_code == 0; "
        "print([m for m in ('torch', 'scvi', 'scanpy', 'matplotlib', 'gtfparse', 'pytximport') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_prepare_a_table(runner: CliRunner, cells: ad.AnnData, tmp_path: Path) -> None:
    counts = cells.X.toarray()
    counts[3] = 0  # a cell without counts
    cells.X = counts
    path = write_table(cells, tmp_path / "transcript_count.csv")
    out = tmp_path / "deep" / "cells.h5ad"
    result = runner.invoke(app, ["prepare", str(path), "--out", str(out), "--test-size", "0.25", "--no-progress"])
    last = ok(result).rstrip().splitlines()[-1]
    assert "Wrote 59 cells or samples x 40 transcripts" in last
    assert "1 cells without counts are left out" in result.stderr
    made = ad.read_h5ad(out)
    np.testing.assert_array_equal(made.layers["counts"].toarray(), np.delete(counts, 3, axis=0))
    assert made.var["gene_id"].tolist() == cells.var["gene_id"].tolist()
    assert made.obs["isd_split"].value_counts()["test"] == 15
    assert "leiden" in made.obs
    assert list(out.parent.iterdir()) == [out]


def test_prepare_an_h5ad_file_as_in_python(runner: CliRunner, cells: ad.AnnData, tmp_path: Path) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "ready.h5ad"
    cells.write_h5ad(path)
    ok(runner.invoke(app, ["prepare", str(path), "-o", str(out), "--batch-key", "batch", "--no-recipe", "--seed", "3"]))
    isd.pp.split(cells, batch_key="batch", seed=3)
    made = ad.read_h5ad(out)
    assert made.obs["isd_split"].tolist() == cells.obs["isd_split"].tolist()
    assert "counts" not in made.layers


def test_prepare_an_archs4_file(runner: CliRunner, tmp_path: Path) -> None:
    path, out = tmp_path / "human_transcript_v2.5.h5", tmp_path / "liver.h5ad"
    with h5py.File(path, "w") as file:
        file["data/expression"] = np.arange(1, 13, dtype="uint32").reshape(3, 4)
        file["meta/transcripts/ensembl_id"] = [f"ENST0000000000{i}" for i in range(3)]
        file["meta/samples/geo_accession"] = [f"GSM{i}" for i in range(4)]
        file["meta/samples/source_name_ch1"] = ["liver", "brain", "Liver", "heart"]
    ok(runner.invoke(app, ["prepare", str(path), "-o", str(out), "--search", "liver", "--no-recipe", "--no-split"]))
    assert ad.read_h5ad(out).obs_names.tolist() == ["GSM0", "GSM2"]
    wanted = tmp_path / "ids.txt"
    wanted.write_text("GSM3\nGSM1\n")
    ok(
        runner.invoke(
            app, ["prepare", str(path), "-o", str(out), "--samples", str(wanted), "--no-recipe", "--no-split"]
        )
    )
    assert ad.read_h5ad(out).obs_names.tolist() == ["GSM3", "GSM1"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--search", "liver"], ("--search", "read as h5ad")),
        (["--layer", "raw"], ("layer 'raw'", "adata.layers")),
        (["--source", "salmon"], ("cannot be read as a salmon file",)),
        (["--labels-key", "nope"], ("labels_key 'nope'",)),
    ],
)
def test_one_line_says_what_is_wrong(runner: CliRunner, cells: ad.AnnData, tmp_path: Path, arguments, parts) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "ready.h5ad"
    cells.write_h5ad(path)
    result = runner.invoke(app, ["prepare", str(path), "-o", str(out), "--no-recipe", *arguments])
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert all(part in errors[0] for part in parts)
    assert not out.exists()


def test_the_input_is_never_overwritten(runner: CliRunner, cells: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    before = path.read_bytes()
    assert runner.invoke(app, ["prepare", str(path), "-o", str(path)]).exit_code == 1
    assert path.read_bytes() == before
