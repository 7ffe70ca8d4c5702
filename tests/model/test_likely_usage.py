"""Which likelihood isoforms of a gene have, told before training."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse, stats

import isd.model._gene_expression as gene_expression
import isd.model._likely_usage as module
from isd.model import VAE, model_card
from isd.model._likely_usage import compare_usage, likely_usage

N_GENES, PER_GENE, FIRST = 30, 3, 15
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
    likelihood, together = likely_usage(x, np.arange(x.shape[0]), GENE_OF, labels=labels)
    assert likelihood == kind and (together == (kind != "nb")).all()
    found = compare_usage(x, np.arange(x.shape[0]), GENE_OF, labels=labels)
    # not by chance: beyond three standard errors
    sign = 1 if kind == "nb" else -1
    assert sign * found.by_cell.mean() > 3 * found.by_cell.std() / np.sqrt(len(found.by_cell))
    assert found.total > 0
    np.testing.assert_allclose(found.by_gene.sum(), found.by_cell.sum())


def half_and_half(seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The first genes' isoforms share their gene's spread, the others' do not."""
    apart, labels = cells("nb", seed=seed)
    together, _ = cells("dirichlet-multinomial", seed=seed)
    return sparse.csr_matrix(sparse.hstack([together[:, : PER_GENE * FIRST], apart[:, PER_GENE * FIRST :]])), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_genes_differ_where_the_likelihoods_are_alike(seed, monkeypatch):
    x, labels = half_and_half(seed)
    monkeypatch.setattr(module, "MARGIN", 0.1)  # whichever of the two halves weighs more
    likelihood, together = likely_usage(x, np.arange(x.shape[0]), GENE_OF, labels=labels)
    assert likelihood == "dirichlet-multinomial"
    assert together[:FIRST].mean() > 0.8 and together[FIRST:].mean() < 0.2


def test_the_comparison_is_that_of_single_counts():
    """Likelihoods that are summed over zeros and other counts apart are those of every count."""
    x, labels = cells("nb", n=40)
    found = compare_usage(x, np.arange(40), GENE_OF, labels=labels, clumps=False)
    order = np.random.default_rng([0, 3]).permutation(40)
    total = 0.0
    for before, here in ((np.sort(order[20:]), np.sort(order[:20])), (np.sort(order[:20]), np.sort(order[20:]))):
        library = np.asarray(x[before].sum(1)).ravel()
        shares = module._smoothed_shares(x[before].astype(float), labels[before], library.mean())
        theta = module.moments(x[before], np.arange(20), library, labels=labels[before]).dispersions(0.0)
        mean = shares[labels[here]] * np.asarray(x[here].sum(1))
        total -= stats.nbinom.logpmf(x[here].toarray(), theta, theta / (theta + mean)).sum()
    np.testing.assert_allclose(found.total, total, rtol=1e-6)


def test_too_few_cells_tell_nothing():
    x, labels = cells("nb", n=7)
    likelihood, together = likely_usage(x, np.arange(7), GENE_OF, labels=labels)
    assert likelihood == "dirichlet-multinomial" and together.all()


def test_only_the_rows_that_are_given_are_read():
    x, labels = cells("nb")
    rows = np.arange(100)
    other = x.copy()
    other.data[other.indptr[100] :] = 1000
    first, second = (compare_usage(m, rows, GENE_OF, labels=labels[rows]).by_cell for m in (x, other))
    np.testing.assert_array_equal(first, second)


def made(kind: str) -> AnnData:
    x, labels = half_and_half() if kind == "half" else cells(kind)
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


def test_a_vae_takes_genes_apart_that_have_nothing_in_common(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MARGIN", 0.1)
    adata = made("half")
    vae = VAE(adata, **SMALL)
    split = vae.split_genes
    assert split and vae.module_params["split_genes"] == split and vae.module.usage_likelihood != "nb"
    assert vae.module.n_genes == N_GENES + len(split) * (PER_GENE - 1)
    assert {f"G{g}" for g in range(FIRST, N_GENES)} & set(split)
    vae.train(max_steps=5, progress=False)
    vae.save(tmp_path / "vae")
    monkeypatch.setattr(module, "MARGIN", 0.0)  # the choice is kept and not made again
    again = VAE.load(tmp_path / "vae", adata)
    assert again.split_genes == split and again.fingerprint == vae.fingerprint
    # genes are those of the data, whatever the decoder's outputs are
    expression = vae.get_gene_expression()
    assert expression.columns.tolist() == list(vae.gene_names) and len(expression.columns) == N_GENES
    isoforms = vae.get_normalized_expression(return_numpy=True)
    np.testing.assert_allclose(
        expression[split[0]], isoforms[:, np.asarray(adata.var["gene_id"] == split[0])].sum(1), rtol=1e-4
    )
    usage = vae.get_isoform_usage(labels=None, genes=[split[0]])
    np.testing.assert_allclose(usage.sum(axis=1), 1.0, atol=1e-5)
    fake = vae.sample_prior(4, seed=0)
    assert fake.shape == (4, len(GENE_OF))
    assert f"split_genes={len(split)} names" in model_card(vae)


def test_a_model_of_other_cells_takes_genes_apart_alike():
    adata = made("dirichlet-multinomial")
    vae = VAE(adata, split_genes=["G3", "G7"], **SMALL)
    assert vae.split_genes == ["G3", "G7"]
    vae.train(max_steps=5, gene_encoder=False, progress=False)
    kept = np.flatnonzero(
        ~np.isin(np.arange(len(GENE_OF)), [9, 12])
    )  # an isoform of G3, one of a gene that stays whole
    other = adata[:100, kept].copy()
    VAE.setup_anndata(other, labels_key="leiden", gene_key="gene_id")
    copy = VAE.from_pretrained(vae, other, calibrate=False)
    assert copy.split_genes == ["G3", "G7"] and copy.module.n_genes == vae.module.n_genes - 1
    ours, theirs = (dict(zip(m._decoder_units(m.split_genes)[1], m.module.log_theta, strict=True)) for m in (copy, vae))
    assert {"10", "11", "21", "22", "23", "G4"} <= set(ours) and not {"9", "G3", "G7"} & set(ours)
    assert all(ours[name] == theirs[name] for name in ours)
    whole = VAE.from_pretrained(copy, made("dirichlet-multinomial"), calibrate=False)
    names = whole._decoder_units(whole.split_genes)[1]
    report = whole.transfer_report_.set_index("feature")["source"]
    assert report["9"] == "from gene" and whole.module.n_genes == vae.module.n_genes
    bias = dict(zip(names, whole.module.decoder.mean.bias.detach().numpy(), strict=True))
    # it starts between the two isoforms of its gene
    assert min(bias["10"], bias["11"]) <= bias["9"] <= max(bias["10"], bias["11"])


def test_genes_that_are_split_must_leave_some():
    adata = made("nb")
    with pytest.raises(ValueError, match="split_genes names all genes"):
        VAE(adata, split_genes=[f"G{g}" for g in range(N_GENES)], **SMALL)
    with pytest.raises(ValueError, match="split_genes needs a decoder with genes"):
        VAE(adata, gene_decoder=False, split_genes=["G1"], **SMALL)


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
