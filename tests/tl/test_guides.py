"""Several classifiers at once, and guidance scales that differ between cells."""

import numpy as np
import pytest
import torch

import isd
from isd.tl._guides import resolve_guides


@pytest.fixture(scope="module")
def side(_trained):
    """A classifier of another column: shallow or deep."""
    adata = _trained.adata.copy()
    totals = np.asarray(adata.X.sum(1)).ravel()
    adata.obs["depth"] = np.where(totals > np.median(totals), "deep", "shallow")
    isd.model.Classifier.setup_anndata(adata, labels_key="depth")
    classifier = isd.model.Classifier(adata, _trained, hidden=(32, 32))
    classifier.train(max_steps=150)
    return classifier


def test_gradients_of_several_classifiers_are_added(trained, guide, side, monkeypatch):
    codes = np.array([0, 1, 2, 3, 1])
    both = resolve_guides(trained, codes, [guide, (side, "deep")], [2.0, 0.5], [700, 300])
    rows, device = slice(0, 5), torch.device("cpu")
    x = torch.randn(5, trained.module.n_input)
    one, other = (spec.guide(rows, device, 1000) for spec in both)
    assert [one.active(0.5), other.active(0.5)] == [True, False]
    alone = [
        resolve_guides(trained, codes, c, s, None)[0].guide(rows, device, 1000).gradient(x, 0.2)
        for c, s in ((guide, 2.0), ((side, "deep"), 0.5))
    ]
    torch.testing.assert_close(one.gradient(x, 0.2) + other.gradient(x, 0.2), alone[0] + alone[1])
    # one step from the same noise: the sum of what each guide moves
    monkeypatch.setattr(trained.module.scaler, "enabled", False)  # sums hold before latents are kept in their range
    step = {"n_obs": 40, "labels": "1", "sampler": "ddim", "n_steps": 1, "seed": 0}
    plain, first, second, joint = (
        isd.tl.generate(trained, **step, **options).obsm["X_isd_vae"]
        for options in (
            {},
            {"classifier": guide, "classifier_scale": 0.01},
            {"classifier": (side, "deep"), "classifier_scale": 0.02},
            {"classifier": [guide, (side, "deep")], "classifier_scale": [0.01, 0.02]},
        )
    )
    np.testing.assert_allclose(joint - plain, (first - plain) + (second - plain), atol=1e-4)


def test_a_classifier_of_another_column_guides_all_cells_to_its_label(trained, guide, side):
    def depth(label):
        fake = isd.tl.generate(
            trained, n_obs=80, classifier=[guide, (side, label)], classifier_scale=[0.5, 2.0], seed=0
        )
        assert fake.uns["isd"]["classifier_scale"] == [0.5, 2.0]
        return np.median(np.asarray(fake.X.sum(1)))

    assert depth("deep") > 1.3 * depth("shallow")


def test_rejection_asks_every_classifier(trained, guide, side):
    fake = isd.tl.generate(
        trained, n_obs=30, classifier=[guide, (side, "deep")], classifier_scale=0, accept="classified", seed=0
    )
    assert set(side.predict(fake.copy())) == {"deep"}
    assert (guide.predict(fake.copy()) == fake.obs["leiden"].astype(str)).all()


def test_one_scale_for_all_may_be_written_in_three_ways(trained):
    number, mapping, array, other = (
        isd.tl.generate(trained, n_obs=40, guidance_scale=g, seed=0)
        for g in (2.0, dict.fromkeys(trained.labels, 2.0), np.full(40, 2.0), 1.0)
    )
    assert (number.X != mapping.X).nnz == 0 and (number.X != array.X).nnz == 0
    assert (number.X != other.X).nnz > 0
    assert mapping.uns["isd"]["guidance_scale"] == 2.0


def test_scales_differ_by_label(trained):
    labels = ["0"] * 5 + ["1"] * 5
    mixed = isd.tl.generate(trained, labels=labels, guidance_scale={"1": 3.0}, seed=0)
    plain, sharp = (isd.tl.generate(trained, labels=labels, guidance_scale=g, seed=0) for g in (1.0, 3.0))
    np.testing.assert_allclose(mixed.obsm["X_isd_vae"][:5], plain.obsm["X_isd_vae"][:5], atol=1e-4)
    np.testing.assert_allclose(mixed.obsm["X_isd_vae"][5:], sharp.obsm["X_isd_vae"][5:], atol=1e-4)
    assert mixed.obs["isd_guidance_scale"].tolist() == [1.0] * 5 + [3.0] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classifier": "side"}, r"classifier=\(classifier, label\)"),
        ({"classifier": ("side", "far")}, "label 'far' is not one of the labels of the classifier of 'depth'"),
        ({"classifier": ["guide", ("side", "deep")], "classifier_scale": [1.0]}, "1 numbers for 2 classifiers"),
        ({"classifier": "guide", "start_guide_step": 1001}, "start_guide_step is 1001"),
        ({"classifier": "guide", "classifier_scale": -1.0}, "classifier_scale"),
        ({"guidance_scale": {"17": 2.0}}, "label '17'"),
        ({"guidance_scale": [1.0, 2.0]}, "one for each of the 3 cells"),
        ({"guidance_scale": {"0": -2.0}}, "not be negative"),
    ],
)
def test_what_cannot_be_done_is_said(trained, guide, side, arguments, message):
    def real(item):
        if isinstance(item, (list, tuple)):
            return type(item)(real(i) for i in item)
        return {"guide": guide, "side": side}.get(item, item) if isinstance(item, str) else item

    arguments = {k: real(v) if k == "classifier" else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=message):
        isd.tl.generate(trained, labels=["0", "1", "2"], **arguments)


def test_other_things_than_classifiers_are_refused(trained):
    with pytest.raises(TypeError, match="pair"):
        isd.tl.generate(trained, n_obs=2, classifier="guide")
    with pytest.raises(TypeError, match="holds"):
        isd.tl.generate(trained, n_obs=2, classifier=["guide"])
