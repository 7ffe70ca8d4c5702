"""What a user's script does under ``strategy="ddp"``; Lightning runs it once for each process. Started by test_distributed.py."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

import isd

DDP = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "progress": False}
BATCH = {"batch_size": 32, "seed": 5}
GENERATE = {"labels": {"0": 200, "1": 150}, "seed": 2, "progress": False}


def cells():
    """200 cells of three labels, split."""
    adata = isd.datasets.simulated(n_obs=200, n_vars=100, n_labels=3, seed=0)
    isd.pp.split(adata, seed=0)
    return adata


def make_vae(adata):
    """A VAE without dropout, whose gradients depend on the batch and the noise alone."""
    isd.model.VAE.setup_anndata(adata)
    return isd.model.VAE(adata, n_hidden=16, n_latent=4, dropout=0.0, seed=1)


def make_diffusion(adata):
    """A small diffusion model with a small VAE."""
    isd.model.LatentDiffusion.setup_anndata(adata)
    return isd.model.LatentDiffusion(adata, n_hidden=16)


class FirstGradients(Callback):
    """Gradients of the first step, after processes have averaged theirs."""

    def __init__(self):
        self.gradients = {}

    def on_after_backward(self, trainer, pl_module):
        """Keep them."""
        if not self.gradients:
            named = pl_module.module.named_parameters()
            self.gradients = {k: p.grad.clone().numpy() for k, p in named if p.grad is not None}


class Noise(Callback):
    """Random numbers as training finds them."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Look at the first, and put the generator back."""
        if batch_idx == 0:
            state = torch.get_rng_state()
            self.first = float(torch.rand(()))
            torch.set_rng_state(state)


def fixed_noise(*shape, **options):
    """In place of ``torch.randn``: the same for all cells, so that it does not matter who draws it."""
    return torch.full(*shape, 0.3)


def main(folder: Path) -> None:
    """Train in two processes and write down what each one saw."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    adata = cells()
    vae, stopping, first, randn = make_vae(adata), make_vae(adata), FirstGradients(), torch.randn
    torch.randn = fixed_noise
    vae.train(max_steps=20, log_every=1, callbacks=[first], **BATCH, **DDP)
    rank = torch.distributed.get_rank()
    np.savez(folder / f"gradients_{rank}.npz", **first.gradients)
    np.savez(folder / f"weights_{rank}.npz", **{k: v.numpy() for k, v in vae.module.state_dict().items()})
    history = {k: frame.iloc[:, 0].tolist() for k, frame in vae.history.items()}
    stopping.train(
        max_epochs=40, lr=0.0, dispersion_lr=0.0, early_stopping=True, early_stopping_patience=2, **BATCH, **DDP
    )
    stopped = [len(frame) for key, frame in stopping.history.items() if key == "train_loss"]
    torch.randn = randn
    timed, noise = make_vae(adata), Noise()
    timed.train(max_minutes=0.01, max_steps=10**6, callbacks=[noise], **BATCH, **DDP)
    model = make_diffusion(adata)
    model.train(
        max_steps=100,
        vae_kwargs={"max_steps": 60, **BATCH},
        checkpoint_every=50,
        checkpoint_dir=folder / "check",
        **DDP,
    )
    written = []
    write = isd.model._base.write_folder
    isd.model._base.write_folder = lambda path, *a, **k: (written.append(Path(path).name), write(path, *a, **k))
    model.save(folder / "model")
    isd.tl.generate(model, part=(rank + 1, 2), backed=folder / f"part_{rank}.h5ad", **GENERATE)
    seen = {
        "history": history,
        "stopped": stopped,
        "noise": noise.first,
        "fingerprints": [timed.fingerprint, model.fingerprint, model.vae.fingerprint],
        "validation_loss": [float(m.history["validation_loss"].iloc[-1, 0]) for m in (model.vae, model) if m.history],
        "written": written,
    }
    (folder / f"seen_{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
