import numpy as np
import pytest
import torch
from scipy import stats

from isd.module import VAEModule


def tensors(x):
    return {"X": torch.as_tensor(x, dtype=torch.float32), "batch": torch.zeros(len(x), 1, dtype=torch.long)}


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(3.0, size=(6, 5))


def test_nb_loss_is_scipys_negative_binomial(counts):
    torch.manual_seed(0)
    module = VAEModule(5, n_hidden=8, n_latent=2, n_layers=1).eval()
    with torch.no_grad():
        module.decoder.heads["dispersion"].weight.normal_(std=0.5)
    out, generated, loss = module(tensors(counts))
    px = generated["px"]
    mean, theta = px.mu.detach().numpy().astype(float), px.theta.detach().numpy().astype(float)
    expected = -stats.nbinom(theta, theta / (theta + mean)).logpmf(counts).sum(1)
    np.testing.assert_allclose(loss.reconstruction_loss["reconstruction_loss"].detach(), expected, rtol=2e-3)
    # the decoder's mean adds up to the cell's own total
    np.testing.assert_allclose(mean.sum(1), counts.sum(1), rtol=1e-4)
    mu, var = out["qzm"].detach(), out["qzv"].detach()
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, var.sqrt()), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    torch.testing.assert_close(loss.kl_local["kl_local"].detach(), reference)


def test_poisson_loss_is_scipys_poisson(counts):
    module = VAEModule(5, n_hidden=8, n_latent=2, n_layers=1, likelihood="poisson").eval()
    _, generated, loss = module(tensors(counts))
    expected = -stats.poisson(generated["px"].rate.detach().numpy().astype(float)).logpmf(counts).sum(1)
    np.testing.assert_allclose(loss.reconstruction_loss["reconstruction_loss"].detach(), expected, rtol=1e-4)


def test_normal_likelihood_is_scipys_normal_of_log_normalised_values(counts):
    module = VAEModule(5, n_hidden=8, n_latent=2, n_layers=1, likelihood="normal").eval()
    _, generated, loss = module(tensors(counts))
    target = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    expected = -stats.norm(generated["px"].mean.detach().numpy()).logpdf(target).sum(1)
    np.testing.assert_allclose(loss.reconstruction_loss["reconstruction_loss"].detach(), expected, rtol=1e-4)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_sampled_counts_are_whole_and_have_the_asked_total(likelihood):
    module = VAEModule(30, n_hidden=8, n_latent=2, n_layers=1, likelihood=likelihood).eval()
    log_library = torch.log(torch.tensor([[5.0], [100.0], [2000.0]]))
    x = module.sample_counts(
        torch.zeros(3, 2), log_library, torch.zeros(3, 1, dtype=torch.long), None, np.random.default_rng(0)
    )
    assert x.sum(1).tolist() == [5, 100, 2000]
    assert (x == np.rint(x)).all()


def test_unknown_likelihood_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"nb.*zinb.*poisson.*normal"):
        VAEModule(5, likelihood="gauss")


def test_marginal_likelihood_is_at_least_the_elbo(counts):
    torch.manual_seed(0)
    module = VAEModule(5, n_hidden=8, n_latent=2, n_layers=1).eval()
    data = tensors(counts)
    elbo = -torch.stack([module(data)[2].loss for _ in range(200)]).mean()
    assert module.marginal_ll(data, n_mc_samples=500, return_mean=True) >= elbo.item()


def test_latents_far_from_the_training_give_finite_values():
    module = VAEModule(6, likelihood="normal", deterministic=True, n_hidden=4, n_latent=2)
    with torch.no_grad():
        module.decoder.mean.bias.copy_(torch.tensor([500.0, 100, 0, 0, -5, 9]))
    z, log_library, codes = torch.zeros(3, 2), torch.full((3, 1), 7.0), torch.zeros(3, 1, dtype=torch.long)
    counts = module.sample_counts(z, log_library, codes, None, np.random.default_rng(0))
    assert np.isfinite(counts).all()
    np.testing.assert_allclose(counts.sum(axis=1), round(np.exp(7.0)), rtol=1e-4)


def test_dispersion_cannot_become_bursts():
    module = VAEModule(6, n_hidden=4, n_latent=2)
    with torch.no_grad():
        module.log_theta.fill_(-50.0)
    px = module.generative(torch.zeros(1, 2), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long), None)["px"]
    assert (px.theta >= np.exp(-1) - 1e-6).all()
