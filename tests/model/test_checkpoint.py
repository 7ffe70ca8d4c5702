"""Trainings that are stopped anywhere and go on: the same weights, bit for bit, as without the stop."""

import os
import signal
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import isd
from isd.model import VAE, Classifier, LatentDiffusion
from isd.model import _checkpoint as module
from isd.model._state import TRAINING_FILE, pack, read_notes, read_state, unpack, write_state


class Killed(BaseException):
    """As if the process were gone: nothing of ours handles it."""


@pytest.fixture
def cells():
    return isd.datasets.simulated(n_obs=60, n_vars=40, n_labels=2, seed=0)


@pytest.fixture
def kill(monkeypatch):
    """Let a training end right after its so-many-th checkpoint."""
    save = module.Keeper._save

    def after(n):
        done = []

        def killed(self, *args, **kwargs):
            save(self, *args, **kwargs)
            done.append(1)
            if len(done) == n:
                monkeypatch.setattr(module.Keeper, "_save", save)
                raise Killed

        monkeypatch.setattr(module.Keeper, "_save", killed)

    return after


def vae(cells, **options):
    adata = cells.copy()
    VAE.setup_anndata(adata)
    return VAE(adata, n_hidden=8, n_latent=2, output_rank=2, dispersion_rank=2, **options)


OPTIONS = {
    "max_steps": 8,
    "batch_size": 16,
    "log_every": 1,
    "early_stopping": True,
    "early_stopping_patience": 50,
    "gene_encoder": False,
}


@pytest.fixture(scope="module")
def whole():
    """A training without interruption."""
    model = vae(isd.datasets.simulated(n_obs=60, n_vars=40, n_labels=2, seed=0))
    model.train(**OPTIONS, progress=False)
    return model


@pytest.mark.parametrize("step", range(1, 8))
def test_after_any_step_a_training_goes_on_to_the_same_weights_and_history(cells, whole, kill, tmp_path, step):
    """Epochs are of three steps: the first, the last and others; between epochs; in one that is cut short."""
    kill(1)
    with pytest.raises(Killed):
        vae(cells).train(**OPTIONS, checkpoint_every=step, checkpoint_dir=tmp_path / "c")
    notes = read_notes(tmp_path / "c" / TRAINING_FILE)
    assert (notes["step"], notes["finished"]) == (step, False)
    model = vae(cells)
    model.train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True)
    assert model.fingerprint == whole.fingerprint
    assert model.history.keys() == whole.history.keys()
    for key, frame in whole.history.items():
        pd.testing.assert_frame_equal(model.history[key], frame)
    # what is in the folder now is the finished model, and the same call again is done at once
    assert VAE.load(tmp_path / "c", model.adata).fingerprint == whole.fingerprint
    again = vae(cells)
    again.train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True)
    assert (again.fingerprint, again.training_finished) == (whole.fingerprint, True)


def test_checkpoints_change_nothing(cells, whole, tmp_path):
    model = vae(cells)
    model.train(**OPTIONS, checkpoint_every=1, checkpoint_dir=tmp_path / "c")
    assert model.fingerprint == whole.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


@pytest.mark.parametrize("batch_size", [60, 5])
def test_epochs_of_one_step_and_of_many(cells, kill, tmp_path, batch_size):
    options = {"max_steps": 5, "batch_size": batch_size, "gene_encoder": False}
    expected = vae(cells)
    expected.train(**options)
    for n in (2, 2):  # killed twice
        kill(n)
        with pytest.raises(Killed):
            vae(cells).train(**options, checkpoint_every=1, checkpoint_dir=tmp_path / "c", resume=True)
    model = vae(cells)
    model.train(**options, checkpoint_dir=tmp_path / "c", resume=tmp_path / "c")
    assert model.fingerprint == expected.fingerprint


@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_diffusion_model_goes_on_in_either_part(cells, kill, tmp_path, n):
    """Two checkpoints of the VAE before, two of the diffusion model after; n-th of them; the VAE with its gene encoder."""

    def model():
        adata = cells.copy()
        LatentDiffusion.setup_anndata(adata, gene_key="gene_id")
        return LatentDiffusion(adata, n_hidden=8, n_blocks=1)

    options = {
        "max_steps": 7,
        "batch_size": 16,
        "vae_kwargs": {"max_steps": 7, "batch_size": 16},
        "checkpoint_every": 2,
        "resume": True,
    }
    expected = model()
    expected.train(max_steps=7, batch_size=16, vae_kwargs=options["vae_kwargs"])
    kill(n)
    with pytest.raises(Killed):
        model().train(**options, checkpoint_dir=tmp_path / "c")
    assert (tmp_path / "c" / TRAINING_FILE).exists() == (n > 3)
    found = model()
    found.train(**options, checkpoint_dir=tmp_path / "c")
    assert found.vae.fingerprint == expected.vae.fingerprint
    assert found.vae.gene_encoder.fingerprint == expected.vae.gene_encoder.fingerprint
    assert found.fingerprint == expected.fingerprint
    loaded = LatentDiffusion.load(tmp_path / "c")
    fakes = [isd.tl.generate(m, n_obs=5, seed=1).X.toarray() for m in (expected, found, loaded)]
    np.testing.assert_array_equal(fakes[0], fakes[1])
    np.testing.assert_array_equal(fakes[0], fakes[2])


def test_a_classifier_goes_on_and_belongs_to_one_diffusion_model(cells, kill, tmp_path):
    LatentDiffusion.setup_anndata(cells)
    diffusion = LatentDiffusion(cells, n_hidden=8)
    diffusion.train(max_steps=3, vae_kwargs={"max_steps": 3, "gene_encoder": False})
    Classifier.setup_anndata(cells)

    def trained(**options):
        model = Classifier(cells, diffusion, hidden=(8,), dropout=0.1)
        model.train(max_steps=7, batch_size=16, **options)
        return model

    expected = trained()
    kill(2)
    with pytest.raises(Killed):
        trained(checkpoint_every=2, checkpoint_dir=tmp_path / "c")
    assert trained(resume=tmp_path / "c").fingerprint == expected.fingerprint
    diffusion.train(max_steps=1)
    with pytest.raises(ValueError, match="diffusion model: "):
        trained(resume=tmp_path / "c")


# -- stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [16, 60])
def test_minutes_of_one_sitting(cells, tmp_path, batch_size):
    """Time is up after each step: in the middle of epochs, and where each step is one."""
    options = {"max_steps": 5, "batch_size": batch_size, "gene_encoder": False}
    expected = vae(cells)
    expected.train(**options)
    for step in range(1, 5):
        model = vae(cells)
        with pytest.warns(UserWarning, match=rf"stopped at step {step} of 5; to go on.*resume=True"):
            model.train(**options, checkpoint_dir=tmp_path / "c", resume=True, max_minutes=1e-9)
        assert not model.training_finished
        assert model.is_trained
        assert read_notes(tmp_path / "c" / TRAINING_FILE)["step"] == step
    model = vae(cells)
    model.train(**options, checkpoint_dir=tmp_path / "c", resume=True, max_minutes=10)
    assert model.training_finished
    assert model.fingerprint == expected.fingerprint


def test_minutes_of_the_whole_training_anneal_it_to_its_end(cells, tmp_path):
    model = vae(cells)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(max_steps=10**6, max_minutes=1.0 / 60, gene_encoder=False, checkpoint_dir=tmp_path / "c")
    assert not [w for w in caught if "stopped" in str(w.message)]
    assert model.training_finished
    assert read_notes(tmp_path / "c" / TRAINING_FILE)["finished"]


def test_minutes_of_a_whole_training_that_was_interrupted_are_those_that_are_left(cells, kill, tmp_path):
    options = {"max_steps": 10**6, "max_minutes": 3.0 / 60, "gene_encoder": False, "checkpoint_dir": tmp_path / "c"}
    kill(1)
    with pytest.raises(Killed):
        vae(cells).train(**options, checkpoint_every=5)
    assert not VAE.load(tmp_path / "c").training_finished
    spent = read_notes(tmp_path / "c" / TRAINING_FILE)["seconds"]
    assert 0 < spent < 3.0
    model = vae(cells)
    model.train(**options, resume=True)
    assert model.training_finished
    assert 3.0 <= read_notes(tmp_path / "c" / TRAINING_FILE)["seconds"] < 2 * 3.0


def test_minutes_given_first_when_a_training_goes_on_are_those_of_the_call(cells, whole, kill, tmp_path):
    """They were taken for the length of the whole: the training was called finished at the step where it stood."""
    kill(1)
    with pytest.raises(Killed):
        vae(cells).train(**OPTIONS, checkpoint_dir=tmp_path / "c", checkpoint_every=3)
    model = vae(cells)
    with pytest.warns(UserWarning, match="stopped at step 4 of 8; to go on"):
        model.train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True, max_minutes=1e-9)
    assert not model.training_finished
    model = vae(cells)
    model.train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True)
    assert model.training_finished and model.fingerprint == whole.fingerprint


def test_a_diffusion_model_whose_time_is_up_in_its_vae_is_not_trained(cells, tmp_path):
    LatentDiffusion.setup_anndata(cells)
    model = LatentDiffusion(cells, n_hidden=8)
    options = {"max_steps": 3, "checkpoint_dir": tmp_path / "c", "resume": True}
    options["vae_kwargs"] = {"max_steps": 4, "gene_encoder": False}
    with pytest.warns(UserWarning, match="step 1 of 4"):
        model.train(**options, max_minutes=1e-9)
    assert (model.is_trained, model.training_finished, model.vae.training_finished) == (False, False, False)
    model.train(**options)  # the same process goes on as a new one would
    assert model.training_finished
    assert model.vae.history["train_loss_step"].index.max() <= 4


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
@pytest.mark.parametrize("with_folder", [True, False])
def test_signals_end_a_training_in_good_order(cells, whole, tmp_path, number, error, with_folder):
    class Sender(isd_callback()):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 3:
                os.kill(os.getpid(), number)
                time.sleep(0.01)

    folder = {"checkpoint_dir": tmp_path / "c"} if with_folder else {}
    model = vae(cells)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings(), pytest.raises(error) as caught:
        warnings.filterwarnings("ignore", message="training stopped at step 4 of 8")
        model.train(**OPTIONS, **folder, callbacks=[Sender()])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert model.is_trained
    assert not model.training_finished
    assert len(model.history["train_loss_step"]) == 4
    assert model.get_latent_representation().shape == (60, 2)
    if error is SystemExit:
        assert caught.value.code == 143
    else:
        assert "step 4 of 8" in str(caught.value)
    if with_folder:
        again = vae(cells)
        again.train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True)
        assert again.fingerprint == whole.fingerprint


def test_a_signal_before_the_first_step_ends_a_training_as_well(cells, whole, tmp_path):
    class Sender(isd_callback()):
        def on_train_start(self, *args):  # ours comes later: Lightning's own handler is there
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    model = vae(cells)
    with pytest.warns(UserWarning, match="stopped at step 1 of 8"), pytest.raises(SystemExit) as caught:
        model.train(**OPTIONS, checkpoint_dir=tmp_path / "c", callbacks=[Sender()])
    assert caught.value.code == 143
    again = vae(cells)
    again.train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True)
    assert again.fingerprint == whole.fingerprint


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_second_signal_ends_a_training_at_once(cells, tmp_path, number, error):
    class Sender(isd_callback()):
        def on_train_batch_start(self, *args):
            for _ in range(2):
                os.kill(os.getpid(), number)
                time.sleep(0.01)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(error) as caught:
        vae(cells).train(**OPTIONS, checkpoint_dir=tmp_path / "c", callbacks=[Sender()])
    assert getattr(caught.value, "code", 143) == 143
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "c").exists()


def isd_callback():
    from lightning.pytorch.callbacks import Callback

    return Callback


# -- refusals ---------------------------------------------------------------------------------------------------


def test_another_call_does_not_go_on_with_it(cells, kill, tmp_path):
    kill(1)
    with pytest.raises(Killed):
        vae(cells).train(**OPTIONS, checkpoint_every=2, checkpoint_dir=tmp_path / "c")
    for other, told in (
        ({"lr": 0.5}, "lr: "),
        ({"max_steps": 9}, "max_steps: 8 then, 9 now"),
        ({"seed": 3}, "seed: 0 then"),
    ):
        with pytest.raises(ValueError, match=rf"another training.*{told}.*resume=False"):
            vae(cells).train(**{**OPTIONS, **other}, checkpoint_dir=tmp_path / "c", resume=True)
    with pytest.raises(ValueError, match="shape of the network"):
        vae(cells, dropout=0.0, label_weight=0.0).train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True)
    with pytest.raises(ValueError, match="rows: "):
        vae(cells[:58].copy()).train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True)
    with pytest.raises(ValueError, match=r"stopped at step 2 of 8\. Give resume=True"):
        vae(cells).train(**OPTIONS, checkpoint_dir=tmp_path / "c")
    vae(cells).train(**{**OPTIONS, "max_steps": 2}, checkpoint_dir=tmp_path / "c", resume=False)
    assert read_notes(tmp_path / "c" / TRAINING_FILE)["total_steps"] == 2


def test_what_is_no_checkpoint_is_told_before_training(cells, tmp_path):
    model = vae(cells)
    with pytest.raises(ValueError, match="resume=True needs checkpoint_dir"):
        model.train(resume=True)
    with pytest.raises(FileNotFoundError, match="no training to go on with"):
        model.train(resume=tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a saved model"):
        model.train(checkpoint_dir=tmp_path)
    assert model.history_ is None


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(cells, whole, tmp_path, monkeypatch):
    write, steps = module.Keeper._save_model, []

    def full(self, *args):
        steps.append(self.model.is_trained_)
        if len(steps) == 2:
            raise OSError(28, "No space left on device")
        write(self, *args)

    monkeypatch.setattr(module.Keeper, "_save_model", full)
    model = vae(cells)
    with pytest.warns(UserWarning, match=r"step 4 could not be written.*No space left.*training goes on"):
        model.train(**OPTIONS, checkpoint_every=2, checkpoint_dir=tmp_path / "c")
    assert model.fingerprint == whole.fingerprint
    assert VAE.load(tmp_path / "c").fingerprint == whole.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


# -- the file ---------------------------------------------------------------------------------------------------


def test_states_come_back_as_they_were(tmp_path):
    state = {
        "a": [torch.arange(3), {"b": (torch.tensor(2.5), None, "x")}],
        3: {"inf": float("inf"), "flag": True},
        "frame": pd.DataFrame({"v": [1.0, 2.0]}, index=pd.Index([4, 5], name="epoch")),
        "twice": [torch.ones(4)] * 2,
    }
    write_state(tmp_path / "s", state, {"step": 3})
    found = read_state(tmp_path / "s")
    assert found["a"][0].tolist() == [0, 1, 2]
    assert found["a"][1]["b"] == (torch.tensor(2.5), None, "x")
    assert found[3] == state[3]
    pd.testing.assert_frame_equal(found["frame"], state["frame"])
    assert found["twice"][1].tolist() == [1.0] * 4
    assert read_notes(tmp_path / "s")["step"] == 3


def test_only_plain_data_goes_into_a_state():
    with pytest.raises(TypeError, match=r"cannot hold callbacks\.mine, which is a object"):
        pack({"callbacks": {"mine": object()}}, {})
    assert unpack(pack([1, (2,)], {}), {}) == [1, (2,)]


def test_a_damaged_state_is_refused(tmp_path):
    write_state(tmp_path / "s", {"w": torch.ones(1000)}, {"step": 1})
    good = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(good[:-10])
    with pytest.raises(ValueError, match="cannot be read"):
        read_state(tmp_path / "s")
    (tmp_path / "s").write_bytes(good[:-1] + b"\x01")
    with pytest.raises(ValueError, match="does not match its digest"):
        read_state(tmp_path / "s")
    (tmp_path / "s").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        read_notes(tmp_path / "s")
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not the state of a training"):
        read_state(tmp_path / "other")
