import numpy as np
import pandas as pd
import pytest

import isd
from isd.model import LatentDiffusion


def share(guide, between, label):
    """Share of cells called a label, by weight."""
    found = pd.Series(guide.predict(between.copy()) == label, index=between.obs_names)
    return found.groupby(between.obs["isd_weight"]).mean()


def test_the_ends_are_the_two_labels_and_the_way_leads_from_one_to_the_other(trained, guide, adata):
    between = isd.tl.interpolate(trained, adata, "0", "1", weights=(0, 0.5, 1), n_obs=60, start_step=900, seed=0)
    source, target = share(guide, between, "0"), share(guide, between, "1")
    assert source[0.0] > 0.85 and target[1.0] > 0.7
    assert source[0.0] > source[0.5] > source[1.0]
    assert target[0.0] < 0.2


def test_it_has_the_slots_of_generated_cells_and_says_where_each_cell_started(trained, adata):
    between = isd.tl.interpolate(trained, adata, "0", "3", weights=(0, 1), n_obs=5, seed=1)
    assert between.shape == (10, 200) and between.obs["leiden"].isna().all()
    assert between.obs["leiden"].cat.categories.tolist() == ["2", "0", "3", "1"]
    assert between.obs["isd_weight"].tolist() == [0.0] * 5 + [1.0] * 5
    names = between.obs["isd_source_obs"].to_numpy()
    assert (names[:5] == names[5:]).all() and len(set(names)) == 5
    assert (adata.obs.loc[names[:5], "leiden"] == "0").all()
    assert between.uns["isd"]["start_step"] == 800 and between.uns["isd"]["source"] == "0"


def test_a_seed_gives_the_same_cells_and_each_weight_its_own(trained, adata):
    options = {"n_obs": 6, "weights": (0, 0.5)}
    one, two = (isd.tl.interpolate(trained, adata, "0", "1", seed=3, **options) for _ in range(2))
    assert (one.X != two.X).nnz == 0
    assert (one.X[:6] != one.X[6:]).nnz > 0
    alone = isd.tl.interpolate(trained, adata, "0", "1", seed=3, n_obs=6, weights=(0.5,))
    assert (one.X[6:] != alone.X).nnz == 0
    other = isd.tl.interpolate(trained, adata, "0", "1", seed=4, **options)
    assert (one.X != other.X).nnz > 0


def test_a_low_start_step_keeps_the_cells(trained, adata):
    """Hardly noised, a cell stays what it was, whatever pulls at it: its latent is near the real one's."""
    vae = trained.vae
    at = [isd.tl.interpolate(trained, adata, "0", "1", (1.0,), start_step=s, n_obs=30, seed=0) for s in (20, 900)]
    real = vae.get_latent_representation(adata[at[0].obs["isd_source_obs"]].copy())
    near, far = (np.linalg.norm(x.obsm["X_isd_vae"] - real, axis=1).mean() for x in at)
    assert near < far


def test_the_callers_data_stay_as_they_are(trained, adata):
    before = adata.copy()
    isd.tl.interpolate(trained, adata, "0", "1", n_obs=3)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.X != before.X).nnz == 0
    assert set(adata.uns) == set(before.uns) and set(adata.obsm) == set(before.obsm)


def test_a_classifier_pulls_as_well(trained, guide, adata):
    """The two gradients pull harder than the labels alone; alone (guidance scale 0) they lead to the target too."""
    options = {"weights": (0.0, 1.0), "n_obs": 60, "start_step": 600, "seed": 0}
    plain = isd.tl.interpolate(trained, adata, "0", "1", **options)
    pulled = isd.tl.interpolate(trained, adata, "0", "1", classifier=guide, classifier_scale=2.0, **options)
    alone = isd.tl.interpolate(
        trained, adata, "0", "1", guidance_scale=0.0, classifier=guide, classifier_scale=3.0, **options
    )
    assert share(guide, pulled, "1")[1.0] > share(guide, plain, "1")[1.0]
    assert share(guide, alone, "1")[1.0] > share(guide, alone, "1")[0.0] + 0.3
    assert pulled.uns["isd"]["classifier_scale"] == 2.0


def test_library_sizes_can_be_given_and_ddpm_walks_the_rest_of_the_way(trained, adata):
    between = isd.tl.interpolate(
        trained, adata, "0", "1", (0, 1), n_obs=2, library_size=[100, 300], sampler="ddpm", n_steps=5, start_step=100
    )
    assert np.asarray(between.X.sum(1)).ravel().tolist() == [100, 300, 100, 300]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "17"}, "source '17' is not one of the labels"),
        ({"target": 1}, r"Did you mean '1' \(str\)"),
        ({"target": "0"}, "both '0'"),
        ({"weights": (0, 1.2)}, r"weights must be numbers in \[0, 1\]"),
        ({"weights": ()}, "weights"),
        ({"start_step": 0}, "start_step is 0; a whole number in 1 ... 1000"),
        ({"start_step": 1001}, "start_step"),
        ({"n_obs": 10_000}, "adata has 75 cells|adata has [0-9]+ cells"),
        ({"power": 0.5}, "power must be a number of at least 1"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"classifier_scale": 1.0}, "needs a classifier"),
        ({"library_size": 0}, "at least 1 count"),
        ({"sampler": "magic"}, "magic"),
    ],
)
def test_what_cannot_be_done_is_said(trained, adata, arguments, message):
    with pytest.raises(ValueError, match=message):
        isd.tl.interpolate(trained, adata, **{"source": "0", "target": "1", **arguments})


def test_other_data_are_refused(trained, adata):
    with pytest.raises(ValueError, match="lacks 30"):
        isd.tl.interpolate(trained, adata[:, 30:].copy(), "0", "1")
    with pytest.raises(ValueError, match="no cells with leiden '0'"):
        isd.tl.interpolate(trained, adata[adata.obs["leiden"] != "0"].copy(), "0", "1")
    del adata.obs["leiden"]
    with pytest.raises(KeyError, match="leiden"):
        isd.tl.interpolate(trained, adata, "0", "1")


def test_batch_and_depth_of_the_real_cell_stay_where_the_model_does_not_make_them(adata):
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    LatentDiffusion.setup_anndata(adata, batch_key="batch")
    model = LatentDiffusion(adata, n_hidden=8, model_library=False)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    between = isd.tl.interpolate(model, adata, "0", "1", (0.5,), n_obs=8)
    real = adata[between.obs["isd_source_obs"]]
    assert between.obs["batch"].tolist() == real.obs["batch"].tolist()
    np.testing.assert_array_equal(np.asarray(between.X.sum(1)), np.asarray(real.X.sum(1)))


def test_a_target_that_was_never_seen_in_a_cells_batch_is_told_and_heard_without_the_batch(adata):
    """Half of the source's cells are of batch "b", in which the target has no cell."""
    source = (adata.obs["leiden"] == "0").to_numpy()
    adata.obs["batch"] = np.where(source & (np.arange(adata.n_obs) % 2 == 1), "b", "a")
    LatentDiffusion.setup_anndata(adata, batch_key="batch")
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    heard = []
    model.module.network.register_forward_hook(
        lambda network, inputs, options, out: heard.append(options.get("condition", inputs[-1])), with_kwargs=True
    )
    with pytest.warns(UserWarning, match="leiden='1' with batch='b': these cells are an extrapolation"):
        between = isd.tl.interpolate(model, adata, "0", "1", (0.0, 0.5, 1.0), n_obs=20, n_steps=2)
    there = (between.obs["batch"] == "b").to_numpy()
    assert 0 < there.sum() < len(there)
    # at weight 0 the target does not pull
    np.testing.assert_array_equal(between.obs["isd_extrapolated"], there & (between.obs["isd_weight"] > 0))
    pairs = {tuple(row) for condition in heard for row in condition.tolist()}
    no_batch = int(model.module.n_categories[1])
    assert (1, 1) not in pairs and (1, no_batch) in pairs and (0, 1) in pairs


def test_without_unlabelled_cells_in_training_the_labels_are_only_mixed(adata):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, n_hidden=8, label_dropout=0.0)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    assert isd.tl.interpolate(model, adata, "0", "1", (0.5,), n_obs=2).uns["isd"]["power"] == 1
    with pytest.raises(ValueError, match="label_dropout=0"):
        isd.tl.interpolate(model, adata, "0", "1", power=2)


def test_a_denoiser_that_sees_no_labels_needs_a_classifier(adata):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, preset="published")
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    with pytest.raises(ValueError, match="give classifier="):
        isd.tl.interpolate(model, adata, "0", "1")
    isd.model.Classifier.setup_anndata(adata)
    classifier = isd.model.Classifier(adata, model)
    classifier.train(max_steps=2)
    with pytest.raises(ValueError, match="steps"):
        isd.tl.interpolate(model, adata, "0", "1", classifier=classifier, start_step=5, n_steps=8)
    between = isd.tl.interpolate(model, adata, "0", "1", classifier=classifier, start_step=5, n_obs=3)
    # the published sampler takes every step that is left, and the cell's own depth, which it does not generate
    assert between.uns["isd"]["n_steps"] == 5 and between.uns["isd"]["classifier_scale"] == 2.0
    real = adata[between.obs["isd_source_obs"]]
    np.testing.assert_allclose(np.asarray(between.X.sum(1)), np.asarray(real.X.sum(1)), rtol=1e-4)
