"""Default against published preset: same data, same held-out cells, same training time, several seeds.

One row a (data set, seed, configuration), appended to a CSV as it is ready, so that an interrupted run goes on where it
stopped. The published preset gets the minutes that the default's VAE and diffusion model took on the same machine in the
same run: 45% for its autoencoder, 45% for its diffusion model and 10% for its classifier.

    python benchmarks/published.py simulated
    python benchmarks/published.py cells.h5ad --labels-key cell_type --seeds 0 1 2 --out published.csv
    python benchmarks/published.py --table published.csv
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import isd

KEYS = ["data", "seed", "configuration"]


def load(data: str, labels_key: str, seed: int):
    if data == "simulated":
        adata = isd.datasets.simulated(n_obs=3000, n_vars=2000, n_labels=8, seed=seed)
        labels_key = "leiden"
    else:
        import anndata

        adata = anndata.read_h5ad(data)
    if "counts" not in adata.layers:
        adata.layers["counts"] = adata.X.copy()
    isd.pp.split(adata, labels_key=labels_key, seed=seed)
    return adata, labels_key


def train_default(adata, labels_key, seed, args):
    isd.model.LatentDiffusion.setup_anndata(adata, labels_key=labels_key)
    start = time.perf_counter()
    model = isd.model.LatentDiffusion(adata, seed=seed)
    model.train(seed=seed)
    return model, time.perf_counter() - start


def train_published(adata, labels_key, seed, minutes):
    isd.model.VAE.setup_anndata(adata, labels_key=labels_key)
    vae = isd.model.VAE(adata, preset="published", seed=seed)
    vae.train(max_minutes=0.45 * minutes, max_steps=10**7, seed=seed)
    isd.model.LatentDiffusion.setup_anndata(adata, labels_key=labels_key)
    model = isd.model.LatentDiffusion(adata, vae=vae, preset="published", seed=seed)
    model.train(max_minutes=0.45 * minutes, max_steps=10**7, seed=seed)
    isd.model.Classifier.setup_anndata(adata, labels_key=labels_key)
    classifier = isd.model.Classifier(adata, model, preset="published", seed=seed)
    classifier.train(max_minutes=0.1 * minutes, max_steps=10**7, seed=seed)
    return model, classifier


def judge(adata, fake, labels_key, seed, n_jobs):
    table = isd.metrics.evaluate(
        adata,
        fake,
        labels_key=labels_key,
        groups=False,
        metrics=["random_forest_auc", "label_agreement", "coverage", "mmd"],
        n_jobs=n_jobs,
        seed=seed,
    )
    row = {}
    for _, r in table[table["group"] == "all"].iterrows():
        name = f"{r['metric']}_{r['space']}"
        row |= {name: r["value"], f"{name}_floor": r["floor"], "n_test": r["n_real"]}
        row |= {f"{name}_floor_lower": r["floor_lower"], f"{name}_floor_upper": r["floor_upper"]}
    return row


def run(args) -> None:
    out = Path(args.out)
    done = set() if not out.exists() else set(map(tuple, pd.read_csv(out)[KEYS].astype(str).to_numpy()))
    name = args.data if args.data == "simulated" else Path(args.data).stem

    def write(configuration, seed, seconds, fake, adata, labels_key):
        row = {"data": name, "seed": seed, "configuration": configuration, "train_seconds": round(seconds, 1)}
        row |= judge(adata, fake, labels_key, seed, args.n_jobs)
        pd.DataFrame([row]).to_csv(out, mode="a", header=not out.exists(), index=False)
        print(pd.Series(row).to_string(), flush=True)

    for seed in args.seeds:
        names = ["default", "published", "published, guided"]
        if all((name, str(seed), c) in done for c in names):
            continue
        adata, labels_key = load(args.data, args.labels_key, seed)
        n_test = int((adata.obs["isd_split"] == "test").sum())
        model, seconds = train_default(adata, labels_key, seed, args)
        if (name, str(seed), "default") not in done:
            fake = isd.tl.generate(model, n_obs=n_test, seed=seed)
            write("default", seed, seconds, fake, adata, labels_key)
        if all((name, str(seed), c) in done for c in names[1:]):
            continue
        model, classifier = train_published(adata, labels_key, seed, seconds / 60)
        for configuration, options in zip(names[1:], [{}, {"classifier": classifier}], strict=True):
            if (name, str(seed), configuration) not in done:
                fake = isd.tl.generate(model, n_obs=n_test, seed=seed, **options)
                write(configuration, seed, seconds, fake, adata, labels_key)


def print_table(path: str) -> None:
    frame = pd.read_csv(path)
    for space in ("features", "pcs"):
        column = f"random_forest_auc_{space}"
        wide = frame.pivot_table(index=["data", "seed"], columns="configuration", values=column)
        wide["floor"] = frame.groupby(["data", "seed"])[f"{column}_floor"].first()
        best = wide[["published", "published, guided"]].min(axis=1)
        wide["ratio"] = (wide["default"] - 0.5).clip(lower=0) / (best - 0.5)
        print(f"\nrandom-forest AUC on {space}; ratio = (default - 0.5) / (better published - 0.5)")
        print(wide.round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="?", help='"simulated" (3,000 cells x 2,000 transcripts, 8 labels) or an h5ad file'
    )
    parser.add_argument("--labels-key", default="leiden")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="published.csv")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--table", metavar="CSV", help="print the paired table of an earlier run")
    args = parser.parse_args()
    isd.settings.progress = False
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}")
    if args.table:
        print_table(args.table)
    elif args.data:
        run(args)
    else:
        parser.error('give data: "simulated" or an h5ad file')


if __name__ == "__main__":
    main()
