"""A decoder with genes against one without: held-out likelihood, and usage of isoforms in generated cells.

Each (data, configuration, seed) trains one VAE. Rows are appended to a CSV when a training is done, so that an
interrupted run goes on where it stopped. All numbers are of validation cells. Arms: `reconstruction` decodes a draw from
the posterior of each validation cell; `gaussian` decodes a Gaussian per label of the training cells' latents; `redrawn`
redraws each validation cell's isoforms from the label's pooled usage in training cells, which no per-cell usage can beat
by chance.

    python benchmarks/genes.py --data five_lines sperm colorectal small --seeds 0 1 2
    python benchmarks/genes.py --data small --configs 'rank4={"usage_rank": 4}'
    python benchmarks/genes.py --table

Real data are read from the folder in ISD_DATA_DIR (see `realism.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from realism import load
from scipy import sparse

import isd
from isd.metrics._genes import GeneMap
from isd.metrics._nulls import label_gaussian, redraw_usage

CONFIGS: dict[str, dict[str, Any]] = {
    "flat": {"gene_decoder": False},
    "genes": {"gene_decoder": True},
    "genes_nb": {"gene_decoder": True, "usage_likelihood": "nb"},
    "genes_cell": {"gene_decoder": True, "concentration_rank": 4},
}
METRICS = ["usage_js_distance", "usage_entropy_error", "within_gene_correlation", "gene_total_error"]
KEYS = ["data", "config", "seed"]
PART = "validation"


def usage_spread(counts: Any, codes: np.ndarray, genes: GeneMap, columns: np.ndarray, rows: dict) -> float:
    """Standard deviation between a label's cells of the major isoform's usage, mean over genes and labels.

    Which genes and which isoform comes from the real cells (`columns` by label), where it counts cells with five
    counts of the gene.
    """
    values = []
    totals = sparse.csc_matrix(genes.sums(counts))
    counts = sparse.csc_matrix(counts)
    for label, chosen in rows.items():
        cells = codes == label
        for column in columns[chosen]:
            n = totals[:, [genes.gene_of[column]]].toarray().ravel()
            deep = cells & (n >= 5)
            if deep.sum() >= 8:
                x = counts[:, [column]].toarray().ravel()
                values.append(np.std(x[deep] / n[deep], ddof=1))
    return float(np.mean(values)) if values else np.nan


def major_isoforms(counts: Any, codes: np.ndarray, genes: GeneMap) -> tuple[np.ndarray, dict]:
    """Column of each gene's major isoform, and by label the genes that at least 8 cells have 5 counts of."""
    order, starts = genes.segments
    pooled = np.asarray(counts.sum(axis=0)).ravel()
    columns = np.array([part[np.argmax(pooled[part])] for part in np.split(order, starts[1:])])
    totals = genes.sums(counts)
    several = genes.n_isoforms > 1
    rows = {
        label: np.flatnonzero(several & (np.asarray((totals[codes == label] >= 5).sum(axis=0)).ravel() >= 8))
        for label in np.unique(codes)
    }
    return columns, rows


def judge(adata: ad.AnnData, vae: Any, labels_key: str, seed: int) -> list[dict[str, Any]]:
    """One row for each arm."""
    split = adata.obs["isd_split"]
    reference, training = adata[split == PART], adata[split == "train"]
    labels = adata.obs[labels_key].astype(str)
    codes = pd.Series(pd.factorize(labels)[0], index=adata.obs_names)
    of_reference, of_training = codes[reference.obs_names].to_numpy(), codes[training.obs_names].to_numpy()
    counts, before = reference.layers["counts"], training.layers["counts"]
    genes = GeneMap.from_ids(adata.var["gene_id"])
    rng = np.random.default_rng(seed)
    mean, std = vae.encode_distribution(adata, indices=np.flatnonzero(split == PART))
    train_mean, train_std = vae.encode_distribution(adata, indices=np.flatnonzero(split == "train"))
    points = train_mean + train_std * rng.standard_normal(train_mean.shape)
    library = np.asarray(counts.sum(axis=1)).ravel()
    own = mean + std * rng.standard_normal(mean.shape)
    drawn = label_gaussian(points, of_training, of_reference, rng)
    # training cells' pooled usage: both stand above each other, and only the training ones are pooled
    both = sparse.csr_matrix(sparse.vstack([before, genes_only(counts, genes, before, of_training, of_reference)]))
    made = {
        "reconstruction": vae.decode(own.astype(np.float32), library_size=library, seed=seed),
        "gaussian": vae.decode(drawn.astype(np.float32), library_size=library, seed=seed),
        "redrawn": both[len(of_training) :],
    }
    columns, rows = major_isoforms(counts, of_reference, genes)
    real_spread = usage_spread(counts, of_reference, genes, columns, rows)
    out = []
    for arm, matrix in made.items():
        fake = ad.AnnData(obs=reference.obs[[labels_key]].copy(), var=adata.var.copy(), layers={"counts": matrix})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = isd.metrics.evaluate(
                adata, fake, labels_key=labels_key, layer="counts", groups=False, metrics=METRICS, reference=PART,
                n_boot=20, min_cells=10, key_added=None, progress=False,
            ).set_index("metric")  # fmt: skip
        row = {"arm": arm, "spread": usage_spread(matrix, of_reference, genes, columns, rows) / real_spread}
        for name in METRICS:
            row |= {name: table.at[name, "value"], f"{name}_floor": table.at[name, "floor"]}
        row["detected"] = matrix.astype(bool).sum() / counts.astype(bool).sum()
        out.append(row)
    return out


def genes_only(counts: Any, genes: GeneMap, before: Any, of_training: np.ndarray, of_reference: np.ndarray) -> Any:
    """Isoforms of the cells' gene counts, from the usage of training cells of the same label."""
    # counts of so little weight that the pooled usage is that of the training cells
    stacked = sparse.csr_matrix(sparse.vstack([before * 1e6, counts]))
    codes = np.concatenate([of_training, of_reference])
    lenders = np.arange(len(of_training), len(codes))
    return redraw_usage(stacked, codes, genes, lenders, np.random.default_rng(0))


def run(args: argparse.Namespace) -> None:
    out = Path(args.out)
    done = set() if not out.exists() else set(map(tuple, pd.read_csv(out)[KEYS].astype(str).to_numpy()))
    for seed in args.seeds:
        for name in args.data:
            for text in args.configs:
                label, _, body = text.partition("=")
                config = json.loads(body) if body else CONFIGS[label]
                if (name, label, str(seed)) in done:
                    continue
                adata, labels_key = load(name, seed, args.test_size, args.validation_size)
                isd.model.VAE.setup_anndata(adata, layer="counts", labels_key=labels_key, gene_key="gene_id")
                start = time.perf_counter()
                vae = isd.model.VAE(adata, seed=seed, **config)
                vae.train(seed=seed)
                seconds = time.perf_counter() - start
                rows = np.flatnonzero(adata.obs["isd_split"] == PART)
                bound = np.asarray(vae.get_marginal_ll(adata, indices=rows, n_mc_samples=50, return_mean=False)).ravel()
                table = judge(adata, vae, labels_key, seed) if args.usage else [{"arm": "none"}]
                frame = pd.DataFrame(table)
                for i, (key, value) in enumerate(zip(KEYS, (name, label, seed), strict=True)):
                    frame.insert(i, key, value)
                frame["nll"], frame["seconds"], frame["n"] = -bound.mean(), seconds, len(rows)
                folder = out.with_suffix("")
                folder.mkdir(exist_ok=True)
                # by cell: differences between configurations are of the same cells
                np.save(folder / f"{name}.{label}.{seed}.npy", bound)
                frame = frame if not out.exists() else pd.concat([pd.read_csv(out), frame])
                part = out.with_suffix(".part")
                frame.to_csv(part, index=False)
                os.replace(part, out)
                print(f"{name} {label} seed {seed}: {seconds:.0f} s, bound {-bound.mean():.2f}", flush=True)


def print_table(args: argparse.Namespace) -> None:
    frame = pd.read_csv(args.out)
    frame = frame[frame["data"].isin(args.data)]
    folder = Path(args.out).with_suffix("")
    rows = []
    for (name, label), part in frame.groupby(["data", "config"], sort=False):
        seeds = sorted(part["seed"].unique())
        differences = []
        for seed in seeds:
            flat = folder / f"{name}.flat.{seed}.npy"
            if flat.exists():
                differences.append(np.load(folder / f"{name}.{label}.{seed}.npy") - np.load(flat))
        row = {"data": name, "config": label, "seeds": len(seeds), "nll": part.groupby("seed")["nll"].first().mean()}
        if differences:
            gain = np.concatenate(differences)
            row |= {"gain": gain.mean(), "95%": 1.96 * gain.std(ddof=1) / len(gain) ** 0.5}
            row["by seed"] = " ".join(f"{d.mean():.1f}" for d in differences)
        row["seconds"] = part["seconds"].mean()
        rows.append(row)
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    numbers = frame[frame["arm"] != "none"].drop(columns=["seed", "nll", "seconds", "n"])
    if len(numbers):
        print(numbers.groupby(["data", "arm", "config"]).mean(numeric_only=True).round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["five_lines", "sperm", "colorectal", "small"])
    parser.add_argument("--configs", nargs="+", default=["flat", "genes", "genes_nb"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test-size", type=float, default=0.2)
    parser.add_argument("--validation-size", type=float, default=0.2)
    parser.add_argument("--usage", action=argparse.BooleanOptionalAction, default=True, help="judge generated cells")
    parser.add_argument("--out", default="genes.csv")
    parser.add_argument("--table", action="store_true", help="print what there is, and train nothing")
    args = parser.parse_args()
    isd.settings.progress = False
    if args.table:
        print_table(args)
    else:
        run(args)


if __name__ == "__main__":
    main()
