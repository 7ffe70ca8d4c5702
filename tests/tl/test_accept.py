import anndata
import numpy as np
import pandas as pd
import pytest

import isd
from isd.model import LatentDiffusion


def test_kept_cells_are_found_in_their_label_and_the_first_draws_are_those_of_plain_generation(trained, guide):
    asked = ["0", "3"] * 40
    plain = isd.tl.generate(trained, labels=asked, seed=0)
    kept = isd.tl.generate(trained, labels=asked, seed=0, classifier=guide, classifier_scale=0, accept="classified")
    assert kept.obs["leiden"].tolist() == asked
    # without guidance by the classifier, the first tries are the plain cells
    found = guide.predict(plain.copy()) == np.asarray(asked, dtype=object)
    assert 0 < (~found).sum() < len(asked)
    np.testing.assert_array_equal(kept.obs["isd_tries"] == 1, found)
    assert (kept.X[found] != plain.X[found]).nnz == 0
    np.testing.assert_array_equal(kept.obsm["X_isd_vae"][found], plain.obsm["X_isd_vae"][found])
    assert (guide.predict(kept.copy()) == np.asarray(asked, dtype=object)).all()


def test_acceptance_is_reported_and_can_be_saved(trained, guide, tmp_path):
    kept = isd.tl.generate(
        trained, labels={"0": 30, "2": 30}, seed=1, classifier=guide, classifier_scale=0, accept="classified"
    )
    uns = kept.uns["isd"]
    table = uns["acceptance"]
    assert table.index.tolist() == ["2", "0"] and table["accepted"].tolist() == [30, 30]
    assert table["drawn"].sum() == kept.obs["isd_tries"].sum()
    assert uns["acceptance_rate"] == pytest.approx(60 / kept.obs["isd_tries"].sum())
    kept.write_h5ad(tmp_path / "kept.h5ad")
    again = anndata.read_h5ad(tmp_path / "kept.h5ad").uns["isd"]["acceptance"]
    pd.testing.assert_frame_equal(again, table, check_names=False)


def test_a_seed_gives_the_same_cells_whatever_the_batch_size(trained, guide):
    options = {"n_obs": 40, "seed": 5, "classifier": guide, "classifier_scale": 0, "accept": "classified"}
    one, two = (isd.tl.generate(trained, batch_size=b, **options) for b in (1, 512))
    assert (one.X != two.X).nnz == 0


def test_cells_that_are_never_accepted_end_in_an_error_that_names_them(trained, guide, monkeypatch):
    monkeypatch.setattr(guide, "predict", lambda adata, **_: np.array(["0"] * adata.n_obs, dtype=object))
    with pytest.raises(RuntimeError, match=r"after 3 tries .*'1': 4 of 4 cells missing, 0.0% of 12 drawn") as error:
        isd.tl.generate(trained, labels={"0": 2, "1": 4}, classifier=guide, accept="classified", max_tries=3)
    assert "'0'" not in str(error.value) and "max_tries" in str(error.value)


def test_a_denoiser_without_labels_makes_labelled_cells_by_rejection(adata):
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, preset="published", schedule="linear")
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    isd.model.Classifier.setup_anndata(adata)
    classifier = isd.model.Classifier(adata, model)
    classifier.train(max_steps=2)
    common = pd.Series(classifier.predict()).mode()[0]
    fake = isd.tl.generate(
        model,
        labels={common: 3},
        sampler="ddim",
        n_steps=2,
        classifier=classifier,
        classifier_scale=0,
        accept="classified",
        max_tries=50,
    )
    assert fake.obs["leiden"].tolist() == [common] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accept": "all"}, "accept 'all' is unknown"),
        ({"accept": "classified"}, "needs a classifier"),
        ({"accept": "classified", "max_tries": 0, "classifier": True}, "max_tries"),
        ({"accept": "classified", "labels": None, "classifier": True}, "labels"),
    ],
)
def test_what_cannot_be_done_is_said(trained, guide, arguments, message):
    arguments = {k: guide if k == "classifier" else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=message):
        isd.tl.generate(trained, n_obs=3, **arguments)
