"""Latents of a Gaussian, a mixture, or the prior in place of the diffusion."""

import numpy as np
import pytest
from scipy import stats

import isd
from isd.model import LatentDiffusion


@pytest.mark.parametrize("latents", ["gaussian", "mixture"])
def test_labels_depth_and_seeds_are_those_of_the_diffusion(trained, guide, latents):
    options = {"labels": {"0": 150, "3": 150}, "latents": latents, "seed": 0}
    fake = isd.tl.generate(trained, **options)
    assert fake.obs["leiden"].value_counts().to_dict() == {"0": 150, "3": 150, "2": 0, "1": 0}
    assert (guide.predict(fake.copy()) == fake.obs["leiden"].astype(str)).mean() > 0.7
    same = trained.adata[trained.train_indices]
    same = same[same.obs["leiden"].isin(["0", "3"])]
    made, real = (np.log(np.asarray(x.X.sum(1)).ravel()) for x in (fake, same))
    assert abs(made.mean() - real.mean()) < 0.3 * real.std() and 0.6 < made.std() / real.std() < 1.4
    assert (isd.tl.generate(trained, **options, batch_size=1).X != fake.X).nnz == 0
    assert (isd.tl.generate(trained, **{**options, "seed": 1}).X != fake.X).nnz > 0
    assert fake.uns["isd"]["latents"] == latents and "sampler" not in fake.uns["isd"]
    assert isd.tl.generate(trained, labels="1", n_obs=3, latents=latents, library_size=77).X.sum() == 3 * 77


@pytest.mark.parametrize("latents", ["gaussian", "mixture"])
def test_cells_that_passed_a_filter_have_totals_with_its_edge(latents):
    adata = isd.datasets.simulated(n_obs=1500, n_vars=60, n_labels=2, seed=0)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    adata = adata[totals > np.quantile(totals, 0.75)].copy()
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    fake = isd.tl.generate(model, n_obs=2000, labels="match", latents=latents, seed=0)
    real = np.asarray(adata.X.sum(axis=1)).ravel()[model.train_indices]
    drawn = np.asarray(fake.X.sum(axis=1)).ravel()
    # without normal scores these are 0.12 and 10%
    assert stats.ks_2samp(drawn, real).statistic < 0.06
    assert (drawn <= real.min()).mean() < 0.03


def test_without_labels_all_of_them_are_drawn(trained, guide):
    fake = isd.tl.generate(trained, n_obs=120, labels=None, latents="gaussian", seed=0)
    assert fake.obs["leiden"].isna().all()
    assert set(guide.predict(fake.copy())) == {"0", "1", "2", "3"}


def test_the_prior_claims_no_labels(trained):
    fake = isd.tl.generate(trained, n_obs=200, latents="prior", seed=0)
    assert fake.obs["leiden"].isna().all()
    np.testing.assert_allclose(fake.obsm["X_isd_vae"].std(), 1.0, atol=0.05)
    totals = np.asarray(trained.adata.X.sum(1)).ravel()[trained.train_indices]
    assert np.isin(np.asarray(fake.X.sum(1)).ravel(), totals).all()
    with pytest.raises(ValueError, match="knows no labels"):
        isd.tl.generate(trained, labels="0", n_obs=2, latents="prior")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": 2.0}, "guidance_scale needs the diffusion model"),
        ({"guidance_scale": 0.0}, "guidance_scale needs the diffusion model"),
        ({"guidance_scale": {"0": 2.0}}, "guidance_scale needs the diffusion model"),
        ({"sampler": "ddim", "n_steps": 3}, "sampler, n_steps need the diffusion model"),
        ({"classifier": True}, "classifier needs the diffusion"),
        ({"classifier": True, "accept": "classified", "classifier_scale": 1.0}, "classifier_scale needs"),
        ({"latents": "magic"}, "latents 'magic' is unknown"),
    ],
)
def test_what_only_the_diffusion_does_is_refused(trained, guide, arguments, message):
    arguments = {k: guide if k == "classifier" else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=message):
        isd.tl.generate(trained, **{"n_obs": 3, "latents": "gaussian", **arguments})


def test_rejection_works_with_every_kind_that_knows_labels(trained, guide):
    fake = isd.tl.generate(trained, n_obs=30, latents="gaussian", classifier=guide, accept="classified", seed=0)
    assert (guide.predict(fake.copy()) == fake.obs["leiden"].astype(str)).all()


def test_gaussians_are_saved_and_mixtures_need_the_data(trained, tmp_path):
    trained.save(tmp_path / "model")
    bare = LatentDiffusion.load(tmp_path / "model", False)
    options = {"labels": "0", "n_obs": 6, "latents": "gaussian", "seed": 0}
    assert (isd.tl.generate(bare, **options).X != isd.tl.generate(trained, **options).X).nnz == 0
    with pytest.raises(ValueError, match="no data attached"):
        isd.tl.generate(bare, n_obs=2, latents="mixture")
    data = LatentDiffusion.load(tmp_path / "model", trained.adata.copy())
    isd.tl.generate(data, n_obs=2, latents="mixture", seed=7)  # the first seed that is used does not matter
    again, here = (isd.tl.generate(m, n_obs=6, latents="mixture", seed=0) for m in (data, trained))
    assert (again.X != here.X).nnz == 0
    other = trained.adata[:50].copy()
    with pytest.raises(ValueError, match="other data attached"):
        isd.tl.generate(LatentDiffusion.load(tmp_path / "model", other), n_obs=2, latents="mixture")
    for older in (bare, data):
        del older.gaussian_mean_  # a model of a version without Gaussians
    with pytest.raises(ValueError, match="load it with its training cells"):
        isd.tl.generate(bare, n_obs=2, latents="gaussian")
    assert isd.tl.generate(data, n_obs=2, latents="gaussian").n_obs == 2
