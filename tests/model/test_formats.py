"""Every format of model folders that was ever released can still be read, and says what it said then."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import isd
from isd.model._files import _MIGRATIONS, FORMAT_VERSION

FOLDER = Path(__file__).parents[1] / "data" / "models"
_spec = importlib.util.spec_from_file_location("make_models", FOLDER / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_models_of_each_format_say_what_they_said(version):
    folder = FOLDER / f"format_{version}"
    recorded = json.loads((folder / "outputs.json").read_text())
    model = isd.model.LatentDiffusion.load(folder / "model")
    classifier = isd.model.Classifier.load(folder / "classifier", diffusion=model)
    found = make.outputs(model, classifier)
    for name in ("mean", "std", "expected", "probabilities", "generated"):
        np.testing.assert_allclose(found[name], recorded[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert found["labels"] == recorded["labels"] == ["b", "a"]
    assert found["colors"] == recorded["colors"] == ["#000001", "#000002"]


def test_a_folder_says_who_wrote_it_without_being_loaded():
    info = isd.model.read_info(FOLDER / "format_1" / "model")
    assert (info["class"], info["format_version"], info["isodiff_version"]) == ("LatentDiffusion", 1, "0.1.0")
    assert (info["n_vars"], info["labels"], info["has_adata"]) == (40, ["b", "a"], False)
    assert info["size"] == (FOLDER / "format_1" / "model" / "weights.safetensors").stat().st_size


def test_models_of_the_first_format_count_without_clumps():
    first, second = (isd.model.VAE.load(FOLDER / f"format_{version}" / "model" / "vae") for version in (1, 2))
    assert first.module.log_clump is None and first.module_params["clumps"] is False
    assert second.module.log_clump.shape == second.module.log_theta.shape and second.module_params["clumps"] is True


def test_models_before_the_third_format_have_library_sizes_on_their_own_scale():
    old, new = (isd.model.LatentDiffusion.load(FOLDER / f"format_{version}" / "model") for version in (2, 3))
    assert old.module.scaler.n_quantiles == 0 and old.module_params["library_quantiles"] == 0
    assert new.module.scaler.n_quantiles == len(new.module.scaler.quantiles) == new.module_params["library_quantiles"]


@pytest.mark.parametrize("attributes", [None, 7, {"__dict__": []}, {"__dict__": [["init_params_", 3]]}])
def test_a_damaged_description_of_an_older_format_is_told(tmp_path, attributes):
    shutil.copytree(FOLDER / "format_1" / "model" / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attributes": attributes}))
    with pytest.raises(ValueError, match="damaged"):
        isd.model.VAE.load(tmp_path / "vae")


def test_an_older_format_goes_through_its_migrations(tmp_path, monkeypatch):
    shutil.copytree(FOLDER / "format_1" / "model" / "vae", tmp_path / "vae")
    steps = {
        1: lambda document: _MIGRATIONS[1]({**document, "colors": ["#000003", "#000004"]}),
        2: _MIGRATIONS[2],
        3: lambda document: {**document, "class": "Old" + document["class"]},
        4: lambda document: {**document, "class": document["class"].removeprefix("Old")},
    }
    monkeypatch.setattr("isd.model._files.FORMAT_VERSION", 5)
    monkeypatch.setattr("isd.model._files._MIGRATIONS", steps)
    model = isd.model.VAE.load(tmp_path / "vae")
    assert (model.module.n_latent, model.label_colors) == (3, ["#000003", "#000004"])
    monkeypatch.delitem(steps, 4)
    with pytest.raises(KeyError):
        isd.model.VAE.load(tmp_path / "vae")
