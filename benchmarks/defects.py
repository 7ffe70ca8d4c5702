"""Which metric finds which defect, and how often real cells are called indistinguishable from real cells.

Cells of the simulator stand in for generated ones: a third of each world trains the yardstick, a third is the
reference, and the last third is "generated", as it is or spoilt in one way. Writes docs/notes/defects.md.

    python benchmarks/defects.py                                    # both tables
    python benchmarks/defects.py --worlds 2 --calibration 0         # quick
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

import isd

LABELS = "leiden"
DEFECTS = {
    "real": "held-out real cells, untouched",
    "labels": "labels shuffled among the cells",
    "usage": "isoforms of each gene exchanged, gene totals kept",
    "pooled": "isoforms redrawn with the label's pooled usage (baseline `pooled_usage`)",
    "NB": "independent negative binomials per transcript and label (baseline `independent_nb`)",
    "depth": "every count doubled",
    "blur": "Gaussian noise of standard deviation 1 added, rounded, cut at 0",
    "copies": "training cells (baseline `training_copies`)",
}
#: The metrics made for each defect: (metric, space).
MADE_FOR = {
    "labels": [
        ("label_agreement", "features"), ("train_on_synthetic", "pcs"),
        ("log_fold_change_slope", "features"), ("marker_overlap", "features"),
    ],
    "usage": [("usage_js_distance", "usage"), ("dominant_isoform", "usage"), ("usage_switch_slope", "usage")],
    "pooled": [("within_gene_correlation", "usage")],
    "NB": [("correlation_error", "features"), ("random_forest_auc", "pcs")],
    "depth": [("library_size", "counts")],
    "blur": [("zero_fraction_error", "features"), ("random_forest_auc", "features")],
    "copies": [("nearest_distance_ratio", "pcs"), ("exact_copy_rate", "counts")],
}  # fmt: skip
#: What a defect must leave alone: (metric, space).
BLIND_TO = {
    "labels": [("random_forest_auc", "features"), ("mmd", "pcs"), ("library_size", "counts")],
    "usage": [("gene_total_error", "counts"), ("library_size", "counts")],
    "pooled": [("gene_total_error", "counts"), ("library_size", "counts"), ("dominant_isoform", "usage")],
    "NB": [("exact_copy_rate", "counts"), ("dominant_isoform", "usage")],
    "depth": [("mmd", "pcs"), ("usage_js_distance", "usage"), ("zero_fraction_error", "features")],
    "copies": [("library_size", "counts"), ("usage_js_distance", "usage"), ("label_agreement", "features")],
}  # fmt: skip


def world(seed: int, n_obs: int, n_vars: int, n_labels: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Training and test cells of one simulated world, and as many cells that nobody has seen."""
    cells = isd.datasets.simulated(3 * n_obs, n_vars, n_labels=n_labels, seed=seed, progress=False)
    part = np.random.default_rng([seed, 1]).permutation(np.repeat(["train", "test", "fake"], n_obs))
    real, fake = cells[part != "fake"].copy(), cells[part == "fake"].copy()
    real.obs["isd_split"] = part[part != "fake"]
    return real, fake


def spoilt(real: ad.AnnData, fake: ad.AnnData, seed: int) -> Iterator[tuple[str, ad.AnnData]]:
    """The unseen cells as they are, and with each defect."""
    rng = np.random.default_rng([seed, 2])
    baselines = isd.metrics.baselines(real, n_obs=fake.n_obs, seed=seed)

    def changed(counts: object) -> ad.AnnData:
        return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=fake.obs.copy(), var=fake.var.copy())

    yield "real", fake
    shuffled = fake.copy()
    shuffled.obs[LABELS] = fake.obs[LABELS].array[rng.permutation(fake.n_obs)]
    yield "labels", shuffled
    columns = np.arange(fake.n_vars)
    for of_gene in fake.var.groupby("gene_id", observed=True).indices.values():
        columns[of_gene] = np.roll(rng.permutation(of_gene), 1) if len(of_gene) > 2 else of_gene[::-1]
    yield "usage", changed(fake.X[:, columns])
    yield "pooled", baselines["pooled_usage"]
    yield "NB", baselines["independent_nb"]
    yield "depth", changed(fake.X * 2)
    yield "blur", changed(np.maximum(np.rint(fake.X.toarray() + rng.normal(size=fake.shape)), 0))
    yield "copies", baselines["training_copies"]


def judge(real: ad.AnnData, fake: ad.AnnData, seed: int, metrics: list[str] | str | None = None) -> pd.DataFrame:
    return isd.metrics.evaluate(
        real, fake, labels_key=LABELS, groups=False, metrics=metrics, seed=seed, key_added=None, progress=False
    )


def defect_table(args: argparse.Namespace) -> pd.DataFrame:
    """Median rank of the verdict (0 indistinguishable, 1 close, 2 far) per metric and defect."""
    rows = []
    for seed in range(args.worlds):
        real, fake = world(seed, args.n_obs, args.n_vars, args.n_labels)
        for defect, cells in spoilt(real, fake, seed):
            table = judge(real, cells, seed)
            rows.append(table.assign(defect=defect, world=seed))
            print(f"world {seed}, {defect}: {(table['verdict'] == 'far').sum()} far", flush=True)
    table = pd.concat(rows)
    table["rank"] = table["verdict"].map({"indistinguishable": 0, "close": 1, "far": 2})
    order = list(dict.fromkeys(zip(table["metric"], table["space"], strict=True)))
    median = table.pivot_table(index=["metric", "space"], columns="defect", values="rank", aggfunc="median")
    return median.reindex(index=pd.MultiIndex.from_tuples(order), columns=list(DEFECTS))


def calibration(args: argparse.Namespace) -> pd.DataFrame:
    """How many of many worlds call unseen real cells indistinguishable, by metric."""
    rows = []
    for seed in range(1000, 1000 + args.calibration):
        real, fake = world(seed, args.n_calibration, args.n_vars, args.n_labels)
        rows.append(judge(real, fake, seed, metrics="all"))
        if seed % 10 == 9:
            print(f"calibration: {seed - 999} of {args.calibration}", flush=True)
    table = pd.concat(rows)
    table["inside"] = table["value"].between(table["floor_lower"], table["floor_upper"])
    table["indistinguishable"] = table["verdict"] == "indistinguishable"
    table["far"] = table["verdict"] == "far"
    return table.groupby(["metric", "space"], sort=False)[["inside", "indistinguishable", "far"]].sum()


def expectations(defects: pd.DataFrame) -> list[str]:
    """What should have been found, or left alone, and was not."""
    missed = [(d, *key) for d, keys in MADE_FOR.items() for key in keys if not defects.loc[key, d] >= 0.5]
    touched = [(d, *key) for d, keys in BLIND_TO.items() for key in keys if not defects.loc[key, d] < 1.5]
    lines = []
    for what, found in (("found by the metrics made for it", missed), ("left alone by metrics blind to it", touched)):
        text = "; ".join(f"{name} by {metric} ({space})" for name, metric, space in found)
        lines.append(f"Each defect is {what}" + (f", except {text}." if found else "."))
    return lines


def markdown(defects: pd.DataFrame, calibrated: pd.DataFrame | None, args: argparse.Namespace) -> str:
    lines = [
        "# Which metric finds which defect",
        "",
        f"Made by `benchmarks/defects.py` on simulated cells: {args.worlds} worlds of {args.n_obs:,} training, "
        f"{args.n_obs:,} test and {args.n_obs:,} unseen cells x {args.n_vars:,} transcripts, {args.n_labels} labels. "
        'Rows over all cells together (`group == "all"`). **far** and close are verdicts (median over worlds); '
        "`·` is indistinguishable. A star marks the metrics made for a defect.",
        "",
        *(f"- **{name}**: {text}" for name, text in DEFECTS.items()),
        "",
        "| metric | space | " + " | ".join(DEFECTS) + " |",
        "|---|---|" + "---|" * len(DEFECTS),
    ]
    for key, ranks in defects.iterrows():
        cells = []
        for defect in DEFECTS:
            rank = ranks[defect]
            text = "" if np.isnan(rank) else "**far**" if rank >= 1.5 else "close" if rank >= 0.5 else "·"
            cells.append(text + (" \\*" if key in MADE_FOR.get(defect, []) else ""))
        lines.append("| " + " | ".join([*key, *cells]) + " |")
    lines += ["", *expectations(defects)]
    lines += [
        "",
        "Copies of training cells have the distribution of real cells, so that comparisons on features pass them. On "
        "principal components they are told apart because the components were fitted to these very cells: an alarm for "
        "copying, as the two memorisation rows are. Shuffled labels are seen by rows that look at labels (and by every "
        "per-label row), not by those that pool all cells.",
    ]
    if calibrated is not None:
        lines += [
            "",
            "## Real against real",
            "",
            f"Unseen real cells in the place of generated ones, {args.calibration} worlds of {args.n_calibration:,} "
            "cells in each part: how often the value was inside the floor's 95% interval, was called indistinguishable "
            "(inside, or on the better side), and was called far.",
            "",
            "| metric | space | inside | indistinguishable | far |",
            "|---|---|---|---|---|",
            *(
                f"| {metric} | {space} | {row['inside']} | {row['indistinguishable']} | {row['far']} |"
                for (metric, space), row in calibrated.iterrows()
            ),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--n-obs", type=int, default=600)
    parser.add_argument("--n-vars", type=int, default=1000)
    parser.add_argument("--n-labels", type=int, default=4)
    parser.add_argument("--calibration", type=int, default=100, help="number of worlds for real against real")
    parser.add_argument("--n-calibration", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "notes" / "defects.md")
    args = parser.parse_args()
    start = time.perf_counter()
    defects = defect_table(args)
    calibrated = calibration(args) if args.calibration else None
    args.out.write_text(markdown(defects, calibrated, args))
    print(f"{args.out.name} written after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
