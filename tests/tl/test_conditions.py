"""Batch and covariates that are asked for."""

import numpy as np
import pandas as pd
import pytest

import isd
from isd.model import LatentDiffusion
from isd.tl._conditions import heard_codes


@pytest.fixture(scope="module")
def model(_simulated):
    adata = _simulated.copy()
    n = np.arange(adata.n_obs)
    zero = (adata.obs["leiden"] == "0").to_numpy()
    adata.obs["donor"] = pd.Categorical(np.where(zero, "d1", np.where(n % 3 == 0, "d2", "d1")))
    adata.obs["batch"] = np.where(n % 2, "a", "b")
    adata.obs["number"] = n % 5
    LatentDiffusion.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["donor", "number"])
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=3, vae_kwargs={"max_steps": 3})
    return model


def test_covariates_are_what_was_asked_for_and_the_rest_follows_training_cells(model):
    fake = isd.tl.generate(model, n_obs=40, labels="1", covariates={"donor": "d2"}, seed=0)
    assert set(fake.obs["donor"]) == {"d2"} and set(fake.obs["batch"]) == {"a", "b"}
    assert "isd_extrapolated" not in fake.obs
    fake = isd.tl.generate(model, n_obs=20, labels="1", covariates={"number": 3}, batch="a", seed=0)
    assert set(fake.obs["number"]) == {3} and set(fake.obs["batch"]) == {"a"}


def test_combinations_that_no_training_cell_has_are_named_and_marked(model):
    with pytest.warns(UserWarning, match="leiden='0' with .*donor='d2'.* extrapolation") as caught:
        fake = isd.tl.generate(model, labels={"0": 5, "1": 5}, covariates={"donor": "d2"}, seed=0)
    assert sum("extrapolation" in str(w.message) for w in caught) == 1
    assert set(fake.obs["donor"]) == {"d2"}
    assert fake.obs["isd_extrapolated"].tolist() == [True] * 5 + [False] * 5
    # what is asked for is kept, where no single training cell has all of it
    donors = model.template_codes_
    both = (donors[:, 2] == 1) & (donors[:, 1] == 0) & (donors[:, 3] == 0)
    fake_options = {"batch": model.batches[0], "covariates": {"donor": "d2", "number": 0}}
    if both.any():
        fake = isd.tl.generate(model, n_obs=6, labels=None, seed=0, **fake_options)
    else:
        with pytest.warns(UserWarning, match="extrapolation"):
            fake = isd.tl.generate(model, n_obs=6, labels=None, seed=0, **fake_options)
    assert set(fake.obs["donor"]) == {"d2"} and set(fake.obs["number"]) == {0}


def test_of_a_combination_never_seen_the_denoiser_hears_the_label_alone(model):
    """Label 0 has no cell of donor d2: its latents do not depend on what else is asked for."""
    codes = model.template_codes_[:4].copy()
    np.testing.assert_array_equal(heard_codes(model, codes), codes)
    codes[:, 0], codes[:, 2] = 0, 1
    null = np.array(model.module.n_categories)
    np.testing.assert_array_equal(heard_codes(model, codes), [[0, *null[1:]]] * 4)
    codes[:, 0], codes[:, 1:] = null[0], model.template_codes_[:4, 1:]
    np.testing.assert_array_equal(heard_codes(model, codes), codes)  # no label is asked for, and the rest was seen
    latents = []
    for batch in ("a", "b"):
        with pytest.warns(UserWarning, match="extrapolation"):
            fake = isd.tl.generate(model, n_obs=4, labels="0", covariates={"donor": "d2"}, batch=batch, seed=0)
        assert set(fake.obs["batch"]) == {batch}
        latents.append(fake.obsm["X_isd_vae"])
    np.testing.assert_array_equal(*latents)


def test_densities_take_covariates_too(model):
    fake = isd.tl.generate(model, n_obs=10, labels="1", covariates={"donor": "d2"}, latents="gaussian", seed=0)
    assert set(fake.obs["donor"]) == {"d2"}


@pytest.mark.parametrize(
    ("covariates", "message"),
    [
        ({"tissue": "x"}, r"names 'tissue', but the categorical covariates of the model are \['donor', 'number'\]"),
        ({"batch": "a"}, "give batch='a'"),
        ({"donor": "d9"}, "donor 'd9' is not one of the categories"),
        ({"number": "3"}, r"Did you mean 3 \(int\)"),
    ],
)
def test_unknown_covariates_are_named(model, covariates, message):
    with pytest.raises(ValueError, match=message):
        isd.tl.generate(model, n_obs=2, covariates=covariates)


def test_covariates_are_a_mapping(model):
    with pytest.raises(TypeError, match="mapping"):
        isd.tl.generate(model, n_obs=2, covariates="d1")


def test_a_category_without_training_cells_is_refused(adata):
    adata.obs["donor"] = ["late"] * 3 + ["early"] * 297
    adata.obs["isd_split"] = ["test"] * 3 + ["train"] * 297
    LatentDiffusion.setup_anndata(adata, categorical_covariate_keys=["donor"])
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    with pytest.raises(ValueError, match="donor 'late' has no training cells"):
        isd.tl.generate(model, n_obs=2, covariates={"donor": "late"})
