"""Label agreement and per-label coverage of guided against unguided cells, over scales and seeds.

A classifier trained on real training cells says which label generated cells have; coverage is the share of held-out real
cells that have a generated neighbour within the distance of their 5th real neighbour (Naeem et al. 2020), on principal
components of the training cells, label by label with equal numbers, then averaged over labels.

    python benchmarks/guidance.py cells.h5ad --labels-key cell_type --scales 1 1.5 2 3 --classifier-scales 1 2
    python benchmarks/guidance.py simulated
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import pandas as pd

import isd
from isd.metrics import Yardstick, coverage, label_agreement


def load(data: str, labels_key: str, seed: int):
    if data == "simulated":
        adata, labels_key = isd.datasets.simulated(seed=seed), "leiden"
    else:
        import anndata

        adata = anndata.read_h5ad(data)
    isd.pp.split(adata, labels_key=labels_key, seed=seed)
    return adata, labels_key


def measure(adata, make, labels_key, draws, k=5):
    """Agreement and mean per-label coverage of generated cells, averaged over draws, and agreement of real cells."""
    train = adata[adata.obs["isd_split"] == "train"]
    test = adata[adata.obs["isd_split"] == "test"]
    yardstick = Yardstick.fit(train.X, train.var_names)
    train_x, train_y = yardstick.features(train.X), train.obs[labels_key].astype(str).to_numpy()
    test_z, test_y = yardstick.pcs(test.X), test.obs[labels_key].astype(str).to_numpy()
    agreed = label_agreement(train_x, train_y, yardstick.features(test.X), test_y).overall
    rows = [{"cells": "real, held out", "agreement": agreed}]
    for name, generate in make.items():
        for draw in range(draws):
            fake = generate(seed=draw)
            y = fake.obs[labels_key].astype(str).to_numpy()
            z = yardstick.pcs(fake.X)
            covered = []
            for label in np.unique(test_y):
                real, made = test_z[test_y == label], z[y == label]
                if len(real) > 2 * k:
                    covered.append(coverage(real, made, k=k))
            agreed = label_agreement(train_x, train_y, yardstick.features(fake.X), y).overall
            rows.append(
                {"cells": name, "agreement": agreed, "coverage": np.mean(covered), "least covered": min(covered)}
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help='"simulated" or an h5ad file with counts in X')
    parser.add_argument("--labels-key", default="leiden")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 3.0])
    parser.add_argument("--classifier-scales", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--draws", type=int, default=5, help="generated sets for each model and scale")
    args = parser.parse_args()
    isd.settings.progress = False
    frames = []
    for seed in args.seeds:
        adata, key = load(args.data, args.labels_key, seed)
        isd.model.LatentDiffusion.setup_anndata(adata, labels_key=key)
        model = isd.model.LatentDiffusion(adata, seed=seed)
        model.train(seed=seed)
        isd.model.Classifier.setup_anndata(adata, labels_key=key)
        classifier = isd.model.Classifier(adata, model, seed=seed)
        classifier.train(seed=seed)
        asked = adata.obs.loc[adata.obs["isd_split"] == "test", key].value_counts()
        asked = {label: int(n) for label, n in asked.items() if n}
        generate = partial(isd.tl.generate, model, labels=asked)
        make = {f"guidance_scale={s:g}": partial(generate, guidance_scale=s) for s in args.scales}
        for s in args.classifier_scales:
            make[f"classifier_scale={s:g}"] = partial(generate, classifier=classifier, classifier_scale=s)
        frames.append(measure(adata, make, key, args.draws).assign(seed=seed))
        print(f"seed {seed} done", flush=True)
    # the interval is over trainings: draws of one model are averaged first
    by_seed = pd.concat(frames).groupby(["cells", "seed"], sort=False).mean().reset_index()
    groups = by_seed.drop(columns="seed").groupby("cells", sort=False)
    table = groups.mean().round(3).astype(str) + " +- " + groups.sem().round(3).astype(str)
    print(f"\n{args.data}: mean +- standard error over {len(args.seeds)} seeds, {args.draws} draws each")
    print(table.to_string())


if __name__ == "__main__":
    main()
