"""Seconds per training step and peak memory: the VAE, and the published autoencoder written plainly in torch.

Ours is `isd.model.VAE` with its default settings, trained by `train` on csr counts; the time of a step runs from the end of
one to the end of the next, loading included. The published shape has encoder and decoder of three layers of 1024 over
a dense minibatch (made dense in each step, as there), mean squared error on log-normalised values, and
`torch.optim.Adam` as it comes. Each runs in a process of its own, on the same counts.

    python benchmarks/train_step.py --n-vars 179610 --density 0.04 --steps 6
    python benchmarks/train_step.py --n-vars 179610 --density 0.04 --no-published --genes
    python benchmarks/train_step.py --n-vars 162009 --density 0.27 --threads 2

Processor time is the seconds of all threads together: it says the same where others use the machine, too. Needs about 9 GB of memory at these sizes and a minute or two; `--no-published` runs ours alone, in 3 GB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np


def simulated_counts(n_obs: int, n_vars: int, density: float, seed: int = 0):
    """Counts whose features differ in how many cells express them, as csr."""
    from scipy import sparse

    rng = np.random.default_rng(seed)
    share = rng.beta(2 * density, 2 * (1 - density), size=n_vars)
    # in blocks: uniform numbers of cells by features would be dense
    blocks = []
    for start in range(0, n_obs, 64):
        seen = rng.random((min(64, n_obs - start), n_vars), dtype=np.float32) < share
        block = sparse.csr_matrix(seen, dtype=np.float32)
        block.data = rng.geometric(0.4, block.nnz).astype(np.float32)
        blocks.append(block)
    return sparse.vstack(blocks, format="csr")


def ours(counts, args: argparse.Namespace) -> list[list[float]]:
    import warnings

    import torch
    from anndata import AnnData
    from lightning.pytorch.callbacks import Callback

    import isd

    warnings.simplefilter("ignore")
    ends = []

    class Clock(Callback):
        def on_train_batch_end(self, *_):
            ends.append((time.perf_counter(), time.process_time()))

    torch.set_num_threads(args.threads)
    isd.settings.progress = False
    adata = AnnData(counts)
    if args.genes:
        # sizes of genes as in an annotation: two thirds of them have one isoform, some have dozens
        sizes = np.minimum(np.random.default_rng(1).zipf(2.1, counts.shape[1]), 100)
        gene = np.repeat(np.arange(len(sizes)), sizes)[: counts.shape[1]]
        adata.var["gene_id"] = np.random.default_rng(2).permutation(gene).astype(str)
    isd.model.VAE.setup_anndata(adata, labels_key=None, gene_key="gene_id" if args.genes else None)
    model = isd.model.VAE(adata, n_hidden=args.n_hidden)
    model.train(
        max_steps=args.steps + 1,
        batch_size=args.batch_size,
        sparse=args.sparse,
        precision=args.precision,
        callbacks=[Clock()],
        accelerator="cpu",
    )
    return np.diff(ends, axis=0).T.tolist()


def published(counts, args: argparse.Namespace) -> list[list[float]]:
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    def blocks(*widths):
        pairs = itertools.pairwise(widths)
        return [m for a, b in pairs for m in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.PReLU())]

    n_vars = counts.shape[1]
    encoder = nn.Sequential(*blocks(n_vars, 1024, 1024, 1024), nn.Linear(1024, 128))
    decoder = nn.Sequential(*blocks(128, 1024, 1024, 1024), nn.Linear(1024, n_vars))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-4)
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(args.steps + 1):
        rows = rng.choice(counts.shape[0], args.batch_size, replace=False)
        x = torch.from_numpy(counts[rows].toarray())
        x = torch.log1p(x / x.sum(dim=1, keepdim=True) * 1e4)
        loss = F.mse_loss(decoder(F.normalize(encoder(x), dim=1)), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append((time.perf_counter(), time.process_time()))
    return np.diff(ends, axis=0).T.tolist()


VARIANTS = {"ours": ours, "published": published}


def measure(variant: str, args: argparse.Namespace) -> None:
    """Run one variant in this process and print its numbers."""
    counts = simulated_counts(args.n_obs, args.n_vars, args.density)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds, processor = VARIANTS[variant](counts, args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    numbers = {
        "seconds": seconds,
        "processor": processor,
        "peak_gb": peak,
        "data_gb": before,
        "density": counts.nnz / np.prod(counts.shape),
    }
    print("RESULT " + json.dumps(numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-obs", type=int, default=512)
    parser.add_argument("--n-vars", type=int, default=179_610)
    parser.add_argument("--density", type=float, default=0.04, help="share of the counts that are not zero")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed, after a first one that is not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--published", action=argparse.BooleanOptionalAction, default=True, help="measure it too")
    parser.add_argument(
        "--sparse", action=argparse.BooleanOptionalAction, default=None, help="csr into the first layer"
    )
    parser.add_argument("--genes", action="store_true", help="our model knows which isoforms are of one gene")
    parser.add_argument("--precision", default="32-true", help='of our training, such as "bf16-mixed"')
    parser.add_argument("--n-hidden", type=int, default=256, help="n_hidden of our model")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        measure(args.variant, args)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    results = {}
    for variant in ("ours", "published") if args.published else ("ours",):
        command = [sys.executable, *sys.argv, "--variant", variant]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        line = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
        if not line:
            raise SystemExit(f"{variant} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
        results[variant] = numbers = json.loads(line[0].removeprefix("RESULT "))
        seconds = np.array(numbers["seconds"])
        print(
            f"{variant:10s} {np.median(seconds):7.3f} s per step (median; {seconds.min():.3f} to {seconds.max():.3f}), "
            f"{np.median(numbers['processor']):.3f} s of processor time, "
            f"peak memory {numbers['peak_gb']:.2f} GB (data {numbers['data_gb']:.2f}), density {numbers['density']:.3f}",
            flush=True,
        )
    if args.published:
        a, b = results["ours"], results["published"]
        ratio = np.median(b["seconds"]) / np.median(a["seconds"])
        busy = np.median(b["processor"]) / np.median(a["processor"])
        print(
            f"published / ours: {ratio:.1f} x the seconds, {busy:.1f} x the processor time, {b['peak_gb'] / a['peak_gb']:.1f} x the peak memory"
        )


if __name__ == "__main__":
    main()
