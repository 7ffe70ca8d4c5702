"""Odd and malformed inputs: each is refused with a message that helps, or gives the right result.

``docs/guide/bad_input.md`` lists the same cases in the same words; ``test_page.py`` compares the two. Here is what they share.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import isd
from isd.model import VAE, LatentDiffusion

SMALL: dict[str, Any] = {"n_hidden": 8, "n_latent": 2}


@pytest.fixture(scope="session")
def cells() -> ad.AnnData:
    """80 simulated cells x 40 transcripts, split, with three labels."""
    adata = isd.datasets.simulated(80, 40, n_labels=3, seed=2)
    isd.pp.split(adata, seed=0)
    return adata


@pytest.fixture(scope="session")
def model(cells: ad.AnnData) -> LatentDiffusion:
    isd.settings.progress = False
    data = cells.copy()
    LatentDiffusion.setup_anndata(data)
    model = LatentDiffusion(data, n_hidden=8)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    model.vae.fit_gene_encoder(max_steps=2)
    return model


@pytest.fixture(scope="session")
def loss(cells: ad.AnnData) -> np.ndarray:
    isd.settings.progress = False
    return loss_of(cells.copy())


@pytest.fixture(scope="session")
def judged(cells: ad.AnnData) -> np.ndarray:
    return values(cells.copy(), cells[cells.obs["isd_split"] == "train"][:40].copy())


@dataclass
class Given:
    """What a case may use: fresh cells, a trained model, a folder."""

    cells: ad.AnnData
    tmp: Path
    request: pytest.FixtureRequest

    @property
    def adata(self) -> ad.AnnData:
        return self.cells.copy()

    @property
    def model(self) -> LatentDiffusion:
        return self.request.getfixturevalue("model")

    @property
    def genes(self) -> ad.AnnData:
        return isd.pp.to_mudata(self.cells[:12].copy())["gene"].copy()

    def like(self, change: Callable[[Any], Any]) -> ad.AnnData:
        """Cells whose matrix was changed."""
        adata = self.adata
        adata.X = change(adata.X)
        return adata

    def put(self, name: str, content: str | bytes) -> Path:
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def saved(self) -> Path:
        path = self.tmp / "model"
        self.model.save(path)
        return path


@dataclass
class Case:
    """One input: what it is, what it is given to, what is said about it, and how that is checked."""

    name: str
    to: str
    note: str
    call: Callable[[Given], Any]
    error: type[Exception] | None = None
    says: str = ""
    #: what the call must return: a value, or a function of the fixtures
    gives: Any = None
    warns: str = field(default="", kw_only=True)


# what several files use

SETUP, RECIPE, SPLIT, EVALUATE, GENERATE = "setup_anndata", "pp.recipe", "pp.split", "metrics.evaluate", "tl.generate"
INFER, LONG, QUANT, ARCHS4, GENES, INFO, LOAD = (
    "tl.infer_isoforms", "io.read_long_reads", "io.read_quant", "io.read_archs4", "io.read_gene_map", "io.info", "model.load",
)  # fmt: skip
SAME_LOSS = "the same training as from csr float32"
LOSS = "loss"
VALUES = "judged"


def loss_of(adata: ad.AnnData, **kwargs: Any) -> np.ndarray:
    VAE.setup_anndata(adata, **kwargs)
    vae = VAE(adata, **SMALL)
    vae.train(max_steps=2)
    return vae.history["train_loss"].to_numpy().ravel()


def edited(matrix: Any, position: int = 0, value: float = 1) -> Any:
    matrix = matrix.astype(np.float32)
    matrix.data[position] = value
    return matrix


def log_normalised(matrix: Any) -> Any:
    totals = np.asarray(matrix.sum(1)).ravel()
    return sparse.csr_matrix(sparse.diags(1e4 / totals) @ matrix).log1p().astype(np.float32)


def with_obs(adata: ad.AnnData, **columns: Any) -> ad.AnnData:
    for name, values in columns.items():
        adata.obs[name] = values
    return adata


def renamed(adata: ad.AnnData, names: Any, axis: str = "var") -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own, about names that repeat
        setattr(adata, f"{axis}_names", names)
    return adata


def values(real: ad.AnnData, fake: ad.AnnData, **kwargs: Any) -> np.ndarray:
    options: dict[str, Any] = {"metrics": ["mmd"], "n_boot": 20, "groups": False} | kwargs
    return isd.metrics.evaluate(real, fake, **options)["value"].to_numpy()


def sides(adata: ad.AnnData, **kwargs: Any) -> dict[str, int]:
    isd.pp.split(adata, **kwargs)
    return adata.obs["isd_split"].value_counts(sort=False).to_dict()


def cut(path: Path, keep: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def h5ad(given: Given) -> Path:
    given.cells.write_h5ad(given.tmp / "cells.h5ad")
    return given.tmp / "cells.h5ad"


@pytest.fixture
def given(cells: ad.AnnData, tmp_path: Path, request: pytest.FixtureRequest) -> Given:
    return Given(cells, tmp_path, request)


def check(case: Case, given: Given) -> None:
    """Give the input, and see what comes of it."""
    if case.error is not None:
        with pytest.raises(case.error, match=case.says) as caught:
            case.call(given)
        # a subclass such as UnicodeDecodeError or JSONDecodeError would be an accident, not a message
        assert type(caught.value).__module__.split(".")[0] in ("builtins", "isd")
        assert len(str(caught.value)) > 20
        return
    expected = given.request.getfixturevalue(case.gives) if isinstance(case.gives, str) else case.gives
    if case.warns:
        with pytest.warns(UserWarning, match=case.warns):
            found = case.call(given)
    else:
        found = case.call(given)
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    else:
        assert found == expected
