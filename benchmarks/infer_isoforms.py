"""How well isoforms are inferred from genes: held-out cells of which only gene counts are seen.

Real files (five-fold, paired differences over cells) and simulated cells whose truth is known. The score of a cell is the
log-likelihood, in nats, of its isoform counts given its gene counts; all rivals are Dirichlet-multinomial with concentrations of
their own for each gene, fitted alike:

- global: usage pooled over the training cells;
- label: usage pooled over the training cells of the held-out cell's true label (which inference does not see);
- nearest: usage pooled over the nearest training cells in the space of gene components (number and smoothing chosen on validation cells, as the label's smoothing is);
- model: isd's gene encoder.

    python benchmarks/infer_isoforms.py --parts real              # needs ISD_DATA_DIR; about 15 minutes on one core
    python benchmarks/infer_isoforms.py --parts simulated --cells 400 1000 4000
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse, stats

import isd
from isd.datasets._draw import stream
from isd.datasets._simulated import _cells
from isd.datasets._world import World, make_world
from isd.metrics import GeneMap
from isd.model._usage import as_batch, fit_usage, gene_scores
from isd.model._usage_draw import draw_isoforms, gene_totals
from isd.nn import (
    IsoformCounts,
    dirichlet_multinomial_log_likelihood,
    isoform_counts,
    multinomial_log_likelihood,
    pair_log_softmax,
)

OUT = Path(__file__).parent / "out"
REAL = {
    "sc_five_cell_lines_longread": "cell_line",
    "sc_mouse_sperm_polya_sites_dev": "celltype",
    "sc_colorectal_longread": "cell_type",
}
#: Simulated training cells that tell concentrations of usage that is not fitted.
N_TOLD = 4000
SMOOTHING, NEIGHBORS = (1.0, 5.0, 20.0, 100.0), (15, 50)


def read(name: str, labels: str) -> ad.AnnData:
    """A real file with whole counts; isoforms without any are left out."""
    adata = ad.read_h5ad(Path(os.environ["ISD_DATA_DIR"]) / f"{name}.h5ad")
    counts = sparse.csr_matrix(adata.X).astype(np.float32)
    counts.data = np.rint(counts.data)
    counts.eliminate_zeros()
    adata.X = counts
    adata.obs["label"] = adata.obs[labels].astype("category").cat.codes.to_numpy().astype(np.int64)
    return adata[np.asarray(counts.sum(1)).ravel() > 0].copy()


# -- rivals -----------------------------------------------------------------------------------------------------------


def smoothed_logits(pooled: np.ndarray, overall: np.ndarray, genes: GeneMap, smoothing: float) -> np.ndarray:
    """Log usage of pooled counts ``(n, n_vars)``, with so many counts of the overall usage added."""
    totals = genes.sums(pooled)[:, genes.gene_of]
    return np.log((pooled + smoothing * overall) / (totals + smoothing)).astype(np.float32)


def at_entries(counts: IsoformCounts, rows: np.ndarray) -> torch.Tensor:
    """Values of a table ``(n_cells, n_vars)`` at the entries of counts."""
    return torch.as_tensor(rows[counts.cell[counts.pair].numpy(), counts.column.numpy()], dtype=torch.float32)


def nearest(x: sparse.csr_matrix, here: np.ndarray, there: np.ndarray, k: int, skip_self: bool) -> np.ndarray:
    """Counts pooled over the nearest training cells, dense: small data."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=k + skip_self).fit(there).kneighbors(here, return_distance=False)
    found = found[:, int(skip_self) :]
    rows = np.repeat(np.arange(len(here)), found.shape[1])
    weights = sparse.csr_matrix((np.ones(found.size), (rows, found.ravel())), shape=(len(here), len(there)))
    return np.asarray((weights @ x).todense(), dtype=np.float32)


def fit_concentration(counts: IsoformCounts, logits: torch.Tensor, n_genes: int, steps: int = 80) -> torch.Tensor:
    """Log concentration of each gene under fixed usage, with the prior of the model."""
    value = torch.full((n_genes,), float(np.log(50.0)), requires_grad=True)
    mean = torch.tensor(float(np.log(50.0)), requires_grad=True)
    optimizer = torch.optim.Adam([value, mean], lr=0.15)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.15 * (1 - step / steps)
        optimizer.zero_grad()
        loss = -dirichlet_multinomial_log_likelihood(counts, logits, value[counts.gene], constant=False).sum()
        (loss + 0.5 * (value - mean).square().sum()).backward()
        optimizer.step()
    return value.detach()


def score(counts: IsoformCounts, logits: torch.Tensor, concentration: torch.Tensor) -> np.ndarray:
    """Nats of each cell."""
    with torch.no_grad():
        return dirichlet_multinomial_log_likelihood(counts, logits, concentration[counts.gene]).double().numpy()


def rivals(
    x: sparse.csr_matrix,
    genes: GeneMap,
    labels: np.ndarray,
    parts: dict[str, np.ndarray],
    scores: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Scores of the held-out cells under global, label-pooled and nearest cells' usage."""
    segments = fit_start(genes)
    counts = {name: isoform_counts(as_batch(sparse.csr_matrix(x[rows])), segments) for name, rows in parts.items()}
    train = sparse.csr_matrix(x[parts["train"]])
    sums = np.asarray(train.sum(0), dtype=np.float64).ravel()

    def usage(pooled: np.ndarray) -> np.ndarray:
        pooled = pooled + 0.5
        return pooled / genes.sums(pooled)[:, genes.gene_of]

    # training cells are told by the others: with their own counts among what is pooled, concentrations would be too large
    overall = {name: usage(sums[None]) if name != "train" else usage(sums - train.toarray()) for name in parts}
    tables = {
        "global": {
            (): {
                name: np.log(overall[name]).repeat(len(rows) if name != "train" else 1, 0)
                for name, rows in parts.items()
            }
        }
    }
    pooled = np.stack([np.asarray(train[labels[parts["train"]] == k].sum(0)).ravel() for k in range(labels.max() + 1)])
    by_label = {
        name: pooled[labels[rows]] - (train.toarray() if name == "train" else 0.0) for name, rows in parts.items()
    }
    tables["label"] = {
        (a,): {name: smoothed_logits(by_label[name], overall[name], genes, a) for name in parts} for a in SMOOTHING
    }
    tables["nearest"] = {}
    for k in NEIGHBORS:
        around = {
            name: nearest(train, scores[name], scores["train"], min(k, len(scores["train"]) - 1), name == "train")
            for name in parts
        }
        for a in SMOOTHING:
            tables["nearest"][k, a] = {n: smoothed_logits(p, overall[n], genes, a) for n, p in around.items()}
    out = {}
    kappa = None
    for name, options in tables.items():

        def judged(table: dict[str, np.ndarray]) -> float:
            at = at_entries(counts["validation"], table["validation"])
            return score(counts["validation"], at, kappa).mean()  # noqa: B023

        table = options[()] if kappa is None else max(options.values(), key=judged)
        of_rival = fit_concentration(counts["train"], at_entries(counts["train"], table["train"]), genes.genes.size)
        kappa = of_rival if kappa is None else kappa
        out[name] = score(counts["test"], at_entries(counts["test"], table["test"]), of_rival)
    return out


def fit_start(genes: GeneMap) -> isd.nn.Segments:
    return isd.nn.Segments(torch.as_tensor(genes.gene_of), genes.genes.size)


# -- calibration ------------------------------------------------------------------------------------------------------


def calibration(
    x: sparse.csr_matrix, genes: GeneMap, train: sparse.csr_matrix, usage: np.ndarray, kappa: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Of held-out cells: PIT of the major isoform where a gene has 10 counts, usage there, isoforms detected."""
    rng = np.random.default_rng(seed)
    totals = gene_totals(genes.sums(x), genes)
    drawn = draw_isoforms(totals, usage, kappa, (seed,))
    observed = np.asarray(x.tocsr()[totals.cell[totals.pair], totals.column]).ravel()
    sums = np.asarray(train.sum(0)).ravel()[totals.column]
    # the most used isoform of each pair's gene
    order = np.lexsort((-sums, totals.pair))
    major = order[np.unique(totals.pair[order], return_index=True)[1]]
    deep = totals.total >= 10
    major, n = major[deep], totals.total[deep]
    alpha = np.maximum(usage[major] * kappa[deep], 1e-9)
    beta = np.maximum((1 - usage[major]) * kappa[deep], 1e-9)
    draws = rng.binomial(n.astype(int), rng.beta(alpha, beta, size=(400, len(n))))
    below, equal = (draws < observed[major]).sum(0), (draws == observed[major]).sum(0)
    single = x[:, np.flatnonzero(genes.n_isoforms[genes.gene_of] == 1)]
    return {
        "pit": (below + rng.uniform(size=len(n)) * (equal + 1)) / 401,
        "gene": totals.gene[deep],
        "real": observed[major] / n,
        "drawn": drawn[major] / n,
        "detected": np.bincount(totals.cell, np.add.reduceat(observed > 0, totals.start), minlength=x.shape[0])
        + single.getnnz(axis=1),
        "detected_drawn": np.bincount(totals.cell, np.add.reduceat(drawn > 0, totals.start), minlength=x.shape[0])
        + single.getnnz(axis=1),
    }


def spread(gene: np.ndarray, values: np.ndarray) -> float:
    """Root mean variance of a gene's usage over cells."""
    frame = pd.Series(values).groupby(gene)
    return float(np.sqrt(frame.var()[frame.size() >= 5].mean()))


# -- real files -------------------------------------------------------------------------------------------------------


def interval(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ± {1.96 * values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def real(name: str, label_key: str, n_folds: int, seed: int) -> dict[str, object]:
    adata = read(name, label_key)
    genes, x, labels = GeneMap.from_ids(adata.var["gene_id"]), adata.X.tocsr(), adata.obs["label"].to_numpy()
    rng = np.random.default_rng(seed)
    fold = rng.permutation(adata.n_obs) % n_folds
    scores: dict[str, np.ndarray] = {
        k: np.zeros(adata.n_obs) for k in ("global", "label", "nearest", "model", "shuffled")
    }
    judged, ranks, seconds = [], [], 0.0
    for f in range(n_folds):
        rest = rng.permutation(np.flatnonzero(fold != f))
        cut = len(rest) // 10
        parts = {"train": np.sort(rest[cut:]), "validation": np.sort(rest[:cut]), "test": np.flatnonzero(fold == f)}
        start = time.perf_counter()
        predictor, settings, _ = fit_usage(x, genes, parts["train"], parts["validation"], seed=seed + f)
        seconds += time.perf_counter() - start
        ranks.append(settings.rank)
        pcs = {n: gene_scores(predictor, genes.sums(x[rows])).numpy() for n, rows in parts.items()}
        for rival, values in rivals(x, genes, labels, parts, pcs).items():
            scores[rival][parts["test"]] = values
        held = sparse.csr_matrix(x[parts["test"]])
        counts = isoform_counts(as_batch(held), predictor.genes)
        with torch.no_grad():
            z = predictor.hidden(torch.as_tensor(pcs["test"]))
            logits = predictor.entry_logits(z, counts)
            scores["model"][parts["test"]] = predictor.log_likelihood(z, counts).double().numpy()
            # of another cell of the same label: what is left is what labels say
            order = np.arange(len(z))
            for k in np.unique(labels[parts["test"]]):
                mine = np.flatnonzero(labels[parts["test"]] == k)
                order[mine] = rng.permutation(mine)
            scores["shuffled"][parts["test"]] = predictor.log_likelihood(z[order], counts).double().numpy()
            usage = pair_log_softmax(counts, logits).exp().double().numpy()
            kappa = predictor.log_concentration.exp().numpy()[counts.gene.numpy()]
        judged.append(calibration(held, genes, x[parts["train"]], usage, kappa.astype(float), seed + f))
    joined = {k: np.concatenate([j[k] for j in judged]) for k in judged[0]}
    row = {
        "file": name,
        "cells": adata.n_obs,
        "ranks chosen": "/".join(map(str, ranks)),
        "label - global": interval(scores["label"] - scores["global"]),
        "nearest - global": interval(scores["nearest"] - scores["global"]),
        "model - global": interval(scores["model"] - scores["global"]),
        "model - label": interval(scores["model"] - scores["label"]),
        "model - nearest": interval(scores["model"] - scores["nearest"]),
        "model - shuffled within label": interval(scores["model"] - scores["shuffled"]),
        "KS of PIT": round(float(stats.kstest(joined["pit"], "uniform").statistic), 4),
        "n PIT": len(joined["pit"]),
        "spread, drawn / real": round(
            spread(joined["gene"], joined["drawn"]) / spread(joined["gene"], joined["real"]), 3
        ),
        "detected, real": round(float(joined["detected"].mean()), 1),
        "detected, drawn": round(float(joined["detected_drawn"].mean()), 1),
        "seconds a fit": round(seconds / n_folds, 1),
    }
    return row


# -- simulated --------------------------------------------------------------------------------------------------------


class WavyWorld(World):
    """Usage bends with the programs in a direction of each isoform's own: no low rank describes it."""

    def waves(self, programs: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(99)
        n_programs, n_vars = self.usage_loadings.shape
        direction = rng.standard_normal((n_programs, n_vars)).astype(np.float32)
        phase = rng.uniform(0, 2 * np.pi, n_vars).astype(np.float32)
        size = 1.2 * (rng.random(n_vars) < 0.4)
        return (np.sin(programs @ direction + phase) * size).astype(np.float32)

    def composition(self, labels: np.ndarray, programs: np.ndarray, batches: np.ndarray | None = None) -> np.ndarray:
        share = super().composition(labels, programs * 1.0, batches)
        gene = np.add.reduceat(share, self.starts, axis=1)
        usage = np.exp(self.usage_logits[labels] + self.waves(programs))
        usage /= np.repeat(np.add.reduceat(usage, self.starts, axis=1), self.sizes, axis=1)
        return (usage * np.repeat(gene, self.sizes, axis=1)).astype(np.float32)

    def true_logits(self, labels: np.ndarray, programs: np.ndarray) -> np.ndarray:
        return self.usage_logits[labels] + self.waves(programs)


def make_cells(kind: str, n: int, n_vars: int, seed: int) -> tuple[ad.AnnData, World]:
    """Simulated cells and the world that they are from."""
    scales = {
        "label_effect": 1.3,
        "program_effect": 0.45,
        "switch_fraction": 0.15,
        "usage_effect": 0.6,
        "batch_effect": 0.2,
    }
    world = make_world(n_vars, 8, 5, 1, rng=stream(seed, 0), **scales)
    if kind == "low rank":
        return isd.datasets.simulated(n, n_vars, 8, seed=seed, progress=False), world
    wavy = WavyWorld(**{f: getattr(world, f) for f in World.__dataclass_fields__})
    template = isd.datasets.simulated(100, n_vars, 8, seed=seed, progress=False)
    proportions = np.sort(0.7 * stream(seed, 2).dirichlet(np.full(8, 2.0)) + 0.3 / 8)[::-1]
    depth = 2200.0 * (n_vars / 2000) ** 0.4
    return _cells(wavy, template.var, proportions, n, depth, 0.35, seed, False), wavy


def simulated(kind: str, n: int, seed: int, n_test: int = 1000, n_vars: int = 2000) -> dict[str, object]:
    adata, world = make_cells(kind, n + n_test, n_vars, seed)
    genes, x = GeneMap.from_ids(adata.var["gene_id"]), adata.X.tocsr()
    labels = adata.obs["leiden"].cat.codes.to_numpy()
    order = np.random.default_rng(seed + 1).permutation(n + n_test)
    test, rest = np.sort(order[:n_test]), order[n_test:]
    cut = min(n // 10, 2000)
    start = time.perf_counter()
    predictor, settings, _ = fit_usage(x, genes, np.sort(rest[cut:]), np.sort(rest[:cut]), seed=seed)
    seconds = time.perf_counter() - start
    # concentrations of fixed usage, from training cells: each rival has its own, as the model has
    told = np.sort(rest[cut:][:N_TOLD])
    counts, usage, n_genes = {}, {}, len(predictor.log_concentration)
    for part, rows in (("told", told), ("test", test)):
        counts[part] = isoform_counts(as_batch(sparse.csr_matrix(x[rows])), predictor.genes)
        programs = adata.obsm["true_program"][rows]
        if isinstance(world, WavyWorld):
            truth = world.true_logits(labels[rows], programs)
        else:
            truth = world.usage_logits[labels[rows]] + programs @ world.usage_loadings
        usage[part] = {
            "global": predictor.log_pooled[predictor.position[counts[part].column]],
            "truth": at_entries(counts[part], truth),
        }
    kappa = {k: fit_concentration(counts["told"], usage["told"][k], n_genes) for k in ("global", "truth")}
    kappa["model"] = predictor.log_concentration
    with torch.no_grad():
        z = predictor.hidden(gene_scores(predictor, genes.sums(x[test])))
        logits = usage["test"] | {"model": predictor.entry_logits(z, counts["test"])}
        plain = {k: multinomial_log_likelihood(counts["test"], v).double().numpy() for k, v in logits.items()}
        wide = {k: score(counts["test"], v, kappa[k]) for k, v in logits.items()}
    gap = plain["truth"] - plain["global"]
    return {
        "simulator": kind,
        "cells": n,
        "seed": seed,
        "share of the gap": round(float((plain["model"] - plain["global"]).mean() / gap.mean()), 3),
        "gap, nats a cell": round(float(gap.mean()), 1),
        "gap, Dirichlet-multinomial": round(float((wide["truth"] - wide["global"]).mean()), 1),
        "share, Dirichlet-multinomial": round(
            float((wide["model"] - wide["global"]).mean() / (wide["truth"] - wide["global"]).mean()), 3
        ),
        "rank": settings.rank,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["real", "simulated"], choices=["real", "simulated"])
    parser.add_argument("--files", nargs="+", default=list(REAL), choices=list(REAL))
    parser.add_argument("--cells", nargs="+", type=int, default=[400, 1000, 4000])
    parser.add_argument("--kinds", nargs="+", default=["low rank", "wavy"], choices=["low rank", "wavy"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*requires_grad.*")
    OUT.mkdir(exist_ok=True)
    if "real" in args.parts:
        rows = []
        for name in args.files:
            rows.append(real(name, REAL[name], args.folds, 0))
            print(pd.Series(rows[-1]).to_string(), "\n", flush=True)
        pd.DataFrame(rows).to_csv(OUT / "infer_isoforms_real.csv", index=False)
    if "simulated" in args.parts:
        rows = []
        for kind in args.kinds:
            for n in args.cells:
                for seed in range(args.seeds):
                    rows.append(simulated(kind, n, seed))
                    print(*(f"{k}: {v}" for k, v in rows[-1].items()), sep="; ", flush=True)
        pd.DataFrame(rows).to_csv(OUT / "infer_isoforms_simulated.csv", index=False)


if __name__ == "__main__":
    main()
