"""Small negative-binomial cells with labels, and where the split puts them."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse


def make_cells(n_obs: int, *, n_vars: int = 120, n_labels: int = 3, seed: int = 0, world: int = 0) -> ad.AnnData:
    """Cells of the same world (programs and rates of ``world``), drawn with ``seed``."""
    truth = np.random.default_rng([world, 99])
    rates = truth.lognormal(0.0, 1.0, size=n_vars) * truth.lognormal(0.0, 0.5, size=(n_labels, n_vars))
    rng = np.random.default_rng(seed)
    codes = rng.integers(n_labels, size=n_obs)
    means = rates[codes] * rng.lognormal(0.0, 0.3, size=(n_obs, 1))
    counts = rng.negative_binomial(2.0, 2.0 / (2.0 + means))
    names = [chr(ord("a") + code) for code in range(n_labels)]
    obs = pd.DataFrame(
        {"label": pd.Categorical.from_codes(codes, names)}, index=[f"cell{seed}_{i}" for i in range(n_obs)]
    )
    var = pd.DataFrame({"gene_id": [f"g{i // 3}" for i in range(n_vars)]}, index=[f"t{i}" for i in range(n_vars)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture
def cells() -> Callable[..., ad.AnnData]:
    """The maker itself."""
    return make_cells


@pytest.fixture
def real() -> ad.AnnData:
    """600 cells: 300 train, 300 test."""
    cells = make_cells(600, seed=1)
    cells.obs["isd_split"] = pd.Categorical(["train"] * 300 + ["test"] * 300)
    return cells


@pytest.fixture
def good() -> ad.AnnData:
    """Cells as good as a model can make them: drawn from the same distribution."""
    cells = make_cells(300, seed=2)
    cells.uns["isd"] = {"labels_key": "label"}
    return cells


@pytest.fixture
def bad(good: ad.AnnData) -> ad.AnnData:
    """The same means without over-dispersion."""
    cells = good.copy()
    rng = np.random.default_rng(3)
    dense = cells.X.toarray()
    labels = cells.obs["label"].to_numpy()
    means = np.stack([dense[labels == label].mean(axis=0) for label in labels])
    cells.X = sparse.csr_matrix(rng.poisson(means).astype(np.float32))
    return cells
