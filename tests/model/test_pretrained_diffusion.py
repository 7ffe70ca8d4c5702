import numpy as np
import pytest
import torch

from isd.model import VAE, LatentDiffusion
from isd.model._pretrained_diffusion import why_other_latents

SMALL = {"n_hidden": 16, "n_latent": 4, "output_rank": 6}


@pytest.fixture(scope="module")
def reference(_simulated):
    atlas = _simulated[:200].copy()
    VAE.setup_anndata(atlas)
    vae = VAE(atlas, **SMALL)
    vae.train(max_steps=60)
    LatentDiffusion.setup_anndata(atlas)
    model = LatentDiffusion(atlas, vae=vae, n_hidden=16)
    model.train(max_steps=20)
    return model


@pytest.fixture
def mine(adata):
    part = adata[200:, 20:].copy()
    VAE.setup_anndata(part)
    LatentDiffusion.setup_anndata(part)
    return part


def test_weights_move_where_hidden_layers_were_kept(reference, mine, tmp_path):
    vae = VAE.from_pretrained(reference, mine, freeze="trunk")
    vae.train(max_steps=5)
    assert why_other_latents(vae, reference.vae) is None
    model = LatentDiffusion.from_pretrained(reference, mine, vae=vae)
    theirs = reference.module.state_dict()
    for name, value in model.module.state_dict().items():
        if "embeddings" not in name:
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
    assert model._train_rule(100)["lr"] == 3e-4
    model.train(max_steps=5)
    # cells of either data set lie in the range, and the scale is the reference's
    scaler, old = model.module.scaler, reference.module.scaler
    torch.testing.assert_close(scaler.mean[:4], old.mean[:4], rtol=0, atol=0)
    assert (scaler.low[:4] <= old.low[:4]).all() and (scaler.high[:4] >= old.high[:4]).all()
    # depth is that of the cells at hand
    library = vae._log_library()[model.train_indices]
    np.testing.assert_allclose(scaler.quantiles[[15, 48]], np.quantile(library, [15.5 / 64, 48.5 / 64]), atol=0.02)
    mean, std = vae.encode_distribution(mine)
    assert (np.asarray(scaler.low)[:4] <= (mean - std).min(0)).all()
    model.save(tmp_path / "model")
    again = LatentDiffusion.load(tmp_path / "model", mine)
    assert again.fingerprint == model.fingerprint and again.pretrained_ == model.pretrained_


def test_the_references_own_vae_will_do_where_features_are_the_same(reference, adata):
    others = adata[200:].copy()
    LatentDiffusion.setup_anndata(others)
    model = LatentDiffusion.from_pretrained(reference, others)
    assert model.vae is reference.vae
    before = reference.fingerprint
    model.train(max_steps=3)
    assert model.is_trained and reference.fingerprint == before


def test_labels_start_from_those_of_the_same_name_and_new_ones_from_not_given(reference, mine):
    mine.obs["leiden"] = mine.obs["leiden"].map({"0": "2", "1": "new", "2": "0", "3": "2"}).astype("category")
    VAE.setup_anndata(mine)
    LatentDiffusion.setup_anndata(mine)
    vae = VAE.from_pretrained(reference, mine, freeze="trunk")
    model = LatentDiffusion.from_pretrained(reference, mine, vae=vae)
    ours, theirs = (m.module.network.conditions.embeddings[0].weight for m in (model, reference))
    known = list(reference.labels)
    expected = [theirs[known.index(v)] if v in known else theirs[-1] for v in model.labels]
    torch.testing.assert_close(ours, torch.stack([*expected, theirs[-1]]))


def test_it_refuses_with_the_reason(reference, mine, adata):
    apart = VAE(mine, **SMALL)
    apart.train(max_steps=3)
    with pytest.raises(ValueError, match=r'trained apart.*freeze="trunk"'):
        LatentDiffusion.from_pretrained(reference, mine, vae=apart)
    loose = VAE.from_pretrained(reference, mine, calibrate=False)
    assert why_other_latents(loose, reference.vae) is None
    loose.train(max_steps=3)
    with pytest.raises(ValueError, match="have moved away"):
        LatentDiffusion.from_pretrained(reference, mine, vae=loose)
    other = VAE.from_pretrained(apart, mine, freeze="trunk")
    with pytest.raises(ValueError, match="started from another model"):
        LatentDiffusion.from_pretrained(reference, mine, vae=other)
    with pytest.raises(ValueError, match="vae is not trained"):
        LatentDiffusion.from_pretrained(reference, mine, vae=VAE(mine, **SMALL))
    with pytest.raises(ValueError, match="reference is not trained"):
        LatentDiffusion.from_pretrained(LatentDiffusion(mine, vae=apart, n_hidden=16), mine, vae=apart)
    with pytest.raises(TypeError, match="got VAE"):
        LatentDiffusion.from_pretrained(apart, mine)
    with pytest.raises(ValueError, match="other features"):
        LatentDiffusion.from_pretrained(reference, mine)


def test_a_decoder_with_genes_keeps_its_latents_though_its_concentrations_are_fitted(adata):
    LatentDiffusion.setup_anndata(adata, gene_key="gene_id")
    VAE.setup_anndata(adata, gene_key="gene_id")
    reference_vae = VAE(adata, usage_likelihood="dirichlet-multinomial", seed=0)
    reference_vae.train(max_steps=3, gene_encoder=False)
    LatentDiffusion.setup_anndata(adata, gene_key="gene_id")
    reference = LatentDiffusion(adata, vae=reference_vae, n_hidden=8)
    reference.train(max_steps=3)
    mine = adata[:150].copy()
    VAE.setup_anndata(mine, gene_key="gene_id")
    vae = VAE.from_pretrained(reference, mine, freeze="trunk")
    name = "decoder.mean_log_concentration"
    assert vae.module.state_dict()[name] != reference.vae.module.state_dict()[name]
    assert why_other_latents(vae, reference.vae) is None
    LatentDiffusion.setup_anndata(mine, gene_key="gene_id")
    assert LatentDiffusion.from_pretrained(reference, mine, vae=vae).pretrained_ is not None
