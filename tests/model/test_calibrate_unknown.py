import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import nbinom

from isd.model import VAE
from isd.model._calibrate_unknown import _PRECISION, _regress, fit_label_head, fit_unknown_rows
from isd.model._transfer import FROM_GENE

SMALL = {"n_hidden": 16, "n_latent": 4, "output_rank": 6}


@pytest.fixture(scope="module")
def reference(_simulated):
    atlas = _simulated[:200].copy()
    VAE.setup_anndata(atlas)
    model = VAE(atlas, **SMALL)
    model.train(max_steps=100, gene_encoder=False)
    return model


def test_the_regression_is_that_of_another_optimiser():
    rng = np.random.default_rng(0)
    n, theta = 200, 2.0
    scores, offset = rng.normal(size=(n, 2)), rng.normal(2, 0.3, (n, 1))
    mean = np.exp(scores @ [[0.6], [-0.3]] - 0.5 + offset)
    x = rng.poisson(mean * rng.gamma(theta, 1 / theta, (n, 1)))
    gram = scores.T @ scores / n

    def loss(values):
        v, b = values[:2], values[2]
        mu = np.exp(scores @ v[:, None] + b + offset)
        prior = 0.5 * _PRECISION * v @ gram @ v + 0.05 * b**2
        return -nbinom.logpmf(x, theta, theta / (theta + mu)).sum() / 4 + prior

    wanted = minimize(loss, np.zeros(3), method="BFGS").x
    tensors = (torch.as_tensor(v) for v in (x.astype(float), scores, offset))
    log_theta, start = torch.full((1, 1), np.log(theta)).double(), torch.zeros(2, 1).double()
    loadings, bias = _regress(*tensors, log_theta, torch.as_tensor(gram), start, torch.zeros(1).double(), n_draws=4)
    np.testing.assert_allclose([*loadings.numpy().ravel(), *bias.numpy()], wanted, atol=1e-3)


def test_features_that_the_reference_lacks_are_fitted_and_no_others(adata, reference):
    # abundant features under names that nobody knows: some of a gene of the reference, some without one
    mine = adata[200:].copy()
    some = np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:12]
    mine.var_names = [f"NOVEL{k}" if k in some else name for k, name in enumerate(mine.var_names)]
    mine.var["gene_id"] = [None if k in some[:6] else gene for k, gene in enumerate(mine.var["gene_id"])]
    mine.obs["isd_split"] = np.where(np.arange(mine.n_obs) < 60, "train", "test")
    VAE.setup_anndata(mine)
    vae = VAE.from_pretrained(reference, mine, calibrate=False)
    source = vae.transfer_report["source"].to_numpy()[: mine.n_vars]
    unknown = source != "copied"
    assert unknown.sum() == 12
    before = {name: value.clone() for name, value in vae.module.state_dict().items()}
    rows, test = np.arange(60), np.arange(60, mine.n_obs)

    def score():
        return float(vae.get_marginal_ll(indices=test, n_mc_samples=20))

    start = score()
    assert fit_unknown_rows(vae, rows, unknown, source == FROM_GENE) == 12
    assert score() > start + 5
    for name, value in vae.module.state_dict().items():
        if name in ("decoder.mean.loadings", "decoder.mean.bias"):
            assert torch.equal(value[..., ~unknown], before[name][..., ~unknown])
            moved = ~torch.isclose(value, before[name])
            assert moved.reshape(-1, mine.n_vars).any(dim=0)[unknown].all()
        else:
            assert torch.equal(value, before[name]), name
    again = VAE.from_pretrained(reference, mine, calibrate=False)
    fit_unknown_rows(again, rows, unknown, source == FROM_GENE)
    assert torch.equal(again.module.decoder.mean.loadings, vae.module.decoder.mean.loadings)


def test_labels_of_other_names_are_told_from_the_start(adata, reference):
    mine = adata[200:].copy()
    mine.obs["leiden"] = mine.obs["leiden"].map({"0": "d", "1": "c", "2": "b", "3": "a"}).astype("category")
    mine.obs["isd_split"] = np.where(np.arange(mine.n_obs) < 60, "train", "test")
    VAE.setup_anndata(mine)
    vae = VAE.from_pretrained(reference, mine, calibrate=False)
    codes, test = vae.label_codes(mine), np.arange(60, mine.n_obs)
    latents = torch.as_tensor(vae.get_latent_representation())

    def right():
        with torch.no_grad():
            return (vae.module.label_head(latents).argmax(1).numpy() == codes)[test].mean()

    before = right()
    fit_label_head(vae, np.arange(60))
    assert before < 0.6 and right() > 0.7
