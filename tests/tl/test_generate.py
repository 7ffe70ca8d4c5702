import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd
from isd.model import LatentDiffusion


def counts_of(adata):
    return adata.X.toarray()


def test_exactly_the_asked_number_in_the_training_proportions(trained):
    fake = isd.tl.generate(trained, n_obs=101, seed=0)
    assert fake.shape == (101, 200)
    train = trained.adata.obs["leiden"].iloc[trained.train_indices].value_counts(normalize=True)
    made = fake.obs["leiden"].value_counts(normalize=True)
    assert (train - made).abs().max() < 1 / 101
    assert isd.tl.generate(trained).n_obs == len(trained.train_indices)


def test_counts_are_counts_and_slots_are_there(trained):
    fake = isd.tl.generate(trained, n_obs=30, seed=0)
    assert isinstance(fake.X, sparse.csr_matrix)
    assert (fake.X.data == np.rint(fake.X.data)).all() and (fake.X.data > 0).all()
    assert (np.asarray(fake.X.sum(1)) > 0).all()
    assert not fake.layers
    assert fake.obs_names[0] == "generated_0" and fake.obs_names.is_unique
    assert fake.var_names.equals(trained.adata.var_names)
    assert {"gene_id", "gene_name"} <= set(fake.var)
    assert fake.obsm["X_isd_vae"].shape == (30, trained.vae.module.n_latent)
    assert fake.obs["leiden"].cat.categories.tolist() == ["2", "0", "3", "1"]
    provenance = fake.uns["isd"]
    assert provenance["fingerprint"] == trained.fingerprint
    assert provenance["n_network_calls"] == 23


def test_counts_in_a_layer_go_with_log_normalised_x(adata):
    isd.pp.recipe(adata)
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, n_hidden=16)
    model.train(max_steps=3, vae_kwargs={"max_steps": 3})
    fake = isd.tl.generate(model, n_obs=8, seed=0)
    counts = fake.layers["counts"].toarray()
    np.testing.assert_allclose(fake.X.toarray(), np.log1p(counts / counts.sum(1, keepdims=True) * 1e4), rtol=1e-5)
    both = anndata.concat([adata, fake])
    assert both.obs["leiden"].notna().all()


def test_the_result_can_be_written_and_read(trained, tmp_path):
    fake = isd.tl.generate(trained, n_obs=5, seed=0)
    fake.write_h5ad(tmp_path / "fake.h5ad")
    again = anndata.read_h5ad(tmp_path / "fake.h5ad")
    np.testing.assert_array_equal(counts_of(again), counts_of(fake))
    assert again.uns["isd"]["seed"] == 0
    np.testing.assert_array_equal(again.uns["isd"]["train_obs_hash"], trained.train_obs_hash)


def test_a_seed_gives_the_same_cells_and_another_seed_others(trained):
    one, two, other = (isd.tl.generate(trained, n_obs=20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(counts_of(one), counts_of(two))
    assert (counts_of(one) != counts_of(other)).any()


@pytest.mark.parametrize("sampler", ["heun", "ddpm"])
def test_counts_do_not_depend_on_the_batch_size(trained, sampler):
    cells = [
        isd.tl.generate(trained, n_obs=300, seed=3, batch_size=b, sampler=sampler, n_steps=5).X
        for b in (1, 64, 256, 600)
    ]
    for other in cells[1:]:
        assert (cells[0] != other).nnz == 0


def test_the_first_tile_is_the_same_in_a_longer_run(trained):
    """One random stream for each tile of 256 cells."""
    short = isd.tl.generate(trained, n_obs=256, labels="0", seed=3, library_size=300)
    long = isd.tl.generate(trained, n_obs=300, labels="0", seed=3, library_size=300)
    assert (short.X != long.X[:256]).nnz == 0


@pytest.mark.parametrize(
    ("labels", "n_obs", "expected"),
    [
        ({"0": 2, "3": 1}, None, ["0", "0", "3"]),
        ("1", 2, ["1", "1"]),
        (["3", "2", "3"], None, ["3", "2", "3"]),
        (np.array(["1", "0"]), 2, ["1", "0"]),
        (pd.Series(["1", "0"], dtype="category"), 2, ["1", "0"]),
    ],
)
def test_labels_can_be_asked_for_in_every_form(trained, labels, n_obs, expected):
    fake = isd.tl.generate(trained, n_obs=n_obs, labels=labels, seed=0)
    assert fake.obs["leiden"].tolist() == expected


def test_without_labels_none_are_claimed(trained):
    fake = isd.tl.generate(trained, n_obs=6, labels=None, seed=0)
    assert fake.obs["leiden"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": "17"}, "label '17' is not one of the labels"),
        ({"labels": 0}, r"Did you mean '0' \(str\)"),
        ({"labels": {"0": 3}, "n_obs": 4}, "add up to 3 cells, but n_obs is 4"),
        ({"labels": ["0", "1"], "n_obs": 3}, "2 entries, but n_obs is 3"),
        ({"labels": {"0": -1}}, "not negative"),
        ({"labels": ["0", None]}, "missing values"),
        ({"labels": []}, "empty"),
        ({"n_obs": 0}, "n_obs"),
        ({"n_obs": 2.5}, "n_obs"),
        ({"n_obs": "5"}, "n_obs"),
        ({"labels": {"0": "3"}}, "whole numbers"),
        ({"n_obs": 3, "sampler": "magic"}, "magic"),
        ({"n_obs": 3, "guidance_scale": -1}, "guidance_scale"),
        ({"n_obs": 3, "classifier_scale": 2.0}, "needs a classifier"),
        ({"n_obs": 3, "library_size": 0}, "at least 1 count"),
        ({"n_obs": 3, "library_size": [1.0, 2.0]}, "one number or 3"),
        ({"n_obs": 3, "batch": "b7"}, "batch 'b7'"),
        ({"n_obs": 3, "batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_be_done_is_said(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        isd.tl.generate(trained, **arguments)


def test_an_untrained_model_and_other_things_are_refused(adata):
    LatentDiffusion.setup_anndata(adata)
    with pytest.raises(ValueError, match="not trained"):
        isd.tl.generate(LatentDiffusion(adata, n_hidden=8), n_obs=2)
    with pytest.raises(TypeError, match="LatentDiffusion"):
        isd.tl.generate("model")


def test_library_size_is_kept_to(trained):
    fake = isd.tl.generate(trained, labels="0", library_size=[50, 500, 1234], n_obs=3, seed=0)
    assert np.asarray(fake.X.sum(1)).ravel().tolist() == [50, 500, 1234]


def test_generated_library_sizes_are_like_the_training_ones(trained):
    fake = isd.tl.generate(trained, n_obs=300, seed=0)
    made = np.log(np.asarray(fake.X.sum(1)).ravel())
    real = np.log(np.asarray(trained.adata.X.sum(1)).ravel())
    assert abs(made.mean() - real.mean()) < 0.2 * real.std() + 0.05
    assert 0.6 < made.std() / real.std() < 1.4


@pytest.mark.parametrize("sampler", ["heun", "euler", "dpm++", "ddim", "ddpm"])
def test_every_sampler_generates_the_asked_labels(trained, guide, sampler):
    if sampler == "ddpm":
        steps = 40
    else:
        steps = None
    fake = isd.tl.generate(trained, labels={"0": 40, "1": 40}, sampler=sampler, n_steps=steps, seed=0)
    assert (guide.predict(fake) == fake.obs["leiden"].astype(str)).mean() > 0.7


def test_guidance_sharpens(trained, guide):
    """More cells of the asked label than without guidance, for both kinds, and no label at all without labels."""
    asked = dict.fromkeys(trained.labels, 60)

    def agreement(**options):
        fake = isd.tl.generate(trained, labels=asked, seed=0, **options)
        soft = guide.predict(fake, soft=True).to_numpy()
        codes = fake.obs["leiden"].cat.codes.to_numpy()
        return float(np.log(soft[np.arange(len(codes)), codes] + 1e-6).mean())

    plain = agreement()
    assert agreement(guidance_scale=2.5) > plain
    assert agreement(classifier=guide, classifier_scale=2.0) > plain
    assert agreement(guidance_scale=0.0) < plain - 0.5  # scale 0 is unconditional: labels are met by chance


def test_start_guide_step_bounds_the_window(trained, guide):
    plain = isd.tl.generate(trained, n_obs=10, labels="1", seed=0)
    closed = isd.tl.generate(trained, n_obs=10, labels="1", seed=0, classifier=guide, start_guide_step=0)
    open_ = isd.tl.generate(trained, n_obs=10, labels="1", seed=0, classifier=guide, start_guide_step=500)
    np.testing.assert_array_equal(counts_of(plain), counts_of(closed))
    assert (counts_of(plain) != counts_of(open_)).any()
    assert open_.uns["isd"]["start_guide_step"] == 500


def test_batches_follow_the_label_or_the_request(adata):
    """Label "0" occurs in batch a only: asked for alone it comes from a; asked for in b it is made for b."""
    rng = np.random.default_rng(0)
    zero = (adata.obs["leiden"] == "0").to_numpy()
    adata.obs["batch"] = pd.Categorical(np.where(zero | (rng.random(adata.n_obs) < 0.3), "a", "b"))
    LatentDiffusion.setup_anndata(adata, batch_key="batch")
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=3, vae_kwargs={"max_steps": 3})
    assert set(isd.tl.generate(model, n_obs=20, labels="0").obs["batch"]) == {"a"}
    with pytest.warns(UserWarning, match="no training cell has leiden='0' with batch='b'"):
        unseen = isd.tl.generate(model, n_obs=20, labels="0", batch="b")
    assert set(unseen.obs["batch"]) == {"b"} and unseen.obs["isd_extrapolated"].all()
    assert set(isd.tl.generate(model, n_obs=60, labels="1").obs["batch"]) == {"a", "b"}


def test_labels_and_batches_without_training_cells_are_refused(adata):
    adata.obs["kind"] = ["rare"] * 5 + ["common"] * 295
    adata.obs["batch"] = ["late"] * 3 + ["early"] * 297
    adata.obs["isd_split"] = ["test"] * 5 + ["train"] * 295
    LatentDiffusion.setup_anndata(adata, labels_key="kind", batch_key="batch")
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    for batch in (None, "early"):
        with pytest.raises(ValueError, match="label 'rare' has no training cells"):
            isd.tl.generate(model, n_obs=2, labels="rare", batch=batch)
    with pytest.raises(ValueError, match="batch 'late' has no training cells"):
        isd.tl.generate(model, n_obs=2, labels="common", batch="late")
    with pytest.raises(ValueError, match="batch 'late' has no training cells"):
        model.vae.sample_prior(3, batch="late")
    assert set(isd.tl.generate(model, n_obs=4.0).obs["kind"]) == {"common"}


def test_integer_labels_come_back_as_integers(adata):
    adata.obs["number"] = np.arange(adata.n_obs) % 3
    LatentDiffusion.setup_anndata(adata, labels_key="number")
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=3, vae_kwargs={"max_steps": 3})
    fake = isd.tl.generate(model, labels={0: 2, 2: 1})
    assert fake.obs["number"].tolist() == [0, 0, 2]


def test_a_label_called_match_is_a_label(adata):
    adata.obs["kind"] = np.where(np.arange(adata.n_obs) % 2, "match", "other")
    LatentDiffusion.setup_anndata(adata, labels_key="kind")
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=3, vae_kwargs={"max_steps": 3})
    assert set(isd.tl.generate(model, n_obs=4, labels="match").obs["kind"]) == {"match"}
