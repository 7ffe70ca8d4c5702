import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import log_loss

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
    ).toarray()
    assert x.sum(1).tolist() == [5, 100, 2000]
    assert (x == np.rint(x)).all()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_counts_do_not_depend_on_how_many_cells_are_decoded_at_once(likelihood, monkeypatch):
    module = VAEModule(30, n_hidden=8, n_latent=2, n_layers=1, likelihood=likelihood, output_rank=2).eval()
    z, codes = torch.randn(7, 2), torch.zeros(7, 1, dtype=torch.long)
    log_library = torch.log(torch.tensor([[5.0], [100.0], [20.0], [7.0], [30.0], [9.0], [2000.0]]))
    drawn = []
    for at_once in (30 * 7, 30 * 2, 1):
        monkeypatch.setattr("isd.module._count_draws.DECODED_AT_ONCE", at_once)
        drawn.append(module.sample_counts(z, log_library, codes, None, np.random.default_rng(0)).toarray())
    np.testing.assert_allclose(drawn[1], drawn[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(drawn[2], drawn[0], rtol=1e-4, atol=1e-6)


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
    counts = module.sample_counts(z, log_library, codes, None, np.random.default_rng(0)).toarray()
    assert np.isfinite(counts).all()
    np.testing.assert_allclose(counts.sum(axis=1), round(np.exp(7.0)), rtol=1e-4)


def test_the_label_loss_is_sklearns_log_loss_and_cells_without_label_count_as_zero():
    module = VAEModule(6, n_hidden=4, n_latent=2, n_labels=3, label_weight=2.0)
    z, labels = torch.randn(8, 2), torch.tensor([0, 1, 2, 3, 0, 1, 3, 2])[:, None]
    probability = torch.softmax(module.label_head(z).double(), dim=1).detach().numpy()
    known = labels.ravel().numpy() < 3
    want = log_loss(labels.ravel().numpy()[known], probability[known], labels=[0, 1, 2]) * known.mean()
    assert module.label_loss(z, labels).item() == pytest.approx(want, rel=1e-4)
    assert torch.isfinite(module.label_loss(z, torch.full((8, 1), 3)))


def test_the_bound_of_validation_cells_has_neither_priors_nor_labels(counts):
    options = {"n_hidden": 8, "n_latent": 2, "n_layers": 1, "deterministic": True, "output_rank": 2}
    module = VAEModule(5, **options, shrinkage=3.0, dispersion_shrinkage=5.0, n_labels=3, label_weight=5.0)
    data = tensors(counts) | {"labels": torch.tensor([0, 1, 2, 3, 0, 1])[:, None]}
    inference, generated, validation = module.eval()(data)
    torch.testing.assert_close(validation.loss, validation.reconstruction_loss["reconstruction_loss"].mean())
    inference, generated, training = module.train()(data)
    extra = generated["penalty"] / module.n_train + 5.0 * module.label_loss(inference["z"], data["labels"])
    torch.testing.assert_close(training.loss, validation.loss + extra)
    assert extra > 0


@pytest.mark.parametrize("name", ["shrinkage", "dispersion_shrinkage", "label_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_of_priors_and_labels_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        VAEModule(6, **{name: value})


def sparse_tensors(x):
    return tensors(x) | {"X": torch.as_tensor(x, dtype=torch.float32).to_sparse_csr()}


OPTIONS = {"n_hidden": 8, "n_latent": 2, "n_layers": 2, "shrinkage": 2.0, "dispersion_shrinkage": 3.0}
SHAPES = [
    {"output_rank": 3, "dispersion_rank": 2},
    {"output_rank": 3, "dispersion": "feature"},
    {"output_rank": 3, "likelihood": "poisson"},
    {"likelihood": "zinb"},
    {"likelihood": "normal", "deterministic": True, "norm": "batch"},
    {},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sparse_and_dense_minibatches_give_the_same_loss_and_gradients(shape):
    counts = np.random.default_rng(0).negative_binomial(0.5, 0.1, size=(16, 40)).astype(np.float32)
    counts[:, 0] += 1
    torch.manual_seed(0)
    module = VAEModule(40, **OPTIONS, **shape).train()
    for head in module.decoder.heads.values():
        with torch.no_grad():
            getattr(head, "scores", head).weight.normal_(std=0.3)
    results = []
    dense, as_csr = tensors(counts), sparse_tensors(counts)
    for data, sparse_input in [(dense, None), (dense, True), (as_csr, True), (as_csr, False), (as_csr, None)]:
        module.sparse_input = sparse_input
        torch.manual_seed(1)
        module.zero_grad()
        _, generated, out = module(data)
        assert ("px" in generated) == (module.likelihood == "zinb")
        out.loss.backward()
        rec = out.reconstruction_loss["reconstruction_loss"]
        results.append([out.loss.detach(), rec.detach(), *(p.grad.clone() for p in module.parameters())])
    # and through the distribution over all features, by autograd
    torch.manual_seed(1)
    module.zero_grad()
    inference = module.inference(**module._get_inference_input(tensors(counts)))
    given = module._get_generative_input(tensors(counts), inference) | {"fused": False}
    loss = module.loss(tensors(counts), inference, module.generative(**given)).loss
    loss.backward()
    results.append([loss.detach(), results[0][1], *(p.grad.clone() for p in module.parameters())])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sparse_and_dense_cells_have_the_same_latents_bound_and_likelihood(shape):
    counts = np.random.default_rng(0).poisson(0.5, size=(16, 40)).astype(np.float32)
    counts[:, 0] += 1
    module = VAEModule(40, **OPTIONS, **shape).eval()
    latents, bounds, marginals = [], [], []
    for data in (tensors(counts), sparse_tensors(counts)):
        with torch.no_grad():
            torch.manual_seed(1)
            latents.append(module.inference(**module._get_inference_input(data))["z"])
            bounds.append(module(data)[2].loss)
            marginals.append(module.marginal_ll(data, n_mc_samples=3))
    for pair in (latents, bounds, marginals):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_dispersion_beyond_its_limits_has_no_gradient_in_training_either():
    module = VAEModule(6, **OPTIONS, dispersion="feature").train()
    with torch.no_grad():
        module.log_theta.copy_(torch.tensor([-9.0, 13.0, 0.0, 1.0, 2.0, 3.0]))
    module(sparse_tensors(np.random.default_rng(0).poisson(2.0, size=(8, 6))))[2].loss.backward()
    assert (module.log_theta.grad != 0).tolist() == [False, False, True, True, True, True]
