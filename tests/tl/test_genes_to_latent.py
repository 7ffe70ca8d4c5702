"""Isoforms through the latent of a diffusion model: exact sums, draws that differ, and a latent near the real one."""

import numpy as np
import pytest

import isd
from isd.tl._genes_to_latent import GenesToLatent


@pytest.fixture
def model(trained):
    if trained.vae.gene_encoder is None:
        trained.vae.fit_gene_encoder(max_steps=20)
    return trained


@pytest.fixture
def genes(model):
    held_out = model.adata[model.adata.obs["isd_split"] == "test"][:40].copy()
    return isd.pp.to_mudata(held_out)["gene"]


def test_isoforms_add_up_and_draws_differ(model, genes):
    cells = isd.tl.infer_isoforms(model, genes, 2, method="diffusion", seed=1)
    sums = isd.pp.to_mudata(cells)["gene"].X.toarray()
    np.testing.assert_array_equal(sums, np.vstack([genes.X.toarray()] * 2))
    chunked = isd.tl.infer_isoforms(model, genes, 2, method="diffusion", seed=1, batch_size=9)
    np.testing.assert_allclose(chunked.X.toarray(), cells.X.toarray(), atol=1)
    assert cells.uns["isd"]["method"] == "diffusion"


def test_its_spread_has_that_of_the_latent_besides(model, genes):
    mean = isd.tl.infer_isoforms(model, genes, output="mean", std=True, method="diffusion")
    usage = isd.tl.infer_isoforms(model, genes, output="usage", method="diffusion")
    np.testing.assert_allclose(isd.pp.to_mudata(mean)["gene"].X.toarray(), genes.X.toarray(), rtol=1e-4)
    np.testing.assert_allclose(isd.pp.to_mudata(usage)["gene"].X.toarray(), genes.X.toarray() > 0, atol=1e-4)
    # a gene's Dirichlet-multinomial at the mean usage scatters less than one whose usage differs from draw to draw
    encoder = model.vae.gene_encoder
    kappa = encoder.predictor.log_concentration.detach().exp().numpy()[encoder.genes.gene_of]
    n = genes.X.toarray()[:, encoder.genes.gene_of]
    p = usage.X.toarray()
    least = np.sqrt(n * (n + kappa) / (1 + kappa) * p * (1 - p))
    std = mean.layers["std"].toarray()
    assert (std >= least - 1e-3).all()
    assert std.sum() > 1.01 * least.sum()


def test_latents_told_by_genes_are_near_those_of_the_isoforms(model, genes):
    encoder = model.vae.gene_encoder
    through = GenesToLatent(model, encoder, 0)
    assert 0.02 < through.noise < 1.5
    library = np.asarray(genes.X.sum(1)).ravel()
    drawn = through.draw(encoder.scores(genes.X), None, library, 0).latents
    rows = model.adata.obs_names.get_indexer(genes.obs_names)
    real = model.vae.encode_distribution(indices=rows)[0]
    apart = lambda a, b: np.linalg.norm(a - b, axis=1).mean()
    assert apart(drawn, real) < 0.8 * apart(drawn, real[::-1])


def test_it_needs_a_diffusion_model_and_data(model, genes, tmp_path):
    with pytest.raises(TypeError, match=r"isd\.model\.LatentDiffusion"):
        isd.tl.infer_isoforms(model.vae, genes, method="diffusion")
    with pytest.raises(ValueError, match="method is 'other'"):
        isd.tl.infer_isoforms(model, genes, method="other")
    model.save(tmp_path / "model")
    alone = isd.model.LatentDiffusion.load(tmp_path / "model")
    with pytest.raises(ValueError, match="needs the data that the VAE was trained on"):
        isd.tl.infer_isoforms(alone, genes, method="diffusion")
    assert isd.tl.infer_isoforms(alone, genes).shape == (40, 200)
