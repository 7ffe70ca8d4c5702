import numpy as np
import pytest

from isd.model import VAE
from isd.model._calibrate import (
    calibrate_dispersion,
    calibrate_means,
    calibrate_posterior,
    dirichlet_precision,
    expected_sums,
    gamma_precision,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("k", [0.5, 5.0, 50.0])
def test_the_precision_of_a_gamma_prior_is_found(k, rng):
    expected = rng.lognormal(3, 1, 3000)
    counts = rng.poisson(expected * rng.gamma(k, 1 / k, 3000))
    assert gamma_precision(counts, expected) == pytest.approx(k, rel=0.35)


def test_a_dirichlet_precision_is_found(rng):
    genes, size, k = 400, 3, 12.0
    usage = rng.dirichlet(np.ones(size), genes)
    counts = np.array([rng.multinomial(200, rng.dirichlet(k * u + 1e-6)) for u in usage])
    found = dirichlet_precision(counts.ravel(), usage.ravel(), np.repeat(np.arange(genes), size))
    assert found == pytest.approx(k, rel=0.4)


@pytest.mark.parametrize("gene_key", [None, "gene_id"])
def test_means_agree_with_the_counts_where_these_are_many(adata, gene_key, rng):
    VAE.setup_anndata(adata, gene_key=gene_key)
    vae = VAE(adata, n_hidden=16, n_latent=4)
    vae.train(max_steps=60, gene_encoder=False)
    # another protocol: half of the features are seen four times less
    factor = np.where(rng.random(adata.n_vars) < 0.5, 0.25, 1.0)
    thinned = adata.copy()
    thinned.X = adata.X.copy()
    thinned.X.data = rng.binomial(adata.X.data.astype(int), factor[adata.X.indices]).astype(np.float32)
    VAE.setup_anndata(thinned, gene_key=gene_key)
    other = VAE.from_pretrained(vae, thinned, calibrate=False, own_axes=0)
    rows = np.arange(thinned.n_obs)

    def error():
        observed, expected = expected_sums(other, rows)
        seen = observed > 200
        assert seen.sum() > 20
        return np.abs(np.log(observed[seen] / expected[seen])).mean()

    before = error()
    calibrate_means(other, rows, np.ones(other.module.decoder.mean.bias.shape[0], bool))
    assert before > 0.4 and error() < 0.25 * before


@pytest.mark.parametrize("gene_key", [None, "gene_id"])
def test_dispersions_that_are_all_off_are_put_right(adata, gene_key):
    VAE.setup_anndata(adata, gene_key=gene_key)
    vae = VAE(adata, n_hidden=16, n_latent=4)
    vae.train(max_steps=80, dispersion_lr=1e-1, gene_encoder=False)
    rows = vae.train_indices
    calibrate_dispersion(vae, rows)
    log_theta = vae.module.log_theta.detach().clone()
    best = -float(vae.get_elbo(indices=rows))
    vae.module.log_theta.data += 3.0
    assert -float(vae.get_elbo(indices=rows)) > best + 5
    assert calibrate_dispersion(vae, rows) == pytest.approx(-3.0, abs=0.5)
    np.testing.assert_allclose(vae.module.log_theta.detach(), log_theta, atol=0.5)
    # what was moved can still be trained
    vae.train(max_steps=2, gene_encoder=False)


def test_clumps_that_are_all_off_are_put_right(adata):
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_hidden=16, n_latent=4)
    vae.train(max_steps=80, dispersion_lr=1e-1, gene_encoder=False)
    rows = vae.train_indices
    calibrate_dispersion(vae, rows)
    best = -float(vae.get_elbo(indices=rows))
    vae.module.log_clump.data += 5.0
    assert -float(vae.get_elbo(indices=rows)) > best + 2
    calibrate_dispersion(vae, rows)
    assert -float(vae.get_elbo(indices=rows)) < best + 1
    assert float(vae.module.log_clump.detach().mean()) > np.log(0.002)  # could still grow


def test_an_encoder_that_is_far_too_sure_is_put_right(adata):
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_hidden=16, n_latent=4)
    vae.train(max_steps=60, gene_encoder=False)
    rows, encoder = np.arange(adata.n_obs), vae.module.encoder
    calibrate_posterior(vae, rows)
    before = float(vae.get_elbo())
    encoder.mean.weight.data *= 2.0
    encoder.mean.bias.data *= 2.0
    encoder.log_var.bias.data -= 4.0
    spoilt = float(vae.get_elbo())
    scale, log_factor = calibrate_posterior(vae, rows)
    assert scale == pytest.approx(0.5, rel=0.15) and log_factor == pytest.approx(4.0, abs=0.4)
    assert abs(float(vae.get_elbo()) - before) < 0.1 * abs(spoilt - before)
