import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

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
    assert float(model.get_elbo(indices=test)) > before + 10
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


def test_early_stopping_stops(adata):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_epochs=60, batch_size=64, lr=0.0, dispersion_lr=0.0, early_stopping=True, early_stopping_patience=2)
    assert len(model.history["train_loss"]) < 40


def test_a_checkpoint_is_a_whole_model_that_can_be_trained_on(adata, tmp_path):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_steps=4, checkpoint_every=2, checkpoint_dir=tmp_path / "checkpoint")
    again = VAE.load(tmp_path / "checkpoint", adata)
    assert again.fingerprint == model.fingerprint  # the last checkpoint is that of the last step
    assert again.sample_prior(3).n_obs == 3
    bias = again.module.decoder.mean.bias.detach().clone()
    again.train(max_steps=1, lr=0.0, dispersion_lr=0.0)
    torch.testing.assert_close(again.module.decoder.mean.bias.detach(), bias)  # not started anew
    assert len(again.history["train_loss"]) == 2  # that of the finished training, and one more
    with pytest.raises(ValueError, match="checkpoint_dir"):
        model.train(max_steps=4, checkpoint_every=2)


def test_log_every_sets_how_many_values_are_kept(adata):
    VAE.setup_anndata(adata)
    lengths = []
    for every in (1, 5):
        model = VAE(adata, n_hidden=8, n_latent=2)
        model.train(max_steps=20, log_every=every)
        lengths.append(len(model.history["train_loss_step"]))
    assert lengths == [20, 4]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_steps": 0}, ValueError, "max_steps must be positive"),
        ({"max_minutes": -1}, ValueError, "max_minutes must be positive"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"lr": float("nan")}, ValueError, "lr must be finite"),
        ({"lr_schedule": "zigzag"}, ValueError, "zigzag"),
        ({"checkpoint_every": 0, "checkpoint_dir": "x"}, ValueError, "checkpoint_every"),
        ({"enable_checkpointing": True}, ValueError, "checkpoint_every"),
        ({"learning_rate": 1e-3}, TypeError, "learning_rate"),
    ],
)
def test_options_that_cannot_be_are_refused_before_training(adata, options, error, message):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    with pytest.raises(error, match=message):
        model.train(**options)
    assert not model.is_trained and model.train_obs_hash is None


def test_mixed_precision_trains(adata):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_steps=3, precision="bf16-mixed")
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()


def test_what_an_earlier_training_saw_stays_seen(adata):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_steps=2)
    isd.pp.split(adata)
    model.train(max_steps=2)
    assert np.isin(isd._hash.hash_names(adata.obs_names), model.train_obs_hash).all()


def test_a_second_training_keeps_the_rows_of_the_first(adata, monkeypatch):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    model.train(max_steps=2)
    rows = model.validation_indices.copy()
    monkeypatch.setattr(isd.settings, "seed", 99)
    model.train(max_steps=2)
    np.testing.assert_array_equal(model.validation_indices, rows)


def test_the_only_cell_of_a_label_is_trained_on(adata):
    adata.obs["group"] = ["rare"] + ["common"] * (adata.n_obs - 1)
    VAE.setup_anndata(adata, labels_key="group")
    for seed in range(30):
        train, validation, _ = isd.model._split.resolve_split(adata, np.r_[0, np.ones(299, dtype=int)], seed=seed)
        assert 0 in train and len(validation) == pytest.approx(30, abs=1)


def test_codes_are_the_models_own_after_another_setup(adata):
    """Trap: every scvi model writes its codes to the same column."""
    adata.obs["other"] = np.arange(adata.n_obs) % 2
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    before = model.label_codes().copy()
    VAE.setup_anndata(adata, labels_key="other", batch_key="other")
    np.testing.assert_array_equal(model.label_codes(), before)
    VAE.setup_anndata(adata, labels_key="other", batch_key="other")
    assert (model._codes()[:, 1] == 0).all()


def test_new_data_are_checked_like_those_of_the_setup(vae, adata):
    isd_log = adata.copy()
    isd.pp.recipe(isd_log)
    del isd_log.layers["counts"]
    for damaged, message in [(isd_log, "log-normalised"), (adata.copy(), "NaN")]:
        if message == "NaN":
            damaged.X.data[0] = np.nan
        with pytest.raises(ValueError, match=message):
            vae.get_latent_representation(damaged)
    expected = vae.get_latent_representation(adata.copy())
    for make in (sparse.csr_array, sparse.csc_matrix):
        other = adata.copy()
        other.X = make(other.X)
        np.testing.assert_allclose(vae.get_latent_representation(other), expected, rtol=1e-5, atol=1e-5)


def test_rows_come_in_the_order_asked_for_from_backed_data_too(vae, adata, tmp_path):
    """Trap: a loader over backed data sorts its rows."""
    import anndata

    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    rows = [50, 3, 120, 3]
    expected = vae.get_latent_representation(adata)[rows]
    np.testing.assert_allclose(vae.get_latent_representation(backed, indices=rows), expected, atol=1e-5)
    np.testing.assert_allclose(vae.get_latent_representation(adata, indices=rows), expected, atol=1e-5)
    frame = vae.get_normalized_expression(backed, indices=rows, library_size="latent")
    assert frame.index.tolist() == adata.obs_names[rows].tolist()
    np.testing.assert_allclose(frame.sum(1), np.asarray(adata.X[rows].sum(1)).ravel(), rtol=1e-4)
    with pytest.raises(ValueError, match="indices must lie"):
        vae.get_latent_representation(indices=[300])


def test_backed_data_train_the_same_model(adata, tmp_path):
    import anndata

    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    losses = []
    for data in (adata, backed):
        VAE.setup_anndata(data)
        model = VAE(data, n_hidden=8, n_latent=2)
        model.train(max_steps=4)
        losses.append(model.history["validation_loss"].to_numpy())
    # the same rows in each batch, read in ascending order: noise falls on other cells of it
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    model.save(tmp_path / "model", save_anndata=True)
    assert str(backed.filename) == str(tmp_path / "cells.h5ad")  # the caller's object stays on its file
    assert VAE.load(tmp_path / "model").adata.n_obs == adata.n_obs


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_size_factors_of_any_scale_give_totals_like_the_real_ones(adata, scale):
    totals = np.asarray(adata.X.sum(1)).ravel()
    adata.obs["size"] = totals / np.median(totals) * scale
    VAE.setup_anndata(adata, size_factor_key="size")
    model = VAE(adata, n_hidden=16, n_latent=4)
    model.train(max_steps=60)
    made = np.asarray(model.sample_prior(300, seed=0).X.sum(1)).ravel()
    assert np.median(made) == pytest.approx(np.median(totals), rel=0.15)
    assert (made > 0).all()


def test_elbo_and_reconstruction_error_fit_together(vae):
    elbo = float(vae.get_elbo())
    rec = float(vae.get_reconstruction_error()["reconstruction_loss"])
    assert elbo < -rec  # KL is positive
    marginal = vae.get_marginal_ll(indices=np.arange(20), n_mc_samples=50)
    assert float(marginal) >= float(vae.get_elbo(indices=np.arange(20))) - 5


def test_the_mean_likelihood_is_that_of_cells_whatever_the_minibatches(vae):
    values = []
    for return_mean in (False, True):
        torch.manual_seed(0)
        values.append(
            vae.get_marginal_ll(indices=np.arange(13), n_mc_samples=5, batch_size=12, return_mean=return_mean)
        )
    each, mean = values
    assert each.shape == (13,) and mean == pytest.approx(float(each.mean()), abs=1e-3)
    # the last cell, a minibatch by itself, does not weigh as much as the others together
    assert abs(mean - float((each[:12].mean() + each[12]) / 2)) > 0.1


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


def clumped(r, n_obs=300, n_vars=40):
    """Cells of one kind, of negative binomial numbers of geometric clumps."""
    rng = np.random.default_rng(0)
    mean = np.exp(rng.normal(0.0, 1.0, n_vars)) / (1 + r)
    number = rng.poisson(rng.gamma(2.0, mean / 2.0, size=(n_obs, n_vars)))
    counts = number + np.where(number > 0, rng.negative_binomial(np.maximum(number, 1), 1 / (1 + r)), 0)
    adata = AnnData(sparse.csr_matrix(counts, dtype=np.float32))
    adata.obs["leiden"] = np.resize(["a", "b"], n_obs)
    adata.obs["leiden"] = adata.obs["leiden"].astype("category")
    return adata


def test_mean_sizes_of_clumps_are_learnt_and_drawn():
    found = {}
    for r in (0.02, 0.6):
        adata = clumped(r)
        VAE.setup_anndata(adata)
        model = VAE(adata, n_hidden=16, n_latent=2)
        model.train(max_steps=300, gene_encoder=False, seed=0)
        found[r] = float(model.module.log_clump.detach().exp().median())
        drawn = model.posterior_predictive_sample(seed=0)
        ones = [float((x.data == 1).mean()) for x in (adata.X, drawn)]
        assert ones[1] == pytest.approx(ones[0], abs=0.03)
    assert found[0.02] < 0.06 and found[0.6] == pytest.approx(0.6, rel=0.35)


def test_clumps_are_of_negative_binomial_counts_alone(adata):
    VAE.setup_anndata(adata)
    assert VAE(adata).module.log_clump is not None
    for options in ({"clumps": False}, {"likelihood": "poisson"}, {"likelihood": "zinb"}, {"preset": "published"}):
        model = VAE(adata, n_hidden=8, n_latent=2, **options)
        assert model.module.log_clump is None


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


def test_networks_train_in_training_mode(adata, monkeypatch):
    """Dropout, batch statistics and the KL warm-up work while training, and only then."""
    from isd.model._training import IsdTrainingPlan

    modes, weights, whole = [], [], {"train": IsdTrainingPlan.training_step, "val": IsdTrainingPlan.validation_step}

    def training_step(self, batch, batch_idx):
        modes.append(self.module.training and all(part.training for part in self.module.modules()))
        weights.append(float(self.kl_weight))
        return whole["train"](self, batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        assert not self.module.training
        assert float(self.kl_weight) == 1.0
        return whole["val"](self, batch, batch_idx)

    monkeypatch.setattr(IsdTrainingPlan, "training_step", training_step)
    monkeypatch.setattr(IsdTrainingPlan, "validation_step", validation_step)
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2, dropout=0.1, norm="batch")
    for already in (0, 20):  # a second training too
        model.train(max_steps=20, batch_size=32, kl_warmup=0.5)
        assert len(modes) == already + 20 and all(modes)
        assert weights[already] == 0 and weights[already + 5] == pytest.approx(0.5) and weights[-1] == 1.0
        assert not any(part.training for part in model.module.modules())
    moving = model.module.encoder.state_dict()
    assert any("running_mean" in name and value.abs().max() > 0 for name, value in moving.items())
