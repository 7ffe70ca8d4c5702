"""Weights in SCimilarity's published layout: the same embedding as the plain network, and a model that goes on from it."""

from __future__ import annotations

import logging
import os

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional as F

import isd
from isd.model import VAE, LatentDiffusion
from isd.model._scimilarity import match_symbols

HIDDEN, LATENT = 16, 6


def block(n_input, dropout):
    first = [nn.Dropout(0.5)] if dropout else []
    return nn.Sequential(*first, nn.Linear(n_input, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.PReLU())


def plain_networks(n_genes, seed=0):
    """The published networks as plain torch, with random weights and batch statistics."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(block(n_genes, True), block(HIDDEN, True), block(HIDDEN, True), nn.Linear(HIDDEN, LATENT))
    decoder = nn.Sequential(block(LATENT, False), block(HIDDEN, True), block(HIDDEN, True), nn.Linear(HIDDEN, n_genes))
    for network in (encoder, decoder):
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm1d):
                nn.init.normal_(layer.running_mean, 0.0, 0.3)
                nn.init.uniform_(layer.running_var, 0.3, 2.0)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias)
            if isinstance(layer, nn.PReLU):
                nn.init.uniform_(layer.weight, 0.05, 0.4)
    return encoder.eval(), decoder.eval()


def write_folder(path, encoder, decoder, symbols):
    path.mkdir()
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        state = {f"network.{key}": value for key, value in network.state_dict().items()}
        torch.save({"state_dict": state}, path / f"{name}.ckpt")
    (path / "gene_order.tsv").write_text("".join(f"{s}\n" for s in symbols))
    return path


@pytest.fixture(scope="module")
def published(_simulated, tmp_path_factory):
    """Networks over all genes of the data, in another order, and two genes that the data lack."""
    symbols = list(np.random.default_rng(0).permutation([*_simulated.var["gene_name"].unique(), "ABSENT1", "ABSENT2"]))
    encoder, decoder = plain_networks(len(symbols))
    path = write_folder(tmp_path_factory.mktemp("scimilarity") / "annotation_model_v1", encoder, decoder, symbols)
    return path, encoder, decoder, symbols


@pytest.fixture
def vae(adata, published):
    VAE.setup_anndata(adata)
    return VAE.from_scimilarity(published[0], adata, min_genes=20)


def oracle(encoder, symbols, adata):
    """What the plain network gives for counts summed by symbol, scaled to 10,000 over the published genes, log1p."""
    names = adata.var["gene_name"].astype(object).to_numpy()
    sums = pd.DataFrame(adata.X.toarray().T).groupby(names).sum().T.reindex(columns=symbols, fill_value=0.0)
    values = sums.to_numpy()
    with torch.no_grad():
        scaled = values / values.sum(1, keepdims=True) * 1e4
        return encoder(torch.tensor(np.log1p(scaled), dtype=torch.float32)).numpy()


@pytest.mark.parametrize("encoder_rows", ["isoform", "gene"])
def test_the_embedding_is_that_of_the_published_encoder(adata, published, encoder_rows):
    path, encoder, _, symbols = published
    VAE.setup_anndata(adata)
    before = adata.X.copy()
    vae = VAE.from_scimilarity(path, adata, min_genes=20, encoder_rows=encoder_rows)
    expected = oracle(encoder, symbols, adata)
    assert expected.std() > 0.05  # cells differ
    np.testing.assert_allclose(vae.get_latent_representation(), expected, atol=1e-5)
    # on its own scale a row of ones would not do: isoforms of a gene must not be equal parts of it
    assert (np.bincount(match_symbols(adata.var["gene_name"], symbols)[0]) > 1).any()
    assert abs(adata.X - before).nnz == 0
    unit = VAE.from_scimilarity(path, adata, min_genes=20, encoder_rows=encoder_rows, l2_normalize=True)
    np.testing.assert_allclose(
        unit.get_latent_representation(), F.normalize(torch.tensor(expected), dim=1).numpy(), atol=1e-5
    )


def test_counts_stored_dense_give_the_same_and_so_do_other_data(adata, published, vae):
    expected = vae.get_latent_representation()
    other = adata[::3].copy()
    np.testing.assert_allclose(vae.get_latent_representation(other), expected[::3], atol=1e-5)
    dense = adata.copy()
    dense.X = dense.X.toarray()
    VAE.setup_anndata(dense)
    again = VAE.from_scimilarity(published[0], dense, min_genes=20)
    np.testing.assert_allclose(again.get_latent_representation(), expected, atol=1e-5)
    vae.module.sparse_input = False  # as on a GPU
    np.testing.assert_allclose(vae.get_latent_representation(), expected, atol=1e-5)


def test_isoforms_without_a_published_gene_count_in_nothing(adata, published):
    path, encoder, _, symbols = published
    names = adata.var["gene_name"].astype(object).to_numpy()
    names[:15], names[15], names[16] = "NOT_PUBLISHED", np.nan, ""
    adata.var["gene_name"] = names
    VAE.setup_anndata(adata)
    expected = oracle(encoder, symbols, adata)
    for encoder_rows in ("isoform", "gene"):
        vae = VAE.from_scimilarity(path, adata, min_genes=20, encoder_rows=encoder_rows)
        np.testing.assert_allclose(vae.get_latent_representation(), expected, atol=1e-5)
        assert vae.scimilarity_coverage["n_features_matched"] == adata.n_vars - 17
        share = adata.X[:, 17:].sum() / adata.X.sum()
        assert vae.scimilarity_coverage["share_of_counts"] == pytest.approx(share, abs=0.03)


def test_covariates_start_without_influence(adata, published):
    adata.obs["batch"] = np.resize(["a", "b"], adata.n_obs)
    VAE.setup_anndata(adata, batch_key="batch")
    vae = VAE.from_scimilarity(published[0], adata, min_genes=20)
    np.testing.assert_allclose(vae.get_latent_representation(), oracle(published[1], published[3], adata), atol=1e-5)


def test_the_decoder_starts_from_published_rows_at_pooled_shares(adata, published, vae):
    _, _, decoder, symbols = published
    latents = torch.randn(5, LATENT)
    with torch.no_grad():
        hidden = decoder[:3](F.normalize(latents, dim=1))
        logits = vae.module.decoder(F.normalize(latents, dim=1), torch.zeros(5, 0))["mean"]
        body = vae.module.decoder.body(F.normalize(latents, dim=1))
    torch.testing.assert_close(body, hidden, atol=1e-5, rtol=1e-5)
    # differences between cells are those of the gene
    place = [symbols.index(name) for name in adata.var["gene_name"]]
    with torch.no_grad():
        outputs = decoder[3](hidden)[:, place]
    torch.testing.assert_close(logits - logits.mean(0), outputs - outputs.mean(0), atol=1e-5, rtol=1e-4)
    # what the model expects of its training cells, all together, is near their pooled counts
    train = vae.train_indices
    expected = vae.get_normalized_expression(indices=train, library_size="latent", return_numpy=True).sum(0)
    pooled = np.asarray(adata.X[train].sum(0)).ravel()
    often = pooled > 200
    assert np.corrcoef(np.log(expected[often]), np.log(pooled[often]))[0, 1] > 0.95


def test_training_goes_on_and_tells_isoforms_apart(adata, vae):
    latents = vae.get_latent_representation()
    group = vae.module.group_of
    twins = np.flatnonzero(np.bincount(group) > 1)
    pair = torch.nonzero(group == twins[0]).ravel()[:2]
    rows = vae.module.encoder.body[0][0].weight
    torch.testing.assert_close(rows[pair[0]], rows[pair[1]])
    before = float(vae.get_reconstruction_error(indices=vae.train_indices)["reconstruction_loss"])
    vae.train(max_steps=40, lr=1e-2)
    after = float(vae.get_reconstruction_error(indices=vae.train_indices)["reconstruction_loss"])
    assert after < before - 5
    assert not torch.allclose(rows[pair[0]], rows[pair[1]], atol=1e-5)
    assert not np.allclose(vae.get_latent_representation(), latents, atol=1e-3)
    assert vae.posterior_predictive_sample(adata, np.arange(4)).shape == (4, adata.n_vars)


@pytest.mark.parametrize("encoder_rows", ["isoform", "gene"])
def test_it_comes_back_from_its_folder_and_carries_a_diffusion_model(adata, published, encoder_rows, tmp_path):
    VAE.setup_anndata(adata)
    vae = VAE.from_scimilarity(published[0], adata, min_genes=20, encoder_rows=encoder_rows)
    vae.train(max_steps=5)
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, vae=vae)
    model.train(max_steps=5)
    model.save(tmp_path / "model")
    again = LatentDiffusion.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(again.vae.get_latent_representation(adata), vae.get_latent_representation())
    assert again.vae.scimilarity_coverage == vae.scimilarity_coverage
    fake = isd.tl.generate(again, n_obs=12, seed=1)
    np.testing.assert_array_equal(fake.X.toarray(), isd.tl.generate(model, n_obs=12, seed=1).X.toarray())
    assert fake.X.sum() > 0 and set(fake.obs["leiden"].dropna()) <= set(adata.obs["leiden"])
    again.vae.train(max_steps=2)  # and goes on


def test_it_can_be_generated_from_without_any_training(adata, vae):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, vae=vae)
    model.train(max_steps=3)
    fake = isd.tl.generate(model, n_obs=5)
    assert sparse.issparse(fake.X) and (fake.X.data == np.rint(fake.X.data)).all()


def test_coverage_is_told_and_too_little_of_it_is_an_error(adata, published, caplog):
    VAE.setup_anndata(adata)
    n_genes = adata.var["gene_name"].nunique()
    with pytest.raises(ValueError, match=rf"{n_genes} of the {n_genes + 2} published genes .* at least 5000"):
        VAE.from_scimilarity(published[0], adata)
    with caplog.at_level(logging.INFO, logger="isd"):
        vae = VAE.from_scimilarity(published[0], adata, min_genes=n_genes)
    assert f"{n_genes} of {n_genes + 2} published genes" in caplog.text
    assert vae.scimilarity_coverage == {
        "n_genes_published": n_genes + 2,
        "n_genes_shared": n_genes,
        "n_features": adata.n_vars,
        "n_features_matched": adata.n_vars,
        "share_of_counts": 1.0,
    }
    with pytest.raises(KeyError, match="gene_key 'symbol'"):
        VAE.from_scimilarity(published[0], adata, gene_key="symbol")
    with pytest.raises(TypeError, match="n_latent: the shape"):
        VAE.from_scimilarity(published[0], adata, n_latent=4)
    with pytest.raises(ValueError, match="encoder_rows"):
        VAE.from_scimilarity(published[0], adata, encoder_rows="both")


def test_it_is_no_reference_for_other_transcripts(adata, vae):
    with pytest.raises(ValueError, match="from_scimilarity"):
        VAE.from_pretrained(vae, adata)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("file", ["encoder.ckpt", "decoder.ckpt"])
def test_a_malicious_checkpoint_is_an_error_and_does_not_run(adata, published, tmp_path, file):
    _, encoder, decoder, symbols = published
    path = write_folder(tmp_path / "folder", encoder, decoder, symbols)
    torch.save({"state_dict": {"network.0.1.weight": Evil(tmp_path / "ran")}}, path / file)
    VAE.setup_anndata(adata)
    with pytest.raises(ValueError, match="could run code"):
        VAE.from_scimilarity(path, adata, min_genes=20)
    assert not (tmp_path / "ran").exists()
    torch.load(path / file, weights_only=False)
    assert (tmp_path / "ran").exists()  # the file does what the test says


def damaged(state, key, value):
    return {k: v for k, v in state.items() if k != key} | ({} if value is None else {key: value})


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("network.1.2.running_var", None, r"lacks network\.1\.2\.running_var"),
        ("network.0.1.weight", torch.ones(HIDDEN, 3), "has 3 genes"),
        ("network.2.1.weight", torch.ones(HIDDEN, HIDDEN + 1), "do not fit"),
        ("network.1.1.bias", torch.full((HIDDEN,), torch.nan), "not finite"),
        ("network.3.weight", torch.ones(LATENT + 1, HIDDEN), "do not fit"),
    ],
)
def test_a_checkpoint_of_another_layout_is_named(adata, published, tmp_path, key, value, match):
    _, encoder, decoder, symbols = published
    path = write_folder(tmp_path / "folder", encoder, decoder, symbols)
    state = torch.load(path / "encoder.ckpt", weights_only=True)["state_dict"]
    torch.save({"state_dict": damaged(state, key, value)}, path / "encoder.ckpt")
    VAE.setup_anndata(adata)
    with pytest.raises(ValueError, match=match):
        VAE.from_scimilarity(path, adata, min_genes=20)


def test_a_folder_that_is_not_whole_is_named(adata, published, tmp_path):
    _, encoder, decoder, symbols = published
    path = write_folder(tmp_path / "folder", encoder, decoder, symbols)
    (path / "encoder.ckpt").write_bytes((path / "encoder.ckpt").read_bytes()[:500])
    VAE.setup_anndata(adata)
    with pytest.raises(ValueError, match="damaged"):
        VAE.from_scimilarity(path, adata, min_genes=20)
    (path / "gene_order.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"gene_order\.tsv"):
        VAE.from_scimilarity(path, adata, min_genes=20)
