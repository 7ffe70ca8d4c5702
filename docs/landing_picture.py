"""Makes docs/_static/landing.png: real held-out and generated cells on one map, and what a classifier says of them.

``python docs/landing_picture.py`` (some two minutes on one core) prints the numbers that the landing page and the README quote.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

import isd

OUT = Path(__file__).parent / "_static" / "landing.png"
SEED = 0


def main() -> None:
    """Simulate, train, generate, compare, draw."""
    adata = isd.datasets.simulated(n_obs=2500, n_vars=1500, n_labels=7, seed=SEED)
    isd.pp.recipe(adata)
    isd.pp.split(adata, seed=SEED)
    isd.model.LatentDiffusion.setup_anndata(adata)
    model = isd.model.LatentDiffusion(adata, seed=SEED)
    model.train(seed=SEED, progress=False)
    n_test = int((adata.obs["isd_split"] == "test").sum())
    fake = isd.tl.generate(model, n_obs=n_test, labels="match", seed=SEED, progress=False)
    table = isd.metrics.evaluate(adata, fake, metrics=["random_forest_auc"], groups=False, progress=False)
    print(f"{n_test} held-out and as many generated cells")
    print(table[["space", "value", "lower", "upper", "floor", "floor_lower", "floor_upper", "verdict"]].round(3))

    joint = isd.tl.embed(adata, fake)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), width_ratios=[1, 1, 0.9], layout="constrained")
    isd.pl.umap_compare(adata, fake, joint=joint, color="isd_source", ax=axes[0], show=False)
    points, label = joint.obsm["X_isd_umap"], joint.obs["leiden"].cat.codes
    new = (joint.obs["isd_source"] == "generated").to_numpy()
    axes[1].scatter(*points[new].T, c=label[new], cmap="tab10", vmin=0, vmax=9, s=4, linewidths=0)
    axes[0].set_title("held-out cells (grey), generated (orange)", fontsize=10)
    axes[1].set_title("generated, by the label asked for", fontsize=10)
    axes[1].set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim(), xticks=[], yticks=[])
    isd.pl.roc(fake, ax=axes[2], show=False)
    figure.savefig(OUT, dpi=90)
    print(OUT.name, f"{OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
