"""Isoform switches between a label and the rest: how many are found, and how many of the finds are false.

Simulated cells whose true usage is known, 20 worlds. `isd.tl.differential_usage` against a chi-square test of each gene's counts
(scipy.stats.chi2_contingency, both groups pooled, Benjamini and Hochberg's correction by scipy.stats.false_discovery_control).
A true change is one of more than 0.1 in the usage of some isoform.

    python benchmarks/switches.py                       # 20 worlds of 800 cells x 600 isoforms; some 3 minutes of processor time
    python benchmarks/switches.py --seeds 2
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, false_discovery_control
from sklearn.metrics import roc_auc_score

import isd
from isd.model import VAE

OUT = Path(__file__).parent / "out"
DELTA, RATE = 0.1, 0.05


def true_change(adata, label: int) -> pd.Series:
    """Usage in a label minus usage in all other cells, of each isoform."""
    sizes = np.bincount(adata.obs["leiden"].cat.codes)
    mean = adata.varm["true_mean"].astype(float)
    rest = mean @ np.where(np.arange(len(sizes)) == label, 0, sizes)
    gene = adata.var["gene_id"].to_numpy()
    usage = [m / pd.Series(m).groupby(gene).transform("sum").to_numpy() for m in (mean[:, label], rest)]
    return pd.Series(usage[0] - usage[1], index=adata.var_names)


def chi_square(adata, label: str, genes: pd.Index) -> pd.Series:
    """p-value of each gene."""
    inside = (adata.obs["leiden"] == label).to_numpy()
    counts = pd.DataFrame(
        {k: np.asarray(adata.X[rows].sum(0)).ravel() for k, rows in (("in", inside), ("out", ~inside))},
        index=adata.var_names,
    )
    out = {}
    for gene, part in counts.groupby(adata.var["gene_id"].to_numpy()):
        if gene in genes:
            out[gene] = (
                chi2_contingency(part[part.sum(1) > 0].to_numpy().T).pvalue if (part.sum(1) > 0).sum() > 1 else 1.0
            )
    return pd.Series(out)


def world(seed: int, n_obs: int, n_vars: int) -> list[dict[str, float]]:
    adata = isd.datasets.simulated(n_obs, n_vars, n_labels=4, seed=seed, progress=False)
    VAE.setup_anndata(adata)
    vae = VAE(adata, n_latent=4, n_hidden=16)
    vae.train(max_steps=2, progress=False)  # switches are told by the gene encoder alone
    start = time.perf_counter()
    vae.fit_gene_encoder(seed=seed, progress=False)
    fitted = time.perf_counter() - start
    rows = []
    for label in range(4):
        start = time.perf_counter()
        table = isd.tl.differential_usage(vae, group1=str(label), delta=DELTA, fdr_target=RATE)
        seconds = time.perf_counter() - start
        change = true_change(adata, label)[table.index].abs()
        called = table[f"is_du_fdr_{RATE:g}"]
        gene_true = (change > DELTA).groupby(table["gene"]).any()
        gene_score = table.groupby("gene")["proba_du"].max()
        gene_called = called.groupby(table["gene"]).any()
        p = chi_square(adata, str(label), gene_true.index)[gene_true.index]
        chi_called = pd.Series(false_discovery_control(p.to_numpy()) <= RATE, index=p.index)
        rows.append(
            {
                "seed": seed,
                "label": label,
                "isoforms": len(table),
                "changed": int((change > DELTA).sum()),
                "AUROC": roc_auc_score(change > DELTA, table["proba_du"]),
                "called": int(called.sum()),
                "false": int((called & (change <= DELTA)).sum()),
                "found": (called & (change > DELTA)).sum() / (change > DELTA).sum(),
                "genes": len(gene_true),
                "genes changed": int(gene_true.sum()),
                "AUROC, genes": roc_auc_score(gene_true, gene_score),
                "genes called": int(gene_called.sum()),
                "genes false": int((gene_called & ~gene_true).sum()),
                "AUROC, genes, chi-square": roc_auc_score(gene_true, -p),
                "genes called, chi-square": int(chi_called.sum()),
                "genes false, chi-square": int((chi_called & ~gene_true).sum()),
                "genes hardly changed, chi-square": int(
                    (chi_called & (change.groupby(table["gene"]).max() < 0.02)).sum()
                ),
                "seconds": seconds,
                "seconds, fit": fitted,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cells", type=int, default=800)
    parser.add_argument("--vars", type=int, default=600)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        rows += world(seed, args.cells, args.vars)
        frame = pd.DataFrame(rows)
        by_world = frame.groupby("seed").sum()
        print(
            f"seed {seed}: false {by_world['false'].iloc[-1] / by_world['called'].iloc[-1]:.3f}; so far AUROC",
            f"{frame['AUROC'].mean():.3f} (least {frame['AUROC'].min():.3f}), false {frame['false'].sum() / frame['called'].sum():.3f},",
            f"found {frame['found'].mean():.3f}; genes: AUROC {frame['AUROC, genes'].mean():.3f}",
            f"false {frame['genes false'].sum() / frame['genes called'].sum():.3f}; chi-square: AUROC",
            f"{frame['AUROC, genes, chi-square'].mean():.3f}, false",
            f"{frame['genes false, chi-square'].sum() / frame['genes called, chi-square'].sum():.3f},",
            f"called {frame['genes called, chi-square'].sum()} against {frame['genes called'].sum()}, changed {frame['genes changed'].sum()};",
            f"hardly changed {frame['genes hardly changed, chi-square'].sum()}; {frame['seconds'].mean():.2f} s, fit {frame['seconds, fit'].mean():.1f} s",
            flush=True,
        )
    OUT.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(OUT / "switches.csv", index=False)
    share = by_world["false"] / by_world["called"]
    print(f"share of false ones in a world: mean {share.mean():.4f} +- {1.96 * share.std() / len(share) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
