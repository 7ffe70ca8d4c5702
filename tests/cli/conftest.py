"""A runner, tiny cells, and what the commands made of them."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pytest
from typer.testing import CliRunner

import isd
from isd.cli import app

#: A model in a second.
TINY = ["--max-steps", "6", "--vae-kwargs", "max_steps=6", "--batch-size", "32", "--model-kwargs", "n_hidden=8"]


def invoke(*arguments) -> object:
    """Run a command as a shell does; settings of the process stay as they were."""
    before = isd.settings.seed, isd.settings.progress
    try:
        return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    finally:
        isd.settings.seed, isd.settings.progress = before


def ok(*arguments) -> str:
    """Run a command that must come to its end; its last line."""
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.rstrip("\n").splitlines()[-1]


def one_error(*arguments) -> str:
    """Run a command that must refuse: exit code 1, one line, no traceback."""
    result = invoke(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in result.output
    return errors[0]


def simulated() -> ad.AnnData:
    adata = isd.datasets.simulated(120, 60, n_labels=3, n_batches=2, seed=1)
    isd.pp.split(adata, seed=0)
    return adata


@pytest.fixture(scope="session")
def cells_file(tmp_path_factory) -> Path:
    """120 cells x 60 transcripts, split, with labels, batches and genes."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    simulated().write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def model_folder(cells_file: Path) -> Path:
    """A latent diffusion model that the command trained, with genes and batches."""
    folder = cells_file.parent / "model"
    ok("train", cells_file, "-o", folder, *TINY, "--gene-key", "gene_id", "--batch-key", "batch", "--n-latent", "4")
    return folder
