"""A decoder with genes against one without: held-out likelihood, and usage of isoforms in generated cells.

Each (data, configuration, seed) trains one VAE. Rows are appended to a CSV when a training is done, so that an
interrupted run goes on where it stopped. Numbers are of validation cells, or with `--judge test` of test cells. Arms:
`reconstruction` decodes a draw from the posterior of each of these cells; `gaussian` decodes a Gaussian per label of the
training cells' latents; `diffusion` is a latent diffusion model's cells; `redrawn` redraws each judged cell's isoforms from
the label's pooled usage in training cells, and has the right genes; `diffusion redrawn` does so with the diffusion model's
cells, which is what usage within labels is worth beside it. Numbers are means over `--draws` sets of cells, but for those called
`pooled`, which are of all sets together; the floors of these are of the training cells. `default` is the decoder that
`gene_key` alone gives: what usage is drawn from is told from training cells.

    python benchmarks/genes.py --data five_lines sperm colorectal small --seeds 0 1 2
    python benchmarks/genes.py --configs flat default --judge test --arms gaussian diffusion redrawn --auc
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
from realism import judge as tell_apart
from realism import load, make
from scipy import sparse, stats

import isd
from isd.metrics._genes import GeneMap
from isd.metrics._nulls import label_gaussian, redraw_usage
from isd.metrics._sample import _main_isoforms as main_isoforms
from isd.metrics._yardstick import log_normalize

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "flat": {"gene_decoder": False},
    "genes": {"gene_decoder": True},
    "genes_nb": {"gene_decoder": True, "usage_likelihood": "nb"},
    "genes_cell": {"gene_decoder": True, "concentration_rank": 4},
}
METRICS = ["usage_js_distance", "usage_entropy_error", "within_gene_correlation", "gene_total_error"]
KEYS = ["data", "config", "seed"]
ARMS = ("reconstruction", "gaussian", "diffusion", "redrawn", "diffusion redrawn")


def usage_spread(counts: Any, codes: np.ndarray, genes: GeneMap, columns: np.ndarray, rows: dict) -> np.ndarray:
    """Standard deviation between a label's cells of the major isoform's usage, of each gene and label in turn.

    Which genes and which isoform comes from the real cells (`columns` by label), where it counts cells with five
    counts of the gene. Not a number where fewer than eight of these cells have as many.
    """
    values = []
    totals = sparse.csc_matrix(genes.sums(counts))
    counts = sparse.csc_matrix(counts)
    for label, chosen in rows.items():
        cells = codes == label
        for column in columns[chosen]:
            n = totals[:, [genes.gene_of[column]]].toarray().ravel()
            deep = cells & (n >= 5)
            x = counts[:, [column]].toarray().ravel()
            values.append(np.std(x[deep] / n[deep], ddof=1) if deep.sum() >= 8 else np.nan)
    return np.array(values)


def spread_numbers(found: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Mean spread as a ratio to the real one, and how far spreads are from the real ones, gene by gene.

    The ratio is right where genes too wide and genes too narrow cancel; the mean absolute difference, as a share of the
    mean real spread, is not.
    """
    both = np.isfinite(found)
    if not both.any():
        return {"spread": np.nan, "spread_error": np.nan}
    return {
        "spread": float(np.mean(found[both]) / np.mean(real)),
        "spread_error": float(np.mean(np.abs(found[both] - real[both])) / np.mean(real)),
    }


def pair_correlations(counts: Any, codes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Correlation of the two main isoforms of genes within labels, on log-normalised counts; `pairs` as `isd.metrics` has them."""
    values = log_normalize(counts[:, pairs], totals=np.asarray(counts.sum(axis=1)).ravel())
    values = values.toarray() if sparse.issparse(values) else np.array(values)
    for code in np.unique(codes):
        values[codes == code] -= values[codes == code].mean(axis=0)
    values /= np.maximum(values.std(axis=0), 1e-12)
    half = len(pairs) // 2
    return (values[:, :half] * values[:, half:]).mean(axis=0)


def pooled_numbers(
    counts: Any, codes: np.ndarray, genes: GeneMap, columns: np.ndarray, rows: dict, pairs: np.ndarray,
    real_spread: np.ndarray, real_correlations: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """Spreads and correlations of all sets together: the chance of one set's cells is not taken for an error of the model."""
    spread = usage_spread(counts, codes, genes, columns, rows)
    correlations = pair_correlations(counts, codes, pairs)
    return {
        "pooled_spread_error": spread_numbers(spread, real_spread)["spread_error"],
        "pooled_correlation_error": float(np.mean(np.abs(correlations - real_correlations))),
        "mean_correlation": float(correlations.mean()),
    }


def training_spread(
    counts: Any, codes: np.ndarray, asked: np.ndarray, genes: GeneMap, columns: np.ndarray, rows: dict, rng: Any,
    real: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """The same of training cells, as many of each label as were asked for: how far real cells are from real cells."""
    values = []
    for _ in range(10):
        found = [rng.choice(np.flatnonzero(codes == code), (asked == code).sum()) for code in np.unique(asked)]
        chosen = np.concatenate(found)
        values.append(spread_numbers(usage_spread(counts[chosen], codes[chosen], genes, columns, rows), real))
    return pd.DataFrame(values).mean().to_dict()


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


def judge(adata: ad.AnnData, vae: Any, labels_key: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each arm."""
    split = adata.obs["isd_split"]
    reference, training = adata[split == args.judge].copy(), adata[split == "train"]
    labels = adata.obs[labels_key].astype(str)
    codes = pd.Series(pd.factorize(labels)[0], index=adata.obs_names)
    of_reference, of_training = codes[reference.obs_names].to_numpy(), codes[training.obs_names].to_numpy()
    counts, before = reference.layers["counts"], training.layers["counts"]
    genes = GeneMap.from_ids(adata.var["gene_id"])
    rng = np.random.default_rng(seed)
    mean, std = vae.encode_distribution(adata, indices=np.flatnonzero(split == args.judge))
    train_mean, train_std = vae.encode_distribution(adata, indices=np.flatnonzero(split == "train"))
    points = train_mean + train_std * rng.standard_normal(train_mean.shape)
    library = np.asarray(counts.sum(axis=1)).ravel()
    own, drawn = [], []
    for _ in range(args.draws):
        own.append(mean + std * rng.standard_normal(mean.shape))
        drawn.append(label_gaussian(points, of_training, of_reference, rng))

    def redrawn(lent: Any, k: int) -> Any:
        return genes_only(lent, genes, before, of_training, of_reference, k)

    def decoded(sets: list[np.ndarray]) -> list[Any]:
        return [vae.decode(z.astype(np.float32), library_size=library, seed=seed + k) for k, z in enumerate(sets)]

    made: dict[str, list[Any]] = {"redrawn": [redrawn(counts, k) for k in range(args.draws)]}
    for arm, latents in (("reconstruction", own), ("gaussian", drawn)):
        if arm in args.arms:
            made[arm] = decoded(latents)
    if {"diffusion", "diffusion redrawn"} & set(args.arms):
        isd.model.LatentDiffusion.setup_anndata(adata, layer="counts", labels_key=labels_key, gene_key="gene_id")
        model = isd.model.LatentDiffusion(adata, vae=vae, seed=seed)
        model.train(seed=seed)
        made["diffusion"] = []
        for k in range(args.draws):
            cells = make(model, adata, reference, labels_key, "diffusion", {}, seed + 1000 * k)
            # in the order of the labels of the cells that they are judged against
            order = np.empty(cells.n_obs, dtype=int)
            order[np.argsort(of_reference, kind="stable")] = np.argsort(
                codes_of(cells.obs[labels_key].astype(str), labels, codes), kind="stable"
            )
            made["diffusion"].append(cells.layers["counts"][order])
        made["diffusion redrawn"] = [redrawn(matrix, k) for k, matrix in enumerate(made["diffusion"])]
    columns, rows = major_isoforms(counts, of_reference, genes)
    real_spread = usage_spread(counts, of_reference, genes, columns, rows)
    floor = training_spread(before, of_training, of_reference, genes, columns, rows, rng, real_spread)
    pairs = main_isoforms(before, genes)
    given = (genes, columns, rows, pairs, real_spread, pair_correlations(counts, of_reference, pairs))
    floor |= pooled_numbers(before, of_training, *given)
    out = []
    floors: dict[str, pd.DataFrame] = {}
    for arm in args.arms:
        fakes = [
            ad.AnnData(obs=reference.obs[[labels_key]].copy(), var=adata.var.copy(), layers={"counts": matrix})
            for matrix in made[arm]
        ]
        sets = []
        for fake in fakes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = isd.metrics.evaluate(
                    adata, fake, labels_key=labels_key, layer="counts", groups=False, metrics=METRICS, reference=args.judge,
                    n_boot=20, min_cells=10, key_added=None, progress=False,
                ).set_index("metric")  # fmt: skip
            matrix = fake.layers["counts"]
            found = spread_numbers(usage_spread(matrix, of_reference, genes, columns, rows), real_spread)
            for name in METRICS:
                found |= {name: table.at[name, "value"], f"{name}_floor": table.at[name, "floor"]}
            found["detected"] = matrix.astype(bool).sum() / counts.astype(bool).sum()
            sets.append(found)
        pooled = pooled_numbers(sparse.vstack(made[arm], format="csr"), np.tile(of_reference, len(made[arm])), *given)
        row = {
            "arm": arm,
            **pd.DataFrame(sets).mean().to_dict(),
            **pooled,
            **{f"{k}_floor": v for k, v in floor.items()},
        }
        if args.auc:
            options = argparse.Namespace(trees=300, n_jobs=1, min_label=10**9, raw=False, floors=3)
            told = next(iter(tell_apart(adata, reference, fakes, labels_key, floors, options)))
            names = ("features", "pcs", "agreement", "totals", "detected", "distance_ratio")
            row |= {k: told[k] for k in (*names, "features_floor", "pcs_floor", "agreement_real") if k in told}
        out.append(row)
    return out


def codes_of(labels: pd.Series, known: pd.Series, codes: pd.Series) -> np.ndarray:
    """Codes of labels, as the cells of the file have them."""
    return labels.map(dict(zip(known, codes, strict=True))).to_numpy()


def genes_only(
    counts: Any, genes: GeneMap, before: Any, of_training: np.ndarray, of_reference: np.ndarray, seed: int
) -> Any:
    """Isoforms of the cells' gene counts, from the usage of training cells of the same label."""
    # counts of so little weight that the pooled usage is that of the training cells
    stacked = sparse.csr_matrix(sparse.vstack([before * 1e6, counts]))
    codes = np.concatenate([of_training, of_reference])
    lenders = np.arange(len(of_training), len(codes))
    return redraw_usage(stacked, codes, genes, lenders, np.random.default_rng(seed))


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
                rows = np.flatnonzero(adata.obs["isd_split"] == args.judge)
                bound = np.asarray(vae.get_marginal_ll(adata, indices=rows, n_mc_samples=50, return_mean=False)).ravel()
                table = judge(adata, vae, labels_key, seed, args) if args.usage else [{"arm": "none"}]
                frame = pd.DataFrame(table)
                for i, (key, value) in enumerate(zip(KEYS, (name, label, seed), strict=True)):
                    frame.insert(i, key, value)
                frame["usage"] = getattr(vae.module, "usage_likelihood", "none")
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


def print_against(args: argparse.Namespace) -> None:
    """The default decoder's cells against the flat one's and against redrawn usage, in each seed, on the same judged cells."""
    frame = pd.read_csv(args.out)
    frame = frame[frame["data"].isin(args.data)]
    rows = []
    for name, part in frame.groupby("data", sort=False):
        values = part.set_index(["config", "arm", "seed"]).sort_index()
        known = values.index.droplevel("seed")
        if ("default", "diffusion") not in known:
            continue
        ours = values.loc["default", "diffusion"]
        for title, other in (
            ("flat", ("flat", "diffusion")),
            ("redrawn", ("default", "redrawn")),
            ("own genes, redrawn", ("default", "diffusion redrawn")),
        ):
            if other not in known:
                continue
            row = {"data": name, "default less": title}
            for metric in ("usage_js_distance", "pooled_correlation_error", "pooled_spread_error"):
                d = (ours[metric] - values.loc[other][metric]).dropna()
                half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else np.nan
                row |= {"seeds": len(d), metric: f"{d.mean():+.4f} ± {half:.4f}"}
            rows.append(row)
    if rows:
        print(pd.DataFrame(rows).to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["five_lines", "sperm", "colorectal", "small"])
    parser.add_argument("--configs", nargs="+", default=["flat", "genes", "genes_nb"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test-size", type=float, default=0.2)
    parser.add_argument("--validation-size", type=float, default=0.2)
    parser.add_argument("--usage", action=argparse.BooleanOptionalAction, default=True, help="judge generated cells")
    parser.add_argument("--judge", choices=["validation", "test"], default="validation", help="which cells")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["reconstruction", "gaussian", "redrawn"])
    parser.add_argument("--draws", type=int, default=1, help="sets of cells of each arm")
    parser.add_argument(
        "--auc", action="store_true", help="also how hard generated cells are to tell, as realism.py does"
    )
    parser.add_argument("--out", default="genes.csv")
    parser.add_argument("--table", action="store_true", help="print what there is, and train nothing")
    args = parser.parse_args()
    isd.settings.progress = False
    if args.table:
        print_table(args)
        print_against(args)
    else:
        run(args)


if __name__ == "__main__":
    main()
