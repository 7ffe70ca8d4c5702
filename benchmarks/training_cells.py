"""How hard cells could be to tell that know each feature's distribution from the training cells, and nothing else wrong.

A generator learns its distributions from some hundred cells, whose means differ from those of all cells by chance. Cells made
of them share that error, and a classifier that sees many of them learns it; real cells have no error in common. Here the
features of a label's cells are independent in both groups (permuted among the held-out cells), and log-normalised values are
drawn from the training cells of the label: nothing of a model is in it. Arms:

- held out: one half of the test cells against the other;
- training cells: permuted, each used once, against as many test cells;
- drawn: each value from a training cell of the label, with replacement;
- drawn from a half, a quarter: the same from fewer training cells.

    python benchmarks/training_cells.py --data five_lines sperm --seeds 0 1 2      # needs ISD_DATA_DIR; minutes
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from realism import REAL, SIMULATED, load
from scipy import sparse

from isd.metrics import Yardstick, classifier_auc


def permuted(values: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each feature in another order among the cells of a label."""
    out = values.copy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        out[rows] = rng.permuted(values[rows], axis=0)
    return out


def drawn(
    values: np.ndarray, labels: np.ndarray, asked: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Cells of the labels asked for, each value from some training cell of its label."""
    out = np.empty((len(asked), values.shape[1]), dtype=values.dtype)
    columns = np.arange(values.shape[1])
    for label in np.unique(asked):
        here, source = np.flatnonzero(asked == label), np.flatnonzero(labels == label)
        source = rng.choice(source, max(2, round(share * len(source))), replace=False)
        out[here] = values[rng.choice(source, (len(here), len(columns))), columns]
    return out


def once(
    values: np.ndarray, labels: np.ndarray, asked: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Training cells of the labels asked for, permuted, and the rows of ``asked`` that there were enough for."""
    rows, kept = [], []
    for label in np.unique(asked):
        here, source = np.flatnonzero(asked == label), np.flatnonzero(labels == label)
        n = min(len(here), len(source))
        rows.append(rng.choice(source, n, replace=False))
        kept.append(rng.choice(here, n, replace=False))
    found = np.concatenate(rows)
    return permuted(values[found], labels[found], rng), np.concatenate(kept)


def measure(name: str, seed: int, args: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each arm: AUC, mean over draws."""
    adata, key = load(name, seed, args.test_size, args.validation_size)
    split, labels = adata.obs["isd_split"].to_numpy(), adata.obs[key].astype(str).to_numpy()
    train, test = split == "train", split == "test"
    yardstick = Yardstick.fit(adata.layers["counts"][train], adata.var_names, seed=0)
    values = {part: sparse.csr_matrix(yardstick.features(adata.layers["counts"][rows])).toarray() for part, rows in (("train", train), ("test", test))}  # fmt: skip
    of_train, of_test = labels[train], labels[test]
    found: dict[str, list[float]] = {}
    for draw in range(args.draws):
        rng = np.random.default_rng((seed, draw))
        real = permuted(values["test"], of_test, rng)

        def tell(arm: str, one: np.ndarray, other: np.ndarray) -> None:
            auc = classifier_auc(one, other, n_estimators=args.trees, seed=draw).auc  # noqa: B023
            found.setdefault(arm, []).append(float(auc))

        order = rng.permutation(len(real))
        tell("held out", real[order[::2]], real[order[1::2]])
        cells, kept = once(values["train"], of_train, of_test, rng)
        tell("training cells", real[kept], cells)
        for share, arm in ((1.0, "drawn"), (0.5, "drawn from a half"), (0.25, "drawn from a quarter")):
            tell(arm, real, drawn(values["train"], of_train, of_test, share, rng))
    return [
        {"data": name, "seed": seed, "arm": arm, "n_train": int(train.sum()), "n_test": int(test.sum()), "auc": np.mean(v)}
        for arm, v in found.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["five_lines", "sperm"], choices=[*REAL, *SIMULATED])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test-size", type=float, default=0.2)
    parser.add_argument("--validation-size", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--trees", type=int, default=300)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name in args.data:
        for seed in args.seeds:
            rows += measure(name, seed, args)
            print(pd.DataFrame(rows[-5:]).round(3).to_string(index=False, header=not rows[5:]), flush=True)
    frame = pd.DataFrame(rows)
    table = frame.groupby(["data", "arm"], sort=False)["auc"].agg(["mean", "sem", "size"])
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
