"""Model folders: the same model comes back, in another process too, and nothing else is accepted."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import isd
from isd.model import VAE, LatentDiffusion


@pytest.fixture(scope="module")
def folder(_trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    _trained.save(path)
    return path


def test_a_new_process_generates_identical_counts(trained, folder, tmp_path):
    code = f"""
import sys, torch, isd
torch.set_num_threads(1)
isd.settings.progress = False
model = isd.model.LatentDiffusion.load({str(folder)!r})
isd.tl.generate(model, n_obs=40, seed=5, guidance_scale=1.5).write_h5ad({str(tmp_path / "fake.h5ad")!r})
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)
    import anndata

    there = anndata.read_h5ad(tmp_path / "fake.h5ad")
    here = isd.tl.generate(trained, n_obs=40, seed=5, guidance_scale=1.5)
    np.testing.assert_array_equal(there.X.toarray(), here.X.toarray())
    pd.testing.assert_frame_equal(there.obs, here.obs)
    assert list(there.uns["leiden_colors"]) == list(here.uns["leiden_colors"])


def test_what_comes_back_is_what_was_saved(trained, folder):
    again = LatentDiffusion.load(folder)
    assert again.fingerprint == trained.fingerprint
    assert again.vae.fingerprint == trained.vae.fingerprint
    assert again.labels.tolist() == trained.labels.tolist() == ["2", "0", "3", "1"]
    assert again.label_colors == ["#000001", "#000002", "#000003", "#000004"]
    np.testing.assert_array_equal(again.train_obs_hash, trained.train_obs_hash)
    np.testing.assert_array_equal(again.train_indices, trained.train_indices)
    for key, frame in trained.history.items():
        pd.testing.assert_frame_equal(again.history[key], frame)
    pd.testing.assert_frame_equal(again.feature_table, trained.feature_table, check_names=False)


def test_data_can_be_saved_beside_and_attached(trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    again = LatentDiffusion.load(tmp_path / "model")
    assert again.adata.n_obs == trained.adata.n_obs
    np.testing.assert_allclose(
        again.vae.encode_distribution(again.adata)[0], trained.vae.encode_distribution()[0], atol=1e-5
    )
    assert LatentDiffusion.load(tmp_path / "model", False).adata is None


def test_reordered_and_foreign_features_are_refused(trained, folder, adata):
    reordered = adata[:, ::-1].copy()
    with pytest.raises(ValueError, match=r"another order.*model\.feature_names"):
        LatentDiffusion.load(folder, reordered)
    with pytest.raises(ValueError, match="lacks 50 of the model's 200 features"):
        LatentDiffusion.load(folder, adata[:, 50:].copy())
    aligned = reordered[:, trained.feature_names].copy()
    assert LatentDiffusion.load(folder, aligned).adata is aligned


def test_an_untrained_model_comes_back_untrained(adata, tmp_path):
    LatentDiffusion.setup_anndata(adata)
    LatentDiffusion(adata, n_hidden=8).save(tmp_path / "model")
    assert not LatentDiffusion.load(tmp_path / "model", adata).is_trained


def test_a_model_whose_label_column_is_gone_still_saves_and_generates(trained, folder, adata, tmp_path):
    del adata.obs["leiden"]
    model = LatentDiffusion.load(folder, adata)
    assert isd.tl.generate(model, n_obs=3).obs["leiden"].notna().all()
    model.save(tmp_path / "again")


def test_no_property_raises_on_any_state_of_a_model(trained, folder, adata):
    """Trap: save evaluates every property; one that raises breaks checkpoints."""
    LatentDiffusion.setup_anndata(adata)
    models = [trained, LatentDiffusion(adata, n_hidden=8), LatentDiffusion.load(folder)]
    for model in [*models, *(m.vae for m in models)]:
        for name in dir(type(model)):
            if isinstance(getattr(type(model), name), property):
                getattr(model, name)


def test_data_must_be_data(folder):
    for wrong in ("cells.h5ad", True):
        with pytest.raises(TypeError, match="AnnData"):
            LatentDiffusion.load(folder, wrong)


def test_data_asked_about_do_not_become_the_models_own(trained, folder, adata):
    vae = LatentDiffusion.load(folder).vae
    isd.tl.encode(adata[:10].copy(), vae)
    assert vae.adata is None
    isd.tl.encode(adata, vae)
    assert adata.obsm["X_isd_vae"].shape[0] == 300


def test_nothing_is_overwritten_unasked(trained, folder, tmp_path):
    with pytest.raises(ValueError, match="overwrite=True"):
        trained.save(folder)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a saved model"):
        trained.save(precious, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_failing_save_leaves_the_older_model(trained, tmp_path, monkeypatch):
    trained.save(tmp_path / "model")
    before = sorted(p.name for p in tmp_path.rglob("*"))

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("isd.model._files.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        trained.save(tmp_path / "model", overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    assert LatentDiffusion.load(tmp_path / "model").fingerprint == trained.fingerprint


def test_damage_is_noticed(trained, tmp_path):
    def saved(name):
        trained.vae.save(tmp_path / name)
        return tmp_path / name

    path = saved("cut")
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="changed or cut short"):
        VAE.load(path)
    path = saved("swapped")
    tensors = load_file(path / "weights.safetensors")
    tensors["module.encoder.mean.bias"] += 1
    save_file(tensors, path / "weights.safetensors")
    with pytest.raises(ValueError, match="changed or cut short"):
        VAE.load(path)
    path = saved("json")
    (path / "model.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        VAE.load(path)
    path = saved("newer")
    document = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**document, "format_version": 99}))
    with pytest.raises(ValueError, match=r"format 99.*Update isodiff"):
        VAE.load(path)
    path = saved("missing")
    (path / "features.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"features\.json"):
        VAE.load(path)
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        VAE.load(tmp_path)


def test_another_class_is_refused(trained, folder):
    with pytest.raises(ValueError, match="holds a LatentDiffusion, not a VAE"):
        VAE.load(folder)


def test_another_vae_is_refused(trained, folder, adata):
    VAE.setup_anndata(adata)
    other = VAE(adata, n_hidden=8, n_latent=trained.vae.module.n_latent)
    other.train(max_steps=2)
    with pytest.raises(ValueError, match="fingerprint"):
        LatentDiffusion.load(folder, vae=other)


def test_loading_executes_nothing(folder, tmp_path):
    """A pickle in the folder is not touched, and no file of ours is one."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    for file in folder.rglob("*"):
        if file.is_file():
            with pytest.raises(Exception):  # noqa: B017  whatever pickle says of a file that is no pickle
                pickle.loads(file.read_bytes())
    torch.save(Bomb(), folder / "model.pt")
    LatentDiffusion.load(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_model_without_data_says_what_it_needs(folder, tmp_path):
    model = LatentDiffusion.load(folder)
    with pytest.raises(ValueError, match="loaded without data"):
        model.vae.get_latent_representation()
    with pytest.raises(ValueError, match="loaded without data"):
        model.save(tmp_path / "again", save_anndata=True)
    model.save(tmp_path / "again")
    assert LatentDiffusion.load(tmp_path / "again").fingerprint == model.fingerprint


def test_twelve_leiden_clusters_keep_their_meaning_and_colours(tmp_path):
    """Sorting "0", "1", "10", "2" as strings is how the starting project compared 42 of 44 clusters with others."""
    adata = isd.datasets.simulated(n_obs=360, n_vars=120, n_labels=12, seed=1)
    # each cluster is marked by a feature of its own, so that what is generated can be told
    labels = [str(i) for i in range(12)]
    x = adata.X.tolil()
    for i, label in enumerate(labels):
        x[:, i] = 0
        rows = np.flatnonzero(adata.obs["leiden"] == label)
        x[rows, i] = 400
    adata.X = x.tocsr()
    order = ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"]
    adata.obs["leiden"] = adata.obs["leiden"].cat.set_categories(order)
    adata.uns["leiden_colors"] = [f"#0000{i:02x}" for i in range(12)]
    LatentDiffusion.setup_anndata(adata)
    model = LatentDiffusion(adata, n_hidden=64)
    model.train(max_steps=800, vae_kwargs={"max_steps": 800})
    model.save(tmp_path / "model")
    model = LatentDiffusion.load(tmp_path / "model")
    fake = isd.tl.generate(model, labels=dict.fromkeys(labels, 20), seed=0)
    assert fake.obs["leiden"].cat.categories.tolist() == order
    assert fake.uns["leiden_colors"] == adata.uns["leiden_colors"]
    marker = np.asarray(fake[:, :12].X.toarray()).argmax(1)
    for label in labels:
        made = marker[(fake.obs["leiden"] == label).to_numpy()]
        assert np.bincount(made, minlength=12).argmax() == int(label), label
    assert (marker == fake.obs["leiden"].astype(int)).mean() > 0.7
