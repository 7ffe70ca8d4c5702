"""The grid at its smallest: every cell made, under its right labels, and none twice."""

from __future__ import annotations

from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

import isd
from isd.datasets import published_results
from isd.experiment import _run as module
from isd.experiment import _train as train
from isd.experiment import read_config, run, summarize

LABELS = [str(i) for i in range(12)]  # "10" sorts before "2"
CELLS = ["bulk NG", "bulk G", "sc NG", "sc G", "transfer NG", "transfer G", "one class"]


def clusters(n_obs, depth, seed, labels=LABELS):
    """Cells of twelve labels, each with four transcripts of its own."""
    rng = np.random.default_rng(seed)
    label = np.resize(labels, n_obs)
    rate = np.full((n_obs, 48), 0.3)
    for k in range(4):
        rate[np.arange(n_obs), 4 * label.astype(int) + k] = 6.0
    counts = sparse.csr_matrix(rng.poisson(depth * rate).astype(np.float32))
    names = [f"T{i}" for i in range(48)]
    # plain strings, as a file may have them: an order of categories is not told
    return ad.AnnData(
        counts,
        obs=pd.DataFrame({"leiden": label}, index=[f"cell{seed}_{i}" for i in range(n_obs)]),
        var=pd.DataFrame(index=names),
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    clusters(480, 1.0, 0).write_h5ad(folder / "cells.h5ad")
    clusters(300, 5.0, 1)[:, 3:].copy().write_h5ad(folder / "bulk.h5ad")
    quick = {"max_steps": 3, "batch_size": 32}
    return {
        "data": {"bulk": str(folder / "bulk.h5ad"), "single_cell": str(folder / "cells.h5ad"), "test_size": 0.4},
        "one_class": "10",
        "arms": {
            "default": {
                "vae": {"n_hidden": 64, "n_latent": 16},
                "vae_train": {"max_steps": 200, "lr": 3e-3, "batch_size": 64},
                "diffusion": {"n_hidden": 64},
                "diffusion_train": {"max_steps": 250, "lr": 5e-3},
            },
            "published": {
                "preset": "published",
                "vae": {"n_hidden": 16, "n_latent": 8},
                "vae_train": quick,
                "diffusion_train": quick,
                "classifier_train": quick,
                "unguided": {"n_steps": 5},
                "guided": {"n_steps": 5},
            },
        },
        "evaluation": {
            "metrics": ["coverage", "label_agreement"], "seed_metrics": False, "per_label": False, "pictures": False, "n_boot": 20,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    isd.settings.progress = False
    out = tmp_path_factory.mktemp("experiment") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "tune_guidance", partial(isd.tl.tune_guidance, scales=(1.5,), n_draws=2))
        return out, run(settings, out=out)


def made(out, arm, cell):
    return ad.read_h5ad(out / "seed-0" / arm / cell.replace(" ", "_") / "generated.h5ad")


def test_every_cell_of_the_grid_is_there(finished):
    out, results = finished
    assert results.groupby("arm")["cell"].unique().map(sorted).map(tuple).to_dict() == {
        "default": tuple(sorted(CELLS)),
        "published": tuple(sorted(CELLS)),
    }
    assert set(results.loc[results["group"] == "all", "metric"]) == {"coverage", "label_agreement"}
    assert (results["training_seconds"] > 0).all()
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv", dtype={"group": str}), results, check_dtype=False)
    assert (out / "table.md").read_text().startswith("| metric | space | cell | default mean")
    assert made(out, "default", "bulk NG").n_obs == 120 and made(out, "published", "sc G").n_obs == 192
    assert made(out, "published", "sc NG").obs["leiden"].isna().all()  # unguided, as it was, knows no labels


@pytest.mark.parametrize("cell", ["sc NG", "sc G", "transfer G"])
def test_cells_of_a_label_are_those_of_that_label(finished, cell):
    out, results = finished
    fake, real = made(out, "default", cell), clusters(480, 1.0, 0)
    assert list(fake.obs["leiden"].cat.categories) == LABELS  # in the order of numbers and not of strings

    def means(adata):
        return np.stack([np.asarray(adata[adata.obs["leiden"] == k].X.mean(0)).ravel() for k in LABELS])

    found = np.corrcoef(means(fake), means(real))[:12, 12:]
    np.testing.assert_array_equal(found.argmax(1), np.arange(12))
    rows = results[(results["arm"] == "default") & (results["cell"] == cell) & (results["metric"] == "label_agreement")]
    assert float(rows.loc[rows["group"] == "all", "value"].iloc[0]) > 0.8
    # had names been given by position in the sorted order, ten of twelve labels would be others
    assert (np.argsort(np.array(LABELS)) != np.arange(12)).sum() == 10


def test_the_one_class_is_the_label_of_that_name(finished):
    out, _ = finished
    fake = made(out, "default", "one class")
    assert set(np.asarray(fake.X.mean(0)).ravel().argsort()[-4:]) == {40, 41, 42, 43}  # those of "10"
    assert fake.n_obs == 16  # as many as were held out of it


@pytest.mark.parametrize(("row", "cell"), [("bulk", "bulk G"), ("single_cell", "sc G"), ("transfer", "transfer G")])
def test_validation_cells_choose_how_strongly_it_is_guided(finished, row, cell):
    out, _ = finished
    models = out / "seed-0" / "default" / "models"
    table = pd.read_csv(models / f"{row}_guidance.csv", keep_default_na=False)
    chosen = table[(table["label"] == "") & table["chosen"].astype(str).eq("True")]
    assert set(table["guidance_scale"]) == {1.0, 1.5} and len(chosen) == 1
    assert made(out, "default", cell).uns["isd"]["guidance_scale"] == chosen["guidance_scale"].iloc[0]
    n_validation = 30 if row == "bulk" else 48
    assert chosen["n"].iloc[0] == n_validation
    assert not (out / "seed-0" / "published" / "models" / f"{row}_guidance.csv").exists()


def test_guidance_that_cannot_be_tuned_is_named_before_anything_is_trained(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_run_cell", None)
    few = {**settings["data"], "validation_size": 0.02}
    with pytest.raises(ValueError, match=r"arms\.default\.guided: .* bulk has \d+, of 12 labels; at least 12"):
        run({**settings, "data": few}, out=tmp_path / "a")
    arms = settings["arms"] | {"default": settings["arms"]["default"] | {"guided": {"guidance_scale": 1.5}}}
    with pytest.raises(TypeError, match="not callable"):  # it would have been trained
        run({**settings, "data": few, "arms": arms}, out=tmp_path / "b")


def test_a_finished_experiment_is_not_run_again(finished, settings, monkeypatch):
    out, results = finished
    monkeypatch.setattr(module, "_run_cell", None)
    pd.testing.assert_frame_equal(run(settings, out=out), results)
    assert {p.name for p in (out / "seed-0" / "default").iterdir()} == {"models", *(c.replace(" ", "_") for c in CELLS)}


def test_an_interrupted_one_goes_on_from_its_models(finished, settings, monkeypatch, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    for name in ("sc_G", "one_class"):
        shutil.rmtree(out / "seed-0" / "default" / name)
    monkeypatch.setattr(module.Trainer, "_vae", None)  # no model is trained anew
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return judge(*args, **kwargs)

    judge = module.judge
    monkeypatch.setattr(module, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(settings, out=out)
    assert (out / "seed-0" / "default" / "sc_G" / "metrics.csv").exists()
    assert not list((out / "seed-0" / "default").glob("*one_class*"))
    monkeypatch.setattr(module, "judge", judge)
    pd.testing.assert_frame_equal(run(settings, out=out), finished[1])


def test_other_settings_do_not_mix_into_a_folder(finished, settings):
    with pytest.raises(ValueError, match=r"other settings \(n_obs\)"):
        run({**settings, "n_obs": 5}, out=finished[0])


def halves(n_obs):
    real, fake = (clusters(n, 1.0, seed, labels=["0", "1"]) for n, seed in ((2 * n_obs, 2), (n_obs, 3)))
    real.obs["isd_split"] = np.resize(["train", "train", "test", "test"], 2 * n_obs)
    return real, fake


def test_the_starting_projects_definitions_beside_its_numbers(settings, monkeypatch):
    import isd.metrics._seed_rows as seed_rows

    monkeypatch.setattr(seed_rows, "seed_rf_auc", partial(seed_rows.seed_rf_auc, n_estimators=10))
    config = read_config(settings)
    config.evaluation.seed_metrics, config.evaluation.metrics = True, ["coverage"]
    table = module.judge(*halves(200), config, labels_key="leiden", with_class="0", seed=0)
    assert set(table["group"]) == {"all", "0"}
    shown = summarize(table.assign(seed=0, arm="default", cell="sc G", training_seconds=1.0))
    auc = shown.loc[("seed_rf_auc", "union_pcs")]
    assert abs(auc.loc["sc G", ("default", "mean")] - 0.5) < 0.2
    assert auc["starting project", "published"].to_dict() == {"sc G": 0.99, "sc G cluster 0": 1.0}
    # of all that was published, nothing is taken for ours
    assert shown.loc[("coverage", "pcs"), ("starting project", "published")].isna().all()


def test_pictures(settings, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        "isd.pl.umap_compare", lambda real, fake, color, **options: drawn.append((color, options["save"]))
    )
    real, fake = halves(80)
    isd.metrics.evaluate(real, fake, metrics=["random_forest_auc"], groups=False, n_boot=20)
    module.draw(real, fake, tmp_path, labels_key="leiden", seed=0)
    assert (tmp_path / "roc.png").exists()
    fake.obs["leiden"] = np.nan  # made without labels
    del fake.uns["isd"]
    module.draw(real, fake, tmp_path / "other", labels_key="leiden", seed=0)
    assert drawn == [("leiden", tmp_path / "umap.png"), (None, tmp_path / "other" / "umap.png")]
    assert not (tmp_path / "other").exists()


def test_the_table_has_means_over_seeds_and_a_ratio():
    rows = [
        (seed, arm, "bulk NG", value)
        for arm, values in (("default", (0.55, 0.65)), ("published", (0.9, 1.0)))
        for seed, value in enumerate(values)
    ]
    frame = pd.DataFrame(rows, columns=["seed", "arm", "cell", "value"]).assign(
        metric="seed_rf_auc", space="union_pcs", group="all", floor=0.5
    )
    row = summarize(frame).iloc[0]
    assert row["default", "mean"] == pytest.approx(0.6) and row["published", "sd"] == pytest.approx(0.05 * 2**0.5)
    assert row["ratio", "published"] == pytest.approx(0.1 / 0.45)
    assert row["starting project", "published"] == published_results().loc["bulk NG", "seed_rf_auc"]


def test_files_that_do_not_serve_are_named_before_anything_is_trained(settings, tmp_path):
    def given(**data):
        return {**settings, "data": {**settings["data"], **data}}

    with pytest.raises(FileNotFoundError, match=r"data\.bulk: there is no file"):
        run(given(bulk=str(tmp_path / "no.h5ad")), out=tmp_path / "a")
    with pytest.raises(KeyError, match="no column 'kind' in obs"):
        run(given(labels_key="kind"), out=tmp_path / "b")
    with pytest.raises(ValueError, match="one_class is '77'"):
        run({**settings, "one_class": "77"}, out=tmp_path / "c")


def test_the_command(monkeypatch, tmp_path, finished, settings):
    import yaml

    from isd.cli import app

    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(settings))
    runner = CliRunner(env={"COLUMNS": "200"})
    result = runner.invoke(app, ["experiment", str(file), "--out", str(finished[0])])
    assert result.exit_code == 0
    assert result.stdout.startswith("14 cells of the grid: ") and "results.csv" in result.stdout
    assert (
        yaml.safe_load(runner.invoke(app, ["experiment", "smoke", "--show"]).stdout) == read_config("smoke").to_dict()
    )
    file.write_text("sedes: [0]")
    result = runner.invoke(app, ["experiment", str(file)])
    assert result.exit_code == 1 and "Did you mean 'seeds'?" in result.stderr
