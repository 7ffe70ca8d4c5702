"""Label agreement and per-label coverage of guided against unguided cells, over scales and seeds.

A classifier trained on real training cells says which label generated cells have; coverage is the share of held-out real
cells that have a generated neighbour within the distance of their 5th real neighbour (Naeem et al. 2020), on principal
components of the training cells, label by label with equal numbers, then averaged over labels.

    python benchmarks/guidance.py cells.h5ad --labels-key cell_type --scales 1 1.5 2 3 --classifier-scales 1 2
    python benchmarks/guidance.py simulated
"""

from __future__ import annotations

import argparse

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


def measure(adata, fakes, labels_key, k=5):
    """Agreement and mean per-label coverage of several sets of generated cells, and of real cells."""
    train = adata[adata.obs["isd_split"] == "train"]
    test = adata[adata.obs["isd_split"] == "test"]
    yardstick = Yardstick.fit(train.X, train.var_names)
    train_x, train_y = yardstick.features(train.X), train.obs[labels_key].astype(str).to_numpy()
    test_z, test_y = yardstick.pcs(test.X), test.obs[labels_key].astype(str).to_numpy()
    rows = {}
    for name, fake in {"real, held out": test, **fakes}.items():
        y = fake.obs[labels_key].astype(str).to_numpy()
        agreement = label_agreement(train_x, train_y, yardstick.features(fake.X), y).overall
        z = yardstick.pcs(fake.X)
        covered = []
        if fake is not test:
            for label in np.unique(test_y):
                real, made = test_z[test_y == label], z[y == label][: (test_y == label).sum()]
                if len(real) > 2 * k:
                    covered.append(coverage(real, made, k=k))
        rows[name] = {"agreement": agreement, "coverage": np.mean(covered) if covered else np.nan}
        rows[name]["lowest label"] = min(covered) if covered else np.nan
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help='"simulated" or an h5ad file with counts in X')
    parser.add_argument("--labels-key", default="leiden")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 3.0])
    parser.add_argument("--classifier-scales", type=float, nargs="+", default=[0.5, 1.0, 2.0])
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
        fakes = {
            f"guidance_scale={s:g}": isd.tl.generate(model, labels=asked, guidance_scale=s, seed=seed)
            for s in args.scales
        }
        fakes |= {
            f"classifier_scale={s:g}": isd.tl.generate(
                model, labels=asked, classifier=classifier, classifier_scale=s, seed=seed
            )
            for s in args.classifier_scales
        }
        frame = pd.DataFrame(measure(adata, fakes, key)).T.rename_axis("cells").reset_index()
        frames.append(frame.assign(seed=seed))
        print(frame.round(3).to_string(), flush=True)
    every = pd.concat(frames)
    print(f"\nmean over {len(args.seeds)} seeds")
    print(every.drop(columns="seed").groupby("cells", sort=False).mean().round(3).to_markdown())


if __name__ == "__main__":
    main()
