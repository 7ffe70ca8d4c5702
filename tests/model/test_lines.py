"""How far a training is: one bar in steps, from where the training begins to where it ends."""

from __future__ import annotations

import re

import pytest
from lightning.pytorch.callbacks import Callback

import isd
from isd.model import VAE


@pytest.fixture
def model() -> VAE:
    adata = isd.datasets.simulated(n_obs=60, n_vars=40, n_labels=2, seed=0)
    VAE.setup_anndata(adata)
    return VAE(adata, n_hidden=8, n_latent=2, output_rank=2, dispersion_rank=2)


OPTIONS = {"max_steps": 5, "batch_size": 16, "gene_encoder": False, "progress": True}


def bars(text: str) -> list[str]:
    """Last state of each bar that was drawn."""
    return [line for line in text.splitlines() if "/5" in line]


def test_one_bar_in_steps_with_the_loss(model: VAE, capsys: pytest.CaptureFixture[str]) -> None:
    model.train(**OPTIONS)
    shown = capsys.readouterr()
    assert shown.out == ""
    # a machine that stands still for a moment has it drawn in between, too
    *_, bar = bars(shown.err)
    assert re.search(r"^VAE, step .* 5/5 .* loss [\d.]+", bar)
    # nothing of Lightning's or scvi's own
    assert not re.search("epoch|v_num|it/s", shown.err, flags=re.IGNORECASE)


def test_a_training_that_goes_on_begins_where_it_stopped(model: VAE, tmp_path, capsys, monkeypatch) -> None:
    begun = []
    bar = isd.model._lines.Bar

    def noted(description: str, total: int, done: int):
        begun.append((description, total, done))
        return bar(description, total, done)

    monkeypatch.setattr(isd.model._lines, "Bar", noted)
    with pytest.warns(UserWarning, match="stopped at step 1 of 5"):
        model.train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True, max_minutes=1e-9)
    assert " 1/5 " in bars(capsys.readouterr().err)[-1]
    model.train(**OPTIONS, checkpoint_dir=tmp_path / "c", resume=True)
    assert begun == [("VAE, step", 5, 0), ("VAE, step", 5, 1)]
    assert " 5/5 " in bars(capsys.readouterr().err)[-1]


def test_the_bar_is_closed_where_a_training_breaks_off(model: VAE, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Callback):
        def on_train_batch_end(self, trainer, *_args) -> None:
            if trainer.global_step == 3:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        model.train(**OPTIONS, callbacks=[Broken()])
    # a bar that is open is drawn again and again, and writes its last state when it is closed
    assert " 3/5 " in bars(capsys.readouterr().err)[-1]


def test_silence(model: VAE, capsys: pytest.CaptureFixture[str]) -> None:
    model.train(**(OPTIONS | {"progress": False}))
    assert capsys.readouterr() == ("", "")
