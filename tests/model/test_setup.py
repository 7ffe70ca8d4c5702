"""What setup_anndata refuses, before any time is spent, and what it leaves as it was."""

import re

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import isd
from isd.model import VAE, LatentDiffusion


def snapshot(adata):
    return adata.copy(), set(adata.obs), set(adata.uns), set(adata.obsm), set(adata.layers)


def unchanged(adata, before):
    copy, obs, uns, obsm, layers = before
    assert (set(adata.obs), set(adata.uns), set(adata.obsm), set(adata.layers)) == (obs, uns, obsm, layers)
    np.testing.assert_array_equal(adata.X.toarray(), copy.X.toarray())


def negative(adata):
    adata.X.data[3] = -1


def nan(adata):
    adata.X.data[3] = np.nan


def infinite(adata):
    adata.X.data[3] = np.inf


def log_normalised(adata):
    totals = np.asarray(adata.X.sum(1)).ravel()
    adata.X = sparse.csr_matrix(sparse.diags(1e4 / totals) @ adata.X).log1p().astype(np.float32)


def fractional(adata):
    adata.X.data[::2] += 0.37


def empty_cell(adata):
    x = adata.X.tolil()
    x[7] = 0
    adata.X = x.tocsr()


def repeated_names(adata):
    adata.var_names = ["same", "same", *adata.var_names[2:]]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # anndata's own, when the names are made
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (negative, "negative"),
        (nan, "NaN or infinite"),
        (infinite, "NaN or infinite"),
        (log_normalised, "log-normalised"),
        (fractional, "isd.pp.round_counts"),
        (empty_cell, "1 cells have no counts"),
        (repeated_names, "not unique.*same"),
    ],
)
def test_data_that_are_no_counts_are_refused_and_left_alone(adata, damage, message):
    damage(adata)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=message):
        LatentDiffusion.setup_anndata(adata)
    unchanged(adata, before)


def test_the_advice_on_empty_cells_works(adata):
    empty_cell(adata)
    name = adata.obs_names[7]
    with pytest.raises(ValueError, match=re.escape(name)) as error:
        VAE.setup_anndata(adata)
    advice = re.search(r"adata = (.+?\.copy\(\))", str(error.value)).group(1)
    kept = eval(advice, {"adata": adata})
    VAE.setup_anndata(kept)
    assert kept.n_obs == adata.n_obs - 1


def test_missing_label_key_says_what_there_is(adata):
    del adata.obs["leiden"]
    before = snapshot(adata)
    with pytest.raises(KeyError, match=r"labels_key 'leiden' is not in adata\.obs.*labels_key=None"):
        LatentDiffusion.setup_anndata(adata)
    unchanged(adata, before)


@pytest.mark.parametrize("argument", ["batch_key", "size_factor_key"])
def test_missing_keys_are_named(adata, argument):
    with pytest.raises(KeyError, match=f"{argument} 'nope'"):
        VAE.setup_anndata(adata, **{argument: "nope"})


def test_missing_layer_is_named(adata):
    with pytest.raises(KeyError, match=r"nope.*not in adata\.layers"):
        VAE.setup_anndata(adata, layer="nope")


def test_one_cell_is_too_few(adata):
    with pytest.raises(ValueError, match="1 cells; at least 2"):
        VAE.setup_anndata(adata[:1].copy())


def test_a_view_is_refused_with_the_way_out(adata):
    with pytest.raises(ValueError, match=r"adata\.copy\(\)"):
        VAE.setup_anndata(adata[:50])


@pytest.mark.parametrize("make", [sparse.csc_matrix, sparse.csr_array, lambda x: x.toarray()])
def test_every_matrix_type_gives_the_same_training(adata, make):
    other = adata.copy()
    other.X = make(adata.X)
    losses = []
    for data in (adata, other):
        VAE.setup_anndata(data)
        vae = VAE(data, n_hidden=8, n_latent=2)
        vae.train(max_steps=4)
        losses.append(vae.history["train_loss"].to_numpy())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_counts_come_from_the_counts_layer_when_there_is_one(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.5
    VAE.setup_anndata(adata)
    assert VAE(adata, n_hidden=8, n_latent=2).layer == "counts"
    with pytest.raises(ValueError, match=r"adata\.X"):
        VAE.setup_anndata(adata, layer="X")


def test_labels_keep_order_values_and_missing_ones(adata):
    values = ["b"] * 100 + ["a"] * 100 + ["Unknown"] * 50 + [None] * 50
    adata.obs["group"] = pd.Categorical(values, categories=["empty", "b", "Unknown", "a"])
    VAE.setup_anndata(adata, labels_key="group")
    vae = VAE(adata, n_hidden=8, n_latent=2)
    assert vae.labels.tolist() == ["b", "a"]
    assert np.bincount(vae.label_codes()).tolist() == [100, 100, 100]
    # the user's column is as it was
    assert adata.obs["group"].isna().sum() == 50


def test_integer_labels_stay_integers(adata):
    adata.obs["number"] = np.arange(adata.n_obs) % 12
    VAE.setup_anndata(adata, labels_key="number")
    assert VAE(adata, n_hidden=8, n_latent=2).labels.tolist() == list(range(12))


def test_numbers_as_strings_sort_as_numbers(adata):
    adata.obs["cluster"] = (np.arange(adata.n_obs) % 12).astype(str)
    VAE.setup_anndata(adata, labels_key="cluster")
    assert VAE(adata, n_hidden=8, n_latent=2).labels.tolist() == [str(i) for i in range(12)]


def test_no_labels_is_one_class(adata):
    LatentDiffusion.setup_anndata(adata, labels_key=None)
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    fake = isd.tl.generate(model, n_obs=5)
    assert fake.n_obs == 5
    assert "leiden" not in fake.obs


def test_a_second_model_on_other_labels_does_not_change_the_first(adata):
    """Every scvi model writes obs["_scvi_labels"]: the codes must be written anew before they are read."""
    adata.obs["other"] = pd.Categorical(np.where(np.arange(adata.n_obs) < 10, "x", "y"))
    LatentDiffusion.setup_anndata(adata)
    first = LatentDiffusion(adata, n_hidden=8)
    before = first.label_codes().copy()
    LatentDiffusion.setup_anndata(adata, labels_key="other")
    LatentDiffusion(adata, n_hidden=8)
    first.train(max_steps=2, vae_kwargs={"max_steps": 2})
    np.testing.assert_array_equal(first.template_codes_[:, 0], before[first.vae.train_indices])


def test_labels_that_cannot_be_kept_are_refused(adata):
    adata.obs["bins"] = pd.cut(np.arange(adata.n_obs), 3)
    adata.obs["nothing"] = np.nan
    adata.obs["mixed"] = pd.Series([1, "a"] * 150, index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"Interval.*astype\(str\)"):
        VAE.setup_anndata(adata, labels_key="bins")
    with pytest.raises(ValueError, match="no labelled cell"):
        VAE.setup_anndata(adata, labels_key="nothing")
    VAE.setup_anndata(adata, labels_key="mixed")
    assert VAE(adata, n_hidden=8, n_latent=2).labels.tolist() == [1, "a"]


def test_not_an_anndata():
    with pytest.raises(TypeError, match="AnnData"):
        VAE.setup_anndata(np.zeros((3, 3)))


def test_without_setup_the_message_says_so():
    adata = AnnData(np.ones((3, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="setup_anndata"):
        VAE(adata)
