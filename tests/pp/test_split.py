from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from isd.pp import split


def make(labels: list | np.ndarray, **columns) -> ad.AnnData:
    labels = np.asarray(labels, dtype=object)
    obs = pd.DataFrame({"cell_type": labels, **columns}, index=[f"c{i}" for i in range(labels.size)])
    return ad.AnnData(np.ones((labels.size, 2), dtype=np.float32), obs=obs)


def counts(adata: ad.AnnData, key: str = "isd_split") -> list[int]:
    return adata.obs[key].value_counts().reindex(["train", "validation", "test"]).tolist()


def test_sizes_are_exact_and_strata_proportional():
    adata = make(["a"] * 500 + ["b"] * 333 + ["c"] * 67 + ["d"] * 3)
    split(adata, labels_key="cell_type")
    assert list(adata.obs["isd_split"].cat.categories) == ["train", "validation", "test"]
    assert counts(adata) == [903 - 90 - 271, 90, 271]
    table = pd.crosstab(adata.obs["cell_type"], adata.obs["isd_split"])
    sizes = table.sum(axis=1)
    assert ((table["test"] - sizes * 271 / 903).abs() <= 1).all()
    assert ((table["validation"] - sizes * 90 / 903).abs() <= 1).all()
    assert (table["train"] >= 1).all()


@pytest.mark.parametrize("n", range(2, 30))
def test_documented_sizes_of_small_data(n):
    adata = make(["a"] * n)
    split(adata)
    n_test = max(1, int(np.floor(0.3 * n + 0.5)))
    n_validation = max(1, int(np.floor(0.1 * n + 0.5))) if n > 2 else 0
    assert counts(adata) == [n - n_test - n_validation, n_validation, n_test]


def test_every_label_is_trained_on():
    rng = np.random.default_rng(0)
    for seed in range(20):
        sizes = rng.integers(1, 8, 15)
        adata = make(np.repeat([f"l{i}" for i in range(15)], sizes))
        split(adata, labels_key="cell_type", test_size=0.4, validation_size=0.2, seed=seed)
        table = pd.crosstab(adata.obs["cell_type"], adata.obs["isd_split"])
        assert (table["train"] >= 1)[table.sum(axis=1) >= 3].all()
        n = int(sizes.sum())
        assert counts(adata)[1:] == [int(np.floor(0.2 * n + 0.5)), int(np.floor(0.4 * n + 0.5))]


def test_labels_of_single_cells_do_not_break_the_sizes():
    adata = make([f"l{i}" for i in range(20)])
    split(adata, labels_key="cell_type")
    assert counts(adata) == [12, 2, 6]


def test_leiden_is_the_default_stratum_and_missing_labels_are_one():
    labels = np.array(["0"] * 80 + ["1"] * 10 + [None] * 10, dtype=object)
    adata = make(labels, leiden=pd.Categorical(labels))
    split(adata)
    table = adata.obs["isd_split"].eq("test").groupby(labels.astype(str)).sum()
    assert table.to_dict() == {"0": 24, "1": 3, "None": 3}
    unstratified = make(labels)
    tests = []
    for seed in range(30):
        split(unstratified, seed=seed)
        tests.append(unstratified.obs["isd_split"].eq("test")[labels == "1"].sum())
    assert len(set(tests)) > 1  # without leiden, nothing is stratified


def test_groups_are_not_divided():
    rng = np.random.default_rng(1)
    donor = np.array([f"d{i}" for i in rng.choice(12, 600, p=rng.dirichlet(np.full(12, 4.0)))])
    adata = make(rng.choice(list("abc"), 600), donor=donor)
    split(adata, labels_key="cell_type", batch_key="donor", seed=3)
    assert (pd.crosstab(adata.obs["donor"], adata.obs["isd_split"]) > 0).sum(axis=1).eq(1).all()
    train, validation, test = counts(adata)
    assert abs(test - 180) <= 30 and abs(validation - 60) <= 30 and train + validation + test == 600


@pytest.mark.parametrize(("n_groups", "expected"), [(2, [True, False, True]), (3, [True, True, True])])
def test_few_groups(n_groups, expected):
    adata = make(["a"] * 30, donor=np.resize([f"d{i}" for i in range(n_groups)], 30))
    split(adata, batch_key="donor")
    assert [n > 0 for n in np.nan_to_num(counts(adata))] == expected


def test_groups_leave_labels_to_train_on_where_they_can():
    # the label "rare" lives in one donor: this must not be held out
    donor = np.repeat([f"d{i}" for i in range(6)], 20)
    labels = np.where((donor == "d2") & (np.arange(120) % 2 == 0), "rare", "common")
    for seed in range(10):
        adata = make(labels, donor=donor)
        split(adata, labels_key="cell_type", batch_key="donor", seed=seed)
        assert (adata.obs.loc[donor == "d2", "isd_split"] == "train").all()


def test_seed_copy_and_key():
    adata = make(["a"] * 60)
    first = split(adata, copy=True)
    assert "isd_split" not in adata.obs
    split(adata, key_added="other")
    assert (adata.obs["other"] == first.obs["isd_split"]).all()
    split(adata, key_added="other", seed=1)
    assert (adata.obs["other"] != first.obs["isd_split"].astype(str)).any()
    split(adata, test_size=0, validation_size=0)
    assert (adata.obs["isd_split"] == "train").all()


def test_view_becomes_its_own_object():
    whole = make(["a"] * 40)
    view = whole[:20]
    split(view)
    assert view.obs["isd_split"].notna().all() and "isd_split" not in whole.obs


def test_backed_data_are_split(tmp_path):
    make(["a"] * 20).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    split(adata)
    assert counts(adata) == [12, 2, 6]
    adata.file.close()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels_key": "none"}, KeyError, "labels_key 'none' is not in adata.obs"),
        ({"batch_key": "none"}, KeyError, "batch_key 'none'"),
        ({"test_size": 1.2}, ValueError, "test_size is 1.2"),
        ({"validation_size": -0.1}, ValueError, "validation_size is -0.1"),
        ({"test_size": 0.6, "validation_size": 0.4}, ValueError, "nothing to train on"),
        ({"batch_key": "one"}, ValueError, "one group only"),
        ({"batch_key": "gaps"}, ValueError, "1 cells have no value"),
    ],
)
def test_errors(arguments, error, message):
    adata = make(["a"] * 4, one="x", gaps=["x", "y", None, "y"])
    before = adata.obs.copy()
    with pytest.raises(error, match=message):
        split(adata, **arguments)
    pd.testing.assert_frame_equal(adata.obs, before)
    with pytest.raises(ValueError, match="1 cells"):
        split(adata[:1])
