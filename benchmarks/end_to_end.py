"""From counts to generated cells: ours, and the published shape written plainly in torch, on the same cells in one run.

Ours is `isd.model.LatentDiffusion` with its default settings; only the number of epochs of its VAE is given. The published
shape: dense minibatches, autoencoder of three layers of 1024 with batch normalisation and latents on the unit sphere, mean
squared error on log-normalised values, `torch.optim.Adam` as it comes; then an MLP with additive skips that predicts
the noise of a linear schedule of 1000 steps, and 1000 steps of ancestral sampling. Both see the same training cells as
often, their denoisers take the same number of steps, and a random forest tells as many cells of each from held-out ones.

    python benchmarks/end_to_end.py                                        # 2,000 x 10,000, some minutes
    python benchmarks/end_to_end.py --cells 3000 --n-vars 20000 --seeds 0 1 2
    python benchmarks/end_to_end.py --parts likelihood --seeds 0 1 2       # against our own full-width dense variant

`likelihood` trains our VAE as it is by default, and with full layers of 1024 over dense minibatches, for as many epochs, and gives
the log-likelihood of held-out cells (importance-weighted, nats a cell). Every training has a process of its own, whose peak
memory is its own. Processor time says the same where others use the machine, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse


def cells(args, seed):
    """Simulated cells with labels and a split; the same in every process."""
    import isd

    adata = isd.datasets.simulated(n_obs=args.cells, n_vars=args.n_vars, n_labels=8, seed=seed, progress=False)
    isd.pp.split(adata, seed=seed)
    return adata


class Clock:
    """Seconds and processor seconds between calls."""

    def __init__(self):
        self.parts = {}
        self.last = (time.perf_counter(), time.process_time())

    def __call__(self, name):
        now = (time.perf_counter(), time.process_time())
        self.parts[name], self.parts[f"{name} CPU"] = now[0] - self.last[0], now[1] - self.last[1]
        self.last = now


def peak():
    """Peak resident memory of this process in GB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / (1 << 20)


def ours(adata, args, seed, folder):
    import isd

    n_test = int((adata.obs["isd_split"] == "test").sum())
    isd.model.VAE.setup_anndata(adata)
    clock = Clock()
    vae = isd.model.VAE(adata, seed=seed)
    vae.train(max_epochs=args.epochs, seed=seed)
    clock("autoencoder")
    isd.model.LatentDiffusion.setup_anndata(adata)
    model = isd.model.LatentDiffusion(adata, vae=vae, seed=seed)
    model.train(max_steps=args.diffusion_steps, seed=seed)
    clock("diffusion")
    fake = isd.tl.generate(model, n_obs=n_test, seed=seed)
    clock("sampling")
    calls = int(fake.uns["isd"]["n_network_calls"])
    sparse.save_npz(folder / "ours.npz", fake.X)
    return {**clock.parts, "network calls": calls}


def published(adata, args, seed, folder):
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(adata.X)
    train = np.flatnonzero(adata.obs["isd_split"] == "train")
    n_test = int((adata.obs["isd_split"] == "test").sum())
    clock = Clock()

    def blocks(*widths):
        pairs = itertools.pairwise(widths)
        return [m for a, b in pairs for m in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.PReLU())]

    def batch(rows):
        x = torch.from_numpy(counts[rows].toarray().astype(np.float32))
        return torch.log1p(x / x.sum(dim=1, keepdim=True) * 1e4)

    n_vars = counts.shape[1]
    encoder = nn.Sequential(*blocks(n_vars, 1024, 1024, 1024), nn.Linear(1024, 128))
    decoder = nn.Sequential(*blocks(128, 1024, 1024, 1024), nn.Linear(1024, n_vars))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-4)
    size = min(128, len(train))
    for _ in range(args.epochs):
        order = rng.permutation(train)
        for start in range(0, len(order) - size + 1, size):
            x = batch(order[start : start + size])
            loss = F.mse_loss(decoder(F.normalize(encoder(x), dim=1)), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    encoder.eval(), decoder.eval()
    clock("autoencoder")

    class Denoiser(nn.Module):
        """Widths down and up again, with what came down added on the way up; the step is embedded in each layer."""

        def __init__(self, n, widths=(512, 512, 256, 128)):
            super().__init__()
            self.time = nn.Sequential(nn.Linear(128, 512), nn.SiLU(), nn.Linear(512, 512))
            down, up = [n, *widths], [*widths[::-1], widths[0]]
            self.down = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(down)])
            self.up = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(up)])
            self.step_down = nn.ModuleList([nn.Linear(512, b) for b in widths])
            self.step_up = nn.ModuleList([nn.Linear(512, b) for b in up[1:]])
            self.out = nn.Linear(widths[0], n)

        def forward(self, x, t):
            rate = torch.exp(-math.log(10_000) * torch.arange(64) / 64)
            angle = t[:, None].float() * rate
            step, kept = self.time(torch.cat([angle.cos(), angle.sin()], dim=1)), []
            for layer, of_step in zip(self.down, self.step_down, strict=True):
                x = F.silu(layer(x) + of_step(step))
                kept.append(x)
            for k, (layer, of_step) in enumerate(zip(self.up, self.step_up, strict=True)):
                x = F.silu(layer(x + kept[-1 - k]) + of_step(step))
            return self.out(x)

    with torch.no_grad():
        latents = torch.cat(
            [F.normalize(encoder(batch(part)), dim=1) for part in np.array_split(train, len(train) // 256 + 1)]
        )
    beta = torch.linspace(1e-4, 0.02, 1000)
    kept = torch.cumprod(1 - beta, 0)
    denoiser = Denoiser(128)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, weight_decay=1e-4)
    for step in range(args.diffusion_steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * (1 - step / args.diffusion_steps)
        x = latents[torch.randint(len(latents), (128,))]
        t, noise = torch.randint(1000, (128,)), torch.randn(128, 128)
        noised = kept[t].sqrt()[:, None] * x + (1 - kept[t]).sqrt()[:, None] * noise
        loss = F.mse_loss(denoiser(noised, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clock("diffusion")
    with torch.no_grad():
        x = torch.randn(n_test, 128)
        for t in range(999, -1, -1):
            noise = denoiser(x, torch.full((n_test,), t))
            x = (x - beta[t] / (1 - kept[t]).sqrt() * noise) / (1 - beta[t]).sqrt()
            if t:
                x = x + (beta[t] * (1 - kept[t - 1]) / (1 - kept[t])).sqrt() * torch.randn_like(x)
        parts = [sparse.csr_matrix(torch.expm1(decoder(z).clamp(0, 9.3)).numpy()) for z in x.split(256)]
    sparse.save_npz(folder / "published.npz", sparse.vstack(parts, format="csr"))
    clock("sampling")
    return {**clock.parts, "network calls": 1000}


def vae_likelihood(adata, args, seed, **options):
    import isd

    dense = options.pop("dense", False)
    isd.model.VAE.setup_anndata(adata)
    clock = Clock()
    vae = isd.model.VAE(adata, seed=seed, **options)
    vae.train(max_epochs=args.epochs, seed=seed, sparse=False if dense else None)
    clock("autoencoder")
    test = adata[adata.obs["isd_split"] == "test"].copy()
    import torch

    torch.manual_seed(seed)
    each = vae.get_marginal_ll(test, n_mc_samples=args.samples, return_mean=False)
    return {**clock.parts, "nats": np.asarray(each.cpu()).ravel().tolist()}


VARIANTS = {
    "ours": ours,
    "published": published,
    "default": lambda adata, args, seed, _: vae_likelihood(adata, args, seed),
    "full width, dense": lambda adata, args, seed, _: vae_likelihood(
        adata, args, seed, n_hidden=1024, output_rank=0, dispersion_rank=0, dense=True
    ),
}


def child(args):
    import torch

    import isd

    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    isd.settings.progress = False
    adata = cells(args, args.seeds[0])
    before = peak()
    numbers = VARIANTS[args.variant](adata, args, args.seeds[0], Path(args.folder))
    print("RESULT " + json.dumps({**numbers, "peak GB": peak(), "peak GB before": before}))


def run(variant, args, seed, folder):
    given = {"--cells": args.cells, "--n-vars": args.n_vars, "--epochs": args.epochs, "--samples": args.samples}
    given |= {"--diffusion-steps": args.diffusion_steps, "--threads": args.threads, "--seeds": seed}
    command = [sys.executable, __file__, "--variant", variant, "--folder", str(folder)]
    command += [str(part) for pair in given.items() for part in pair]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    line = [text for text in done.stdout.splitlines() if text.startswith("RESULT ")]
    if not line:
        raise SystemExit(f"{variant} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(line[0].removeprefix("RESULT "))


def auc(adata, counts, seed):
    """AUC of a random forest between held-out and generated cells, and its floor, on features and components."""
    import anndata

    import isd

    fake = anndata.AnnData(counts, var=adata.var[[]].copy())
    options = {"labels_key": None, "groups": False, "metrics": ["random_forest_auc"], "seed": seed, "progress": False}
    table = isd.metrics.evaluate(adata, fake, **options)
    return {f"AUC {r['space']}": r["value"] for _, r in table.iterrows()} | {
        f"floor {r['space']}": r["floor"] for _, r in table.iterrows()
    }


def pipeline(args):
    rows = []
    for seed in args.seeds:
        adata = cells(args, seed)
        with tempfile.TemporaryDirectory() as folder:
            for variant in ("ours", "published"):
                numbers = run(variant, args, seed, folder)
                numbers |= auc(adata, sparse.load_npz(Path(folder) / f"{variant}.npz"), seed)
                rows.append({"seed": seed, "variant": variant, **numbers})
                print(pd.Series(rows[-1]).to_string(), "\n", flush=True)
    table = pd.DataFrame(rows).set_index(["seed", "variant"])
    names = ["autoencoder", "diffusion", "sampling"]
    for end in ("", " CPU"):
        table[f"all{end}"] = sum(table[name + end] for name in names)
    wide = table.unstack("variant")
    ratios = pd.DataFrame(
        {c: wide[c]["published"] / wide[c]["ours"] for c in table.columns if not c.startswith(("AUC", "floor"))}
    )
    print(f"\npublished / ours\n{ratios.T.to_string()}\n\n{table.filter(regex='AUC|floor').to_string()}")
    return table


def likelihood(args):
    rows = []
    for seed in args.seeds:
        found = {variant: run(variant, args, seed, ".") for variant in ("default", "full width, dense")}
        gain = np.subtract(*(found[v].pop("nats") for v in found))
        half = 1.96 * gain.std(ddof=1) / math.sqrt(len(gain))
        row = {"seed": seed, "nats a cell gained": gain.mean(), "95% +-": half, "test cells": len(gain)}
        row |= {f"{k}, {v}": n for v, numbers in found.items() for k, n in numbers.items()}
        rows.append(row)
        print(pd.Series(row).to_string(), "\n", flush=True)
    return pd.DataFrame(rows).set_index("seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["pipeline"], choices=["pipeline", "likelihood"])
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--n-vars", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=40, help="of the autoencoders")
    parser.add_argument("--diffusion-steps", type=int, default=4000, help="of both denoisers")
    parser.add_argument("--samples", type=int, default=50, help="of the importance-weighted likelihood")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        child(args)
        return
    import isd

    isd.settings.progress = False
    warnings.simplefilter("ignore")
    pd.options.display.float_format = "{:.3g}".format
    pd.options.display.width = 200
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    for part in args.parts:
        table = {"pipeline": pipeline, "likelihood": likelihood}[part](args)
        table.to_csv(out / f"end_to_end_{part}.csv")


if __name__ == "__main__":
    main()
