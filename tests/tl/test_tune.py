import numpy as np
import pandas as pd
import pytest

import isd
from isd.model import LatentDiffusion


@pytest.fixture(scope="module")
def cells(_trained):
    return _trained.adata.copy()


def test_the_table_has_every_setting_and_the_choice_is_one_of_them(trained, guide, cells):
    choice = isd.tl.tune_guidance(
        trained,
        cells,
        scales=(1, 2),
        classifier=guide,
        classifier_scales=(0, 0.5),
        start_guide_steps=(300, 600),
        n_draws=2,
        seed=0,
    )
    overall = choice.table[choice.table["label"] == ""]
    assert len(overall) == 2 * (1 + 2) and overall["chosen"].sum() == 1
    row = overall[overall["chosen"]].iloc[0]
    assert (row["guidance_scale"], row["classifier_scale"]) == (choice.guidance_scale, choice.classifier_scale)
    validation = cells.obs["isd_split"] == "validation"
    assert overall["n"].iloc[0] == validation.sum()
    assert set(choice.table["label"]) == {"", *cells.obs["leiden"][validation].unique()}
    assert overall["agreement"].between(0, 1).all() and (overall["real_agreement"] > 0.8).all()
    with pytest.raises(AttributeError):
        choice.guidance_scale = 3.0


def test_test_cells_are_not_looked_at_and_nothing_is_written(trained, cells):
    options = {"scales": (1, 1.5), "n_draws": 2, "seed": 0}
    before = isd.tl.tune_guidance(trained, cells, **options)
    other = cells.copy()
    test = np.flatnonzero(other.obs["isd_split"] == "test")
    counts = other.X.tolil()
    counts[test] = np.random.default_rng(0).poisson(5.0, size=(len(test), other.n_vars))
    other.X = counts.tocsr()
    labels = other.obs["leiden"].copy()
    labels.iloc[test] = "3"
    other.obs["leiden"] = labels
    kept = other.copy()
    after = isd.tl.tune_guidance(trained, other, **options)
    pd.testing.assert_frame_equal(before.table, after.table)
    pd.testing.assert_frame_equal(kept.obs, other.obs)
    assert (kept.X != other.X).nnz == 0 and set(kept.uns) == set(other.uns) and set(kept.obsm) == set(other.obsm)


def test_guidance_that_a_broken_model_needs_is_found(trained, cells):
    """A denoiser that hardly heeds labels meets them only when it is guided more than one that heeds them."""
    more = cells.copy()
    more.obs["isd_split"] = more.obs["isd_split"].astype(str).replace({"test": "validation"})
    options = {"scales": (1, 1.5, 2, 4), "n_draws": 2, "seed": 0}
    heeding = isd.tl.tune_guidance(trained, more, **options)
    weight = trained.module.network.conditions.embeddings[0].weight.data
    original = weight.clone()
    try:
        weight.copy_(original[-1] + 0.3 * (original - original[-1]))
        deaf = isd.tl.tune_guidance(trained, more, **options)
    finally:
        weight.copy_(original)
    assert heeding.guidance_scale < deaf.guidance_scale
    agreement = deaf.table[deaf.table["label"] == ""].set_index("guidance_scale")["agreement"]
    assert agreement[1.0] < agreement[1.5] < agreement[4.0]


def test_scales_by_label_go_into_generate(trained, cells):
    choice = isd.tl.tune_guidance(trained, cells, scales=(1, 2), by_label=True, n_draws=2, seed=0, n_steps=4)
    assert list(choice.guidance_scale) == list(trained.labels)
    assert set(choice.guidance_scale.values()) <= {1.0, 2.0}
    isd.tl.generate(trained, n_obs=8, guidance_scale=choice.guidance_scale)
    # labels of too few validation cells have the choice of all
    n = choice.table[choice.table["label"] != ""].drop_duplicates("label").set_index("label")["n"]
    overall = choice.table[(choice.table["label"] == "") & choice.table["chosen"]]["guidance_scale"].item()
    assert all(choice.guidance_scale[label] == overall for label in n.index[n < 12])


def test_the_smallest_scale_within_tolerance_is_taken(trained, cells):
    assert isd.tl.tune_guidance(trained, cells, scales=(3, 2), tolerance=10, n_draws=1, n_steps=2).guidance_scale == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_draws": 1}, "n_draws is 1"),
        ({"scales": (-1,)}, "scales must be finite"),
        ({"n_obs": 3}, "n_obs is 3"),
        ({"tolerance": -1}, "tolerance"),
    ],
)
def test_what_cannot_be_done_is_said(trained, cells, arguments, message):
    with pytest.raises(ValueError, match=message):
        isd.tl.tune_guidance(trained, cells, **arguments)


def test_data_without_split_and_models_of_one_label_are_refused(trained, cells, adata):
    with pytest.raises(KeyError, match=r"isd\.pp\.split"):
        isd.tl.tune_guidance(trained, adata)
    adata.obs["isd_split"] = "train"
    with pytest.raises(ValueError, match="0 validation cells"):
        isd.tl.tune_guidance(trained, adata)
    LatentDiffusion.setup_anndata(adata, labels_key=None)
    model = LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    with pytest.raises(ValueError, match="nothing to tune"):
        isd.tl.tune_guidance(model, adata)


def test_noise_that_settings_share_hides_no_difference():
    from isd.tl._tune import _choose, _Setting

    tried = [_Setting(scale, 0.0, None) for scale in (1.0, 1.25, 1.5)]
    of_draws = np.array([0.0, 0.05, -0.05, 0.02])
    own = np.array([[0.0, 1, 0, -1], [1, 0, -1, 0], [-1, 1, 0, 0]]) * 1e-4
    scores = np.array([[0.95], [0.97], [0.95]]) + of_draws + own
    assert _choose(tried, scores, None) == 1
    # and of two that differ by less than their own noise, the one that guides less is taken
    assert _choose(tried, np.array([[0.97], [0.97005], [0.9]]) + of_draws + own, None) == 0


def test_cells_purer_than_real_ones_or_told_by_a_forest_are_no_gain():
    from isd.tl._tune import _judge

    rng = np.random.default_rng(0)
    real = rng.standard_normal((200, 2))
    drawn = [[rng.standard_normal((200, 2))] * 2 for _ in range(3)]
    met = np.zeros((1 + 6, 200), dtype=bool)
    for row, share in enumerate((0.9, 0.8, 0.8, 0.9, 0.9, 1.0, 1.0)):
        met[row, : int(200 * share)] = True
    blind, seeing = np.tile([0.0, 1.0], 200), np.repeat([0.0, 1.0], 200)
    judged = _judge(met, real, drawn, np.array([blind] * 4 + [seeing] * 2))
    assert judged["auc"].tolist() == [0.5, 0.5, 1.0]
    label_part = 3 * judged["score"].mean(axis=1) - judged["coverage"] / judged["coverage"][0] - [1, 1, 0]
    np.testing.assert_allclose(label_part, [8 / 9, 1.0, 8 / 9])
