import anndata
import numpy as np
import pandas as pd
import pytest

import isd
from isd.model import LatentDiffusion
from isd.tl import _accept
from isd.tl._accept import encoded


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
    monkeypatch.setattr(
        guide, "probabilities", lambda latents, *_: np.eye(4)[[list(guide.labels).index("0")] * len(latents)]
    )
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


ASKED = {"labels": {"0": 250, "3": 200, "1": 100}, "seed": 3, "classifier_scale": 0, "accept": "classified"}


@pytest.fixture
def in_memory(trained, guide):
    return isd.tl.generate(trained, classifier=guide, **ASKED)


def assert_same(found, expected):
    assert (found.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_categorical=False)
    np.testing.assert_array_equal(found.obsm["X_isd_vae"], expected.obsm["X_isd_vae"])


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_what_is_accepted_on_disk_is_what_memory_would_hold(trained, guide, in_memory, tmp_path, suffix):
    assert (in_memory.obs["isd_tries"] > 1).groupby(np.arange(550) // 256).any().all(), (
        "cells of each tile are drawn anew"
    )
    path = tmp_path / f"kept.{suffix}"
    on_disk = isd.tl.generate(trained, classifier=guide, **ASKED, backed=path).to_memory()
    assert_same(on_disk, in_memory)
    uns, expected = on_disk.uns["isd"], in_memory.uns["isd"]
    pd.testing.assert_frame_equal(uns["acceptance"], expected["acceptance"], check_names=False)
    assert uns["n_network_calls"] == expected["n_network_calls"] == 23
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_parts_of_what_is_accepted_are_the_whole(trained, guide, in_memory, tmp_path):
    parts = [isd.tl.generate(trained, classifier=guide, **ASKED, part=(1, 3))]
    for k in (2, 3):
        path = tmp_path / f"{k}.h5ad"
        parts.append(isd.tl.generate(trained, classifier=guide, **ASKED, part=(k, 3), backed=path).to_memory())
    assert_same(anndata.concat(parts), in_memory)
    drawn = sum(p.uns["isd"]["acceptance"]["drawn"].sum() for p in parts)
    assert drawn == in_memory.uns["isd"]["acceptance"]["drawn"].sum()


def test_rejection_goes_on_after_an_interruption(trained, guide, in_memory, tmp_path, monkeypatch):
    path, tiles, draw = tmp_path / "kept.h5ad", [], _accept._accepted_tile

    def interrupted(plan, specs, rows, **options):
        tiles.append(rows.start)
        if len(tiles) == 2:
            raise KeyboardInterrupt
        return draw(plan, specs, rows, **options)

    monkeypatch.setattr(_accept, "_accepted_tile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        isd.tl.generate(trained, classifier=guide, **ASKED, backed=path)
    assert not path.exists()
    again = isd.tl.generate(trained, classifier=guide, **ASKED, backed=path).to_memory()
    assert tiles == [0, 256, 256, 512], "the first tile is not drawn again"
    assert_same(again, in_memory)


def test_more_tries_go_on_where_too_few_ended(trained, guide, tmp_path):
    options = {**ASKED, "backed": tmp_path / "kept.h5ad", "classifier": guide}
    with pytest.raises(RuntimeError, match=r"after 1 tries .* of the cells 0 to 255"):
        isd.tl.generate(trained, **options, max_tries=1)
    with pytest.raises(ValueError, match="accept: classified then, nothing now"):
        isd.tl.generate(trained, **{**options, "accept": None})
    assert isd.tl.generate(trained, **options).n_obs == 550


def test_cells_are_encoded_as_models_encode_data(trained):
    """Without an AnnData of every few cells; against the way by an AnnData."""
    fake = isd.tl.generate(trained, n_obs=20, seed=0)
    module, n = trained.vae.module, fake.n_obs
    cells = _accept.Cells(fake.obsm["X_isd_vae"], np.zeros(n, dtype=np.float32), np.zeros((n, 1), dtype=np.int64))
    latents, log_library = encoded(module, cells, fake.X)
    expected, _ = trained.vae.encode_distribution(fake)
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    np.testing.assert_allclose(log_library, np.log(np.asarray(fake.X.sum(1)).ravel()), rtol=1e-5)


def test_size_factors_and_covariates_are_encoded_as_models_encode_data(adata):
    rng = np.random.default_rng(0)
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel() / 100
    adata.obs["donor"] = pd.Categorical(rng.choice(["a", "b", "c"], adata.n_obs))
    adata.obs["batch"] = pd.Categorical(rng.choice(["x", "y"], adata.n_obs))
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    keys = {"batch_key": "batch", "categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    isd.model.VAE.setup_anndata(adata, size_factor_key="depth", **keys)
    vae = isd.model.VAE(adata, n_hidden=8, n_latent=3)
    vae.train(max_steps=3)
    codes = vae._codes()[:, 1:]
    cells = _accept.Cells(np.zeros((adata.n_obs, 3)), vae._log_library().astype(np.float32), codes, vae._continuous())
    latents, log_library = encoded(vae.module, cells, adata.X)
    np.testing.assert_allclose(latents, vae.encode_distribution()[0], atol=1e-5)
    np.testing.assert_allclose(log_library, vae._log_library(), rtol=1e-5)
