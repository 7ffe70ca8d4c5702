"""Dispersions and clumps that training starts from."""

import numpy as np
import pytest
import torch
from scipy import sparse

import isd
from isd.model import VAE
from isd.model._dispersions import likely_clump, moments


def inverse_dispersions(*args, **kwargs):
    return moments(*args, **kwargs).dispersions()


def test_dispersions_by_moments_are_those_that_counts_were_drawn_with():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1500)
    library = rng.gamma(8.0, 2000.0, 1500)
    share = rng.dirichlet(np.full(40, 3.0), 3)[labels]
    truth = np.where(np.arange(40) < 20, 1.0, 8.0)
    mean = library[:, None] * share
    counts = sparse.csr_matrix(rng.poisson(mean * rng.gamma(truth, 1 / truth, (1500, 40))).astype(np.float32))
    found = inverse_dispersions(counts, np.arange(1500), library, labels=labels)
    # with so many counts, little of what all features say together is left
    np.testing.assert_allclose(found, truth, rtol=0.3)
    few = inverse_dispersions(counts[:20], np.arange(20), library[:20] / 1000, labels=np.zeros(20, int))
    assert few.std() < found.std()
    # without labels, their differences are taken for dispersion
    assert np.mean(inverse_dispersions(counts, np.arange(1500), library) < found) > 0.8
    # one count more in a sum: features that were added up have dispersions of their own
    pairs = sparse.csr_matrix((np.ones(40), (np.arange(40), np.arange(40) // 2)))
    assert inverse_dispersions(counts, np.arange(1500), library, groups=pairs, labels=labels).shape == (20,)


def test_dispersions_of_poisson_counts_and_of_single_cells():
    rng = np.random.default_rng(1)
    counts = sparse.csr_matrix(rng.poisson(4.0, (400, 30)).astype(np.float32))
    library = np.full(400, 120.0)
    assert np.median(inverse_dispersions(counts, np.arange(400), library)) > 50
    # each cell a label of its own: as if there were none; two rows and zeros are no error
    rows = np.arange(2)
    alone = inverse_dispersions(counts, rows, library[:2], labels=np.arange(2))
    np.testing.assert_array_equal(alone, inverse_dispersions(counts, rows, library[:2]))
    assert np.isfinite(inverse_dispersions(sparse.csr_matrix((2, 30)), rows, library[:2])).all()


def clumped(r, n_obs=1000, n_vars=40):
    """Cells of one kind, of negative binomial numbers of geometric clumps; inverse dispersion 2."""
    rng = np.random.default_rng(0)
    mean = np.exp(rng.normal(0.0, 1.0, n_vars)) / (1 + r)
    number = rng.poisson(rng.gamma(2.0, mean / 2.0, size=(n_obs, n_vars)))
    counts = number + np.where(number > 0, rng.negative_binomial(np.maximum(number, 1), 1 / (1 + r)), 0)
    return sparse.csr_matrix(counts, dtype=np.float32)


@pytest.mark.parametrize("r", [0.1, 0.6, 1.5])
def test_clumps_are_told_from_dispersion(r):
    counts = clumped(r)
    found = moments(counts, np.arange(1000), np.full(1000, counts.sum() / 1000))
    clump = likely_clump(found)
    assert clump == pytest.approx(r, rel=0.4, abs=0.08)
    often = counts.mean(0).A1 > 2
    assert np.median(found.dispersions(clump)[often]) == pytest.approx(2.0, rel=0.3)
    assert (found.dispersions(clump) >= found.dispersions() - 1e-9).mean() > 0.9


def test_training_starts_from_them(monkeypatch, adata):
    adata.X = sparse.csr_matrix(clumped(0.5, adata.n_obs, adata.n_vars))
    isd.pp.split(adata)
    VAE.setup_anndata(adata)
    seen = {}
    monkeypatch.setattr("isd.model._vae.fit", lambda model, *_, **__: seen.update(model.module.state_dict()))
    VAE(adata, n_hidden=16, n_latent=4).train(max_steps=1)
    rows = np.flatnonzero(adata.obs["isd_split"] == "train")
    library = np.asarray(adata.X.sum(1)).ravel()[rows]
    found = moments(adata.X, rows, library, labels=adata.obs["leiden"].cat.codes.to_numpy()[rows])
    clump = likely_clump(found)
    assert clump > 0.2
    torch.testing.assert_close(seen["log_clump"], torch.full_like(seen["log_clump"], float(np.log(clump))))
    expected = torch.as_tensor(np.log(found.dispersions(clump)), dtype=torch.float32)
    torch.testing.assert_close(seen["log_theta"], expected)


def test_one_cell_and_cells_without_counts_start_somewhere():
    for counts, rows in (
        (sparse.csr_matrix((2, 30)), np.arange(2)),
        (sparse.csr_matrix(np.ones((1, 5))), np.arange(1)),
    ):
        found = moments(counts, rows, np.ones(len(rows)))
        assert 0 < likely_clump(found) < 2.1
        assert np.isfinite(found.dispersions(0.5)).all()
