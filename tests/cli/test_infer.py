"""``isodiff infer``, run as a user runs it."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import isd

from .conftest import invoke, ok, one_error


@pytest.fixture(scope="session")
def genes_file(cells_file: Path) -> Path:
    """Gene counts of the same cells."""
    path = cells_file.parent / "genes.h5ad"
    isd.pp.to_mudata(ad.read_h5ad(cells_file))["gene"].copy().write_h5ad(path)
    return path


def test_isoforms_are_those_of_python_and_add_up(model_folder: Path, genes_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "isoforms.h5ad"
    assert "Wrote 120 cells x 60 isoforms" in ok("infer", model_folder, genes_file, "-o", out, "--seed", "4")
    genes = ad.read_h5ad(genes_file)
    expected = isd.tl.infer_isoforms(isd.model.LatentDiffusion.load(model_folder), genes, seed=4)
    made = ad.read_h5ad(out)
    np.testing.assert_array_equal(made.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(np.asarray(made.X.sum(1)), np.asarray(genes.X.sum(1)))


def test_of_the_vae_alone_means_draws_and_zarr(model_folder: Path, genes_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    ok("infer", model_folder / "vae", genes_file, "-o", tmp_path / "mean.zarr", "--output", "mean", "--std")
    mean = ad.read_zarr(tmp_path / "mean.zarr")
    assert set(mean.layers) == {"mean", "std"}
    ok("infer", model_folder / "vae", genes_file, "-o", tmp_path / "two.h5ad", "--n-samples", "2")
    assert ad.read_h5ad(tmp_path / "two.h5ad").obs["isd_draw"].tolist() == [0] * 120 + [1] * 120


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--layer", "raw"], "--layer raw"),
        (["--labels", "nope"], "nope"),
        (["--std"], "std=True"),
        (["--method", "diffusion"], "needs the data that"),
    ],
)
def test_one_line_says_what_is_wrong(model_folder: Path, genes_file: Path, tmp_path: Path, arguments, part) -> None:
    error = one_error("infer", model_folder, genes_file, "-o", tmp_path / "x.h5ad", *arguments)
    assert part in error, error
    assert not list(tmp_path.iterdir())


def test_the_input_and_files_that_are_there_stay(
    model_folder: Path, genes_file: Path, cells_file: Path, tmp_path: Path
) -> None:
    before = genes_file.read_bytes()
    assert "--overwrite" in one_error("infer", model_folder, genes_file, "-o", genes_file)
    assert "is the input" in one_error("infer", model_folder, genes_file, "-o", genes_file, "--overwrite")
    assert genes_file.read_bytes() == before
    assert "not genes" in one_error("infer", model_folder, cells_file, "-o", tmp_path / "x.h5ad")
    assert invoke("infer", model_folder, genes_file).exit_code == 2
