import numpy as np
import pytest
from scipy import sparse

import isd
from isd.model import VAE
from isd.model._generated import log_normalized
from isd.model._presets import default_vae, default_vae_train
from isd.model._statistics import feature_share, principal_loadings, usage_loadings


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(90, 2)) * [1.0, 0.5]
    rate = np.exp(1.5 + scores @ rng.normal(size=(2, 30)))
    return sparse.csr_matrix(rng.poisson(rate).astype(np.float32))


def test_loadings_are_those_of_a_dense_decomposition(counts):
    rows = np.random.default_rng(1).permutation(90)[:70]  # in any order
    found = principal_loadings(counts, rows, 3)
    assert found.shape == (2, 30)  # the third is noise
    dense = counts[rows].toarray()
    dense = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True))
    _, values, axes = np.linalg.svd(dense - dense.mean(axis=0), full_matrices=False)
    expected = axes[:2] * values[:2, None] / np.sqrt(len(rows) - 1)
    signs = np.sign((found * expected).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found * signs, expected, atol=2e-3 * values[0])
    np.testing.assert_allclose(feature_share(counts, rows, chunk=7), counts[rows].sum(axis=0).A1 / counts[rows].sum())


def test_fewer_cells_than_axes(counts):
    assert len(principal_loadings(counts, np.arange(3), 10)) <= 2
    assert principal_loadings(counts, np.arange(1), 10).shape == (0, 30)


def test_axes_of_noise_are_left_out(counts):
    """Neither axes of some cells alone, nor features that vary much by themselves, are something to start from."""
    rng = np.random.default_rng(2)
    noise = sparse.csr_matrix(rng.poisson(4.0, size=counts.shape).astype(np.float32))
    assert len(principal_loadings(noise, np.arange(90), 10)) == 0
    loud = counts.toarray()
    loud[:, 7] = rng.permutation(np.round(np.exp(rng.normal(1.5, 2.0, size=90)).clip(0, 300)))
    found = principal_loadings(sparse.csr_matrix(loud), np.arange(90), 10)
    share = found**2 / (found**2).sum(axis=1, keepdims=True)
    assert len(found) == 2 and share[:, 7].max() < 0.5
    assert len(principal_loadings(noise, np.arange(90), 10, few=90)) == 10


def test_labels_that_single_features_mark_are_axes(counts):
    """Permuted, a marker varies as much as before: it stands out of permuted labels only."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 5, size=90)
    marked = counts.toarray()
    marked[np.arange(90), labels] += 400
    marked = sparse.csr_matrix(marked)
    rows = rng.permutation(90)
    without = principal_loadings(marked, rows, 10)
    found = principal_loadings(marked, rows, 10, labels=labels[rows])
    np.testing.assert_array_equal(found[: len(without)], without)
    _, _, span = np.linalg.svd(found, full_matrices=False)
    means = np.stack([np.asarray(log_normalized(marked[labels == i]).mean(axis=0)).ravel() for i in range(5)])
    means -= means.mean(axis=0)
    lost = means - means @ span.T @ span
    assert (lost**2).sum() < 0.05 * (means**2).sum()
    # labels that say nothing add nothing but by chance
    assert len(principal_loadings(counts, rows, 10, labels=labels[rows])) <= 3


def test_training_starts_from_the_axes_of_the_training_cells(adata, monkeypatch):
    isd.pp.split(adata, seed=0)
    VAE.setup_anndata(adata)
    seen = {}
    monkeypatch.setattr("isd.model._vae.fit", lambda model, *_, **__: seen.update(model.module.state_dict()))
    model = VAE(adata, n_hidden=16, n_latent=4, output_rank=5, dispersion_rank=2)
    model.train(max_steps=1)
    rows = np.flatnonzero(adata.obs["isd_split"] == "train")
    labels = adata.obs["leiden"].cat.codes.to_numpy()[rows]
    expected = principal_loadings(model.get_from_registry(adata, "X"), rows, 5, labels=labels)
    np.testing.assert_allclose(seen["decoder.mean.loadings"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert seen["decoder.heads.dispersion.loadings"].shape == (2, adata.n_vars)


def test_full_layers_and_impossible_ranks(adata):
    VAE.setup_anndata(adata)
    full = VAE(adata, n_hidden=8, n_latent=2, output_rank=0, dispersion_rank=0)
    assert full.module.output_rank == 0
    full.train(max_steps=2)
    # a bottleneck wider than what goes in would save nothing
    assert VAE(adata, n_hidden=8, n_latent=2, output_rank=8).module.output_rank == 0
    with pytest.raises(ValueError, match="output_rank must be a rank"):
        VAE(adata, output_rank=-1)


def test_default_settings_follow_what_there_is_to_learn_from(adata):
    widths = [default_vae(n)["n_hidden"] for n in (100, 999, 1000, 10**6)]
    dropout = [default_vae(n)["dropout"] for n in (100, 999, 4999, 5000)]
    assert widths == [128, 128, 256, 256] and dropout == [0.1, 0.1, 0.1, 0.0]
    assert default_vae(3000, 50.0)["n_hidden"] == 128
    steps = [default_vae_train(n)["max_steps"] for n in (100, 3000, 30_000, 10**6, 10**7)]
    assert steps == sorted(steps) and steps[-1] == steps[-2]
    assert default_vae_train(3000, 50.0)["max_steps"] < default_vae_train(3000)["max_steps"]
    # deep counts, as those of bulk: longer, and without dropout, where there are enough of them
    assert default_vae_train(3000, 3000 * 200.0)["max_steps"] > default_vae_train(3000, 3000 * 2.0)["max_steps"]
    assert [default_vae(n, n * 200.0)["dropout"] for n in (100, 300, 3000)] == [0.1, 0.0, 0.0]
    assert [default_vae_train(n, n * 200.0)["max_steps"] for n in (100, 300)] == [800, 1600]
    VAE.setup_anndata(adata)
    n_train, per_feature = VAE(adata)._size()
    assert n_train == round(0.9 * adata.n_obs)
    assert per_feature == pytest.approx(adata.X.sum() * 0.9 / adata.n_vars, rel=0.1)


def test_axes_of_usage_are_those_of_the_changes_of_logits():
    """Two genes' isoforms follow one score; expression of genes, which varies too, is not usage."""
    rng = np.random.default_rng(0)
    gene_of = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    change = np.array([0.6, -0.6, 0.0, 0.5, -0.5, 0.0, 0.0, 0.0])
    base = np.log([0.4, 0.4, 0.2, 0.5, 0.5, 1.0, 0.5, 0.5])
    score = rng.standard_normal(600)
    weights = np.exp(base + score[:, None] * change)
    usage = weights / np.stack([weights[:, gene_of == g].sum(1) for g in gene_of], axis=1)
    genes = rng.gamma(2.0, 30.0, size=(600, 4))
    counts = sparse.csr_matrix(rng.poisson(genes[:, gene_of] * usage))
    axes = usage_loadings(counts, np.arange(600), gene_of, 2)
    assert axes.shape == (2, 8)
    np.testing.assert_array_equal(axes[:, 5], 0.0)
    np.testing.assert_allclose(axes[0] * np.sign(axes[0, 0]), change, atol=0.12)
    held_back = usage_loadings(counts, np.arange(600), gene_of, 2, shrinkage=1e6)
    assert np.abs(held_back).max() < 0.05 * np.abs(axes).max()
    dense = usage_loadings(counts.toarray(), np.arange(600), gene_of, 1)
    np.testing.assert_allclose(np.abs(dense[0]), np.abs(axes[0]), rtol=1e-6)
    assert usage_loadings(counts[:2], np.arange(2), np.arange(8), 3).shape == (0, 8)
