"""``isodiff train``, run as a user runs it."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import isd
import isd.cli._shared as shared
from isd.model._lines import TrainingLines

from .conftest import TINY, invoke, ok, one_error

VAE = ["--model", "vae", "--max-steps", "6", "--batch-size", "32", "--n-latent", "3", "--model-kwargs", "n_hidden=8"]


def test_help_says_what_and_how() -> None:
    text = invoke("train", "--help").stdout
    assert "Example: isodiff train" in text
    for option in (
        "--labels-key",
        "--gene-key",
        "--backed",
        "--max-minutes",
        "--checkpoint-every",
        "--resume",
        "--reference",
    ):
        assert option in text


def test_the_model_is_that_of_python(cells_file: Path, tmp_path: Path) -> None:
    line = ok("train", cells_file, "--out", tmp_path / "deep" / "model", *TINY, "--seed", "3")
    assert line.startswith("Trained a LatentDiffusion on 72 cells x 60 transcripts, 3 labels of leiden")
    adata = ad.read_h5ad(cells_file)
    isd.model.LatentDiffusion.setup_anndata(adata)
    model = isd.model.LatentDiffusion(adata, n_hidden=8, seed=3)
    model.train(max_steps=6, batch_size=32, vae_kwargs={"max_steps": 6}, seed=3)
    assert isd.model.LatentDiffusion.load(tmp_path / "deep" / "model").fingerprint == model.fingerprint
    # the checkpoints that nobody asked for are gone
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]


def test_vae_from_disk_is_that_from_memory(cells_file: Path, tmp_path: Path) -> None:
    ok("train", cells_file, "-o", tmp_path / "a", *VAE)
    ok("train", cells_file, "-o", tmp_path / "b", *VAE, "--backed", "--save-anndata")
    a, b = isd.model.VAE.load(tmp_path / "a"), isd.model.VAE.load(tmp_path / "b")
    assert a.module_params["n_latent"] == 3 and a.module_params["n_hidden"] == 8
    # the same rows; a file is read in an order of its own
    np.testing.assert_array_equal(a.train_obs_hash, b.train_obs_hash)
    for name, value in a.module.state_dict().items():
        np.testing.assert_allclose(value, b.module.state_dict()[name], atol=0.1, err_msg=name)
    assert a.adata is None and b.adata.n_obs == 120


def test_options_of_the_data_reach_the_model(model_folder: Path) -> None:
    model = isd.model.LatentDiffusion.load(model_folder)
    assert model.setup_args["batch_key"] == "batch" and model.gene_key == "gene_id"
    assert model.vae.module_params["n_latent"] == 4 and model.vae.gene_encoder is not None
    assert model.module_params["n_hidden"] == 8
    assert not list(model_folder.parent.glob("*.checkpoint*"))


def test_without_labels_and_one_label_alone(cells_file: Path, tmp_path: Path) -> None:
    assert "no labels" in ok("train", cells_file, "-o", tmp_path / "a", *VAE, "--no-labels")
    line = ok("train", cells_file, "-o", tmp_path / "b", *VAE, "--one-label", "1", "--backed")
    adata = ad.read_h5ad(cells_file)
    n = int(((adata.obs["leiden"] == "1") & (adata.obs["isd_split"] == "train")).sum())
    assert f"on {n} cells" in line and "1 labels of leiden" in line
    assert "--one-label 9: 0 cells" in one_error("train", cells_file, "-o", tmp_path / "c", *VAE, "--one-label", "9")


def test_a_reference_and_a_vae_that_are_there(cells_file: Path, model_folder: Path, tmp_path: Path) -> None:
    options = [*TINY, "--gene-key", "gene_id", "--batch-key", "batch"]
    ok("train", cells_file, "-o", tmp_path / "a", *options, "--reference", model_folder, "--freeze", "trunk")
    model = isd.model.LatentDiffusion.load(tmp_path / "a")
    assert set(model.vae.transfer_report["source"]) == {"copied"} and model.vae.frozen == ["trunk"]
    assert model.pretrained_ is not None  # the denoiser, too: the axes are the reference's
    options = ["--max-steps", "3", "--batch-key", "batch", "--vae", tmp_path / "a" / "vae"]
    ok("train", cells_file, "-o", tmp_path / "b", *options)
    assert isd.model.LatentDiffusion.load(tmp_path / "b").vae.fingerprint == model.vae.fingerprint


def test_classifier(cells_file: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "classifier"
    options = ["--model", "classifier", "--diffusion", model_folder, "--max-steps", "5"]
    ok("train", cells_file, "-o", out, *options, "--model-kwargs", "start_guide_time=0.5", "--batch-key", "batch")
    model = isd.model.LatentDiffusion.load(model_folder, False)
    classifier = isd.model.Classifier.load(out, diffusion=model)
    assert classifier.module_params["start_guide_time"] == 0.5 and classifier.labels.tolist() == ["0", "1", "2"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "classifier"],
        ["--model", "vae", "--vae-kwargs", "max_steps=3"],
        ["--vae-kwargs", "nope=3"],
        ["--model-kwargs", "n_hidden"],
        ["--freeze", "trunk"],
        ["--freeze", "nose"],
        ["--labels-key", "leiden", "--no-labels"],
        ["--max-epochs", "1", "--max-steps", "1"],
        ["--max-minutes", "0"],
        ["--reference", "absent"],
    ],
)
def test_wrong_usage_exits_with_2(cells_file: Path, tmp_path: Path, arguments: list[str]) -> None:
    out = ["--out", tmp_path / "model"] if arguments else []
    result = invoke("train", cells_file, *out, *arguments)
    assert result.exit_code == 2, result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--labels-key", "nope"], ["nope", "leiden", "--no-labels"]),
        (["--layer", "raw"], ["raw", "none"]),
        (["--batch-key", "nope"], ["batch_key 'nope'"]),
        (["--gene-key", "nope"], ["gene_key 'nope'"]),
    ],
)
def test_names_that_are_not_there(cells_file: Path, tmp_path: Path, arguments, parts) -> None:
    error = one_error("train", cells_file, "-o", tmp_path / "model", *arguments)
    assert all(part in error for part in parts), error
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced_unless_asked(cells_file: Path, model_folder: Path, tmp_path: Path) -> None:
    before = (model_folder / "model.json").read_bytes()
    # before the data are read: a file that is no data does not come into it
    text = tmp_path / "text.h5ad"
    text.write_text("no data")
    assert "--overwrite" in one_error("train", text, "-o", model_folder)
    assert (model_folder / "model.json").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "note.txt").write_text("mine")
    assert "not a saved model" in one_error("train", text, "-o", other, "--overwrite")
    assert "cannot be read" in one_error("train", text, "-o", tmp_path / "model")
    ok("train", cells_file, "-o", tmp_path / "model", *VAE)
    first = isd.model.VAE.load(tmp_path / "model").fingerprint
    ok("train", cells_file, "-o", tmp_path / "model", *VAE, "--overwrite", "--seed", "1")
    assert isd.model.VAE.load(tmp_path / "model").fingerprint != first


def test_time_is_up_and_the_same_command_goes_on(cells_file: Path, tmp_path: Path) -> None:
    command = ["train", cells_file, "-o", tmp_path / "model", *TINY, "--resume", "--checkpoint-every", "2"]
    result = invoke(*command, "--max-minutes", "0.001")
    assert result.exit_code == 3, result.output
    assert "--resume goes on" in result.stderr and not (tmp_path / "model").exists()
    # without a word, what was begun is neither lost nor taken for finished
    unsure = one_error("train", cells_file, "-o", tmp_path / "model", *TINY, "--checkpoint-every", "2")
    assert "Give --resume to go on with it, --no-resume to begin anew" in unsure
    ok(*command)
    ok("train", cells_file, "-o", tmp_path / "whole", *TINY)
    a, b = (isd.model.LatentDiffusion.load(tmp_path / name).fingerprint for name in ("model", "whole"))
    assert a == b
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "whole"]


def test_a_vae_of_its_own_options_goes_on_as_well(cells_file: Path, tmp_path: Path) -> None:
    command = ["train", cells_file, *TINY, "--n-latent", "3", "--checkpoint-every", "2", "--resume"]
    assert invoke(*command, "-o", tmp_path / "a", "--max-minutes", "0.001").exit_code == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.checkpoint-vae"]
    for name in ("a", "b"):
        ok(*command, "-o", tmp_path / name)
    a, b = (isd.model.LatentDiffusion.load(tmp_path / name) for name in ("a", "b"))
    assert a.fingerprint == b.fingerprint and a.vae.module_params["n_latent"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_of_checkpoints_that_was_named_stays(cells_file: Path, tmp_path: Path) -> None:
    ok("train", cells_file, "-o", tmp_path / "model", *VAE, "--checkpoint-dir", tmp_path / "kept")
    kept, made = (isd.model.VAE.load(tmp_path / name) for name in ("kept", "model"))
    assert kept.fingerprint == made.fingerprint
    same = one_error("train", cells_file, "-o", tmp_path / "x", *VAE, "--checkpoint-dir", tmp_path / "x")
    assert "is OUT" in same


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_exit_codes_and_leave_lines_in_a_log(
    cells_file: Path, tmp_path: Path, monkeypatch, number, code
) -> None:
    def told(self, trainer, *args):
        tell(self, trainer, *args)
        if trainer.global_step == 3:
            os.kill(os.getpid(), number)

    tell = TrainingLines.on_train_batch_end
    monkeypatch.setattr(TrainingLines, "on_train_batch_end", told)
    monkeypatch.setattr(shared, "plain_lines", partial(shared.plain_lines, every=0.0))
    monkeypatch.setattr(isd.settings, "progress", None)
    result = invoke("train", cells_file, "-o", tmp_path / "model", *VAE)
    assert result.exit_code == code, (result.output, result.exception)
    assert "VAE, step: 2 of 6, loss " in result.stderr and "\x1b" not in result.stderr
    assert "stopped at step" in result.stderr and "--resume" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["model.checkpoint"]
    isd.model.VAE.load(tmp_path / "model.checkpoint")
