"""What is summed over the steps of an epoch is what a logger of every step would have averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import isd
from isd.model import VAE
from isd.model._epoch_means import EpochMeans


def test_means_weigh_minibatches_by_their_cells() -> None:
    rng = np.random.default_rng(0)
    values, sizes = rng.normal(size=(5, 2)), np.array([7, 1, 3, 3, 9])
    means = EpochMeans()
    for (a, b), n in zip(values, sizes, strict=True):
        means.add({"a": torch.tensor(a), "b": float(b)}, int(n))
    expected = np.average(values, axis=0, weights=sizes)
    np.testing.assert_allclose([float(v) for v in means.take().values()], expected, rtol=1e-6)
    means.add({"a": torch.tensor(2.0)}, 4)
    assert {key: float(value) for key, value in means.take().items()} == {"a": 2.0}, "an epoch begins with nothing"


def test_an_interrupted_epoch_goes_on_with_what_it_had() -> None:
    whole, first, second = EpochMeans(), EpochMeans(), EpochMeans()
    for means, value, n in ((whole, 1.0, 2), (whole, 4.0, 1), (first, 1.0, 2)):
        means.add({"loss": torch.tensor(value)}, n)
    second.load_state_dict(first.state_dict(), "cpu")
    second.add({"loss": torch.tensor(4.0)}, 1)
    assert float(second.take()["loss"]) == float(whole.take()["loss"]) == 2.0


def test_history_has_the_parts_of_the_bound_by_epoch() -> None:
    adata = isd.datasets.simulated(n_obs=60, n_vars=40, n_labels=2, seed=0)
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2, output_rank=2, dispersion_rank=2)
    model.train(max_steps=9, batch_size=16, log_every=1, gene_encoder=False)
    history = model.history
    # 54 training cells: three full minibatches an epoch
    steps = history["train_loss_step"].to_numpy().ravel()
    np.testing.assert_allclose(history["train_loss"].to_numpy().ravel(), steps.reshape(3, 3).mean(axis=1), rtol=1e-6)
    parts = sum(history[f"{name}_train"].to_numpy() for name in ("reconstruction_loss", "kl_local", "kl_global"))
    np.testing.assert_allclose(history["elbo_train"].to_numpy(), parts, rtol=1e-6)
    weight = history["kl_weight"].to_numpy().ravel()
    assert weight[-1] == pytest.approx(1.0) and (np.diff(weight) >= 0).all() and weight[0] < 1
    assert all(frame.index.name == "epoch" for key, frame in history.items() if not key.endswith("_step"))
