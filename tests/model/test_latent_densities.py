import numpy as np
import pytest

import isd
from isd.model import LatentDiffusion
from isd.model._latent_densities import fit_gaussians, fit_mixtures, gaussian_density


def test_few_training_cells_are_told_about_the_gaussian(adata):
    few = adata[:60].copy()
    LatentDiffusion.setup_anndata(few)
    model = LatentDiffusion(few, n_hidden=8)
    with pytest.warns(UserWarning, match=r'54 training cells are few .* latents="gaussian"') as caught:
        model.train(max_steps=2, vae_kwargs={"max_steps": 2})
        model.train(max_steps=2)
    assert sum("few for a diffusion" in str(w.message) for w in caught) == 1
    fake = isd.tl.generate(model, n_obs=5, latents="gaussian")
    assert np.isfinite(fake.obsm["X_isd_vae"]).all()


def test_gaussians_find_mean_and_covariance_and_shrink_where_cells_are_few():
    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, 1.5], [1.5, 1.0]])
    draws = [rng.multivariate_normal(m, covariance, n) for m, n in (([0, 0], 3000), ([5, -5], 3))]
    points, codes = np.concatenate(draws), np.repeat([0, 2], [3000, 3])
    means, covariances = fit_gaussians(points, codes, 4)
    np.testing.assert_allclose(covariances[0], covariance, rtol=0.15)
    np.testing.assert_allclose(means[2], draws[1].mean(0), rtol=1e-5)
    own, pooled = np.cov(draws[1].T), covariances[0]
    # the few are between their own covariance and that of all
    assert np.linalg.norm(covariances[2] - pooled) < np.linalg.norm(own - pooled)
    assert np.isnan(means[[1, 3]]).all()
    drawn = gaussian_density(means, covariances).draw(np.repeat([0, 2], 2000), rng)
    np.testing.assert_allclose(np.cov(drawn[:2000].T), covariance, rtol=0.2)
    with pytest.raises(ValueError, match="no training cells"):
        gaussian_density(means, covariances).draw(np.array([1]), rng)


def test_a_correlation_among_much_noise_is_kept():
    """Posterior draws are mostly noise: shrinking by Ledoit and Wolf's weight took two thirds of what is left."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((300, 33))
    points[:, 1] = 0.8 * points[:, 0] + 0.6 * points[:, 1]
    _, covariances = fit_gaussians(points, np.zeros(300, dtype=int), 1)
    assert covariances[0, 0, 1] > 0.8 * np.cov(points[:, :2].T)[0, 1]
    # and with few cells the rest is not taken at its word
    _, covariances = fit_gaussians(points[:20], np.zeros(20, dtype=int), 1)
    assert np.linalg.cond(covariances[0]) < 20 < np.linalg.cond(np.cov(points[:20].T))


def test_mixtures_find_two_groups_within_a_label():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(-4, 1, (300, 2)), rng.normal(4, 1, (300, 2))])
    points, codes = np.concatenate([two, rng.normal(size=(300, 2))]), np.repeat([0, 1], [600, 300])
    density = fit_mixtures(points, codes, *fit_gaussians(points, codes, 2), seed=0)
    assert [len(w) for w in density.weights] == [2, 1]
    drawn = density.draw(np.zeros(1000, dtype=int), rng)
    assert (np.abs(drawn.mean(axis=1)) > 1.5).mean() > 0.98  # nothing between the two
