"""Each defect is found by the metric made for it, and left alone by those that must not see it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from isd.metrics import METRICS, SEED_METRICS, baselines, evaluate

BLIND = ["library_size", "gene_total_error", "usage_js_distance", "label_agreement", "exact_copy_rate"]
SEEN = [
    "zero_fraction_error",
    "correlation_error",
    "nearest_distance_ratio",
    "log_fold_change_slope",
    "dominant_isoform",
]


@pytest.fixture(scope="module")
def parts() -> tuple[ad.AnnData, ad.AnnData]:
    from isd.datasets import simulated

    cells = simulated(900, 300, n_labels=3, mean_depth=2000, seed=5, progress=False)
    part = np.random.default_rng(0).permutation(np.repeat(["train", "test", "fake"], 300))
    real = cells[part != "fake"].copy()
    real.obs["isd_split"] = part[part != "fake"]
    return real, cells[part == "fake"].copy()


def judged(real: ad.AnnData, fake: ad.AnnData) -> pd.Series:
    table = evaluate(real, fake, metrics=BLIND + SEEN, groups=False, n_boot=50, key_added=None)
    return table.set_index("metric")["verdict"]


def test_unseen_real_cells_are_indistinguishable(parts):
    assert (judged(*parts) != "far").all()
    assert (judged(*parts) == "indistinguishable").mean() >= 0.8


@pytest.mark.parametrize(
    ("defect", "far", "not_far"),
    [
        (
            "labels",
            ["label_agreement", "log_fold_change_slope"],
            ["library_size", "zero_fraction_error", "exact_copy_rate"],
        ),
        ("usage", ["usage_js_distance", "dominant_isoform"], ["gene_total_error", "library_size", "exact_copy_rate"]),
        (
            "depth",
            ["library_size"],
            ["usage_js_distance", "zero_fraction_error", "gene_total_error", "label_agreement"],
        ),
        ("blur", ["zero_fraction_error"], ["exact_copy_rate"]),
        ("independent_nb", ["correlation_error"], ["dominant_isoform", "exact_copy_rate", "label_agreement"]),
        ("training_copies", ["exact_copy_rate", "nearest_distance_ratio"], ["library_size", "usage_js_distance"]),
    ],
)
def test_defects(parts, defect, far, not_far):
    real, fake = parts
    rng = np.random.default_rng(1)
    spoilt = fake.copy()
    if defect in ("independent_nb", "training_copies"):
        spoilt = baselines(real, which=[defect])[defect]
    elif defect == "labels":
        spoilt.obs["leiden"] = rng.permutation(fake.obs["leiden"].astype(str))
    elif defect == "usage":
        columns = np.arange(fake.n_vars)
        for of_gene in fake.var.groupby("gene_id", observed=True).indices.values():
            columns[of_gene] = np.roll(of_gene, 1)
        spoilt.X = fake.X[:, columns]
    elif defect == "depth":
        spoilt.X = fake.X * 2
    elif defect == "blur":
        spoilt.X = sparse.csr_matrix(np.maximum(np.rint(fake.X.toarray() + rng.normal(size=fake.shape)), 0))
    verdicts = judged(real, spoilt)
    assert set(verdicts[far]) == {"far"}
    assert "far" not in set(verdicts[not_far])


def test_baselines_stand_beside_the_values(parts):
    real, fake = parts
    names = ["usage_js_distance", "within_gene_correlation", "exact_copy_rate", "wasserstein_1d"]
    table = evaluate(real, fake, metrics=names, groups=["0"], baselines=True)
    found = [column for column in table.columns if column.startswith("baseline_")]
    assert found == ["baseline_pooled_usage", "baseline_independent_nb", "baseline_training_copies"]
    assert table[found].notna().all(axis=None)
    rows = table[table["group"] == "all"].set_index("metric")
    assert rows.loc["exact_copy_rate", "baseline_training_copies"] == 1
    assert (
        rows.loc["within_gene_correlation", "baseline_pooled_usage"]
        > rows.loc["within_gene_correlation", "floor_upper"]
    )
    # the same cells given by hand, and as the generated ones: the same numbers
    given = baselines(real, which=["independent_nb"], n_obs=300)
    by_hand = evaluate(real, fake, metrics=names, groups=["0"], baselines=given)
    as_generated = evaluate(real, given["independent_nb"], metrics=names, groups=["0"])
    np.testing.assert_allclose(by_hand["baseline_independent_nb"], as_generated["value"])
    np.testing.assert_allclose(by_hand["baseline_independent_nb"], table["baseline_independent_nb"])
    assert "baseline_independent_nb" in fake.uns["isd"]["metrics"]
    with pytest.raises(ValueError, match=r"missing in `baselines\['short'\]`"):
        evaluate(real, fake, baselines={"short": fake[:, :10].copy()})


def test_the_starting_projects_definitions(parts, monkeypatch):
    from isd.metrics import _seed_rows

    forest = _seed_rows.seed_rf_auc
    monkeypatch.setattr(_seed_rows, "seed_rf_auc", lambda x, y, **kw: forest(x, y, n_estimators=40, **kw))
    real, fake = parts
    doubled = fake.copy()
    doubled.X = fake.X[:, np.random.default_rng(0).permutation(fake.n_vars)]
    tables = [evaluate(real, f, metrics="seed", groups=["0"]).set_index(["metric", "group"]) for f in (fake, doubled)]
    assert set(tables[0].index.get_level_values("metric")) == set(SEED_METRICS)
    assert set(tables[0]["space"]) == {"union_pcs"}
    for table in tables:  # 150 cells of each: 2/n for good cells and for nonsense
        assert table.loc[("seed_mmd", "all"), "value"] == pytest.approx(2 / 150, rel=0.01)
        assert "2/n whatever is compared" in table.loc[("seed_mmd", "all"), "note"]
    good, bad = (table.loc[("seed_rf_auc", "all"), "value"] for table in tables)
    assert good < 0.65 < 0.9 < bad
    assert tables[0].loc[("seed_wasserstein", "all"), "verdict"] == "indistinguishable"
    assert not set(SEED_METRICS) & set(METRICS)
