"""Which likelihood isoforms of a gene have, told before training."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import isd.model._gene_expression as gene_expression
from isd.model import VAE
from isd.model._likely_usage import compare_usage, likely_usage

N_GENES, PER_GENE = 30, 3
GENE_OF = np.repeat(np.arange(N_GENES), PER_GENE)


def cells(kind: str, n: int = 240, seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts of two labels: isoforms that share their gene's spread, or that are negative binomial each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    usage = rng.dirichlet(np.ones(PER_GENE), size=(2, N_GENES))[labels]
    mean = rng.lognormal(1.5, 0.7, size=(2, N_GENES))[labels]
    if kind == "nb":
        mu = (mean[..., None] * usage).reshape(n, -1)
        x = rng.poisson(rng.gamma(2.0, mu / 2.0))
    else:
        totals = rng.poisson(rng.gamma(1.0, mean))
        x = np.stack(
            [
                [rng.multinomial(t, rng.dirichlet(5 * u + 1e-9)) for t, u in zip(*cell, strict=True)]
                for cell in zip(totals, usage, strict=True)
            ]
        ).reshape(n, -1)
    return sparse.csr_matrix(x, dtype=np.float32), labels


@pytest.mark.parametrize("kind", ["nb", "dirichlet-multinomial"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_likelihood_that_cells_were_drawn_from_is_found(kind, seed):
    x, labels = cells(kind, seed=seed)
    assert likely_usage(x, np.arange(x.shape[0]), GENE_OF, labels=labels) == kind
    difference, total = compare_usage(x, np.arange(x.shape[0]), GENE_OF, labels=labels)
    # not by chance: beyond three standard errors
    sign = 1 if kind == "nb" else -1
    assert sign * difference.mean() > 3 * difference.std() / np.sqrt(len(difference))
    assert total > 0


def test_too_few_cells_tell_nothing():
    x, labels = cells("nb", n=7)
    assert likely_usage(x, np.arange(7), GENE_OF, labels=labels) == "dirichlet-multinomial"


def test_only_the_rows_that_are_given_are_read():
    x, labels = cells("nb")
    rows = np.arange(100)
    other = x.copy()
    other.data[other.indptr[100] :] = 1000
    first, second = (compare_usage(m, rows, GENE_OF, labels=labels[rows])[0] for m in (x, other))
    np.testing.assert_array_equal(first, second)


def made(kind: str) -> AnnData:
    x, labels = cells(kind)
    adata = AnnData(x)
    adata.var["gene_id"] = np.array([f"G{g}" for g in GENE_OF])
    adata.obs["leiden"] = np.array(["a", "b"])[labels]
    VAE.setup_anndata(adata, labels_key="leiden", gene_key="gene_id")
    return adata


SMALL = {"n_hidden": 8, "n_latent": 2}


@pytest.mark.parametrize("kind", ["nb", "dirichlet-multinomial"])
def test_a_vae_takes_it_and_keeps_it(kind, tmp_path):
    vae = VAE(made(kind), **SMALL)
    assert vae.module.usage_likelihood == vae.module_params["usage_likelihood"] == kind
    vae.train(max_steps=3, gene_encoder=False, progress=False)
    vae.save(tmp_path / "vae")
    assert VAE.load(tmp_path / "vae").module.usage_likelihood == kind


def test_what_the_user_says_counts_more():
    adata = made("nb")
    assert (
        VAE(adata, usage_likelihood="dirichlet-multinomial", **SMALL).module.usage_likelihood == "dirichlet-multinomial"
    )
    assert VAE(adata, concentration_rank=2, **SMALL).module.usage_likelihood == "dirichlet-multinomial"


def test_wide_data_have_no_gene_level_where_isoforms_are_by_themselves(monkeypatch):
    monkeypatch.setattr(gene_expression, "_WIDE", len(GENE_OF) - 1)
    adata = made("nb")
    flat = VAE(adata, **SMALL)
    assert not flat.module_params["gene_decoder"]
    flat.train(max_steps=2, gene_encoder=False, progress=False)
    assert flat.get_isoform_usage().shape == (2, len(GENE_OF))
    for asked in ({"gene_decoder": True}, {"usage_rank": 2}):
        assert VAE(adata, **asked, **SMALL).module.usage_likelihood == "nb"
    assert VAE(made("dirichlet-multinomial"), **SMALL).module_params["gene_decoder"]
