from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from isd.pl import history


@pytest.fixture
def logged() -> dict[str, pd.DataFrame]:
    """As scvi logs it."""
    epochs = pd.RangeIndex(5, name="epoch")

    def frame(name: str, values) -> pd.DataFrame:
        return pd.DataFrame({name: values}, index=epochs[: len(values)])

    return {
        "train_loss_step": pd.DataFrame({"train_loss_step": np.arange(40.0)}),
        "train_loss_epoch": frame("train_loss_epoch", [5.0, 4, 3, 2, 1]),
        "validation_loss": frame("validation_loss", [6.0, 5, 4, 3.5, 3.4]),
        "elbo_train": frame("elbo_train", [9.0, 8, 7, 6, 5]),
        "elbo_validation": frame("elbo_validation", [9.5, 8, 7, 6, 5]),
        "kl_weight": frame("kl_weight", [0.0, 1, 1, 1, 1]),
        "kl_local_train": frame("kl_local_train", [1.0]),
    }


def test_training_and_validation_share_a_panel_and_epochs_win_over_steps(logged):
    axes = history(logged, show=False)
    assert [ax.get_title() for ax in axes] == ["loss", "elbo"]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axes[0].lines}
    assert drawn == {"training": [5.0, 4, 3, 2, 1], "validation": [6.0, 5, 4, 3.5, 3.4]}
    assert axes[0].get_xlabel() == "epoch"


def test_chosen_quantities(logged, tmp_path):
    for keys in (["elbo"], ["elbo_train"], ["elbo_train", "elbo_validation"]):
        ax = history(logged, keys=keys, show=False)
        assert ax.get_title() == "elbo" and len(ax.lines) == 2
    ax = Figure().subplots()
    assert history(logged, keys=["loss"], ax=ax) is ax
    history(logged, save=tmp_path / "h.png")
    assert (tmp_path / "h.png").is_file()


def test_bad_input_is_refused(logged):
    with pytest.raises(KeyError, match=r"\['accuracy'\] were not logged; there are \['elbo', 'loss'\]"):
        history(logged, keys=["accuracy"])
    with pytest.raises(ValueError, match="train first"):
        history({})
    with pytest.raises(ValueError, match="ax= holds one quantity"):
        history(logged, ax=Figure().subplots())
