"""Shifts of batches are those of a Poisson regression on label and batch."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import PoissonRegressor

import isd
from isd.model._covariate_shifts import covariate_shifts
from isd.model._statistics import principal_loadings

N_LABELS, N_BATCHES, N_VARS = 3, 2, 40


@pytest.fixture(scope="module")
def world():
    """Two batches, three labels, and label 0 in batch 0 only."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, N_LABELS, size=900)
    batch = np.where(labels == 0, 0, rng.integers(0, N_BATCHES, size=900))
    effect = rng.normal(0, 0.5, size=(N_BATCHES, N_VARS))
    logits = rng.normal(0, 1, size=(N_LABELS, N_VARS))[labels] + effect[batch]
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    x = rng.poisson(rng.uniform(200, 1000, size=900)[:, None] * share)
    return sparse.csr_matrix(x.astype(np.float32)), labels, batch


def test_shifts_are_those_of_poisson_regression(world):
    x, labels, batch = world
    rows = np.random.default_rng(1).permutation(900)[:700]  # in any order
    found = covariate_shifts(x, rows, labels[rows], batch[rows, None], [N_BATCHES], prior_counts=1e-9, n_iter=200)
    design = np.column_stack([np.eye(N_LABELS)[labels[rows]], np.eye(N_BATCHES)[batch[rows]]])
    depth = x[rows].sum(axis=1).A1
    for feature in range(0, N_VARS, 7):
        y = x[rows, feature].toarray().ravel() / depth
        fitted = PoissonRegressor(alpha=0, fit_intercept=False, tol=1e-10, max_iter=2000).fit(
            design, y, sample_weight=depth
        )
        wanted = fitted.coef_[N_LABELS + 1] - fitted.coef_[N_LABELS]
        assert found[1, feature] - found[0, feature] == pytest.approx(wanted, abs=2e-3)


def test_a_label_missing_in_a_batch_is_not_its_effect(world):
    """Means of batches differ by label 0 as well; shifts must not."""
    x, labels, batch = world
    rows = np.arange(900)
    shifts = covariate_shifts(x, rows, labels, batch[:, None], [N_BATCHES])
    same = labels > 0
    alike = covariate_shifts(x, rows[same], labels[same], batch[same, None], [N_BATCHES])
    np.testing.assert_allclose(shifts[1] - shifts[0], alike[1] - alike[0], atol=0.05)
    ignored = covariate_shifts(x, rows, np.zeros(900, int), batch[:, None], [N_BATCHES])
    assert np.abs((ignored[1] - ignored[0]) - (alike[1] - alike[0])).max() > 0.3


def test_one_category_has_no_shift_and_empty_ones_have_none(world):
    x, labels, batch = world
    codes = np.column_stack([batch, np.zeros(900, int), 1 + batch])
    shifts = covariate_shifts(x, np.arange(900), labels, codes, [N_BATCHES, 1, 4])
    assert shifts.shape == (N_BATCHES + 4, N_VARS)
    np.testing.assert_array_equal(shifts[[2, 5]], 0)
    np.testing.assert_array_equal(shifts[:2], shifts[3:5])
    groups = sparse.csr_matrix(np.repeat(np.eye(N_VARS // 2), 2, axis=0))
    assert covariate_shifts(x, np.arange(900), labels, codes, [N_BATCHES, 1, 4], groups=groups).shape == (6, 20)
    assert covariate_shifts(x, np.arange(900), labels, codes[:, 1:2], [1]).shape == (0, N_VARS)


def test_axes_between_batches_are_not_started_from(world):
    x, labels, batch = world
    rows = np.random.default_rng(2).permutation(900)
    among = batch[rows, None]
    log = np.log1p(1e4 * x.toarray() / x.sum(axis=1).A)
    both = labels > 0
    means = np.stack([[log[both & (labels == i) & (batch == b)].mean(axis=0) for b in (0, 1)] for i in (1, 2)])
    between = (means[:, 1] - means[:, 0]).mean(axis=0)
    between /= np.linalg.norm(between)
    before = np.abs(principal_loadings(x, rows, 6, labels=labels[rows]) @ between).max()
    after = np.abs(principal_loadings(x, rows, 6, labels=labels[rows], among=among) @ between).max()
    assert after < 0.1 * before


def test_shifts_start_from_the_data_and_are_learnt(world):
    x, labels, batch = world
    obs = pd.DataFrame({"leiden": labels.astype(str), "batch": batch.astype(str)}, dtype="category")
    obs.index = [f"cell{i}" for i in range(900)]
    adata = ad.AnnData(x.copy(), obs=obs, var=pd.DataFrame(index=[f"t{i}" for i in range(N_VARS)]))
    isd.model.VAE.setup_anndata(adata, batch_key="batch")
    vae = isd.model.VAE(adata, n_hidden=16, n_latent=4, seed=0)
    vae.train(max_steps=1, lr=1e-9, seed=0, progress=False)
    start = vae.module.decoder.shift.detach().numpy().copy()
    wanted = covariate_shifts(x, vae.train_indices, labels[vae.train_indices], batch[vae.train_indices, None], [2])
    np.testing.assert_allclose(start, wanted, atol=1e-5)
    vae.train(max_steps=3, lr=1e-2, seed=0, progress=False)
    assert np.abs(vae.module.decoder.shift.detach().numpy() - start).max() > 1e-3
    # the published autoencoder and models without batches have none
    assert isd.model.VAE(adata, n_hidden=16, covariate_shift=False).module.decoder.shift is None
    isd.model.VAE.setup_anndata(adata)
    assert isd.model.VAE(adata, n_hidden=16).module.decoder.shift is None
