"""Isoforms from gene counts: sums are exact, draws have the moments they should, and odd input is named."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd
from isd.model import VAE
from isd.model._usage import UsageSettings


@pytest.fixture(scope="module")
def data():
    adata = isd.datasets.simulated(n_obs=300, n_vars=200, n_labels=4, seed=0)
    isd.pp.split(adata, seed=0)
    return adata


@pytest.fixture(scope="module")
def _vae(data):
    isd.settings.progress = False
    VAE.setup_anndata(data)
    vae = VAE(data, n_latent=4, n_hidden=16)
    vae.train(max_steps=5)
    vae.fit_gene_encoder(max_steps=60)
    return vae


@pytest.fixture
def vae(_vae):
    return _vae


@pytest.fixture
def genes(data):
    held_out = data[data.obs["isd_split"] == "test"].copy()
    return isd.pp.to_mudata(held_out)["gene"]


def sums(cells):
    return isd.pp.to_mudata(cells)["gene"].X.toarray()


def test_isoforms_add_up_to_the_observed_genes_in_every_cell(vae, genes):
    rng = np.random.default_rng(0)
    for scale in (0.05, 1.0, 3000.0):
        # cells without a count, genes with one, and more counts in a cell than are drawn one by one
        genes.X = sparse.csr_matrix(rng.poisson(scale * genes.X.toarray()).astype(np.float32))
        cells = isd.tl.infer_isoforms(vae, genes, 2, seed=1)
        assert cells.shape == (2 * genes.n_obs, 200)
        np.testing.assert_array_equal(sums(cells), np.vstack([genes.X.toarray()] * 2))
        assert (cells.X.data == np.rint(cells.X.data)).all() and (cells.X.data > 0).all()
    assert genes.X.sum(1).max() > 200_000


def test_draws_have_the_mean_and_spread_that_are_reported(vae, genes):
    cell = genes[np.argmax(genes.X.sum(1))].copy()
    one = isd.tl.infer_isoforms(vae, cell, output="mean", std=True)
    many = ad.AnnData(sparse.vstack([cell.X] * 2000, format="csr"), var=cell.var)
    draws = isd.tl.infer_isoforms(vae, many, seed=3).X.toarray()
    mean, std = one.layers["mean"].toarray()[0], one.layers["std"].toarray()[0]
    some = std > 0
    assert some.sum() > 30
    z = (draws.mean(0) - mean)[some] / (std[some] / np.sqrt(2000))
    assert abs(z.mean()) < 0.3 and 0.7 < z.std() < 1.3
    common = mean > 0.3
    np.testing.assert_allclose(draws.std(0)[common & some], std[common & some], rtol=0.15)
    np.testing.assert_array_equal(one.X.toarray(), one.layers["mean"].toarray())


def test_usage_adds_up_to_one_in_the_genes_that_a_cell_expresses(vae, genes):
    usage = isd.tl.infer_isoforms(vae, genes, output="usage")
    np.testing.assert_allclose(sums(usage), genes.X.toarray() > 0, atol=1e-5)


def test_a_cell_is_drawn_alike_whatever_it_comes_with(vae, genes):
    whole = isd.tl.infer_isoforms(vae, genes, seed=5).X.toarray()
    chunked = isd.tl.infer_isoforms(vae, genes, seed=5, batch_size=7).X.toarray()
    np.testing.assert_array_equal(whole, chunked)
    np.testing.assert_array_equal(isd.tl.infer_isoforms(vae, genes[:9].copy(), seed=5).X.toarray(), whole[:9])
    assert (isd.tl.infer_isoforms(vae, genes, seed=6).X.toarray() != whole).any()
    twice = isd.tl.infer_isoforms(vae, genes, 2, seed=5)
    np.testing.assert_array_equal(twice.X.toarray()[: genes.n_obs], whole)
    assert (twice.X.toarray()[genes.n_obs :] != whole).any()


def test_few_entries_at_once_change_nothing(vae, genes, monkeypatch):
    import isd.tl._infer_isoforms as module

    whole = isd.tl.infer_isoforms(vae, genes, seed=5).X.toarray()
    monkeypatch.setattr(module, "MAX_ENTRIES", 500)
    np.testing.assert_array_equal(isd.tl.infer_isoforms(vae, genes, seed=5).X.toarray(), whole)


def test_what_is_known_of_the_cells_stays(vae, genes):
    genes.obsm["X_umap"] = np.arange(2.0 * genes.n_obs).reshape(-1, 2)
    genes.uns["leiden_colors"] = ["#000000"] * 4
    before = genes.copy()
    cells = isd.tl.infer_isoforms(vae, genes, 2)
    assert cells.obs["isd_draw"].tolist() == [0] * genes.n_obs + [1] * genes.n_obs
    assert cells.obs_names.is_unique
    assert cells.obs["leiden"].tolist() == genes.obs["leiden"].tolist() * 2
    np.testing.assert_array_equal(cells.obsm["X_umap"], np.vstack([genes.obsm["X_umap"]] * 2))
    assert list(cells.var_names) == list(vae.feature_names)
    assert cells.uns["isd"]["vae_fingerprint"] == vae.fingerprint
    pd.testing.assert_frame_equal(genes.obs, before.obs)
    assert (genes.X != before.X).nnz == 0 and set(genes.uns) == set(before.uns)


def test_counts_go_where_the_model_reads_them(data, genes):
    layered = data.copy()
    layered.layers["counts"] = layered.X.copy()
    VAE.setup_anndata(layered)
    vae = VAE(layered, n_latent=2, n_hidden=8)
    vae.train(max_steps=2)
    vae.fit_gene_encoder(max_steps=2)
    cells = isd.tl.infer_isoforms(vae, genes)
    assert cells.layers["counts"].sum() == genes.X.sum()
    np.testing.assert_allclose(np.expm1(cells.X.toarray()).sum(1), 1e4, rtol=1e-4)


def test_genes_are_found_by_id_and_by_symbol(vae, genes):
    expected = isd.tl.infer_isoforms(vae, genes, seed=0).X.toarray()
    versioned = genes[:, ::-1].copy()
    versioned.var_names = versioned.var_names + ".7"
    np.testing.assert_array_equal(isd.tl.infer_isoforms(vae, versioned, seed=0).X.toarray(), expected)
    symbols = genes.copy()
    symbols.var_names = symbols.var["gene_name"].to_numpy()
    del symbols.var["gene_name"]
    np.testing.assert_array_equal(isd.tl.infer_isoforms(vae, symbols, seed=0).X.toarray(), expected)
    named = genes.copy()
    named.var["gene_ids"] = named.var_names.to_numpy()  # as scanpy reads 10x files
    named.var_names = [f"row{i}" for i in range(named.n_vars)]
    del named.var["gene_name"]
    np.testing.assert_array_equal(isd.tl.infer_isoforms(vae, named, seed=0).X.toarray(), expected)


def test_missing_genes_are_counted_and_have_no_isoforms(vae, genes):
    lacking = genes[:, 5:].copy()
    lacking = ad.concat(
        [
            lacking,
            ad.AnnData(np.ones((genes.n_obs, 2), dtype=np.float32), lacking.obs, pd.DataFrame(index=["x1", "x2"])),
        ],
        axis=1,
    )
    with pytest.warns(UserWarning, match=f"5 of the model's {genes.n_vars} genes are not in the data"):
        cells = isd.tl.infer_isoforms(vae, lacking)
    np.testing.assert_array_equal(sums(cells)[:, 5:], lacking.X.toarray()[:, :-2])
    assert sums(cells)[:, :5].sum() == 0
    assert cells.uns["isd"]["n_genes_missing"] == 5 and cells.uns["isd"]["n_columns_unknown"] == 2


def test_missing_genes_leave_the_rest_about_where_it_was(vae, genes):
    """Without the largest genes, log-normalised values of the others would all rise."""
    whole = vae.gene_encoder.scores(genes.X).numpy()
    present = np.ones(genes.n_vars, dtype=bool)
    present[np.argsort(-np.asarray(genes.X.sum(0)).ravel())[:3]] = False
    kept = sparse.csr_matrix(genes.X.multiply(present[None]))
    told, untold = vae.gene_encoder.scores(kept, present).numpy(), vae.gene_encoder.scores(kept).numpy()
    assert np.abs(told - whole).mean() < 0.6 * np.abs(untold - whole).mean()


def test_symbols_of_several_genes_and_repeated_genes_are_counted(data, genes):
    adata = data.copy()
    ids = adata.var["gene_id"].unique()
    adata.var["gene_name"] = adata.var["gene_name"].where(~adata.var["gene_id"].isin(ids[:2]), "TWICE")
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_latent=2, n_hidden=8)
    vae.train(max_steps=2)
    vae.fit_gene_encoder(max_steps=2)
    symbols = genes.copy()
    names = adata.var.drop_duplicates("gene_id").set_index("gene_id")["gene_name"]
    symbols.var_names = names[genes.var_names].to_numpy()
    del symbols.var["gene_name"]
    symbols.var_names_make_unique()
    symbols.var_names = ["TWICE", "other", *symbols.var_names[2:]]
    with pytest.warns(UserWarning, match="1 columns have a symbol that several"):
        assert sums(isd.tl.infer_isoforms(vae, symbols))[:, :2].sum() == 0
    repeated = genes.copy()
    repeated.var_names = [*genes.var_names[:-1], genes.var_names[0] + ".2"]
    repeated.var["gene_name"] = "?"
    with pytest.warns(UserWarning, match="1 columns repeat a gene"):
        cells = isd.tl.infer_isoforms(vae, repeated)
    np.testing.assert_array_equal(sums(cells)[:, 0], genes.X.toarray()[:, [0, -1]].sum(1))


def test_odd_data_are_refused(vae, genes, data):
    with pytest.raises(ValueError, match="transcripts of the model, not genes"):
        isd.tl.infer_isoforms(vae, data)
    with pytest.raises(ValueError, match="none of the 3 columns"):
        isd.tl.infer_isoforms(vae, ad.AnnData(np.ones((2, 3), dtype=np.float32)))
    fractional = genes.copy()
    fractional.X = fractional.X * 1.5
    with pytest.raises(ValueError, match=r"fractional counts.*round_counts"):
        isd.tl.infer_isoforms(vae, fractional)
    mean = isd.tl.infer_isoforms(vae, fractional, output="mean")
    np.testing.assert_allclose(sums(mean), fractional.X.toarray(), rtol=1e-5)
    normalised = genes.copy()
    normalised.X = normalised.X.multiply(1e4 / normalised.X.sum(1)).tocsr().log1p()
    with pytest.raises(ValueError, match="raw counts were expected"):
        isd.tl.infer_isoforms(vae, normalised)
    with pytest.raises(TypeError, match="must be a VAE"):
        isd.tl.infer_isoforms("vae", genes)
    with pytest.raises(ValueError, match="expected one of 'samples'"):
        isd.tl.infer_isoforms(vae, genes, output="counts")
    with pytest.raises(ValueError, match="one result a cell"):
        isd.tl.infer_isoforms(vae, genes, 3, output="mean")
    with pytest.raises(ValueError, match="std=True goes with"):
        isd.tl.infer_isoforms(vae, genes, std=True)


def test_genes_without_several_expressed_isoforms_are_marked(vae, genes, data):
    cells = isd.tl.infer_isoforms(vae, genes)
    train = data[data.obs["isd_split"] == "train"]
    expressed = pd.Series(np.asarray(train.X.sum(0)).ravel() > 0, index=data.var_names)
    several = expressed.groupby(data.var["gene_id"]).sum() > 1
    assert cells.var["isd_inferable"].tolist() == several[data.var["gene_id"]].tolist()
    assert 0 < cells.var["isd_inferable"].sum() < 200


def test_the_gene_encoder_is_saved_with_the_vae(vae, genes, tmp_path):
    vae.save(tmp_path / "vae")
    again = VAE.load(tmp_path / "vae")
    assert again.adata is None and again.gene_encoder.fingerprint == vae.gene_encoder.fingerprint
    np.testing.assert_array_equal(
        isd.tl.infer_isoforms(again, genes, seed=2).X.toarray(), isd.tl.infer_isoforms(vae, genes, seed=2).X.toarray()
    )
    assert not list((tmp_path / "vae").glob("*.p*"))


def test_a_vae_without_one_fits_it_at_first_use_and_keeps_its_fingerprint(data, genes, tmp_path, caplog, monkeypatch):
    VAE.setup_anndata(data)
    vae = VAE(data, n_latent=2, n_hidden=8)
    vae.train(max_steps=2)
    vae.save(tmp_path / "bare")
    before = vae.fingerprint
    monkeypatch.setattr("isd.model._usage.usage_settings", lambda n: [UsageSettings(max_steps=2)])
    with caplog.at_level(logging.WARNING, logger="isd"):
        isd.tl.infer_isoforms(vae, genes)
    assert "fitting one to its training cells" in caplog.text
    assert vae.gene_encoder is not None and vae.fingerprint == before
    with pytest.raises(ValueError, match="no gene encoder, and no data to fit one"):
        isd.tl.infer_isoforms(VAE.load(tmp_path / "bare"), genes)


def test_features_without_a_gene_map_are_refused(genes, data):
    adata = data.copy()
    del adata.var["gene_id"]
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_latent=2, n_hidden=8)
    with pytest.raises(ValueError, match="not trained"):
        isd.tl.infer_isoforms(vae, genes)
    vae.train(max_steps=2)
    with pytest.raises(KeyError, match="no column 'gene_id'"):
        isd.tl.infer_isoforms(vae, genes)
    adata.var["gene_id"] = adata.var_names
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_latent=2, n_hidden=8)
    with pytest.raises(ValueError, match="no isoforms to tell apart"):
        vae.fit_gene_encoder()


def test_labels_count_where_the_gene_encoder_has_terms_for_them(data, genes):
    VAE.setup_anndata(data)
    vae = VAE(data, n_latent=4, n_hidden=16)
    vae.train(max_steps=2)
    vae.fit_gene_encoder(max_steps=60)
    labels = genes.obs["leiden"].astype(object).to_numpy()
    plain = isd.tl.infer_isoforms(vae, genes, output="usage")
    with pytest.warns(UserWarning, match="labels are not used"):
        ignored = isd.tl.infer_isoforms(vae, genes, labels="leiden", output="usage")
    np.testing.assert_array_equal(ignored.X.toarray(), plain.X.toarray())
    with pytest.raises(KeyError, match="not in gene_adata"):
        isd.tl.infer_isoforms(vae, genes, labels="nothing")
    vae.fit_gene_encoder(max_steps=60, with_labels=True)
    assert vae.gene_encoder.settings.with_labels
    known = isd.tl.infer_isoforms(vae, genes, labels=labels, output="usage").X.toarray()
    other = isd.tl.infer_isoforms(vae, genes, labels=np.roll(labels, 1), output="usage").X.toarray()
    none = isd.tl.infer_isoforms(vae, genes, output="usage").X.toarray()
    changed = labels != np.roll(labels, 1)
    assert np.abs(known - other)[changed].max() > 1e-4 and np.abs(known - none).max() > 1e-4
    np.testing.assert_array_equal(known[~changed], other[~changed])
