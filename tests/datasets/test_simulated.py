from __future__ import annotations

import inspect
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import isd.datasets._draw as draw
from isd.datasets import simulated

ARCHS4 = [
    "geo_accession",
    "series_id",
    "characteristics_ch1",
    "extract_protocol_ch1",
    "source_name_ch1",
    "title",
    "contact_city",
    "contact_country",
    "contact_institute",
    "instrument_model",
    "library_source",
    "organism_ch1",
    "platform_id",
    "singlecellprobability",
    "submission_date",
    "taxid_ch1",
]


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return simulated()


@pytest.fixture(scope="module")
def both() -> tuple[ad.AnnData, ad.AnnData]:
    return simulated(1500, 600, 4, kind="both", n_bulk=80, seed=3)


def totals(adata: ad.AnnData) -> np.ndarray:
    return np.asarray(adata.X.sum(axis=1)).ravel()


def usage_of(counts: np.ndarray, genes: pd.Series) -> np.ndarray:
    total = pd.Series(counts).groupby(genes.to_numpy()).transform("sum").to_numpy()
    return counts / np.maximum(total, 1)


def test_default_is_counts_like_a_single_cell_experiment(cells):
    assert cells.shape == (3000, 2000)
    assert isinstance(cells.X, sparse.csr_matrix) and cells.X.dtype == np.float32
    assert cells.X.has_sorted_indices and cells.X.data.min() >= 1
    assert (cells.X.data == np.rint(cells.X.data)).all()
    assert totals(cells).min() >= 1
    assert 1_800 < np.median(totals(cells)) < 5_000
    assert 0.04 < cells.X.nnz / (3000 * 2000) < 0.2
    # log-normal library sizes
    assert np.std(np.log(totals(cells))) == pytest.approx(0.38, abs=0.1)
    assert abs(stats.skew(np.log(totals(cells)))) < 0.3


def test_columns_and_ids(cells):
    assert set(ARCHS4) <= set(cells.obs)
    assert cells.obs[ARCHS4].notna().all().all()
    assert {"gene_id", "gene_name", "transcript_name"} <= set(cells.var)
    assert cells.var_names.is_unique and cells.obs_names.is_unique
    assert cells.var_names.str.fullmatch(r"ENST9\d{10}\.1").all()
    assert cells.var["gene_id"].str.fullmatch(r"ENSG9\d{10}").all()
    one_to_one = cells.var.groupby("gene_id", observed=True)["gene_name"].nunique()
    assert (one_to_one == 1).all() and cells.var["gene_name"].nunique() == len(one_to_one)
    assert cells.var["transcript_name"].is_unique
    for prefix in ("MT-", "RPL", "RPS"):
        assert cells.var["gene_name"].str.startswith(prefix).any()


def test_isoforms_per_gene_have_a_long_tail(cells):
    sizes = cells.var["gene_id"].value_counts()
    assert sizes.sum() == 2000
    assert 0.15 < (sizes == 1).mean() < 0.4
    assert (sizes > 20).sum() >= 2
    # a gene's transcripts stand together
    assert (cells.var["gene_id"].ne(cells.var["gene_id"].shift())).sum() == len(sizes)


def test_labels_are_numbered_by_size(cells):
    adata = simulated(300, 60, n_labels=12)
    labels = adata.obs["leiden"]
    assert list(labels.cat.categories) == [str(i) for i in range(12)]
    sizes = labels.value_counts().reindex(labels.cat.categories).to_numpy()
    assert sizes.sum() == 300 and sizes.min() >= 1 and (np.diff(sizes) <= 0).all()
    assert cells.obs["leiden"].value_counts().max() > 2 * cells.obs["leiden"].value_counts().min()
    # the order of the rows says nothing about the label
    assert abs(stats.spearmanr(np.arange(3000), cells.obs["leiden"].cat.codes).statistic) < 0.06
    assert (simulated(12, 60, n_labels=12).obs["leiden"].value_counts() == 1).all()


def test_truth_is_the_expectation_of_the_counts(cells):
    mean, usage = cells.varm["true_mean"], cells.varm["true_usage"]
    np.testing.assert_allclose(mean.sum(axis=0), 1e4, rtol=1e-4)
    by_gene = pd.DataFrame(usage).groupby(cells.var["gene_id"].to_numpy()).sum().to_numpy()
    np.testing.assert_allclose(by_gene, 1.0, rtol=1e-4)
    for label in cells.obs["leiden"].cat.categories:
        rows = (cells.obs["leiden"] == label).to_numpy()
        # E[y / depth] where depth is known only through the total: abundant features, a few per cent
        pooled = np.asarray(cells.X[rows].sum(axis=0)).ravel()
        expected = mean[:, int(label)] / 1e4 * pooled.sum()
        abundant = expected > 400
        assert abundant.sum() > 20
        error = np.log(pooled[abundant] / expected[abundant])
        assert np.median(np.abs(error)) < 0.06
        top = np.argsort(-expected)[:60]
        observed = usage_of(pooled, cells.var["gene_id"])
        assert np.median(np.abs(observed[top] - usage[top, int(label)])) < 0.03


def test_switches_are_in_the_counts(cells):
    table = cells.uns["true_switches"]
    assert list(table.columns) == ["gene_id", "transcript", "label", "delta"]
    assert len(table) % 2 == 0 and len(table) > 50
    assert (table["delta"].to_numpy()[0::2] < 0).all() and (table["delta"].to_numpy()[1::2] > 0).all()
    usage = pd.DataFrame(cells.varm["true_usage"], index=cells.var_names)
    observed_delta, true_delta = [], []
    counts = {k: cells.X[(cells.obs["leiden"] == k).to_numpy()].sum(axis=0).A1 for k in usage.columns.astype(str)}
    gene_total = {k: pd.Series(v).groupby(cells.var["gene_id"].to_numpy()).sum() for k, v in counts.items()}
    for row in table.itertuples():
        j = cells.var_names.get_loc(row.transcript)
        assert cells.var["gene_id"].iloc[j] == row.gene_id
        others = [k for k in counts if k != row.label]
        expected = (
            usage.loc[row.transcript, int(row.label)] - usage.loc[row.transcript, [int(k) for k in others]].mean()
        )
        assert row.delta == pytest.approx(expected, abs=1e-5)
        if min(gene_total[k][row.gene_id] for k in counts) >= 200:
            share = {k: counts[k][j] / gene_total[k][row.gene_id] for k in counts}
            observed_delta.append(share[row.label] - np.mean([share[k] for k in others]))
            true_delta.append(row.delta)
    assert len(true_delta) >= 10
    np.testing.assert_allclose(observed_delta, true_delta, atol=0.15)


def test_programs_vary_genes_and_usage_within_a_label(cells):
    rows = (cells.obs["leiden"] == "0").to_numpy()
    depth = totals(cells)[rows]
    counts = cells.X[rows].toarray()
    program = cells.obsm["true_program"][rows]
    assert program.shape == (671, 5) and (program.std(axis=0) > 0.5).all()
    abundant = np.flatnonzero(counts.mean(axis=0) > 3)
    log = np.log1p(counts[:, abundant] / depth[:, None] * 1e4)
    # correlated genes: more strong correlations than independent noise has (its sd is 1/sqrt(671) = 0.04)
    correlation = np.corrcoef(log.T)[np.triu_indices(abundant.size, 1)]
    assert (np.abs(correlation) > 0.16).mean() > 0.1
    # usage drifts: the isoform with the strongest usage loading in an abundant gene follows its program
    genes = cells.var["gene_id"].to_numpy()
    gene_counts = pd.DataFrame(counts.T).groupby(genes).transform("sum").to_numpy().T
    loading = cells.varm["true_usage_loadings"]
    usage = cells.varm["true_usage"][:, 0]
    strong = (np.abs(loading).max(axis=1) > 0.5) & (usage > 0.2) & (usage < 0.8) & (gene_counts.mean(axis=0) > 10)
    assert strong.sum() >= 5
    signs = []
    for j in np.flatnonzero(strong):
        k = np.abs(loading[j]).argmax()
        seen = gene_counts[:, j] > 0
        share = counts[seen, j] / gene_counts[seen, j]
        signs.append(np.corrcoef(share, program[seen, k])[0, 1] * np.sign(loading[j, k]))
    assert np.mean(np.array(signs) > 0.05) > 0.7


def test_noise_is_negative_binomial_with_the_dispersion_of_the_gene():
    rate = np.array([0.5, 2.0, 10.0, 40.0], dtype=np.float32)
    dispersion = np.array([0.2, 0.5, 1.0, 0.1], dtype=np.float32)
    counts = draw.draw_counts(
        lambda rows: np.tile(rate, (rows.stop - rows.start, 1)), 40_000, dispersion, 0, 0, False, ""
    ).toarray()
    np.testing.assert_allclose(counts.mean(axis=0), rate, rtol=0.03)
    np.testing.assert_allclose(counts.var(axis=0), rate + dispersion * rate**2, rtol=0.08)
    for j in range(4):
        zero = stats.nbinom.pmf(0, 1 / dispersion[j], 1 / (1 + dispersion[j] * rate[j]))
        assert (counts[:, j] == 0).mean() == pytest.approx(zero, abs=0.01)


def test_every_cell_has_a_count_even_when_shallow():
    adata = simulated(400, 300, 3, mean_depth=0.5)
    assert totals(adata).min() == 1
    assert np.median(totals(adata)) <= 2


def test_counts_are_drawn_in_bounded_blocks(monkeypatch):
    calls: list[int] = []

    def expected(rows: slice) -> np.ndarray:
        calls.append(rows.stop - rows.start)
        return np.full((rows.stop - rows.start, 40), 1e6, dtype=np.float32)

    monkeypatch.setattr(draw, "_BLOCK_VALUES", 40 * 7)
    counts = draw.draw_counts(expected, 25, np.full(40, 1e-8, dtype=np.float32), 0, 0, False, "")
    assert calls == [7, 7, 7, 4]  # never a dense n_obs x n_vars
    assert counts.shape == (25, 40) and counts.nnz == 1000
    # with next to no noise each row is its own expectation, so rows lie where they belong
    np.testing.assert_allclose(counts.toarray(), 1e6, rtol=0.01)
    # density that grows from block to block: the buffers grow with it
    sparse_first = draw.draw_counts(
        lambda rows: np.full((rows.stop - rows.start, 40), 1e-3 if rows.start == 0 else 50.0, dtype=np.float32),
        25,
        np.full(40, 0.1, dtype=np.float32),
        0,
        0,
        False,
        "",
    )
    assert sparse_first[7:].nnz > 700 and sparse_first[:7].nnz < 20


def test_seed_decides_and_only_it(cells):
    state = np.random.get_state()[1].copy()
    again, other = simulated(300, 200, 4, seed=5), simulated(300, 200, 4, seed=6)
    first = simulated(300, 200, 4, seed=5)
    assert (first.X != again.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert (first.X != other.X).nnz > 100
    assert (np.random.get_state()[1] == state).all()
    assert (simulated(seed=0).X != cells.X).nnz == 0


def test_none_takes_the_seed_of_the_settings(monkeypatch):
    from isd.settings import settings

    monkeypatch.setattr(settings, "seed", 5)
    assert (simulated(100, 100, 2, seed=None).X != simulated(100, 100, 2, seed=5).X).nnz == 0


def test_cells_of_both_are_those_of_single_cell(both):
    alone = simulated(1500, 600, 4, seed=3)
    assert (alone.X != both[0].X).nnz == 0
    pd.testing.assert_frame_equal(alone.var, both[0].var)


def test_bulk_mixes_the_same_labels(both):
    cells, bulk = both
    assert bulk.shape == (80, 600)
    assert (cells.var_names == bulk.var_names).all()
    assert list(bulk.obs["leiden"].cat.categories) == list(cells.obs["leiden"].cat.categories)
    share = bulk.obsm["true_proportions"]
    np.testing.assert_allclose(share.sum(axis=1), 1.0, atol=1e-5)
    assert (share.argmax(axis=1) == bulk.obs["leiden"].cat.codes).all()
    assert set(bulk.obs["leiden"]) == set(bulk.obs["leiden"].cat.categories)
    assert np.mean(totals(bulk)) == pytest.approx(1e6, rel=0.15)
    assert bulk.var["true_bulk_shift"].std() == pytest.approx(0.6, abs=0.06)
    assert not np.intersect1d(bulk.obs_names, cells.obs_names).size
    # the mixture of the labels' means, shifted, is what the counts are (up to noise): correlation of the logs
    expected = share @ bulk.varm["true_mean"].T * np.exp(bulk.var["true_bulk_shift"].to_numpy())
    expected *= (totals(bulk) / expected.sum(axis=1))[:, None]
    observed = bulk.X.toarray()
    seen = expected > 50
    error = np.log((observed[seen] + 1) / expected[seen])
    assert np.std(error) < 0.45
    unshifted = share @ bulk.varm["true_mean"].T
    unshifted *= (totals(bulk) / unshifted.sum(axis=1))[:, None]
    assert np.std(np.log((observed[seen] + 1) / unshifted[seen])) > 1.3 * np.std(error)
    # the pool's truth and the cells' truth are two samples of one world
    deep = cells.varm["true_mean"].min(axis=1) > 1
    assert (
        np.corrcoef(np.log(bulk.varm["true_mean"][deep].ravel()), np.log(cells.varm["true_mean"][deep].ravel()))[0, 1]
        > 0.99
    )


def test_mixing_more_cells_leaves_less_variation_of_programs():
    few = simulated(60, 100, 2, kind="bulk", cells_per_sample=(1, 2))
    many = simulated(60, 100, 2, kind="bulk", cells_per_sample=(400, 500))
    assert few.obsm["true_program"].std(axis=0).mean() > 2 * many.obsm["true_program"].std(axis=0).mean()


def test_batches_shift_genes_and_only_where_there_are_two():
    adata = simulated(1200, 300, 2, n_batches=3, batch_effect=0.8)
    assert list(adata.obs["batch"].cat.categories) == ["batch_0", "batch_1", "batch_2"]
    assert (adata.obs["batch"].value_counts() == 400).all()
    assert adata.obs.groupby("batch", observed=True)["series_id"].nunique().eq(1).all()
    assert stats.chi2_contingency(pd.crosstab(adata.obs["batch"], adata.obs["leiden"])).pvalue > 1e-3

    def spread(a: ad.AnnData) -> float:
        groups = np.arange(a.n_obs) % 3 if a.obs["batch"].nunique() == 1 else a.obs["batch"].cat.codes
        pooled = np.stack([a.X[np.flatnonzero(groups == g)].sum(axis=0).A1 for g in range(3)])
        pooled /= pooled.sum(axis=1, keepdims=True)
        return float(np.log(pooled[:, pooled.min(axis=0) > 1e-3]).std(axis=0).mean())

    assert spread(adata) > 4 * spread(simulated(1200, 300, 2, batch_effect=0.8))
    bulk = simulated(150, 300, 2, kind="bulk", n_batches=3, batch_effect=0.8)
    assert spread(bulk) > 4 * spread(simulated(150, 300, 2, kind="bulk", batch_effect=0.8))


def test_clusters_are_found_and_are_not_points(cells):
    from sklearn.decomposition import TruncatedSVD
    from sklearn.linear_model import LinearRegression, LogisticRegression

    log = (sparse.diags(1e4 / totals(cells)) @ cells.X).log1p()
    pcs = TruncatedSVD(20, random_state=0).fit_transform(log)
    pcs = (pcs - pcs.mean(axis=0)) / pcs.std(axis=0)
    train = np.arange(3000) % 2 == 0
    labels = cells.obs["leiden"].to_numpy()
    assert LogisticRegression(max_iter=500).fit(pcs[train], labels[train]).score(pcs[~train], labels[~train]) > 0.95
    program = cells.obsm["true_program"]
    assert LinearRegression().fit(pcs[train], program[train]).score(pcs[~train], program[~train]) > 0.6


@pytest.mark.parametrize("kind", ["single_cell", "bulk"])
def test_h5ad_round_trip(tmp_path, kind):
    adata = simulated(60, 120, 11, kind=kind, n_batches=2)
    before = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adata.write_h5ad(tmp_path / "a.h5ad")
        back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (back.X != before.X).nnz == 0 and back.X.dtype == np.float32
    assert list(back.obs["leiden"].cat.categories) == [str(i) for i in range(11)]
    pd.testing.assert_frame_equal(
        back.uns["true_switches"].astype({"gene_id": str, "transcript": str, "label": str}),
        before.uns["true_switches"],
        check_dtype=False,
    )
    for key in before.varm:
        np.testing.assert_array_equal(back.varm[key], before.varm[key])
    for key in before.obsm:
        np.testing.assert_array_equal(back.obsm[key], before.obsm[key])
    assert back.uns["simulated"]["kind"] == kind


def test_scanpy_takes_the_counts():
    import scanpy as sc

    adata = simulated(80, 100, 2)
    sc.pp.normalize_total(adata, target_sum=1e4)
    np.testing.assert_allclose(totals(adata), 1e4, rtol=1e-4)


def test_one_label_and_single_isoform_genes():
    adata = simulated(50, 2, n_labels=1)
    assert adata.shape == (50, 2) and totals(adata).min() >= 1
    assert len(simulated(50, 100, n_labels=1).uns["true_switches"]) == 0
    assert len(simulated(50, 100, n_labels=3, switch_fraction=0).uns["true_switches"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "nucleus"}, "kind is 'nucleus'"),
        ({"n_obs": 5, "n_labels": 8}, "n_obs is 5.*at least 8"),
        ({"n_vars": 1}, "n_vars is 1"),
        ({"n_labels": 0}, "n_labels is 0"),
        ({"n_obs": 10.5}, "whole number"),
        ({"n_batches": 0}, "n_batches is 0"),
        ({"n_programs": 0}, "n_programs is 0"),
        ({"mean_depth": 0}, "mean_depth is 0"),
        ({"bulk_depth": 1e9}, "float32"),
        ({"switch_fraction": 1.5}, "switch_fraction is 1.5"),
        ({"depth_sd": -1}, "depth_sd is -1"),
        ({"cells_per_sample": (9, 3)}, r"cells_per_sample is \(9, 3\)"),
    ],
)
def test_errors_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulated(**arguments)


def test_every_parameter_is_documented():
    for name in inspect.signature(simulated).parameters:
        assert name in simulated.__doc__
