from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from isd.metrics import Yardstick, log_normalize
from isd.tl._embed import embed


def make(n_obs: int, seed: int, prefix: str) -> AnnData:
    rng = np.random.default_rng(seed)
    rates = np.random.default_rng(99).lognormal(0.5, 1.0, size=(3, 50))
    codes = np.arange(n_obs) % 3
    obs = pd.DataFrame(
        {
            "leiden": pd.Categorical.from_codes(codes, ["0", "10", "2"]),
            "depth": rng.normal(size=n_obs),
            "mixed": np.arange(n_obs) if prefix == "generated" else [str(i) for i in range(n_obs)],
        },
        index=[f"{prefix}_{i}" for i in range(n_obs)],
    )
    counts = sparse.csr_matrix(rng.poisson(rates[codes]).astype(np.float32))
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"t{i}" for i in range(50)]))


@pytest.fixture(scope="module")
def pair() -> tuple[AnnData, AnnData]:
    real, fake = make(120, 0, "cell"), make(60, 1, "generated")
    real.obs["only_real"] = 1
    real.uns["leiden_colors"] = ["#111111", "#222222", "#333333"]
    fake.obs["leiden"] = fake.obs["leiden"].astype(str).astype(int)  # the same labels, held otherwise
    return real, fake[:, ::-1].copy()


@pytest.fixture(scope="module")
def joint(pair) -> AnnData:
    return embed(*pair, n_pcs=8)


def test_rows_values_and_columns(pair, joint):
    real, fake = pair
    assert joint.shape == (180, 50) and sparse.issparse(joint.X)
    assert list(joint.obs["isd_source"].cat.categories) == ["real", "generated"]
    assert (joint.obs["isd_source"] == "generated").sum() == 60
    assert list(joint.obs_names) == [*real.obs_names, *fake.obs_names]
    np.testing.assert_allclose(joint.X[:120].toarray(), log_normalize(real.X).toarray(), rtol=1e-5)
    np.testing.assert_allclose(joint.X[120:].toarray(), log_normalize(fake[:, real.var_names].X).toarray(), rtol=1e-5)
    assert list(joint.obs["leiden"].cat.categories) == ["0", "10", "2"]
    assert (joint.obs["leiden"].to_numpy()[120:] == fake.obs["leiden"].astype(str).to_numpy()).all()
    assert joint.uns["leiden_colors"] == ["#111111", "#222222", "#333333"]
    np.testing.assert_array_equal(joint.obs["depth"], np.r_[real.obs["depth"], fake.obs["depth"]])
    assert not {"only_real", "mixed"} & set(joint.obs)


def test_components_and_map_are_fitted_on_real_cells_only(pair, joint):
    real, fake = pair
    yardstick = Yardstick.fit(real.X, real.var_names, n_pcs=8)
    np.testing.assert_allclose(joint.obsm["X_isd_pca"][120:], yardstick.pcs(fake.X, fake.var_names), atol=1e-3)
    other = embed(real, fake[:20].copy(), n_pcs=8)
    np.testing.assert_array_equal(other.obsm["X_isd_umap"][:120], joint.obsm["X_isd_umap"][:120])
    np.testing.assert_array_equal(joint.obsm["X_umap"], joint.obsm["X_isd_umap"])


def test_cells_of_the_same_distribution_land_among_their_own_label(joint):
    xy, labels = joint.obsm["X_isd_umap"], joint.obs["leiden"].to_numpy()
    distance = np.linalg.norm(xy[120:, None] - xy[None, :120], axis=2)
    nearest = labels[:120][distance.argmin(axis=1)]
    assert (nearest == labels[120:]).mean() > 0.9
    own = np.linalg.norm(xy[:120, None] - xy[None, :120], axis=2)
    np.fill_diagonal(own, np.inf)
    # neither pushed to the rims of clusters nor drawn into their centres
    assert 0.3 < np.median(distance.min(axis=1)) / np.median(own.min(axis=1)) < 1.6


@pytest.mark.filterwarnings("ignore:The set_bad function")  # scanpy under new matplotlib
def test_inputs_stay_as_they_are_and_scanpy_plots_the_result(pair, joint, tmp_path):
    import scanpy as sc

    for cells in pair:
        assert not cells.obsm and "isd_source" not in cells.obs and "isd_source_colors" not in cells.uns
    axes = sc.pl.umap(joint, color=["isd_source", "leiden"], show=False)
    assert len(axes) == 2
    joint.write_h5ad(tmp_path / "joint.h5ad")


def test_few_cells_and_draws(pair):
    real, fake = pair
    few = embed(real[:6].copy(), fake[:3].copy())
    np.testing.assert_array_equal(few.obsm["X_isd_umap"], few.obsm["X_isd_pca"][:, :2])
    drawn = embed(real[:7].copy(), fake, max_cells=5, n_pcs=2)
    assert drawn.n_obs == 10 and drawn.obs_names.is_unique
    names = embed(real[:6].copy(), real[:3].copy()).obs_names
    assert names.is_unique and names[0] == "real_cell_0"


def test_bad_input_is_refused(pair):
    real, fake = pair
    with pytest.raises(ValueError, match="10 of the 50 features are missing"):
        embed(real, fake[:, 10:].copy())
    with pytest.raises(ValueError, match="n_pcs=1"):
        embed(real, fake, n_pcs=1)
    with pytest.raises(ValueError, match="no cells"):
        embed(real, fake[:0].copy())
