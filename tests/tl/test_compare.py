import numpy as np
import pandas as pd
import pytest

import isd
from isd.model import VAE, LatentDiffusion

OPTIONS = {"n_estimators": 30, "n_mc_samples": 5, "seed": 0}


@pytest.fixture(scope="module")
def cells(_trained):
    return _trained.adata.copy()


@pytest.fixture(scope="module")
def hasty(cells):
    """A model of a few steps."""
    adata = cells.copy()
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_hidden=16, n_latent=4)
    vae.train(max_steps=20)
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, vae=vae)
    model.train(max_steps=20)
    return model


def test_the_model_that_learnt_is_chosen_over_the_one_that_did_not(trained, hasty, cells):
    choice = isd.tl.compare_models({"hasty": hasty, "trained": trained}, cells, **OPTIONS)
    assert choice.best == "trained" and choice.table.index[0] == "trained"
    assert choice.table["chosen"].tolist() == [True, False]
    better, worse = choice.table.loc["trained"], choice.table.loc["hasty"]
    assert better["neg_log_likelihood"] < worse["neg_log_likelihood"]
    assert better["auc"] < worse["auc"] and not worse["within_noise"]
    np.testing.assert_allclose(better["auc"], (better["auc_features"] + better["auc_pcs"]) / 2)


def test_among_models_within_noise_the_likelihood_decides(trained, hasty, cells):
    choice = isd.tl.compare_models([hasty, trained], cells, tolerance=1.0, **OPTIONS)
    assert choice.table["within_noise"].all()
    assert choice.best == choice.table["neg_log_likelihood"].idxmin() == 1
    # an AUC that no noise allows for decides by itself, whatever the likelihood
    assert isd.tl.compare_models([hasty, trained], cells, tolerance=0.0, **OPTIONS).best == 1


def test_test_cells_are_not_looked_at_and_nothing_is_written(trained, hasty, cells):
    before = isd.tl.compare_models([hasty, trained], cells, n_draws=1, **OPTIONS)
    other = cells.copy()
    test = np.flatnonzero(other.obs["isd_split"] == "test")
    counts = other.X.tolil()
    counts[test] = np.random.default_rng(0).poisson(5.0, size=(len(test), other.n_vars))
    other.X = counts.tocsr()
    kept = other.copy()
    after = isd.tl.compare_models([hasty, trained], other, n_draws=1, **OPTIONS)
    pd.testing.assert_frame_equal(before.table, after.table)
    pd.testing.assert_frame_equal(kept.obs, other.obs)
    assert (kept.X != other.X).nnz == 0 and set(kept.uns) == set(other.uns) and set(kept.obsm) == set(other.obsm)


def test_what_cannot_be_compared_is_refused(trained, hasty, cells):
    with pytest.raises(ValueError, match="at least two"):
        isd.tl.compare_models([trained], cells)
    with pytest.raises(ValueError, match="n_draws is 0"):
        isd.tl.compare_models([trained, hasty], cells, n_draws=0)
    with pytest.raises(ValueError, match="tolerance"):
        isd.tl.compare_models([trained, hasty], cells, tolerance=-1)
    with pytest.raises(TypeError, match="VAE"):
        isd.tl.compare_models([trained, trained.vae], cells)
    bare = cells.copy()
    del bare.obs["isd_split"]
    with pytest.raises(KeyError, match="isd_split"):
        isd.tl.compare_models([trained, hasty], bare)
