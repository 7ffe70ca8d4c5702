"""What all tests share: quiet, headless, small, and the folder of real data."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pytest
import torch

import isd

if TYPE_CHECKING:
    from anndata import AnnData

matplotlib.use("Agg")
# tensors of tests are small: on a busy machine, several threads only wait for each other
torch.set_num_threads(1)
# a shell that starts the tests in the background has SIGINT ignored, in what they start too; tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _quiet_and_seeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No progress bars, figures in a temporary folder, and global generators that start alike in every test."""
    monkeypatch.setattr(isd.settings, "progress", False)
    monkeypatch.setattr(isd.settings, "figdir", tmp_path / "figures")
    np.random.seed(0)
    torch.manual_seed(0)
    # numba gives its number of threads to torch when a first UMAP is made
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _close_figures() -> None:
    """Figures that a test leaves open would warn in a later one."""
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data named by ``ISD_DATA_DIR``; tests that ask for it skip where it is unset."""
    folder = os.environ.get("ISD_DATA_DIR")
    if not folder:
        pytest.skip("ISD_DATA_DIR is not set: no real data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"ISD_DATA_DIR={folder} is not a folder")
    return path


@pytest.fixture(scope="session")
def _simulated() -> AnnData:
    return isd.datasets.simulated(n_obs=300, n_vars=200, n_labels=4, seed=0)


@pytest.fixture
def adata(_simulated: AnnData) -> AnnData:
    """300 simulated cells x 200 transcripts with four labels; a fresh copy for each test."""
    return _simulated.copy()


@pytest.fixture(scope="session")
def _trained(_simulated):
    isd.settings.progress = False
    adata = _simulated.copy()
    adata.obs["leiden"] = adata.obs["leiden"].cat.reorder_categories(["2", "0", "3", "1"])
    adata.uns["leiden_colors"] = ["#000001", "#000002", "#000003", "#000004"]
    isd.pp.split(adata, seed=0)
    isd.model.LatentDiffusion.setup_anndata(adata)
    model = isd.model.LatentDiffusion(adata, n_hidden=64)
    model.train(max_steps=400, vae_kwargs={"max_steps": 800})
    return model


@pytest.fixture
def trained(_trained):
    """A trained LatentDiffusion; do not train it further."""
    assert not any(torch.isnan(p).any() for p in _trained.module.parameters())
    return _trained


@pytest.fixture(scope="session")
def _guide(_trained):
    isd.model.Classifier.setup_anndata(_trained.adata)
    classifier = isd.model.Classifier(_trained.adata, _trained, hidden=(32, 32))
    classifier.train(max_steps=150)
    return classifier


@pytest.fixture
def guide(_guide):
    """A trained Classifier of ``trained``."""
    return _guide
