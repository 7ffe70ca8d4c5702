"""Two processes against one: a real run of ``strategy="ddp"`` (gloo, CPU), started once for all tests."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import isd
from isd.model._distributed import SharedBatches, SharedRows
from isd.model._loading import SparseDataSplitter

SCRIPT = Path(__file__).with_name("ddp_script.py")


def _script():
    spec = importlib.util.spec_from_file_location("ddp_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return _script()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("ddp")
    # of another launcher, or of an earlier training in this process, nothing is to be found
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MASTER_", "LOCAL_RANK", "WORLD_SIZE"))}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env={**plain, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def seen(folder):
    return [json.loads((folder / f"seen_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(script):
    """The same training in one process, on the same global batches with the same noise."""
    first = script.FirstGradients()
    vae = script.make_vae(script.cells())

    def train_dataloader(self):
        batches = SharedBatches(
            len(self.train_idx), self.data_loader_kwargs["batch_size"], rank=0, size=1, seed=self.seed
        )
        return self._shared(self.train_idx, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", script.fixed_noise)
        patch.setattr(SparseDataSplitter, "train_dataloader", train_dataloader)
        vae.train(max_steps=20, log_every=1, callbacks=[first], accelerator="cpu", progress=False, **script.BATCH)
    return vae, first.gradients


def test_gradients_are_those_of_one_process_on_the_same_batch(folder, alone):
    _, expected = alone
    for rank in (0, 1):
        with np.load(folder / f"gradients_{rank}.npz") as found:
            assert set(found) == set(expected) and len(expected) > 5
            for name, gradient in expected.items():
                scale = np.abs(gradient).max()
                np.testing.assert_allclose(found[name], gradient, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


def test_weights_and_metrics_of_a_training_are_those_of_one_process(folder, seen, alone):
    vae, _ = alone
    history = seen[0]["history"]
    assert seen[1]["history"] == {}, "history lives on the first process"
    assert len(history["train_loss_step"]) == 20
    # of metrics of a process's own share, these would differ by a tenth
    for key in ("train_loss_step", "train_loss", "validation_loss", "elbo_validation", "reconstruction_loss_train"):
        np.testing.assert_allclose(history[key], vae.history[key].iloc[:, 0], rtol=2e-4, err_msg=key)
    with np.load(folder / "weights_0.npz") as one, np.load(folder / "weights_1.npz") as two:
        for name, value in vae.module.state_dict().items():
            np.testing.assert_array_equal(one[name], two[name])
            np.testing.assert_allclose(one[name], value.numpy(), rtol=0.05, atol=0.01, err_msg=name)


def test_processes_end_alike_and_in_the_loss_of_one(seen, script):
    assert seen[0]["fingerprints"] == seen[1]["fingerprints"], "bounded by minutes, too"
    assert seen[0]["noise"] != seen[1]["noise"], "each share of a batch gets noise of its own"
    model = script.make_diffusion(script.cells())
    model.train(max_steps=60, vae_kwargs={"max_steps": 60, **script.BATCH}, accelerator="cpu", progress=False)
    losses = [m.history["validation_loss"].iloc[-1, 0] for m in (model.vae, model)]
    assert seen[0]["validation_loss"] == pytest.approx(losses, rel=0.1)
    assert seen[0]["validation_loss"][0] < 0.9 * model.vae.history["validation_loss"].iloc[0, 0]


def test_early_stopping_stops_all_processes(seen):
    assert seen[0]["stopped"] and seen[0]["stopped"][0] < 20, "of 40 epochs"


def test_the_first_process_alone_writes(folder, seen):
    assert [s["written"] for s in seen] == [["model", "vae"], []]
    left = sorted(p.name for p in folder.iterdir() if p.suffix not in (".json", ".npz", ".h5ad"))
    assert left == ["check", "model"], "no folder of logs where the script was called"
    assert isd.model.LatentDiffusion.load(folder / "check").is_trained


def test_what_processes_generate_is_the_whole(folder, script, tmp_path):
    model = isd.model.LatentDiffusion.load(folder / "model")
    whole = isd.tl.generate(model, **script.GENERATE)
    paths = [folder / f"part_{rank}.h5ad" for rank in (0, 1)]
    joined = isd.tl.join_parts(paths, tmp_path / "whole.h5ad").to_memory()
    assert (joined.X != whole.X).nnz == 0
    assert joined.obs_names.equals(whole.obs_names) and joined.obs["leiden"].tolist() == whole.obs["leiden"].tolist()
    np.testing.assert_array_equal(joined.obsm["X_isd_vae"], whole.obsm["X_isd_vae"])


def test_the_vae_of_a_diffusion_model_trains_in_the_same_processes(script, monkeypatch):
    model, asked = script.make_diffusion(script.cells()), {}

    def train(self, **options):
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(isd.model.VAE, "train", train)
    with pytest.raises(KeyboardInterrupt):
        model.train(strategy="ddp", devices=4, num_nodes=2, accelerator="cpu", vae_kwargs={"devices": 2})
    assert {k: asked[k] for k in ("strategy", "devices", "num_nodes")} == {
        "strategy": "ddp",
        "devices": 2,
        "num_nodes": 2,
    }


@pytest.mark.parametrize(("n", "batch_size", "size"), [(100, 32, 2), (100, 33, 4), (64, 64, 3), (7, 7, 7)])
def test_shares_of_a_batch_are_the_batch(n, batch_size, size):
    def epoch(rank, number):
        sampler = SharedBatches(n, batch_size, rank=rank, size=size, seed=3)
        sampler.set_epoch(number)
        return list(sampler)

    shares = [epoch(rank, 0) for rank in range(size)]
    whole = batch_size // size * size
    assert {len(share) for share in shares} == {n // batch_size}
    for parts in zip(*shares, strict=True):
        assert {len(part) for part in parts} == {batch_size // size}
        assert len({row for part in parts for row in part}) == whole
    rows = [row for share in shares for part in share for row in part]
    assert len(rows) == len(set(rows)) and set(rows) <= set(range(n))
    assert epoch(0, 1) != shares[0], "another order in every epoch"


@pytest.mark.parametrize(("n", "batch_size", "size"), [(100, 32, 2), (101, 10, 4), (9, 2, 4), (5, 128, 4)])
def test_validation_rows_are_seen_once_in_as_many_batches(n, batch_size, size):
    samplers = [SharedRows(n, batch_size, rank=rank, size=size) for rank in range(size)]
    assert len({len(s) for s in samplers}) == 1
    batches = [batch for s in samplers for batch in s]
    assert sorted(row for batch in batches for row in batch) == list(range(n))
    assert all(batches)


def test_fewer_validation_rows_than_processes_are_seen_by_all():
    assert [list(SharedRows(2, 8, rank=rank, size=4)) for rank in range(4)] == [[[0, 1]]] * 4


def test_a_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="2 cells cannot be split over 4 processes; give batch_size of at least 4"):
        SharedBatches(100, 2, rank=0, size=4)
