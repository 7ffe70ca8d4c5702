"""Does conditioning do what it says? Four checks, each one or two trainings a seed, judged on held-out test cells.

shuffled    labels of the training cells are permuted: agreement with the label must fall to chance
one_class   a model of one label's cells alone, against that label's held-out cells, beside the model of all labels
rare        one label is cut to 30 training cells: AUC against its held-out cells, copies of the 30, distances to them,
            and the same for the model of these 30 cells alone (which can borrow nothing)
combination one batch of one label is kept from training (simulated data with two batches): generated cells of this label
            and batch against the held-out ones, beside those of the same label in the other batch

    python benchmarks/conditioning.py --data small --seeds 0 1 2
    ISD_DATA_DIR=... python benchmarks/conditioning.py --data sperm --checks shuffled one_class rare
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from realism import REAL, SIMULATED, load
from scipy import sparse

import isd
from isd.metrics import Yardstick, classifier_auc, exact_copy_rate, label_agreement, nearest_distance_ratio

CHECKS = ("shuffled", "one_class", "rare", "combination")


def train(adata: ad.AnnData, labels_key: str | None, seed: int, batch_key: str | None = None) -> Any:
    options: dict[str, Any] = {"layer": "counts", "labels_key": labels_key, "batch_key": batch_key}
    isd.model.VAE.setup_anndata(adata, **options)
    vae = isd.model.VAE(adata, seed=seed)
    vae.train(seed=seed)
    isd.model.LatentDiffusion.setup_anndata(adata, **options)
    model = isd.model.LatentDiffusion(adata, vae=vae, seed=seed)
    model.train(seed=seed)
    return model


class Judge:
    """Numbers of generated cells against some of the held-out cells."""

    def __init__(self, adata: ad.AnnData, labels_key: str, trees: int) -> None:
        self.labels_key, self.trees = labels_key, trees
        self.train = adata[adata.obs["isd_split"] == "train"].copy()
        self.test = adata[adata.obs["isd_split"] == "test"].copy()
        self.yardstick = Yardstick.fit(self.train.layers["counts"], adata.var_names, seed=0)

    def auc(self, real: sparse.csr_matrix, made: sparse.csr_matrix, seed: int) -> dict[str, float]:
        """AUC on features and PCs in equal numbers."""
        n = min(real.shape[0], made.shape[0])
        rng = np.random.default_rng(seed)
        x, y = (self.yardstick.features(m[np.sort(rng.permutation(m.shape[0])[:n])]) for m in (real, made))
        options = {"n_estimators": self.trees, "n_boot": 0, "seed": seed}
        return {
            "features": classifier_auc(x.toarray(), y.toarray(), **options).auc,
            "pcs": classifier_auc(self.yardstick.project(x), self.yardstick.project(y), **options).auc,
        }

    def against(self, real: sparse.csr_matrix, made: sparse.csr_matrix, seed: int) -> dict[str, float]:
        """AUC, and that of one half of the real cells against the other."""
        order = np.random.default_rng(seed).permutation(real.shape[0])
        half = real.shape[0] // 2
        floor = self.auc(real[np.sort(order[:half])], real[np.sort(order[half:])], seed)
        return self.auc(real, made, seed) | {f"{name}_floor": value for name, value in floor.items()}

    def agreement(self, counts: sparse.csr_matrix, labels: np.ndarray) -> float:
        return float(
            label_agreement(
                self.yardstick.features(self.train.layers["counts"]),
                self.train.obs[self.labels_key].astype(str).to_numpy(),
                self.yardstick.features(counts),
                labels.astype(str),
                seed=0,
            ).overall
        )


def shuffled(adata: ad.AnnData, labels_key: str, seed: int, trees: int) -> Iterator[dict[str, Any]]:
    judge = Judge(adata, labels_key, trees)
    labels = judge.test.obs[labels_key]
    asked = {label: int(n) for label, n in labels.value_counts().items() if n}
    share = labels.value_counts(normalize=True).to_numpy()
    real = judge.agreement(judge.test.layers["counts"], labels.to_numpy())
    for name in ("labels", "shuffled"):
        mine = adata.copy()
        if name == "shuffled":
            mine.obs[labels_key] = np.random.default_rng(seed).permutation(mine.obs[labels_key].astype(str))
        fake = isd.tl.generate(train(mine, labels_key, seed), labels=asked, seed=seed, progress=False)
        yield {
            "cells": name,
            "n": fake.n_obs,
            "agreement": judge.agreement(fake.layers["counts"], fake.obs[labels_key].to_numpy()),
            "agreement_real": real,
            "chance": float((share**2).sum()),
        }


def one_class(adata: ad.AnnData, labels_key: str, seed: int, trees: int) -> Iterator[dict[str, Any]]:
    label = adata.obs[labels_key].value_counts().index[0]
    judge = Judge(adata, labels_key, trees)
    real = judge.test.layers["counts"][(judge.test.obs[labels_key] == label).to_numpy()]
    for name, mine in (("all labels", adata.copy()), ("alone", adata[adata.obs[labels_key] == label].copy())):
        fake = isd.tl.generate(train(mine, labels_key, seed), labels={label: real.shape[0]}, seed=seed, progress=False)
        yield {"cells": name, "label": label, "n": real.shape[0], **judge.against(real, fake.layers["counts"], seed)}


def rare(adata: ad.AnnData, labels_key: str, seed: int, trees: int) -> Iterator[dict[str, Any]]:
    label = adata.obs[labels_key].value_counts().index[-1]
    judge = Judge(adata, labels_key, trees)
    mine = (adata.obs[labels_key] == label).to_numpy()
    rows = np.flatnonzero(mine & (adata.obs["isd_split"] == "train").to_numpy())
    dropped = np.random.default_rng(seed).permutation(rows)[30:]
    # the label's other training cells are nobody's: held out as well, there are more cells to compare with
    held = adata.layers["counts"][
        np.sort(np.concatenate([dropped, np.flatnonzero(mine & (adata.obs["isd_split"] == "test"))]))
    ]
    cut = adata[np.setdiff1d(np.arange(adata.n_obs), dropped)].copy()
    known = sparse.csr_matrix(
        cut.layers["counts"][((cut.obs[labels_key] == label) & (cut.obs["isd_split"] == "train")).to_numpy()]
    )
    pcs = {name: judge.yardstick.pcs(m) for name, m in (("known", known), ("held", held))}
    for name, data in (("with others", cut), ("alone", cut[cut.obs[labels_key] == label].copy())):
        model = train(data, labels_key, seed)
        for latents in ("diffusion", "gaussian"):
            fake = isd.tl.generate(model, labels={label: held.shape[0]}, seed=seed, latents=latents, progress=False)
            counts = fake.layers["counts"]
            yield {
                "cells": f"{name}, {latents}",
                "label": label,
                "n": held.shape[0],
                "n_train": known.shape[0],
                **judge.against(held, counts, seed),
                "agreement": judge.agreement(counts, fake.obs[labels_key].to_numpy()),
                "agreement_real": judge.agreement(held, np.repeat(label, held.shape[0])),
                "distance_ratio": nearest_distance_ratio(judge.yardstick.pcs(counts), pcs["held"], pcs["known"]),
                "copies": exact_copy_rate(counts, known),
                "real_copies": exact_copy_rate(held, known),
            }


def combination(adata: ad.AnnData, labels_key: str, seed: int, trees: int) -> Iterator[dict[str, Any]]:
    judge = Judge(adata, labels_key, trees)
    label, batches = adata.obs[labels_key].value_counts().index[0], adata.obs["batch"].cat.categories
    held = {}
    for batch in batches:
        both = (adata.obs[labels_key] == label) & (adata.obs["batch"] == batch)
        if batch == batches[-1]:  # never trained on: all of it is held out
            never = both.to_numpy()
            held[batch] = adata.layers["counts"][never]
        else:
            held[batch] = adata.layers["counts"][(both & (adata.obs["isd_split"] == "test")).to_numpy()]
    model = train(adata[~never].copy(), labels_key, seed, batch_key="batch")
    for batch, real in held.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*extrapolat")
            fake = isd.tl.generate(model, labels={label: real.shape[0]}, batch=batch, seed=seed, progress=False)
        yield {
            "cells": f"batch {batch}" + (", never with this label" if batch == batches[-1] else ""),
            "label": label,
            "n": real.shape[0],
            **judge.against(real, fake.layers["counts"], seed),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="small", choices=[*REAL, *SIMULATED])
    parser.add_argument("--checks", nargs="+", default=list(CHECKS), choices=CHECKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--out", default=str(Path(__file__).parent / "out" / "conditioning.csv"))
    args = parser.parse_args()
    isd.settings.progress = False
    checks = {"shuffled": shuffled, "one_class": one_class, "rare": rare, "combination": combination}
    rows = []
    for check in args.checks:
        for seed in args.seeds:
            if check == "combination":
                if args.data not in SIMULATED:
                    continue
                adata = isd.datasets.simulated(
                    **SIMULATED[args.data], n_batches=2, batch_effect=0.4, seed=seed, progress=False
                )
                adata.layers["counts"] = sparse.csr_matrix(adata.X, dtype=np.float32)
                adata.obs["batch"] = adata.obs["batch"].astype("category")
                labels_key = "leiden"
                isd.pp.split(adata, labels_key=labels_key, test_size=0.2, validation_size=0.1, seed=seed)
            else:
                adata, labels_key = load(args.data, seed, 0.2, 0.1)
            for row in checks[check](adata, labels_key, seed, args.trees):
                rows.append({"data": args.data, "check": check, "seed": seed, **row})
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    frame = pd.DataFrame(rows)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(args.out, index=False)
    numbers = frame.select_dtypes("number").columns.difference(["seed"], sort=False)
    with pd.option_context("display.width", 220, "display.max_columns", 30):
        print(frame.groupby(["data", "check", "cells"], sort=False)[list(numbers)].mean().round(3).to_string())


if __name__ == "__main__":
    main()
