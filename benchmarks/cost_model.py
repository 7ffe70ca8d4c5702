"""Seconds of a training step and peak memory as functions of features, density and batch size, and of an epoch as one of cells.

Steps of `isd.model.VAE` (256 hidden units, otherwise default) are timed over simulated counts of several sizes, each in a
process of its own. Two models are fitted to them by least squares of relative errors, with coefficients that are not negative:

    seconds = a + b x n_vars + c x batch_size x n_vars + d x counts of a batch that are not zero
    GB      = a + b x n_vars + c x batch_size x n_vars + d x counts of a batch that are not zero

and are printed with their residuals. Data in memory come on top, 8 bytes for each count that is not zero. Then epochs over more and more cells, and over denser and denser ones, show whether the cost
of an epoch grows in proportion to cells, and to non-zeros at most.

    python benchmarks/cost_model.py                  # some ten minutes, 3 GB
    python benchmarks/cost_model.py --small          # a minute, to see that it runs
    python benchmarks/cost_model.py --accelerator gpu

Processor time (all threads together) is fitted by default, since it says the same where others use the machine, too; with
`--clock wall` it is time on the wall. `--predict 184000 180000 0.04 128` prints what the model says of a data set.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from scipy.optimize import nnls
from train_step import simulated_counts

import isd

#: n_vars, density, batch size.
GRID = [
    (20_000, 0.04, 128),
    (20_000, 0.27, 256),
    (60_000, 0.04, 64),
    (60_000, 0.15, 256),
    (60_000, 0.27, 128),
    (120_000, 0.02, 128),
    (120_000, 0.10, 64),
    (120_000, 0.04, 256),
    (180_000, 0.04, 64),
    (180_000, 0.04, 128),
    (180_000, 0.15, 128),
]
SMALL = [(2000, 0.04, 64), (2000, 0.2, 128), (6000, 0.04, 128), (6000, 0.2, 64), (10_000, 0.1, 128)]
#: Cells and density of the epochs.
EPOCHS = [(500, 0.04), (1000, 0.04), (2000, 0.04), (4000, 0.04), (1000, 0.02), (1000, 0.08), (1000, 0.16)]


def peak():
    """Peak resident memory of this process in GB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / (1 << 20)


def child(pipe, args, n_obs, n_vars, density, batch_size, steps):
    torch.set_num_threads(args.threads)
    counts = simulated_counts(n_obs, n_vars, density)
    ends = []

    class Clock(Callback):
        def on_train_batch_end(self, *_):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append((time.perf_counter(), time.process_time()))

    adata = AnnData(counts)
    isd.model.VAE.setup_anndata(adata, labels_key=None)
    model = isd.model.VAE(adata, n_hidden=256)
    length = {"max_epochs": 1} if steps is None else {"max_steps": steps + 1}
    model.train(batch_size=batch_size, callbacks=[Clock()], accelerator=args.accelerator, **length)
    wall, cpu = np.diff(ends, axis=0).T
    row = {"cells": n_obs, "n_vars": n_vars, "density": counts.nnz / np.prod(counts.shape), "batch_size": batch_size}
    row |= {"non-zeros": counts.nnz, "steps": len(ends), "wall": float(np.median(wall)), "cpu": float(np.median(cpu))}
    # the first step pays for what later ones find done; the epoch is all the others, and one more of them
    row |= {"epoch wall": float(wall.mean() * len(ends)), "epoch cpu": float(cpu.mean() * len(ends)), "peak GB": peak()}
    if torch.cuda.is_available():
        row["GPU GB"] = torch.cuda.max_memory_allocated() / (1 << 30)
    pipe.send(row)


def measure(args, *size):
    """Run one size in a process of its own, which has imported all that it needs: this one did no work before."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs, args, *size))
    process.start()
    theirs.close()
    row = ours.recv()
    process.join()
    print({k: float(f"{v:.3g}") for k, v in row.items()}, flush=True)
    return row


def design(table):
    """Columns that the coefficients belong to."""
    batch = table["batch_size"] * table["n_vars"]
    return np.stack([np.ones(len(table)), table["n_vars"], batch, table["density"] * batch], axis=1)


def fit(table, column):
    """Coefficients, and what they say of each row over what was measured."""
    x, y = design(table), table[column].to_numpy()
    scale = np.abs(x / y[:, None]).max(0)
    coefficients = nnls(x / y[:, None] / scale, np.ones(len(y)))[0] / scale
    return coefficients, x @ coefficients / y


def slope(table, by, column):
    """Exponent of a power law: 1 is proportional."""
    return float(np.polyfit(np.log(table[by]), np.log(table[column]), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed, after a first one that is not")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", default="cpu", choices=["cpu", "wall"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--epoch-n-vars", type=int, default=10_000, help="features of the epochs")
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument(
        "--predict", nargs=4, type=float, action="append", metavar=("CELLS", "N_VARS", "DENSITY", "BATCH_SIZE")
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    isd.settings.progress = False
    isd.model.VAE  # noqa: B018  parts are imported at first use
    grid = SMALL if args.small else GRID
    rows = [measure(args, 3 * b, v, d, b, args.steps) for v, d, b in grid]
    table = pd.DataFrame(rows)
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    fitted = {}
    for name, column in [("seconds a step", args.clock), ("peak GB", "peak GB")]:
        fitted[name], table[f"{name}, model / measured"] = fit(table, column)
        residual = np.abs(table[f"{name}, model / measured"] - 1)
        print(
            f"\n{name} ({column}): "
            + " + ".join(
                f"{c:.3g}{of}"
                for c, of in zip(fitted[name], ["", " n_vars", " batch n_vars", " non-zeros"], strict=True)
            )
            + f"; residuals: median {np.median(residual):.1%}, largest {residual.max():.1%}"
        )
    print(table.round(3).to_string())
    epochs = pd.DataFrame(
        [measure(args, n, 2000 if args.small else args.epoch_n_vars, d, 128, None) for n, d in EPOCHS]
    )
    column = f"epoch {args.clock}"
    in_cells, in_counts = epochs.iloc[:4], epochs.iloc[[4, 1, 5, 6]]
    print(
        f"\nan epoch grows with cells ** {slope(in_cells, 'cells', column):.2f} and with non-zeros ** "
        f"{slope(in_counts, 'non-zeros', column):.2f} (at {len(in_counts)} densities)"
    )
    print(epochs[["cells", "density", "non-zeros", "steps", "epoch wall", "epoch cpu", "peak GB"]].round(3).to_string())
    for cells, n_vars, density, batch in args.predict or ():
        asked = pd.DataFrame({"n_vars": [n_vars], "density": [density], "batch_size": [batch]})
        seconds, backed = ((design(asked) @ fitted[name]).item() for name in ("seconds a step", "peak GB"))
        memory = backed + 8e-9 * cells * n_vars * density
        print(
            f"{cells:,.0f} x {n_vars:,.0f} at {density:.0%}, batch {batch:.0f}: {seconds:.2f} s a step, "
            f"{seconds * cells / batch / 60:.1f} minutes an epoch, {memory:.1f} GB from memory, {backed:.1f} GB from a file"
        )
    table.to_csv(out / "cost_model.csv", index=False)
    epochs.to_csv(out / "cost_model_epochs.csv", index=False)


if __name__ == "__main__":
    main()
