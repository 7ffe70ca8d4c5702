import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

import isd
from isd.metrics import GeneMap
from isd.model import VAE
from isd.tl._differential_usage import _prior_weight, _probability, _Side


@pytest.fixture(scope="module")
def data():
    return isd.datasets.simulated(n_obs=600, n_vars=300, n_labels=3, seed=1)


@pytest.fixture(scope="module")
def _vae(data):
    isd.settings.progress = False
    VAE.setup_anndata(data)
    vae = VAE(data, n_latent=2, n_hidden=8)
    vae.train(max_steps=2)
    vae.fit_gene_encoder(max_steps=150)
    return vae


@pytest.fixture
def vae(_vae):
    return _vae


@pytest.fixture(scope="module")
def table(_vae):
    return isd.tl.differential_usage(_vae, group1="1", group2="2")


def test_switches_are_found(table, data):
    truth = pd.DataFrame(data.varm["true_usage"], index=data.var_names).loc[table.index]
    change = truth[1] - truth[2]
    assert np.corrcoef(change, table["effect"])[0, 1] > 0.85
    assert roc_auc_score(change.abs() > 0.1, table["proba_du"]) > 0.9
    called = table["is_du_fdr_0.05"].to_numpy()
    assert called.sum() > 5 and (change.abs() <= 0.1)[called].mean() < 0.2


def test_columns_are_what_they_say(table, data):
    np.testing.assert_allclose(table["effect"], table["usage1"] - table["usage2"])
    for side in ("usage1", "usage2"):
        np.testing.assert_allclose(table.groupby("gene")[side].sum(), 1.0)
    assert table["gene"].tolist() == data.var["gene_id"][table.index].tolist()
    assert (np.diff(table["proba_du"]) <= 0).all()
    np.testing.assert_allclose(table["fdr"], np.cumsum(1 - table["proba_du"]) / np.arange(1, len(table) + 1))
    assert (table["is_du_fdr_0.05"] == (table["fdr"] <= 0.05)).all()
    genes = isd.pp.to_mudata(data)["gene"]
    first = pd.Series(np.asarray(genes[data.obs["leiden"] == "1"].X.sum(0)).ravel(), index=genes.var_names)
    np.testing.assert_allclose(table["counts1"], first[table["gene"]])
    assert (table[["counts1", "counts2"]].min(axis=1) >= 10).all()


def test_groups_may_be_several_labels_and_the_rest_is_the_default(vae, data):
    rest = isd.tl.differential_usage(vae, group1="0", seed=1)
    named = isd.tl.differential_usage(vae, data, "0", ["1", "2"], "leiden", seed=1)
    pd.testing.assert_frame_equal(rest.drop(columns="group2"), named.drop(columns="group2"))
    assert set(rest["group2"]) == {"rest"} and set(named["group2"]) == {"1, 2"}
    shuffled = data[:, ::-1].copy()
    pd.testing.assert_frame_equal(isd.tl.differential_usage(vae, shuffled, "0", seed=1), rest)


def test_other_names_of_the_rate_and_a_larger_change(vae):
    loose = isd.tl.differential_usage(vae, group1="1", fdr_target=0.2)
    strict = isd.tl.differential_usage(vae, group1="1", delta=0.3)
    assert loose["is_du_fdr_0.2"].sum() > strict["is_du_fdr_0.05"].sum()


def test_groups_that_do_not_differ_give_no_discoveries(vae, data):
    half = data.copy()
    half.obs["half"] = np.random.default_rng(0).permutation(np.resize(["a", "b"], data.n_obs))
    assert isd.tl.differential_usage(vae, half, "a", labels_key="half")["is_du_fdr_0.05"].sum() <= 1


def test_the_probability_is_that_of_two_betas():
    codes = np.array([0, 0])
    first, second = np.array([6.0, 2.0]), np.array([3.0, 5.0])
    value = _probability([first, second], codes, 0.1, 40_000, np.random.default_rng(0))
    from scipy.integrate import quad
    from scipy.stats import beta

    a, b = beta(6, 2), beta(3, 5)
    inside = quad(lambda t: a.pdf(t) * (b.cdf(t + 0.1) - b.cdf(t - 0.1)), 0, 1)[0]
    np.testing.assert_allclose(value, 1 - inside, atol=0.01)


def test_the_weight_of_the_prediction_is_found_again():
    rng = np.random.default_rng(0)
    n_genes, weight = 3000, 12.0
    predicted = rng.dirichlet([2.0, 2.0, 1.0], n_genes)
    true = np.stack([rng.dirichlet(weight * p) for p in predicted])
    counts = np.stack([rng.multinomial(40, t) for t in true]).ravel().astype(float)
    total = np.full(n_genes, 40.0)
    side = _Side(counts, predicted.ravel(), total, total)
    found = _prior_weight([side, side], np.repeat(np.arange(n_genes), 3), np.ones(n_genes, dtype=bool))
    assert found == pytest.approx(weight, rel=0.1)


def test_counts_from_few_cells_are_worth_less(vae, data):
    from isd.tl._differential_usage import _pool

    spread, heaped = sparse.csr_matrix((20, 300)).tolil(), sparse.csr_matrix((20, 300)).tolil()
    gene = np.flatnonzero(GeneMap.from_ids(data.var["gene_id"]).in_multi_isoform_gene)[:1]
    spread[:, gene], heaped[0, gene] = 1.0, 20.0
    rows = np.arange(20)
    sides = [_pool(vae.gene_encoder, sparse.csr_matrix(m), None, rows, None, "", False) for m in (spread, heaped)]
    assert sides[0].effective.max() == pytest.approx(20.0)
    assert sides[1].effective.max() < 19.0


def test_odd_groups_are_named(vae, data):
    with pytest.raises(ValueError, match="group1 is missing"):
        isd.tl.differential_usage(vae)
    with pytest.raises(KeyError, match="group2: 'nine' is not a label"):
        isd.tl.differential_usage(vae, group1="0", group2="nine")
    with pytest.raises(ValueError, match="share cells"):
        isd.tl.differential_usage(vae, group1="0", group2=["0", "1"])
    with pytest.raises(ValueError, match="both need some"):
        isd.tl.differential_usage(vae, group1=["0", "1", "2"])
    with pytest.raises(KeyError, match="labels_key 'kind'"):
        isd.tl.differential_usage(vae, group1="0", labels_key="kind")
    with pytest.raises(ValueError, match="fdr_target must lie"):
        isd.tl.differential_usage(vae, group1="0", fdr_target=1.5)
    with pytest.raises(ValueError, match="lacks 100 of the model's 300"):
        isd.tl.differential_usage(vae, data[:, 100:].copy(), "0")
