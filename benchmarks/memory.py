"""Peak memory and seconds of a training epoch over counts in a file, against the same counts in memory.

A file of counts (csr in `X`) is written block by block to a temporary folder; then a process of its own opens it backed and
trains `isd.model.VAE` for an epoch, and another one does so from memory.

    python benchmarks/memory.py --n-obs 20000            # file of 1.2 GB at 4% density, some minutes
    python benchmarks/memory.py --n-obs 2000

Goals: below 5 GB for 20,000 cells x 179,610 from the file, and at most twice the time from memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def write(path: Path, n_obs: int, n_vars: int, density: float, block: int = 512) -> None:
    """Write simulated counts, never more than a block of them in memory."""
    import anndata
    import h5py
    from train_step import simulated_counts

    first = simulated_counts(min(block, n_obs), n_vars, density)
    anndata.AnnData(first).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        group = file["X"]
        lengths = [group["indptr"][:]]
        for name in ("data", "indices"):
            values = group[name][:]
            del group[name]
            group.create_dataset(name, data=values, maxshape=(None,), chunks=(1 << 18,))
        for start in range(block, n_obs, block):
            counts = simulated_counts(min(block, n_obs - start), n_vars, density, seed=0)
            for name, values in (("data", counts.data), ("indices", counts.indices)):
                stored = group[name]
                stored.resize(stored.shape[0] + len(values), axis=0)
                stored[-len(values) :] = values
            lengths.append(counts.indptr[1:].astype("int64") + lengths[-1][-1])
        del group["indptr"]
        group.create_dataset("indptr", data=np.concatenate(lengths).astype("int64"))
        group.attrs["shape"] = (n_obs, n_vars)
        del file["obs"]
        anndata.io.write_elem(file, "obs", anndata.AnnData(shape=(n_obs, 1)).obs)


def train(path: Path, backed: bool, args: argparse.Namespace) -> dict[str, float]:
    import warnings

    import anndata
    import torch
    from lightning.pytorch.callbacks import Callback

    import isd

    warnings.simplefilter("ignore")
    times: list[tuple[float, float]] = []

    class Clock(Callback):
        def on_train_batch_end(self, *_):
            times.append((time.perf_counter(), time.process_time()))

    torch.set_num_threads(args.threads)
    isd.settings.progress = False
    began = time.perf_counter()
    adata = anndata.read_h5ad(path, backed="r" if backed else None)
    isd.model.VAE.setup_anndata(adata, labels_key=None)
    model = isd.model.VAE(adata, n_hidden=256)
    model.train(max_epochs=1, batch_size=args.batch_size, callbacks=[Clock()], accelerator="cpu")
    return {
        "seconds": time.perf_counter() - began,
        "step": (times[-1][0] - times[0][0]) / (len(times) - 1),
        "processor": (times[-1][1] - times[0][1]) / (len(times) - 1),
        "steps": len(times),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-obs", type=int, default=4000)
    parser.add_argument("--n-vars", type=int, default=179_610)
    parser.add_argument("--density", type=float, default=0.04)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="measure it from memory, too"
    )
    parser.add_argument("--run", choices=("file", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print("RESULT " + json.dumps(train(args.path, args.run == "file", args)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        write(path, args.n_obs, args.n_vars, args.density)
        print(f"{args.n_obs:,} cells x {args.n_vars:,}, {path.stat().st_size / 1e9:.2f} GB on disk", flush=True)
        for run in ("file", "memory") if args.memory else ("file",):
            command = [sys.executable, *sys.argv, "--run", run, "--path", str(path)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            line = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
            if not line:
                raise SystemExit(f"{run} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
            results[run] = r = json.loads(line[0].removeprefix("RESULT "))
            print(
                f"{run:7s} {r['steps']} steps of {r['step']:.3f} s ({r['processor']:.3f} s of processor time); with setup "
                f"{r['seconds']:.0f} s; peak memory {r['peak_gb']:.2f} GB",
                flush=True,
            )
    if args.memory:
        print(f"file / memory: {results['file']['step'] / results['memory']['step']:.2f} x the time of a step")


if __name__ == "__main__":
    main()
