"""A VAE that knows genes: what it is told, what it keeps, what it says about genes and usage."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import isd
from isd.metrics import isoform_usage
from isd.model import VAE, Classifier, LatentDiffusion
from isd.module import GeneVAEModule


def set_up(adata, model=VAE, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.setup_anndata(adata, gene_key="gene_id", **kwargs)


@pytest.fixture(scope="module")
def models(_simulated):
    """One with genes in the decoder, one that only knows them."""
    made = {}
    for name, options in {"genes": {}, "flat": {"gene_decoder": False}}.items():
        adata = _simulated.copy()
        set_up(adata)
        # simulated isoforms are negative binomial by themselves; what is tested here are concentrations
        usage = {} if options else {"usage_likelihood": "dirichlet-multinomial"}
        made[name] = VAE(adata, n_hidden=32, n_latent=8, seed=0, **options, **usage)
        made[name].train(max_steps=150, seed=0)
    return made


@pytest.fixture(params=["genes", "flat"])
def vae(request, models):
    return models[request.param]


def test_an_absent_column_is_an_error_that_names_those_there(adata):
    with pytest.raises(KeyError, match=r"'gene' is not in adata.var, which has \['gene_id'.*annotate_genes"):
        VAE.setup_anndata(adata, gene_key="gene")
    assert "_scvi_uuid" not in adata.uns


def test_transcripts_without_a_gene_are_genes_of_their_own(adata):
    ids = adata.var["gene_id"].astype(object)
    ids.iloc[[3, 10]] = np.nan
    ids.iloc[7] = ""
    adata.var["gene_id"] = ids
    adata.var_names = [ids.iloc[0] if i == 3 else name for i, name in enumerate(adata.var_names)]  # named like a gene
    before = adata.var.copy()
    with pytest.warns(UserWarning, match="3 of 200 transcripts have no gene"):
        VAE.setup_anndata(adata, gene_key="gene_id")
    pd.testing.assert_frame_equal(adata.var, before)
    model = VAE(adata, n_hidden=8, n_latent=2)
    gene_of, names = model.gene_of, model.gene_names
    assert (np.bincount(gene_of)[gene_of[[3, 7, 10]]] == 1).all()
    assert names[gene_of[[3, 7, 10]]].tolist() == adata.var_names[[3, 7, 10]].tolist()
    known = ids.notna() & (ids != "")
    assert names[gene_of[known]].tolist() == ids[known].tolist()
    assert (np.diff((np.bincount(gene_of) > 1).astype(int)) <= 0).all()  # those with several first


def test_a_decoder_has_genes_where_they_are_known_and_the_likelihood_allows(adata):
    VAE.setup_anndata(adata)
    plain = VAE(adata, n_hidden=8)
    assert plain.gene_of is None and plain.gene_names is None and plain.gene_key is None
    assert not isinstance(plain.module, GeneVAEModule)
    with pytest.raises(ValueError, match="gene_key="):
        VAE(adata, gene_decoder=True)
    with pytest.raises(ValueError, match="usage_rank needs a decoder with genes"):
        VAE(adata, usage_rank=3)
    set_up(adata)
    assert isinstance(VAE(adata, n_hidden=8).module, GeneVAEModule)
    assert isinstance(VAE(adata, n_hidden=8, likelihood="poisson").module, GeneVAEModule)
    for options in ({"gene_decoder": False}, {"likelihood": "normal"}, {"likelihood": "zinb"}, {"preset": "published"}):
        assert not isinstance(VAE(adata, n_hidden=8, **options).module, GeneVAEModule)
    with pytest.raises(ValueError, match="'nb' or 'poisson', got 'zinb'"):
        VAE(adata, gene_decoder=True, likelihood="zinb")
    adata.var["alone"] = adata.var_names
    VAE.setup_anndata(adata, gene_key="alone")
    assert not isinstance(VAE(adata, n_hidden=8).module, GeneVAEModule)
    with pytest.raises(ValueError, match="every gene of var\\['alone'\\] has one transcript"):
        VAE(adata, gene_decoder=True)


def test_training_lowers_the_loss_and_learns_usage_and_concentration(models, adata):
    model = models["genes"]
    start = VAE(model.adata, n_hidden=32, n_latent=8, seed=0, usage_likelihood="dirichlet-multinomial")
    start.train(max_steps=1, seed=0)
    rows = model.validation_indices
    assert float(model.get_elbo(indices=rows)) > float(start.get_elbo(indices=rows)) + 20
    decoder = model.module.decoder
    assert float(decoder.mean_log_concentration.detach()) != pytest.approx(np.log(50), abs=0.05)
    assert decoder.usage.scores.weight.abs().max() > 0
    # labels differ in usage, as their counts do
    seen = isoform_usage(adata.X, adata.var["gene_id"], adata.obs["leiden"], min_counts=200.0)
    found = model.get_isoform_usage(return_numpy=True)
    pooled = isoform_usage(adata.X, adata.var["gene_id"], min_counts=200.0).usage
    known = ~np.isnan(seen.usage)
    assert np.abs(found - seen.usage)[known].mean() < 0.8 * np.abs(pooled - seen.usage)[known].mean()


def test_gene_expression_is_the_sum_of_isoforms(vae):
    rows = [5, 0, 17]
    isoforms = vae.get_normalized_expression(indices=rows, library_size="latent")
    genes = vae.get_gene_expression(indices=rows, library_size="latent")
    assert genes.index.tolist() == isoforms.index.tolist()
    want = isoforms.T.groupby(vae.gene_names[vae.gene_of].to_numpy()).sum().T[genes.columns]
    np.testing.assert_allclose(genes, want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(vae.get_gene_expression(indices=rows).sum(1), 1.0, rtol=1e-5)
    some = list(genes.columns[[4, 1]])
    part = vae.get_gene_expression(indices=rows, genes=some, library_size="latent")
    pd.testing.assert_frame_equal(part, genes[some])
    assert isinstance(vae.get_gene_expression(indices=rows, return_numpy=True), np.ndarray)


def test_usage_is_the_share_of_isoforms_in_their_gene(vae):
    rows = [5, 0, 17]
    isoforms = vae.get_normalized_expression(indices=rows, return_numpy=True)
    usage = vae.get_isoform_usage(indices=rows, labels=None)
    assert usage.columns.tolist() == vae.feature_names.tolist()
    assert usage.index.tolist() == vae.adata.obs_names[rows].tolist()
    one = np.zeros((200, len(vae.gene_names)))
    one[np.arange(200), vae.gene_of] = 1
    want = isoforms / (isoforms @ one)[:, vae.gene_of]
    np.testing.assert_allclose(usage, want, rtol=1e-3, atol=1e-5)
    gene = vae.gene_names[[2, 0]]
    part = vae.get_isoform_usage(indices=rows, labels=None, genes=gene)
    columns = np.concatenate([np.flatnonzero(vae.gene_of == 2), np.flatnonzero(vae.gene_of == 0)])
    np.testing.assert_allclose(part, want[:, columns], rtol=1e-3, atol=1e-5)


def test_usage_of_a_label_is_that_of_its_cells_added_up(vae):
    usage = vae.get_isoform_usage()
    assert usage.index.tolist() == vae.labels.tolist() and usage.index.name == "leiden"
    isoforms = vae.get_normalized_expression(library_size="latent")
    pooled = isoforms.groupby(vae.adata.obs["leiden"].to_numpy()).sum()
    genes = vae.gene_names[vae.gene_of].to_numpy()
    totals = pooled.T.groupby(genes).transform("sum").T
    np.testing.assert_allclose(usage, (pooled / totals).loc[usage.index], rtol=1e-3, atol=1e-5)
    two = vae.get_isoform_usage(labels=["2", "0"], genes=[vae.gene_names[3]])
    np.testing.assert_allclose(two, usage.loc[["2", "0"], two.columns], rtol=1e-5)
    single = vae.gene_names[-1]
    assert (vae.get_isoform_usage(genes=[single]) == 1).all(axis=None)


def test_draws_of_usage_follow_the_seed_and_not_the_batch(vae):
    options = {"indices": np.arange(20), "labels": None, "genes": [vae.gene_names[0]], "n_samples": 3}
    draws = vae.get_isoform_usage(**options, return_mean=False, seed=1)
    assert draws.shape == (3, 20, (vae.gene_of == 0).sum())
    assert np.abs(draws[0] - draws[1]).max() > 0
    again = vae.get_isoform_usage(**options, return_mean=False, seed=1, batch_size=7)
    np.testing.assert_allclose(again, draws, atol=1e-5)
    mean = vae.get_isoform_usage(**options, seed=1)
    np.testing.assert_allclose(mean, draws.mean(0), atol=1e-5)
    assert np.abs(vae.get_isoform_usage(**options, return_mean=False, seed=2) - draws).max() > 0
    np.testing.assert_allclose(
        vae.get_isoform_usage(labels=["1"], n_samples=2).sum(axis=1), len(vae.gene_names), rtol=1e-4
    )


def test_what_cannot_be_is_refused(vae, adata):
    with pytest.raises(ValueError, match=r"1 genes are not the model's \(nope\)"):
        vae.get_gene_expression(genes=["nope", vae.gene_names[0]])
    with pytest.raises(TypeError, match="list of names"):
        vae.get_isoform_usage(genes="GENE1")
    with pytest.raises(ValueError, match="labels \\['9'\\]"):
        vae.get_isoform_usage(labels=["9"])
    with pytest.raises(ValueError, match="labels must be 'all'"):
        vae.get_isoform_usage(labels="0")
    with pytest.raises(ValueError, match="have no cells"):
        vae.get_isoform_usage(labels=["0", "1"], indices=np.flatnonzero(vae.adata.obs["leiden"] == "0"))
    with pytest.raises(ValueError, match="n_samples"):
        vae.get_gene_expression(n_samples=0)
    VAE.setup_anndata(adata)
    plain = VAE(adata, n_hidden=8, n_latent=2)
    with pytest.raises(RuntimeError, match="not trained"):
        plain.get_isoform_usage()
    plain.train(max_steps=1)
    with pytest.raises(ValueError, match="knows no genes"):
        plain.get_isoform_usage()


def test_genes_travel_with_the_model(vae, tmp_path, adata):
    vae.save(tmp_path / "model")
    without = VAE.load(tmp_path / "model", adata=False)
    assert without.fingerprint == vae.fingerprint and type(without.module) is type(vae.module)
    assert without.gene_names.tolist() == vae.gene_names.tolist()
    np.testing.assert_array_equal(without.gene_of, vae.gene_of)
    latents = np.random.default_rng(0).standard_normal((5, 8))
    counts = [model.decode(latents, library_size=300, seed=1).toarray() for model in (vae, without)]
    np.testing.assert_array_equal(*counts)
    # other data need not know genes: they are the model's
    usage = vae.get_isoform_usage()
    del adata.var["gene_id"]
    attached = VAE.load(tmp_path / "model", adata)
    pd.testing.assert_frame_equal(attached.get_isoform_usage(), usage)
    pd.testing.assert_frame_equal(without.get_isoform_usage(adata), usage)
    attached.save(tmp_path / "again")
    assert VAE.load(tmp_path / "again", adata=False).gene_names.tolist() == vae.gene_names.tolist()


def test_another_map_of_genes_is_another_model(adata):
    prints = []
    for flip in (False, True):
        data = adata.copy()
        if flip:
            ids = data.var["gene_id"].to_numpy().copy()
            counts = pd.Series(ids).value_counts()
            a, b = counts[counts > 1].index[:2]
            one, two = np.flatnonzero(ids == a)[0], np.flatnonzero(ids == b)[0]
            ids[one], ids[two] = b, a
            data.var["gene_id"] = ids
        set_up(data)
        model = VAE(data, n_hidden=8, n_latent=2, seed=0)
        model.train(max_steps=1, lr=0.0, dispersion_lr=0.0)
        prints.append(model.fingerprint)
    assert prints[0] != prints[1]


def test_backed_data_train_the_same_model(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    found = []
    for data in (adata, backed):
        set_up(data)
        model = VAE(data, n_hidden=8, n_latent=2, seed=0)
        model.train(max_steps=2, seed=0)
        found.append(model)
    start = [m.module.decoder.log_pooled.numpy() for m in found]
    np.testing.assert_allclose(*start, rtol=1e-6)
    np.testing.assert_allclose(
        found[0].get_isoform_usage(return_numpy=True), found[1].get_isoform_usage(backed, return_numpy=True), atol=0.02
    )


def test_a_diffusion_model_generates_through_genes(adata, tmp_path):
    isd.pp.split(adata)
    set_up(adata, LatentDiffusion)
    model = LatentDiffusion(adata, n_hidden=16)
    assert isinstance(model.vae.module, GeneVAEModule)
    model.train(max_steps=5, vae_kwargs={"max_steps": 20})
    fake = isd.tl.generate(model, n_obs=300, library_size=500, seed=0)
    np.testing.assert_array_equal(np.asarray(fake.X.sum(1)).ravel(), 500)
    parts = [isd.tl.generate(model, n_obs=300, library_size=500, seed=0, part=(k, 2)) for k in (1, 2)]
    both = anndata.concat(parts)
    assert (both.X != fake.X).nnz == 0
    on_disk = isd.tl.generate(model, n_obs=300, library_size=500, seed=0, backed=tmp_path / "fake.h5ad")
    assert (on_disk.to_memory().X != fake.X).nnz == 0
    assert "gene_id" in fake.var
    model.save(tmp_path / "model")
    again = LatentDiffusion.load(tmp_path / "model")
    assert (isd.tl.generate(again, n_obs=300, library_size=500, seed=0).X != fake.X).nnz == 0
    set_up(adata, Classifier)
    Classifier(adata, model)  # its data may know genes too


def test_cells_scatter_in_usage_as_concentrations_say(models):
    """Usage drawn for one latent: near its mean with a large concentration, all or nothing with a small one."""
    model = models["genes"]
    decoder = model.module.decoder
    kept = decoder.log_concentration.data.clone()
    latents = np.zeros((150, 8))
    spreads = []
    try:
        for value in (8.0, -5.0):
            decoder.log_concentration.data.fill_(value)
            x = model.decode(latents, library_size=20_000, seed=0).toarray()
            shares = []
            for gene in range(5):
                of = x[:, model.gene_of == gene]
                of = of[of.sum(1) >= 10]
                shares.append((of / of.sum(1, keepdims=True)).max(1).mean())
            spreads.append(np.mean(shares))
    finally:
        decoder.log_concentration.data.copy_(kept)
    assert spreads[1] > 0.97 and spreads[0] < 0.85


def test_mixed_precision_trains_usage_too(adata):
    set_up(adata)
    model = VAE(adata, n_hidden=8, n_latent=2, concentration_rank=1)
    model.train(max_steps=3, precision="bf16-mixed")
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()
    assert model.module.decoder.usage.loadings.dtype == torch.float32
    assert np.isfinite(model.get_isoform_usage(return_numpy=True)).all()


def test_isoforms_that_are_negative_binomial_by_themselves_train_and_generate(adata):
    VAE.setup_anndata(adata, gene_key="gene_id")
    model = VAE(adata, n_hidden=16, n_latent=4, usage_likelihood="nb")
    model.train(max_steps=5, gene_encoder=False)
    assert model.module.log_theta.shape == model.module.log_clump.shape == (adata.n_vars,)
    assert np.isfinite(float(model.get_marginal_ll(n_mc_samples=2)))
    fake = model.sample_prior(4, seed=0)
    assert (fake.X.sum(1) > 0).all() and fake.n_vars == adata.n_vars
