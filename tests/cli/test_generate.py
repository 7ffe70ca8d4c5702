"""``isodiff generate``, and the whole way from counts to a verdict."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import isd
import isd.tl._stream as stream

from .conftest import TINY, invoke, ok, one_error


def test_cells_are_those_of_python(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "fake.h5ad"
    line = ok(
        "generate", model_folder, "-o", out, "--n-obs", "40", "--guidance-scale", "1.5", "--n-steps", "4", "--seed", "2"
    )
    assert line.startswith("Wrote 40 cells x 60 transcripts") and line.endswith(str(out))
    model = isd.model.LatentDiffusion.load(model_folder)
    fake = isd.tl.generate(model, 40, guidance_scale=1.5, n_steps=4, seed=2)
    made = ad.read_h5ad(out)
    np.testing.assert_array_equal(made.X.toarray(), fake.X.toarray())
    pd.testing.assert_frame_equal(made.obs, fake.obs)
    assert made.uns["isd"]["guidance_scale"] == 1.5
    assert [p.name for p in out.parent.iterdir()] == ["fake.h5ad"]


def test_labels_batches_scales_and_zarr(model_folder: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    out = tmp_path / "fake.zarr"
    options = ["--labels", "2=3", "--labels", "0=4", "--batch", "batch1", "--guidance-scale", "2=3.5", "--n-steps", "2"]
    batches = isd.model.LatentDiffusion.load(model_folder).batches
    options[5] = str(batches[1])
    ok("generate", model_folder, "-o", out, *options)
    assert zarr.open_group(str(out), mode="r")
    made = ad.read_zarr(out)
    assert made.obs["leiden"].tolist() == ["2"] * 3 + ["0"] * 4
    assert set(made.obs["batch"].astype(str)) == {str(batches[1])}
    assert made.obs["isd_guidance_scale"].tolist() == [3.5] * 3 + [1.0] * 4


def test_one_label_none_and_parts(model_folder: Path, tmp_path: Path) -> None:
    ok("generate", model_folder, "-o", tmp_path / "a.h5ad", "--labels", "1", "--n-obs", "5", "--n-steps", "2")
    assert ad.read_h5ad(tmp_path / "a.h5ad").obs["leiden"].tolist() == ["1"] * 5
    ok("generate", model_folder, "-o", tmp_path / "b.h5ad", "--labels", "none", "--n-obs", "5", "--n-steps", "2")
    assert ad.read_h5ad(tmp_path / "b.h5ad").obs["leiden"].isna().all()
    ok(
        "generate",
        model_folder,
        "-o",
        tmp_path / "c.h5ad",
        "--n-obs",
        "300",
        "--latents",
        "gaussian",
        "--part",
        "2",
        "2",
    )
    assert ad.read_h5ad(tmp_path / "c.h5ad").n_obs == 44


def test_a_classifier_guides_and_sorts(cells_file: Path, model_folder: Path, tmp_path: Path) -> None:
    adata = ad.read_h5ad(cells_file)
    model = isd.model.LatentDiffusion.load(model_folder, False)
    isd.model.Classifier.setup_anndata(adata, batch_key="batch")
    classifier = isd.model.Classifier(adata, model)
    classifier.train(max_steps=100, progress=False)
    classifier.save(tmp_path / "classifier")
    options = ["--n-obs", "6", "--classifier", tmp_path / "classifier"]
    ok("generate", model_folder, "-o", tmp_path / "a.h5ad", *options, "--n-steps", "2", "--classifier-scale", "2")
    assert ad.read_h5ad(tmp_path / "a.h5ad").uns["isd"]["classifier_scale"] == 2.0
    # the label that the classifier finds most often in cells of a model that hardly learnt anything
    some = isd.tl.generate(model, 30, latents="gaussian", seed=1)
    found = str(pd.Series(classifier.predict(some)).value_counts().index[0])
    options += ["--latents", "gaussian", "--accept", "classified", "--labels", found]
    ok("generate", model_folder, "-o", tmp_path / "b.h5ad", *options, "--max-tries", "100")
    made = ad.read_h5ad(tmp_path / "b.h5ad")
    assert made.n_obs == 6 and (made.obs["isd_tries"] >= 1).all()
    rare = next(str(label) for label in model.labels if label != found)
    options[-1] = rare
    error = one_error(
        "generate", model_folder, "-o", tmp_path / "c.h5ad", *options, "--n-obs", "60", "--max-tries", "1"
    )
    assert "not accepted" in error and not (tmp_path / "c.h5ad").exists()


def test_an_interrupted_file_is_gone_on_with(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_VALUES", 1)  # a chunk for each tile
    out, command = tmp_path / "fake.h5ad", ["generate", model_folder, "--n-obs", "600", "--latents", "gaussian"]
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(*args, **kwargs)

    decode = stream.decode_counts
    monkeypatch.setattr(stream, "decode_counts", interrupted)
    result = invoke(*command, "-o", out)
    assert result.exit_code == 130 and "stopped" in result.stderr
    assert not out.exists() and (tmp_path / "fake.h5ad.partial").is_dir()
    # another call does not take it for its own
    assert "seed: 0 then, 1 now" in one_error(*command, "-o", out, "--seed", "1")
    ok(*command, "-o", out)
    assert len(calls) == 4  # the first chunk was not made twice
    ok(*command, "-o", tmp_path / "whole.h5ad")
    a, b = (ad.read_h5ad(tmp_path / name).X.toarray() for name in ("fake.h5ad", "whole.h5ad"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--labels", "9"], ["label '9'", "['0', '1', '2']"]),
        (["--labels", "0=3", "--n-obs", "5"], ["add up to 3"]),
        (["--batch", "nope"], ["nope"]),
        (["--covariates", "donor=d1"], ["donor"]),
        (["--accept", "classified"], ["classifier"]),
        (["--latents", "mixture"], ["mixture"]),
    ],
)
def test_one_line_says_what_is_wrong(model_folder: Path, tmp_path: Path, arguments, parts) -> None:
    error = one_error("generate", model_folder, "-o", tmp_path / "fake.h5ad", *arguments)
    assert all(part in error for part in parts), error
    assert not (tmp_path / "fake.h5ad").exists()


def test_files_that_are_there_or_cannot_be(cells_file: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fake.h5ad"
    out.write_text("mine")
    assert "--overwrite" in one_error("generate", model_folder, "-o", out)
    assert out.read_text() == "mine"
    assert ".h5ad or .zarr" in one_error("generate", model_folder, "-o", tmp_path / "fake.csv")
    assert "holds a VAE" in one_error("generate", model_folder / "vae", "-o", tmp_path / "x.h5ad")
    assert "no model" in one_error("generate", tmp_path, "-o", tmp_path / "x.h5ad").replace(
        "no saved model", "no model"
    )
    ok("generate", model_folder, "-o", out, "--n-obs", "3", "--n-steps", "2", "--overwrite")
    assert ad.read_h5ad(out).n_obs == 3


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--labels", "0=x"],
        ["--labels", "0", "--labels", "1"],
        ["--guidance-scale", "x"],
        ["--covariates", "x"],
        ["--part", "1"],
    ],
)
def test_wrong_usage_exits_with_2(model_folder: Path, tmp_path: Path, arguments: list[str]) -> None:
    out = ["--out", tmp_path / "fake.h5ad"] if arguments else []
    assert invoke("generate", model_folder, *out, *arguments).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_train_generate_evaluate(cells_file: Path, tmp_path: Path) -> None:
    ok("train", cells_file, "-o", tmp_path / "model", *TINY)
    ok("generate", tmp_path / "model", "-o", tmp_path / "fake.h5ad", "--n-obs", "36", "--n-steps", "4")
    quick = ["--metric", "coverage", "--n-boot", "20", "--n-jobs", "1", "--no-labels"]
    line = ok("evaluate", cells_file, tmp_path / "fake.h5ad", "--out", tmp_path / "metrics.csv", *quick)
    assert "Judged 36 generated cells" in line
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert set(table["metric"]) == {"coverage"} and table["value"].between(0, 1).all()
