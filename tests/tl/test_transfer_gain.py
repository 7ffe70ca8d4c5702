import numpy as np
import pytest
from scipy import stats

import isd
from isd.model import VAE
from isd.tl._transfer_gain import _judge, _with_inner_split, interval

SMALL = {"n_hidden": 16, "n_latent": 4, "output_rank": 6}
QUICK = {"steps": [0.1], "n_trainings": 1, "n_mc_samples": 2, "progress": False}


@pytest.fixture(scope="module")
def reference(_simulated):
    atlas = _simulated[:200].copy()
    VAE.setup_anndata(atlas)
    vae = VAE(atlas, **SMALL)
    vae.train(max_steps=150, gene_encoder=False)
    return vae


def test_a_related_reference_gains_on_held_out_cells(adata, reference):
    mine = adata[200:].copy()
    mine.obs["isd_split"] = np.resize(["train", "validation", "validation", "test"], mine.n_obs)
    VAE.setup_anndata(mine)
    obs, before = mine.obs.copy(), reference.fingerprint
    found = isd.tl.transfer_gain(reference, mine, **QUICK)
    assert found.table.loc["pretrained", "gain"] > 5
    assert found.table.loc["pretrained", "low"] > 0
    assert found.table.loc["scratch", "gain"] == 0
    held_out = mine.obs_names[mine.obs["isd_split"] == "validation"]
    assert list(found.cells.index) == list(held_out)
    means = -found.cells.mean()
    np.testing.assert_allclose(means, found.table["neg_log_likelihood"], rtol=1e-6)
    assert mine.obs.equals(obs) and reference.fingerprint == before
    assert VAE(mine, **SMALL).adata is mine, "its registration is still the caller's"
    # what one does next: the cells are still registered
    assert VAE.from_pretrained(reference, mine).adata is mine


def test_test_cells_are_left_out_and_a_part_of_the_training_cells_chooses(adata):
    adata.obs["isd_split"] = np.resize(["train", "validation", "train", "test"], adata.n_obs)
    train, held_out = (np.flatnonzero(adata.obs["isd_split"] == part) for part in ("train", "validation"))
    cells = _with_inner_split(adata, train, held_out, adata.obs["leiden"].cat.codes.to_numpy(), seed=0)
    parts = {part: list(names) for part, names in cells.obs_names.groupby(cells.obs["isd_split"]).items()}
    assert parts["test"] == list(adata.obs_names[held_out])
    assert sorted(parts["train"] + parts["validation"]) == sorted(adata.obs_names[train])
    assert 0.15 < len(parts["validation"]) / len(train) < 0.25


def test_the_interval_is_that_of_students_paired_test_and_grows_with_trainings_that_differ():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, 40)
    mean, low, high = interval(x[None])
    expected = stats.ttest_1samp(x, 0.0).confidence_interval()
    np.testing.assert_allclose([mean, low, high], [x.mean(), expected.low, expected.high])
    apart = interval(np.stack([x - 1, x + 1]))
    assert apart[0] == pytest.approx(mean) and apart[1] < low


@pytest.mark.parametrize(
    ("shuffled", "pretrained", "verdict", "worth_it"),
    [
        (0.0, 10.0, "Worth it", True),
        (8.0, 10.0, "Not by what the reference knows", False),
        (0.0, -10.0, "does harm", False),
        (0.0, 0.1, "No gain beyond noise", False),
    ],
)
def test_the_verdict_follows_the_intervals(shuffled, pretrained, verdict, worth_it):
    rng = np.random.default_rng(0)
    scratch = rng.normal(-500, 50, 40)
    arms = {"scratch": 0.0, "shuffled": shuffled, "pretrained": pretrained}
    likelihoods = {arm: [scratch + gain + rng.normal(0, 3, 40)] for arm, gain in arms.items()}
    found = _judge(likelihoods, {arm: [1] for arm in arms}, np.arange(40).astype(str))
    assert verdict in found.verdict and found.worth_it == worth_it
    assert f"{found.table.loc['pretrained', 'gain']:+.1f}" in found.verdict


def test_errors_say_what_to_do(adata, reference):
    fresh = adata[200:].copy()
    with pytest.raises(ValueError, match="not registered"):
        isd.tl.transfer_gain(reference, fresh, **QUICK)
    VAE.setup_anndata(fresh)
    with pytest.raises(ValueError, match="steps is"):
        isd.tl.transfer_gain(reference, fresh, steps=[])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        isd.tl.transfer_gain(reference, fresh, n_trainings=0)
    fresh.obs["isd_split"] = np.where(np.arange(fresh.n_obs) < 3, "validation", "train")
    with pytest.raises(ValueError, match="3 held-out cells"):
        isd.tl.transfer_gain(reference, fresh, **QUICK)


def test_what_from_pretrained_refuses_is_refused_before_any_training(adata, reference, monkeypatch):
    mine = adata[200:].copy()
    VAE.setup_anndata(mine)

    def train(self, **kwargs):
        raise AssertionError("time was spent")

    monkeypatch.setattr(VAE, "train", train)
    with pytest.raises(ValueError, match="no part of a VAE"):
        isd.tl.transfer_gain(reference, mine, from_pretrained_kwargs={"freeze": "head"}, **QUICK)


def test_a_union_of_vocabularies_is_judged_by_what_was_measured(adata, reference):
    mine = adata[200:, 40:].copy()
    VAE.setup_anndata(mine)
    options = {**QUICK, "steps": [0.01]}
    found = isd.tl.transfer_gain(reference, mine, from_pretrained_kwargs={"vocabulary": "union"}, **options)
    # the same features in all arms, or their likelihoods would be far apart
    assert 0.5 < found.table["neg_log_likelihood"].min() / found.table["neg_log_likelihood"].max() <= 1
