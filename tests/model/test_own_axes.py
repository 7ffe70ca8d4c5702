import numpy as np
import pytest

from isd.model import VAE


@pytest.mark.parametrize("gene_key", [None, "gene_id"])
def test_axes_of_a_label_that_the_reference_lacks_are_added_and_used_at_once(adata, gene_key):
    lacks = (adata.obs["leiden"] != "1").to_numpy() & (np.arange(adata.n_obs) < 200)
    atlas = adata[lacks].copy()
    VAE.setup_anndata(atlas, gene_key=gene_key)
    reference = VAE(atlas, n_hidden=16, n_latent=4, output_rank=6)
    reference.train(max_steps=150, gene_encoder=False)
    mine = adata[200:].copy()
    VAE.setup_anndata(mine, gene_key=gene_key)
    new = np.flatnonzero(mine.obs["leiden"] == "1")
    without = VAE.from_pretrained(reference, mine, own_axes=0, calibrate=False)
    vae = VAE.from_pretrained(reference, mine, calibrate=False)
    layer = vae.module.decoder.mean
    # as many as fit below the width of the hidden layer, and none along the reference's
    assert len(layer.loadings) == 15 and len(without.module.decoder.mean.loadings) == 6
    theirs, own = layer.loadings[:6].detach(), layer.loadings[6:].detach()
    used = own.norm(dim=1) > 0.1
    assert used.any()
    assert float((own[used] @ theirs.T).abs().max()) < 1e-3 * float(own.norm() * theirs.norm())
    assert float(vae.get_elbo(indices=new)) > float(without.get_elbo(indices=new)) + 1
