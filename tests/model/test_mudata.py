"""Models of MuData: the isoforms are modelled, a measured gene modality tells their usage."""

import numpy as np
import pytest
from mudata import MuData
from scipy import sparse

import isd
from isd.model import VAE, LatentDiffusion


@pytest.fixture
def mdata(adata):
    return isd.pp.to_mudata(adata)


# mudata announces the defaults of its next version
pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


def small(data):
    vae = VAE(data, n_latent=2, n_hidden=8, gene_decoder=False)
    vae.train(max_steps=2)
    return vae


def test_a_model_of_a_mudata_is_that_of_its_isoforms(mdata, adata):
    VAE.setup_mudata(mdata)
    vae = small(mdata)
    assert vae.adata is mdata["isoform"] and vae.adata.X is adata.X
    VAE.setup_anndata(adata, gene_key="gene_id")
    assert small(adata).fingerprint == vae.fingerprint
    assert vae.gene_encoder is not None


def test_labels_may_be_known_of_the_whole_only(adata):
    del adata.obs["leiden"]
    mdata = isd.pp.to_mudata(adata)
    mdata.obs["kind"] = np.resize(["a", "b"], adata.n_obs)
    VAE.setup_mudata(mdata, labels_key="kind")
    assert small(mdata).labels.tolist() == ["a", "b"]
    assert "kind" not in adata.obs


def test_measured_genes_tell_the_usage(mdata):
    """Shallow isoforms beside deep genes: what the genes say is read from the deep counts, in any order of cells."""
    rng = np.random.default_rng(0)
    deep = mdata["gene"].copy()
    deep.X = sparse.csr_matrix(rng.poisson(5.0 * deep.X.toarray()).astype(np.float32))
    both = MuData({"isoform": mdata["isoform"], "deep": deep[::-1].copy()})
    VAE.setup_mudata(both, gene="deep")
    np.testing.assert_array_equal(both["isoform"].obsm["isd_gene_counts"].toarray(), deep.X.toarray())
    vae = small(both)
    train = vae.train_indices
    shares = deep.X[train].toarray()
    expected = np.log1p(1e4 * shares / np.maximum(shares.sum(1, keepdims=True), 1)).mean(0)
    np.testing.assert_allclose(vae.gene_encoder.predictor.gene_mean.numpy(), expected, rtol=1e-3, atol=1e-4)
    cells = isd.tl.infer_isoforms(vae, deep)
    np.testing.assert_array_equal(isd.pp.to_mudata(cells)["gene"].X.toarray(), deep.X.toarray())
    assert len(isd.tl.differential_usage(vae, group1="0"))
    VAE.setup_mudata(both)
    assert "isd_gene_counts" not in both["isoform"].obsm


def test_odd_mudata_are_named(mdata, adata):
    with pytest.raises(TypeError, match="must be a MuData"):
        VAE.setup_mudata(adata)
    with pytest.raises(KeyError, match="modality 'rna' is not in mdata"):
        VAE.setup_mudata(mdata, isoform="rna")
    with pytest.raises(KeyError, match="gene_key 'nothing'"):
        VAE.setup_mudata(mdata, gene_key="nothing")
    with pytest.raises(ValueError, match="not set up yet"):
        VAE(mdata)
    fewer = MuData({"isoform": mdata["isoform"], "gene": mdata["gene"][:50].copy()})
    with pytest.raises(ValueError, match=r"250 of the 300 cells of mdata\['isoform'\] are not in"):
        VAE.setup_mudata(fewer, gene="gene")


def test_a_diffusion_model_of_a_mudata_generates_one(mdata):
    LatentDiffusion.setup_mudata(mdata)
    model = LatentDiffusion(mdata)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    fake = isd.tl.generate(model, 5, as_mudata=True)
    plain = isd.tl.generate(model, 5)
    assert isinstance(fake, MuData) and (fake["isoform"].X != plain.X).nnz == 0
    np.testing.assert_array_equal(fake["gene"].X.sum(1), plain.X.sum(1))
    assert fake.obs["leiden"].tolist() == plain.obs["leiden"].tolist()
    with pytest.raises(ValueError, match="does not go with backed"):
        isd.tl.generate(model, 5, as_mudata=True, backed="fake.h5ad")


def test_a_mudata_needs_a_gene_map(trained, monkeypatch):
    table = trained.vae.feature_table.drop(columns="gene_id")
    monkeypatch.setattr(trained.vae, "_var", table)
    with pytest.raises(KeyError, match="no column 'gene_id'"):
        isd.tl.generate(trained, 5, as_mudata=True)
