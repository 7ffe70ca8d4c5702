import numpy as np
import pytest

import isd
from isd.model import VAE


@pytest.fixture(scope="module")
def vae(_simulated):
    adata = _simulated.copy()
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=32, n_latent=8)
    model.train(max_steps=200)
    return model


def test_training_lowers_the_loss_of_held_out_cells(adata):
    isd.pp.split(adata)
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=32, n_latent=8)
    model.train(max_steps=2)
    test = model.test_indices
    before = float(model.get_elbo(indices=test))
    model = VAE(adata, n_hidden=32, n_latent=8)
    model.train(max_steps=200)
    assert float(model.get_elbo(indices=test)) > before + 20
    assert set(model.train_indices).isdisjoint(test)
    np.testing.assert_array_equal(np.flatnonzero(adata.obs["isd_split"] == "test"), test)


def test_two_trainings_with_one_seed_are_equal_and_the_global_state_is_untouched(adata):
    VAE.setup_anndata(adata)
    results = []
    np.random.seed(7)
    expected = np.random.RandomState(7).rand()
    for _ in range(2):
        model = VAE(adata, n_hidden=8, n_latent=2, seed=3)
        model.train(max_steps=3, seed=3)
        results.append(model.get_latent_representation())
    np.testing.assert_array_equal(*results)
    assert np.random.rand() == expected
    other = VAE(adata, n_hidden=8, n_latent=2, seed=4)
    other.train(max_steps=3, seed=4)
    assert not np.allclose(other.get_latent_representation(), results[0])


def test_steps_epochs_and_minutes_end_the_training(adata):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_epochs=2, batch_size=32)
    assert len(model.history["train_loss"]) == 2
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_minutes=0.05, max_steps=10**6)  # ends by itself, after three seconds
    assert model.is_trained
    with pytest.raises(ValueError, match="not both"):
        model.train(max_epochs=1, max_steps=1)
    with pytest.raises(ValueError, match="max_steps must be positive"):
        model.train(max_steps=0)


def test_early_stopping_stops(adata):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_epochs=400, batch_size=32, lr=0.0, early_stopping=True, early_stopping_patience=2)
    assert len(model.history["train_loss"]) < 300


def test_checkpoints_can_be_loaded(adata, tmp_path):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_steps=4, checkpoint_every=2, checkpoint_dir=tmp_path / "checkpoint")
    assert VAE.load(tmp_path / "checkpoint").module.n_latent == 2
    with pytest.raises(ValueError, match="checkpoint_dir"):
        model.train(max_steps=4, checkpoint_every=2)


def test_elbo_and_reconstruction_error_fit_together(vae):
    elbo = float(vae.get_elbo())
    rec = float(vae.get_reconstruction_error()["reconstruction_loss"])
    assert elbo < -rec  # KL is positive
    marginal = vae.get_marginal_ll(indices=np.arange(20), n_mc_samples=50)
    assert float(marginal) >= float(vae.get_elbo(indices=np.arange(20))) - 5


def test_normalized_expression_adds_up(vae):
    shares = vae.get_normalized_expression(indices=[0, 5])
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-4)
    assert list(shares.index) == list(vae.adata.obs_names[[0, 5]])
    counts = vae.get_normalized_expression(indices=[0, 5], library_size="latent", return_numpy=True)
    np.testing.assert_allclose(counts.sum(1), np.asarray(vae.adata.X[[0, 5]].sum(1)).ravel(), rtol=1e-4)
    one = vae.get_normalized_expression(indices=[0], feature_list=[vae.feature_names[3]])
    np.testing.assert_allclose(one.iloc[0, 0], shares.iloc[0, 3], rtol=1e-5)
    with pytest.raises(ValueError, match="1 features are not the model's"):
        vae.get_normalized_expression(feature_list=["nope"])


def test_posterior_predictive_sample_serves_scvis_criticism(vae):
    from scvi.criticism import PosteriorPredictiveCheck

    draw = vae.posterior_predictive_sample(indices=[1, 2, 3])
    assert draw.shape == (3, vae.adata.n_vars)
    totals = np.asarray(vae.adata.X[[1, 2, 3]].sum(1)).ravel()
    np.testing.assert_array_equal(np.asarray(draw.to_scipy_sparse().sum(1)).ravel(), totals)
    whole = vae.adata.copy()
    whole.X = whole.X.astype(int)  # scvi 1.4.2 cannot check sparse floats
    check = PosteriorPredictiveCheck(whole, {"vae": vae}, n_samples=2)
    check.coefficient_of_variation("cells")
    assert all("vae" in frame for frame in check.metrics.values()) and check.metrics


def test_decode_gives_counts_of_the_asked_depth(vae):
    z = np.zeros((4, 8))
    counts = vae.decode(z, library_size=[10, 100, 1000, 10], seed=1)
    assert np.asarray(counts.sum(1)).ravel().tolist() == [10, 100, 1000, 10]
    assert (counts != vae.decode(z, library_size=[10, 100, 1000, 10], seed=1)).nnz == 0
    expected = vae.decode(z, library_size=1000, sample=False)
    np.testing.assert_allclose(expected.sum(1), 1000, rtol=1e-4)
    drawn = vae.decode(np.zeros((400, 8)), library_size=1000, seed=0).mean(0)
    assert np.corrcoef(np.asarray(drawn).ravel(), expected[0])[0, 1] > 0.95
    for bad, message in [(np.zeros((4, 3)), r"\(n, 8\)"), (np.full((1, 8), np.nan), "NaN")]:
        with pytest.raises(ValueError, match=message):
            vae.decode(bad)
    with pytest.raises(ValueError, match="library_size"):
        vae.decode(z, library_size=[1, 2])


def test_sample_prior_is_an_anndata_like_the_training_data(vae):
    fake = vae.sample_prior(30, seed=0)
    assert fake.shape == (30, vae.adata.n_vars)
    assert (fake.X.data == np.rint(fake.X.data)).all()
    assert fake.uns["isd"]["sampler"] == "prior"
    totals = np.log(np.asarray(vae.adata.X.sum(1)).ravel())
    made = np.log(np.asarray(fake.X.sum(1)).ravel())
    assert totals.min() - 1e-3 <= made.min() and made.max() <= totals.max() + 1e-3


@pytest.mark.parametrize("likelihood", ["zinb", "poisson", "normal"])
def test_every_likelihood_trains_and_generates(adata, likelihood):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=16, n_latent=4, likelihood=likelihood)
    model.train(max_steps=30)
    fake = model.sample_prior(5)
    assert np.isfinite(fake.X.data).all() and (fake.X.data >= 0).all()


def test_covariates_and_size_factors_reach_the_decoder(adata):
    rng = np.random.default_rng(0)
    adata.obs["batch"] = np.where(rng.random(adata.n_obs) < 0.5, "a", "b")
    adata.obs["sex"] = np.where(rng.random(adata.n_obs) < 0.5, "f", "m")
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    adata.obs["size"] = np.asarray(adata.X.sum(1)).ravel() * 2.0
    VAE.setup_anndata(
        adata,
        batch_key="batch",
        categorical_covariate_keys=["sex"],
        continuous_covariate_keys=["age"],
        size_factor_key="size",
    )
    model = VAE(adata, n_hidden=16, n_latent=4)
    # the batch shifts one feature a hundredfold: the decoder must see it
    model.train(max_steps=20)
    assert model.n_categories == (4, 2, 2)
    z = np.zeros((50, 4))
    a, b = (np.asarray(model.decode(z, batch=k, library_size=500, sample=False)).mean(0) for k in ("a", "b"))
    assert not np.allclose(a, b)
    fake = model.sample_prior(6, batch="b")
    assert fake.obs["batch"].tolist() == ["b"] * 6
    assert {"sex", "age"} <= set(fake.obs)
    with pytest.raises(ValueError, match="batch 'z'"):
        model.sample_prior(6, batch="z")


def test_an_untrained_vae_says_so(adata):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    with pytest.raises(RuntimeError, match="train"):
        model.sample_prior(3)
    with pytest.raises(RuntimeError, match="train"):
        model.decode(np.zeros((1, 2)))


def test_published_preset_has_the_published_shape(adata):
    VAE.setup_anndata(adata)
    model = VAE(adata, preset="published")
    body = model.module.encoder.body
    assert [block[0].out_features for block in body] == [1024, 1024, 1024]
    assert {type(block[1]).__name__ for block in body} == {"BatchNorm1d"}
    assert {type(block[2]).__name__ for block in body} == {"PReLU"}
    model.train(max_steps=3)
    z = model.get_latent_representation()
    assert z.shape[1] == 128
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    # each coordinate's standard deviation is about 1/sqrt(128): why diffusion of raw latents is lost in noise
    assert np.sqrt((z**2).mean()) == pytest.approx(128**-0.5, rel=1e-3)
