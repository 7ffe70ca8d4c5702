"""Folders from strangers: what is in them is data, is checked, and costs no more than its size."""

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scvi.model.base import BaseModelClass

import isd
from isd.model import VAE
from isd.model._bounds import Budget, check_h5ad
from isd.model._files import FORMAT_VERSION

FIXTURE = Path(__file__).parents[1] / "data" / "models" / f"format_{FORMAT_VERSION}" / "model" / "vae"


def digest(path):
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def pairs(value):
    """A mapping as it stands in model.json, as a dictionary to change in place by ``put``."""
    return value["__dict__"]


def put(node, keys, new):
    """Replace an entry below nested mappings of model.json."""
    *path, last = keys
    for key in path:
        node = node[key] if key in node else next(v for k, v in pairs(node) if k == key)
    entry = next((pair for pair in pairs(node) if pair[0] == last), None)
    if entry is None:
        pairs(node).append([last, new])
    else:
        entry[1] = new


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FIXTURE, tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def change(folder):
    """Change model.json, features.json or tensors, with digests that fit: what an attacker would do."""

    def changed(edit=None, features=None, tensors=None):
        if features is not None:
            file = folder / "features.json"
            held = json.loads(file.read_text())
            features(held)
            file.write_text(json.dumps(held))
        if tensors is not None:
            held = load_file(folder / "weights.safetensors")
            tensors(held)
            save_file(held, folder / "weights.safetensors")
        document = json.loads((folder / "model.json").read_text())
        if edit is not None:
            edit(document)
        for name in document["digests"]:
            if (folder / name).exists():
                document["digests"][name] = digest(folder / name)
        (folder / "model.json").write_text(json.dumps(document))
        return folder

    return changed


@pytest.mark.parametrize("key", ["n_latent", "n_hidden", "n_layers", "output_rank", "dispersion_rank"])
@pytest.mark.parametrize("value", [10**6, 10**9, 10**18])
def test_a_description_larger_than_its_file_is_refused_before_it_is_built(change, key, value):
    path = change(lambda d: put(d["attributes"], ["init_params_", "non_kwargs", key], value))
    with pytest.raises(ValueError, match="asks for a larger model than the weights' file can fill"):
        VAE.load(path)


def test_a_budget_counts_what_is_made_and_how_often():
    with pytest.raises(ValueError, match="larger model"), Budget(1000, 100):
        torch.empty(10**12)  # not made: there is no such memory
    with pytest.raises(ValueError, match="larger model"), Budget(1000, 100):
        torch.arange(10**12)
    with pytest.raises(ValueError, match="larger model"), Budget(10**6, 5):
        for _ in range(6):
            torch.zeros(1)
    with Budget(10**6, 100):
        assert torch.nn.Linear(10, 10)(torch.ones(1, 10)).shape == (1, 10)


DESCRIPTIONS = [
    (lambda d: put(d["attributes"], ["to_device"], 3), "to_device"),
    (lambda d: put(d["attributes"], ["_adata"], 3), "_adata"),
    (lambda d: put(d["attributes"], ["init_params_", "non_kwargs", "colour"], 3), "does not describe"),
    (lambda d: put(d["attributes"], ["init_params_", "non_kwargs", "n_latent"], -4), "does not describe"),
    (lambda d: put(d["attributes"], ["init_params_", "non_kwargs", "n_latent"], "4"), "does not describe"),
    (lambda d: put(d["attributes"], ["init_params_"], 7), "does not describe"),
    (lambda d: put(d["attributes"], ["a_"], {"__array__": [1], "dtype": "V1000000000"}), "V1000000000"),
    (lambda d: put(d["attributes"], ["a_"], {"__pickle__": "gASV"}), "unknown form"),
    (lambda d: put(d["registry"], ["field_registries"], {"__dict__": []}), "does not describe"),
    (lambda d: put(d["registry"], ["setup_args"], []), "wrong kind"),
    (lambda d: d.update(attributes=[]), "wrong kind"),
    (lambda d: d.update(colors={"__dict__": []}), "colors"),
    (lambda d: d.update(digests={}), "no digest of weights"),
    (lambda d: d.update(format_version="1"), "format_version '1'"),
    (lambda d: d.update(format_version=0), "format_version 0"),
    (lambda d: d.update({"class": "os.system"}), "not a VAE"),
    (lambda d: d.pop("registry"), "KeyError: 'registry'"),
    (lambda d: d.update(fingerprint="0" * 16), "fingerprint"),
]


@pytest.mark.parametrize(("edit", "message"), DESCRIPTIONS, ids=[str(i) for i in range(len(DESCRIPTIONS))])
def test_a_description_that_isd_never_wrote_is_refused(change, edit, message):
    with pytest.raises(ValueError, match=message):
        VAE.load(change(edit))


FEATURES = [
    (lambda f: f["var_names"].pop(), "values for 39 features"),
    (lambda f: f["var_names"].append(3), "not a list of names"),
    (lambda f: f["genes"]["codes"].__setitem__(0, 10**9), "genes and features"),
    (lambda f: f["genes"]["codes"].__setitem__(0, -1), "genes and features"),
    (lambda f: f.pop("columns"), "columns"),
]


@pytest.mark.parametrize(("edit", "message"), FEATURES, ids=[str(i) for i in range(len(FEATURES))])
def test_features_that_do_not_fit_are_refused(change, edit, message):
    with pytest.raises(ValueError, match=message):
        VAE.load(change(features=edit))


TENSORS = [
    (lambda t: t.pop("module.encoder.mean.bias"), "does not describe.*1 tensors differ"),
    (lambda t: t.update({"array.float32._adata_": torch.zeros(1)}), "_adata_"),
    (lambda t: t.update({"array.V9.a_": torch.zeros(1)}), "V9"),
    (lambda t: t.update({"array.float32.module": torch.zeros(1)}), "module"),
    (lambda t: t.update({"gene_encoder.gene_of": torch.zeros(2, dtype=torch.int64)}), "does not describe"),
]


@pytest.mark.parametrize(("edit", "message"), TENSORS, ids=[str(i) for i in range(len(TENSORS))])
def test_tensors_that_do_not_fit_are_refused(change, edit, message):
    with pytest.raises(ValueError, match=message):
        VAE.load(change(tensors=edit))


def test_nesting_without_end_is_refused(folder):
    (folder / "model.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        VAE.load(folder)
    (folder / "model.json").write_text("[" * 100 + "]" * 100)
    with pytest.raises(ValueError, match="nested more than 64"):
        VAE.load(folder)


def test_unknown_entries_of_a_later_version_of_the_same_format_are_passed_over(change):
    assert VAE.load(change(lambda d: d.update(novelty=[1, 2]))).is_trained


# -- the AnnData beside -----------------------------------------------------------------------------------------


def test_the_adata_beside_is_that_of_the_model_or_refused(adata, tmp_path):
    VAE.setup_anndata(adata)
    VAE(adata, n_hidden=8, n_latent=2).save(tmp_path / "m", save_anndata=True)
    assert VAE.load(tmp_path / "m").adata.n_obs == 300
    other = adata[:200].copy()
    other.write_h5ad(tmp_path / "m" / "adata.h5ad")
    with pytest.raises(ValueError, match=r"adata\.h5ad does not match.*load\(folder, False\)"):
        VAE.load(tmp_path / "m")
    assert VAE.load(tmp_path / "m", False).adata is None
    assert VAE.load(tmp_path / "m", adata).adata is adata


@pytest.mark.parametrize("kind", ["empty", "gzip", "external", "soft", "twice"])
def test_an_hdf5_file_that_stands_for_more_than_it_holds_is_refused(tmp_path, kind):
    path = tmp_path / "bomb.h5ad"
    with h5py.File(path, "w") as f:
        if kind == "empty":
            f.create_dataset("X", shape=(10**6, 10**6), chunks=(1000, 1000), dtype="f8")
        elif kind == "gzip":
            f.create_dataset("X", shape=(10**7, 10**3), chunks=(1000, 1000), dtype="f4", compression="gzip")[0, 0] = 1
        elif kind == "external":
            f.create_dataset("X", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)])
        elif kind == "soft":
            f["X"] = h5py.ExternalLink("/etc/other.h5", "X")
        else:
            f.create_group("a")["self"] = f["/"]
    with pytest.raises(ValueError, match=r"claims|another file|somewhere else|two names"):
        check_h5ad(path)


def test_ordinary_files_pass(adata, tmp_path):
    adata.layers["zeros"] = np.zeros(adata.shape)
    adata.uns["note"] = {"text": "of any kind", "none": np.array([], dtype=float)}
    for compression in (None, "gzip", "lzf"):
        adata.write_h5ad(tmp_path / "a.h5ad", compression=compression)
        check_h5ad(tmp_path / "a.h5ad")


# -- scvi's format ----------------------------------------------------------------------------------------------


def test_a_pickled_model_is_read_on_request_only_and_with_a_warning(adata, tmp_path):
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_hidden=8, n_latent=2)
    vae.train(max_steps=3)
    BaseModelClass.save(vae, str(tmp_path / "scvi"))
    with pytest.raises(ValueError, match=r"can run any code.*allow_pickle=True"):
        VAE.load(tmp_path / "scvi")
    with pytest.warns(UserWarning, match="runs whatever its author"):
        again = VAE.load(tmp_path / "scvi", adata, allow_pickle=True)
    assert again.fingerprint == vae.fingerprint
    np.testing.assert_array_equal(again.train_indices, vae.train_indices)
    again.save(tmp_path / "ours")
    assert VAE.load(tmp_path / "ours").fingerprint == vae.fingerprint
    with pytest.raises(FileNotFoundError, match=r"no model\.pt"):
        VAE.load(tmp_path / "ours", allow_pickle=True)


def test_another_class_in_a_pickle_is_refused(adata, tmp_path):
    VAE.setup_anndata(adata)
    BaseModelClass.save(VAE(adata, n_hidden=8, n_latent=2), str(tmp_path / "scvi"))
    with (
        pytest.warns(UserWarning, match="pickle"),
        pytest.raises(ValueError, match="holds a VAE, not a LatentDiffusion"),
    ):
        isd.model.LatentDiffusion.load(tmp_path / "scvi", vae=VAE(adata, n_hidden=8, n_latent=2), allow_pickle=True)
