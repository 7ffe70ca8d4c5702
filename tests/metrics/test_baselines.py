from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from isd.metrics import BASELINES, GeneMap, baselines, exact_copy_rate, isoform_usage
from isd.metrics._nulls import label_gaussian, negative_binomial_moments


@pytest.fixture
def world(cells) -> ad.AnnData:
    real = cells(900, seed=1, n_vars=60)
    real.obs["isd_split"] = pd.Categorical(["train"] * 600 + ["test"] * 300)
    # usage that follows each cell: what a draw from the pooled usage must lose
    dense = real.X.toarray()
    tilt = np.random.default_rng(0).random((900, 1)) < 0.5
    dense[:, 0::3] *= 1 + 3 * tilt
    dense[:, 1::3] *= 4 - 3 * tilt
    real.X = sparse.csr_matrix(dense)
    return real


class Latents:
    """Stands for a VAE: latents are log gene means, and decoding is their Poisson."""

    def __init__(self, real: ad.AnnData) -> None:
        self.feature_names = pd.Index(real.var_names[::-1])
        self.seen: list[str] = []

    def encode_distribution(self, adata):
        self.seen = list(adata.obs_names)
        mean = np.log1p(np.asarray(adata.X[:, :4].toarray()))
        return mean, np.full_like(mean, 0.01)

    def decode(self, latents, *, library_size, seed):
        share = np.ones((len(latents), len(self.feature_names))) / len(self.feature_names)
        self.latents = latents
        return sparse.csr_matrix(np.random.default_rng(seed).poisson(share * library_size[:, None]))

    def sample_prior(self, n_obs, *, seed):
        counts = np.random.default_rng(seed).poisson(1.0, size=(n_obs, len(self.feature_names)))
        return ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=self.feature_names))


def test_redrawn_usage_keeps_gene_totals_and_loses_what_cells_have(world):
    fake = baselines(world, labels_key="label", which=["pooled_usage"])["pooled_usage"]
    train = world[:600]
    genes = GeneMap.from_ids(world.var["gene_id"])
    ours, theirs = genes.sums(fake.X).toarray(), genes.sums(train.X).toarray()
    # the same cells in another order, gene by gene
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    usage = [isoform_usage(c.X, world.var["gene_id"], c.obs["label"].to_numpy()).usage for c in (fake, train)]
    np.testing.assert_allclose(*usage, atol=0.06)
    assert np.nanmean(np.abs(usage[0] - usage[1])) < 0.01
    # multinomial: the variance of an isoform given its gene's total, of a gene with usage p
    total, p = theirs[:, 0], isoform_usage(train.X, world.var["gene_id"]).usage[0, 0]
    order = [np.lexsort(x.T) for x in (ours, theirs)]
    chi2 = [
        ((c.X[rows, 0].toarray().ravel() - p * t) ** 2).sum() / (p * (1 - p) * t).sum()
        for c, rows, t in ((fake, order[0], ours[order[0], 0]), (train, order[1], total[order[1]]))
    ]
    assert chi2[0] < 1.3 and chi2[1] > 2 * chi2[0]


def test_negative_binomial_moments_are_recovered():
    rng = np.random.default_rng(1)
    library = rng.lognormal(7, 0.3, size=3000)
    share, dispersion = rng.dirichlet(np.full(20, 5.0)), np.tile([0.0, 0.2, 1.0, 2.0], 5)
    mean = library[:, None] * share
    rate = np.where(
        dispersion > 0, rng.gamma(1 / np.maximum(dispersion, 1e-9), np.maximum(dispersion, 1e-9), mean.shape), 1
    )
    counts = sparse.csr_matrix(rng.poisson(mean * rate).astype(float))
    found, phi = negative_binomial_moments(counts, np.zeros(3000, dtype=int), 1)
    # shares are of the counts that there are
    np.testing.assert_allclose(found[0], np.asarray(counts.sum(axis=0)).ravel() / counts.sum())
    np.testing.assert_allclose(phi[0], dispersion, rtol=0.2, atol=0.05)


def test_independent_transcripts_keep_means_and_lose_correlation(world):
    fake = baselines(world, labels_key="label", n_obs=1500, which=["independent_nb"])["independent_nb"]
    train = world[:600]
    assert fake.n_obs == 1500
    for label in "abc":
        ours, theirs = (c.X[(c.obs["label"] == label).to_numpy()].toarray() for c in (fake, train))
        np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), rtol=0.35, atol=0.3)
        assert ours.var(axis=0).sum() == pytest.approx(theirs.var(axis=0).sum(), rel=0.25)
    within = [
        np.corrcoef(c.X[(c.obs["label"] == "a").to_numpy()][:, [0, 3, 6, 9]].toarray(), rowvar=False)[
            np.triu_indices(4, 1)
        ].mean()
        for c in (fake, train)
    ]
    assert within[0] < 0.12 < 0.2 < within[1]
    shares = [c.obs["label"].value_counts(normalize=True).sort_index() for c in (fake, train)]
    pd.testing.assert_series_equal(*shares, rtol=0.05)


def test_gaussian_per_label_has_the_means_and_covariances_of_its_label():
    rng = np.random.default_rng(2)
    mixing = np.array([[1.0, 0.8], [0.0, 0.6]])
    points = np.concatenate([rng.normal(size=(2000, 2)) @ mixing, 5 + rng.normal(size=(1000, 2))])
    drawn = label_gaussian(points, np.repeat([0, 1], [2000, 1000]), np.repeat([1, 0], 5000), rng)
    np.testing.assert_allclose(drawn[:5000].mean(axis=0), 5, atol=0.1)
    np.testing.assert_allclose(np.cov(drawn[5000:].T), mixing.T @ mixing, atol=0.08)
    single = label_gaussian(points[:3], np.array([0, 0, 1]), np.array([1, 1]), rng)
    assert np.isfinite(single).all()


def test_baselines_of_a_model_see_training_cells_only(world):
    vae = Latents(world)
    made = baselines(world, model=vae, labels_key="label", n_obs=400)
    assert tuple(made) == BASELINES
    assert set(vae.seen) == set(world.obs_names[:600])
    for name, fake in made.items():
        assert fake.shape == (400, world.n_vars), name
        pd.testing.assert_frame_equal(fake.var, world.var)
        values = fake.X.data
        assert (values > 0).all() and (values == np.rint(values)).all(), name
        assert fake.uns["isd"]["model"] == f"baseline: {name}"
    assert made["vae_prior"].obs["label"].isna().all()
    assert made["latent_gaussian"].obs["label"].notna().all()
    depth = [np.median(np.asarray(c.X.sum(axis=1))) for c in (made["latent_gaussian"], world[:600])]
    assert depth[0] == pytest.approx(depth[1], rel=0.15)

    class Model:
        pass

    model = Model()
    model.vae = vae
    again = baselines(world, model=model, labels_key="label", n_obs=400, which="latent_gaussian")
    assert (again["latent_gaussian"].X != made["latent_gaussian"].X).nnz == 0
    model.labels_key = "label"
    again = baselines(world, model=model, n_obs=400, which="latent_gaussian")["latent_gaussian"]
    pd.testing.assert_series_equal(again.obs["label"], made["latent_gaussian"].obs["label"])


def test_copies_are_copies_and_the_seed_decides(world):
    copies = baselines(world, which=["training_copies"], n_obs=700, seed=3)["training_copies"]
    assert exact_copy_rate(copies.X, world[:600].X) == 1 and exact_copy_rate(copies.X, world[600:].X) < 0.05
    # every training cell before any twice
    one, two = (baselines(world, n_obs=50, seed=seed, labels_key="label") for seed in (3, 3))
    other = baselines(world, n_obs=50, seed=4, labels_key="label")
    for name in one:
        assert (one[name].X != two[name].X).nnz == 0 < (one[name].X != other[name].X).nnz


def test_counts_go_where_they_came_from(world):
    world.layers["counts"] = world.X.copy()
    world.X = world.X.log1p()
    fake = baselines(world, n_obs=30, which="training_copies")["training_copies"]
    assert (fake.layers["counts"].data == np.rint(fake.layers["counts"].data)).all()
    np.testing.assert_allclose(np.expm1(fake.X.toarray()).sum(axis=1), 1e4, rtol=1e-4)


def test_bad_arguments_are_refused(world):
    for message, options in (
        ("not known", {"which": ["magic"]}),
        (r"'vae_prior' needs a trained model", {"which": ["vae_prior"]}),
        ("n_obs=0", {"n_obs": 0}),
        ("has no sample_prior", {"model": object(), "labels_key": "label"}),
    ):
        with pytest.raises(ValueError, match=message):
            baselines(world, **options)
    with pytest.raises(KeyError, match="labels_key 'nope'"):
        baselines(world, labels_key="nope")
    del world.var["gene_id"]
    with pytest.raises(ValueError, match="gene_id"):
        baselines(world, which=["pooled_usage"])
    world.obs["isd_split"] = "test"
    with pytest.raises(ValueError, match="no row 'train'"):
        baselines(world)
