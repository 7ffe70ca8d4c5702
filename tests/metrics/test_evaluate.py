from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from isd._hash import hash_names
from isd.metrics import METRICS, Yardstick, evaluate
from isd.metrics import _evaluate as module
from isd.metrics._registry import NEED_GENES

CHEAP = ["mmd", "wasserstein_1d", "kl_gaussian_diagonal", "coverage"]


def row(table: pd.DataFrame, metric: str, space: str = "pcs", group: str = "all") -> pd.Series:
    found = table.query("metric == @metric and space == @space and group == @group")
    assert len(found) == 1
    return found.iloc[0]


def test_all_metrics_globally_and_per_label(real, good, bad):
    tables = {
        "good": evaluate(real, good, groups=["a"], n_boot=50),
        "bad": evaluate(real, bad, groups=False, n_boot=50),
    }
    table = tables["good"]
    assert list(table.columns) == list(module.COLUMNS)
    default = [m for m in METRICS.values() if m.default]
    expected = {(m.name, space, group) for m in default for space in m.spaces for group in ("all", "a")}
    assert set(zip(table["metric"], table["space"], table["group"], strict=True)) == expected
    assert table[["value", "lower", "upper", "floor", "floor_lower", "floor_upper"]].notna().all(axis=None)
    assert (table["lower"] <= table["value"] + 1e-9).all() and (table["value"] <= table["upper"] + 1e-9).all()
    assert set(table["note"]) == {""}
    assert (table["verdict"] == "indistinguishable").mean() > 0.85 and "far" not in set(table["verdict"])
    worse = tables["bad"].set_index(["metric", "space"])["verdict"]
    assert worse["random_forest_auc", "features"] == worse["variance_error", "features"] == "far"

    for metric, space in (
        ("random_forest_auc", "features"),
        ("random_forest_auc", "pcs"),
        ("mmd", "features"),
        ("mmd", "pcs"),
        ("wasserstein_1d", "features"),
        ("sliced_wasserstein", "pcs"),
        ("kl_gaussian_diagonal", "pcs"),
    ):
        ok, off = row(table, metric, space), row(tables["bad"], metric, space)
        margin = 0.5 * (ok["floor_upper"] - ok["floor_lower"])
        assert ok["floor_lower"] - margin <= ok["value"] <= ok["floor_upper"] + margin, metric
        assert off["value"] > off["floor_upper"], metric
    assert row(tables["bad"], "mmd")["p_value"] < 0.05 < row(table, "mmd")["p_value"]
    agreement = row(table, "label_agreement", "features")
    assert agreement["value"] > 0.9 and agreement["floor"] > 0.9
    assert row(table, "label_agreement", "features", "a")["n_generated"] == (good.obs["label"] == "a").sum()

    # sizes: halves for what depends on n, all for what does not
    assert row(table, "mmd")["n_real"] == row(table, "random_forest_auc")["n_generated"] == 300
    assert row(table, "wasserstein_1d")["n_real"] == 150


def test_metrics_of_isoforms_need_genes(real, good):
    del real.var["gene_id"]
    table = evaluate(real, good, metrics=["wasserstein_1d", "marker_overlap"])
    assert not set(table["metric"]) & NEED_GENES
    assert not {m.name for m in module._resolve_metrics(None, has_genes=False)} & NEED_GENES
    assert {m.name for m in module._resolve_metrics("all", has_genes=True)} == set(METRICS)
    with pytest.raises(ValueError, match=r"\['usage_js_distance'\] need real.var\[\"gene_id\"\]"):
        evaluate(real, good, metrics=["mmd", "usage_js_distance"])


def test_isoforms_without_labels_are_pooled(real, good):
    for cells in (real, good):
        del cells.obs["label"]
    table = evaluate(real, good, metrics=sorted(NEED_GENES))
    found = table.set_index("metric")
    assert set(table["group"]) == {"all"}
    assert found.loc[["usage_js_distance", "gene_total_error", "dominant_isoform"], "value"].notna().all()
    # without labels nothing switches between them
    assert (
        np.isnan(found.loc["usage_switch_slope", "value"]) and "fewer than 5" in found.loc["usage_switch_slope", "note"]
    )


def test_other_classifiers(real, good, bad):
    names = ["logistic_regression_auc", "gradient_boosting_auc"]
    ok, off = (evaluate(real, f, metrics=names, groups=False, max_cells=150, n_boot=20) for f in (good, bad))
    assert (ok["verdict"] != "far").all() and len(ok) == 4
    assert (
        row(off, "gradient_boosting_auc", "features")["value"]
        > row(ok, "gradient_boosting_auc", "features")["value"] + 0.1
    )
    assert "roc" not in good.uns["isd"]  # curves are those of the forest


def test_what_is_written_survives_h5ad(real, good, tmp_path):
    before = {key: good.obs[key].copy() for key in good.obs}
    table = evaluate(real, good, metrics=["random_forest_auc", "mmd"], groups=False, max_cells=80, n_boot=20)
    roc = good.uns["isd"]["roc"]
    assert set(roc["source"]) == {"generated", "floor"} and set(roc["space"]) == {"features", "pcs"}
    assert len(roc) == 4 * 101
    auc = np.trapezoid(*roc.query("source == 'generated' and space == 'pcs'")[["tpr", "fpr"]].to_numpy().T)
    assert auc == pytest.approx(row(table, "random_forest_auc")["value"], abs=0.01)
    good.write_h5ad(tmp_path / "fake.h5ad")
    back = ad.read_h5ad(tmp_path / "fake.h5ad")
    pd.testing.assert_frame_equal(
        back.uns["isd"]["metrics"].reset_index(drop=True), table, check_dtype=False, check_index_type=False
    )
    assert list(back.uns["isd"]["roc"].columns) == list(roc.columns)
    assert back.uns["isd"]["labels_key"] == "label"  # what was there stays
    assert all(good.obs[key].equals(column) for key, column in before.items())


def test_nothing_is_fitted_on_test_or_generated_cells(real, good, monkeypatch):
    fitted = []
    original = Yardstick.fit.__func__

    def spy(cls, counts, var_names, **options):
        fitted.append(original(cls, counts, var_names, **options))
        return fitted[-1]

    monkeypatch.setattr(Yardstick, "fit", classmethod(spy))
    rng = np.random.default_rng(0)
    first = evaluate(real, good, metrics="wasserstein_1d", groups=False)
    shaken = real.copy()
    dense = shaken.X.toarray()
    test = (shaken.obs["isd_split"] == "test").to_numpy()
    dense[test] = rng.poisson(5.0, size=dense[test].shape)
    shaken.X = sparse.csr_matrix(dense)
    other = good.copy()
    other.X = sparse.csr_matrix(rng.poisson(1.0, size=good.shape).astype(np.float32))
    second = evaluate(shaken, other, metrics="wasserstein_1d", groups=False)
    one, two = fitted
    np.testing.assert_array_equal(one.feature_index, two.feature_index)
    np.testing.assert_array_equal(one.components, two.components)
    np.testing.assert_array_equal(one.mean, two.mean)
    for space in ("features", "pcs"):
        np.testing.assert_array_equal(one.bandwidths[space], two.bandwidths[space])
    assert (first["value"] != second["value"]).all()
    # and it does depend on the training cells
    dense = real.X.toarray()
    dense[~test] = rng.poisson(5.0, size=dense[~test].shape)
    shaken.X = sparse.csr_matrix(dense)
    evaluate(shaken, good, metrics="wasserstein_1d", groups=False)
    assert not np.array_equal(fitted[2].mean, one.mean)


def test_same_seed_same_table_and_rows_do_not_depend_on_each_other(real, good):
    full = evaluate(real, good, metrics=CHEAP, n_boot=30)
    pd.testing.assert_frame_equal(full, evaluate(real, good, metrics=CHEAP, n_boot=30))
    part = evaluate(real, good, metrics=["coverage"], groups=["b"], n_boot=30)
    for group in ("all", "b"):
        pd.testing.assert_series_equal(
            row(part, "coverage", group=group), row(full, "coverage", group=group), check_names=False
        )
    other = evaluate(real, good, metrics=CHEAP, n_boot=30, seed=1)
    assert (other["value"] != full["value"]).any()


def test_other_order_of_features_changes_nothing(real, good):
    table = evaluate(real, good, metrics=CHEAP, groups=False, n_boot=20)
    shuffled = good[:, np.random.default_rng(0).permutation(good.n_vars)].copy()
    again = evaluate(real, shuffled, metrics=CHEAP, groups=False, n_boot=20)
    np.testing.assert_allclose(table["value"], again["value"], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="20 of the 120 features of `real` are missing"):
        evaluate(real, good[:, :100].copy())


def test_labels_that_are_integers_or_numbers_in_strings_keep_their_meaning(real, good):
    codes = {"a": 0, "b": 10, "c": 2}
    for cells in (real, good):
        cells.obs["leiden"] = cells.obs["label"].astype(str).map(codes)
    good.obs["leiden"] = pd.Categorical(good.obs["leiden"].astype(str), categories=["10", "2", "0"])
    table = evaluate(real, good, labels_key="leiden", metrics="label_agreement")
    assert list(table["group"]) == ["all", "0", "2", "10"]
    assert (table["value"] > 0.9).all()


def test_small_groups_say_so_and_give_no_number(real, good):
    keep = np.r_[np.flatnonzero(good.obs["label"] != "c"), np.flatnonzero(good.obs["label"] == "c")[:12]]
    few = good[keep].copy()
    table = evaluate(real, few, metrics=["mmd", "coverage", "label_agreement"], n_boot=20)
    small = table.query("group == 'c' and metric != 'label_agreement'")
    assert (
        small.drop(columns=["metric", "space", "group", "verdict", "n_real", "n_generated", "note"])
        .isna()
        .all(axis=None)
    )
    assert set(small["verdict"]) == {""}
    assert set(small["note"]) == {"n too small"} and set(small["n_generated"]) == {12}
    assert row(table, "label_agreement", "features", "c")["value"] > 0.5
    assert "label proportions differ (total variation" in row(table, "mmd")["note"]
    assert row(table, "mmd", group="a")["note"] == ""
    with_limit = evaluate(real, few, metrics="mmd", groups=["c"], min_cells=12, n_boot=20)
    assert with_limit["value"].notna().all()
    tiny = real[np.r_[:100, 300:318]].copy()
    table = evaluate(tiny, good, metrics=["random_forest_auc", "mmd"], groups=False)
    assert set(table["note"].str.split(";").str[0]) == {"n too small"} and table["value"].isna().all()
    assert good.uns["isd"]["roc"].empty


def test_a_label_without_generated_cells(real, good):
    only = good[good.obs["label"] == "a"].copy()
    table = evaluate(real, only, metrics="coverage")
    assert row(table, "coverage", group="b")["n_generated"] == 0
    assert row(table, "coverage", group="b")["note"] == "n too small"
    assert row(table, "coverage", group="a")["value"] > 0.8


def test_reference_without_a_split(real, good):
    unsplit = real.copy()
    del unsplit.obs["isd_split"]
    with pytest.warns(UserWarning, match="may have been seen in training"):
        table = evaluate(unsplit, good, metrics="mmd", groups=False)
    assert table["note"].str.contains("no held-out split").all()

    seen = unsplit.obs_names[:300]
    good.uns["isd"]["train_obs_hash"] = hash_names(seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held_out = evaluate(unsplit, good, metrics="mmd", groups=False)
    assert set(held_out["note"]) == {""} and set(held_out["n_real"]) == {300}
    # the same rows as with the split: the same table
    pd.testing.assert_frame_equal(held_out, evaluate(real, good, metrics="mmd", groups=False))

    good.uns["isd"]["train_obs_hash"] = hash_names(unsplit.obs_names)
    with pytest.warns(UserWarning, match=r"seen in training \(300 of 300\)"):
        evaluate(real, good, metrics="mmd", groups=False)
    good.uns["isd"]["train_obs_hash"] = hash_names(["elsewhere"])
    table = evaluate(unsplit, good, metrics="mmd", groups=False)
    assert table["note"].str.contains("yardstick fitted on a random half").all()


def test_fractional_real_counts_are_noted(real, good):
    fractions = real.copy()
    fractions.X = fractions.X * 1.37
    table = evaluate(fractions, good, metrics="mmd", groups=False)
    assert table["note"].str.contains("real counts have fractions").all()


def test_counts_may_lie_in_a_layer(real, good):
    expected = evaluate(real, good, metrics="mmd", groups=False)
    for cells in (real, good):
        cells.layers["counts"] = cells.X.copy()
        cells.X = cells.X.log1p()
    pd.testing.assert_frame_equal(evaluate(real, good, metrics="mmd", groups=False), expected)
    with pytest.raises(ValueError, match="log-normalised"):
        evaluate(real, good, layer="X")


def test_a_view_is_evaluated_but_not_written_to(real, good):
    view = good[:200]
    table = evaluate(real, view, metrics="mmd", groups=False)
    assert table["value"].notna().all() and view.is_view and "metrics" not in good.uns["isd"]
    evaluate(real, good, metrics="mmd", groups=False, key_added=None)
    assert "metrics" not in good.uns["isd"]
    evaluate(real, good, metrics="mmd", groups=False, key_added="mine")
    assert "mine" in good.uns["isd"]


def test_bad_arguments_are_refused_before_time_is_spent(real, good):
    cases = [
        (KeyError, "labels_key 'nope'", {"labels_key": "nope"}),
        (KeyError, r"groups \['z'\]", {"groups": ["z"]}),
        (ValueError, "not known", {"metrics": ["accuracy"]}),
        (ValueError, "reference='train'", {"reference": "train"}),
        (ValueError, "no row 'validation'", {"reference": "validation"}),
        (ValueError, "min_cells=3", {"min_cells": 3}),
        (ValueError, "max_cells=3", {"max_cells": 3}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            evaluate(real, good, **options)
    good.obs["label"] = good.obs["label"].cat.rename_categories({"a": "all"})
    with pytest.raises(ValueError, match="called 'all'"):
        evaluate(real, good)
    assert "metrics" not in good.uns["isd"]


def test_real_against_real_is_mostly_within_the_floor(cells):
    """Calibration: cells of one distribution, all metrics but the (slow) classifiers."""
    names = [name for name in METRICS if not name.endswith("_auc")]
    inside = []
    for seed in range(8):
        real = cells(500, seed=100 + seed, n_vars=60)
        real.obs["isd_split"] = ["train"] * 250 + ["test"] * 250
        fake = cells(250, seed=200 + seed, n_vars=60)
        table = evaluate(real, fake, labels_key="label", metrics=names, groups=False, n_boot=99)
        table = table[table["value"].notna()]  # so few genes have no switches
        inside.append(table.set_index(["metric", "space"])["verdict"] == "indistinguishable")
    table = pd.concat(inside, axis=1).astype(float)
    assert set(names) - set(table.index.get_level_values("metric")) <= {"usage_switch_slope", "usage_switch_sign"}
    assert table.mean(axis=None) >= 0.9 and table.mean(axis=1).min() >= 0.5


def test_held_out_real_cells_are_within_the_floor(data_dir):
    """Real cells that the yardstick has not seen, in the place of generated ones."""
    cells = ad.read_h5ad(data_dir / "sc_mouse_sperm_polya_sites_dev.h5ad")
    order = np.random.default_rng(0).permutation(cells.n_obs)
    held_out, rest = cells[order[:400]].copy(), cells[order[400:]].copy()
    rest.obs["isd_split"] = ["test"] * 400 + ["train"] * (rest.n_obs - 400)
    names = [name for name in METRICS if not name.endswith("_auc") and name not in NEED_GENES]
    table = evaluate(rest, held_out, labels_key="celltype", metrics=names, n_boot=99)
    large = table[table["value"].notna() & table["floor"].notna()]
    assert large["value"].between(large["floor_lower"], large["floor_upper"]).mean() >= 0.8
    assert row(table, "label_agreement", "features")["value"] > 0.9


def test_fractions_of_a_model_with_squared_error_are_judged_as_they_are():
    rng = np.random.default_rng(0)
    real = ad.AnnData(rng.poisson(1.0, size=(120, 20)).astype("float32"))
    real.obs["isd_split"] = ["train"] * 60 + ["test"] * 60
    fake = ad.AnnData(
        rng.gamma(2.0, 0.5, size=(60, 20)).astype("float32")
    )  # all of them small, and no count among them
    with pytest.raises(ValueError, match="looks log-normalised"):
        evaluate(real, fake, metrics=["mean_error"], n_boot=20)
    fake.uns["isd"] = {"likelihood": "normal"}  # as isd.tl.generate says
    assert evaluate(real, fake, metrics=["mean_error"], n_boot=20)["value"].notna().all()
