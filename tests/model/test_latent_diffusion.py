import numpy as np
import pytest

import isd
from isd.model import VAE, LatentDiffusion


def test_training_lowers_the_loss_below_the_untrained_one(trained):
    losses = trained.history["train_loss"]["train_loss"].to_numpy()
    # untrained, the velocity's mean square is 2
    assert losses[-1] < 1.9
    assert losses[-1] < losses[0]
    assert "validation_loss" in trained.history


def test_the_vaes_rows_are_used_and_test_rows_are_not(trained):
    test = trained.vae.test_indices
    assert len(test)
    np.testing.assert_array_equal(trained.train_indices, trained.vae.train_indices)
    hashes = isd._hash.hash_names(trained.adata.obs_names)
    seen = np.isin(hashes, trained.train_obs_hash)
    np.testing.assert_array_equal(np.flatnonzero(~seen), test)


def test_scaler_standardises_the_training_latents(trained):
    mean, std = trained.vae.encode_distribution()
    rows = trained.train_indices
    buffers = trained.module.scaler
    np.testing.assert_allclose(buffers.mean.numpy()[:-1], mean[rows].mean(0), atol=1e-5)
    variance = mean[rows].var(0) + (std[rows] ** 2).mean(0)
    np.testing.assert_allclose(buffers.std.numpy()[:-1] ** 2, variance, rtol=1e-4)


def test_ema_weights_are_those_that_are_kept(adata):
    """With a decay of nearly one but warmed up, the kept weights differ from the start and from the last step's."""
    LatentDiffusion.setup_anndata(adata)
    runs = []
    for decay in (0.0, 0.999):
        model = LatentDiffusion(adata, n_hidden=8)
        model.train(max_steps=40, vae_kwargs={"max_steps": 3}, ema_decay=decay, seed=0)
        runs.append(model.module.network.output.weight.detach().numpy())
    last, average = runs
    assert not np.allclose(last, average)
    assert np.abs(average).max() > 0  # the output layer starts at zero: its start has been forgotten
    assert np.abs(average).mean() > 0.2 * np.abs(last).mean()


def test_a_vae_of_other_features_is_refused(adata):
    other = adata[:, 10:].copy()
    VAE.setup_anndata(other)
    vae = VAE(other, n_hidden=8, n_latent=2)
    vae.train(max_steps=2)
    LatentDiffusion.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"other features: 190 against 200.*190 shared"):
        LatentDiffusion(adata, vae=vae)


def test_an_untrained_vae_or_no_vae_is_refused(adata):
    VAE.setup_anndata(adata)
    LatentDiffusion.setup_anndata(adata)
    with pytest.raises(ValueError, match="not trained"):
        LatentDiffusion(adata, vae=VAE(adata, n_hidden=8))
    with pytest.raises(TypeError, match="VAE"):
        LatentDiffusion(adata, vae="vae")


def test_a_vae_of_other_batches_is_refused(adata):
    adata.obs["batch"] = np.arange(adata.n_obs) % 2
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_hidden=8, n_latent=2)
    vae.train(max_steps=2)
    LatentDiffusion.setup_anndata(adata, batch_key="batch")
    with pytest.raises(ValueError, match="batch_key"):
        LatentDiffusion(adata, vae=vae)


def test_unknown_settings_are_refused_before_training(adata):
    LatentDiffusion.setup_anndata(adata)
    with pytest.raises(ValueError, match="schedule"):
        LatentDiffusion(adata, schedule="sigmoid")
    with pytest.raises(ValueError, match="preset"):
        LatentDiffusion(adata, preset="best")
    for name, value in [("parametrization", "noise"), ("n_hidden", 7), ("label_dropout", 1.5), ("time_sampling", "x")]:
        with pytest.raises(ValueError, match=name):
            LatentDiffusion(adata, **{name: value})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_steps": 0}, ValueError),
        ({"ema_decay": 2}, ValueError),
        ({"checkpoint_every": 3}, ValueError),
        ({"nope": 1}, TypeError),
    ],
)
def test_errors_come_before_the_vae_is_trained(adata, options, error):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, n_hidden=8)
    with pytest.raises(error):
        model.train(**options)
    assert not model.vae.is_trained


def test_a_checkpoint_holds_the_averaged_weights_and_generates(adata, tmp_path):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=6, vae_kwargs={"max_steps": 3}, checkpoint_every=3, checkpoint_dir=tmp_path / "checkpoint")
    again = LatentDiffusion.load(tmp_path / "checkpoint")
    assert again.fingerprint == model.fingerprint
    one, two = (isd.tl.generate(m, n_obs=5, seed=0).X.toarray() for m in (model, again))
    np.testing.assert_array_equal(one, two)


def test_a_vae_that_was_trained_further_is_noticed(adata, tmp_path):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=3, vae_kwargs={"max_steps": 3})
    model.vae.train(max_steps=2)
    for call in (lambda: isd.tl.generate(model, n_obs=2), lambda: model.save(tmp_path / "model")):
        with pytest.raises(ValueError, match="trained further"):
            call()
    model.train(max_steps=3)
    assert isd.tl.generate(model, n_obs=2).n_obs == 2


def test_a_vae_may_know_other_labels(adata):
    adata.obs["other"] = np.arange(adata.n_obs) % 2
    VAE.setup_anndata(adata, labels_key="other")
    vae = VAE(adata, n_hidden=8, n_latent=2)
    vae.train(max_steps=2)
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, vae=vae, n_hidden=8)
    model.train(max_steps=2)
    expected = adata.obs["leiden"].cat.codes.to_numpy()[model.train_indices]
    np.testing.assert_array_equal(model.template_codes_[:, 0], expected)


def test_vae_kwargs_for_a_trained_vae_are_refused(trained):
    with pytest.raises(ValueError, match="vae_kwargs"):
        trained.train(vae_kwargs={"max_steps": 3})


def test_the_denoiser_does_not_hold_the_vae(trained):
    """A frozen VAE inside would sit in every checkpoint and every broadcast."""
    names = [name for name, _ in trained.module.named_parameters()]
    assert not any("encoder" in name or "decoder" in name for name in names)


def test_published_preset_is_the_published_configuration(adata):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, preset="published")
    schedule = model.module.schedule
    assert schedule.n_timesteps == 1000
    np.testing.assert_allclose(
        np.asarray(schedule.alpha(isd_times([1, 1000]))) ** 2,
        [1 - 1e-4, np.prod(1 - np.linspace(1e-4, 0.02, 1000))],
        rtol=1e-4,
    )
    assert model.module.parametrization == "epsilon"
    assert not model.module.scaler.enabled
    assert not model.module.model_library
    assert model.generate_defaults == {
        "sampler": "ddpm",
        "n_steps": 1000,
        "classifier_scale": 2.0,
        "start_guide_step": 500,
    }
    model.train(max_steps=3, vae_kwargs={"max_steps": 3})
    fake = isd.tl.generate(model, n_obs=3, n_steps=20, labels=None)
    assert fake.uns["isd"]["sampler"] == "ddpm"
    assert fake.uns["isd"]["likelihood"] == "normal"


def test_published_denoiser_does_not_claim_labels_that_it_cannot_see(adata):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, preset="published")
    model.train(max_steps=3, vae_kwargs={"max_steps": 3})
    with pytest.raises(ValueError, match=r"does not see labels.*classifier="):
        isd.tl.generate(model, n_obs=3, labels="0", n_steps=3)
    with pytest.raises(ValueError, match="guidance_scale"):
        isd.tl.generate(model, n_obs=3, labels=None, guidance_scale=2.0, n_steps=3)
    with pytest.warns(UserWarning, match="does not see labels"):
        fake = isd.tl.generate(model, n_obs=3, n_steps=3)
    assert fake.obs["leiden"].isna().all()
    isd.model.Classifier.setup_anndata(adata)
    classifier = isd.model.Classifier(adata, model, preset="published")
    with pytest.raises(ValueError, match="not trained"):
        isd.tl.generate(model, n_obs=3, classifier=classifier)
    classifier.train(max_steps=3)
    fake = isd.tl.generate(model, n_obs=3, labels="0", classifier=classifier, n_steps=10)
    assert fake.obs["leiden"].tolist() == ["0"] * 3
    provenance = fake.uns["isd"]
    assert (provenance["classifier_scale"], provenance["start_guide_step"]) == (2.0, 500)


def test_a_model_without_label_dropout_has_no_unconditional_cells(adata):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, n_hidden=8, label_dropout=0.0)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    for options in ({"guidance_scale": 2.0}, {"labels": None}):
        with pytest.raises(ValueError, match="label_dropout=0"):
            isd.tl.generate(model, n_obs=3, **options)


def isd_times(steps):
    import torch

    return torch.tensor(steps) / 1000


@pytest.mark.parametrize("label_dropout", [0.0, 0.3])
def test_hidden_labels_are_learnt(adata, label_dropout):
    """The token of no label moves in training if labels are hidden, and only then."""
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, n_hidden=8, label_dropout=label_dropout, seed=0)
    weight = model.module.network.conditions.embeddings[0].weight
    before = weight.detach().numpy().copy()
    model.train(max_steps=30, weight_decay=0.0, ema_decay=0.0, vae_kwargs={"max_steps": 3}, seed=0)
    moved = np.abs(weight.detach().numpy() - before).max(axis=1)
    assert (moved[:-1] > 1e-4).all()
    assert (moved[-1] > 1e-4) == (label_dropout > 0)
    assert not model.module.training
