"""Make the fixture of a model format: ``python tests/data/models/make.py format_1``. Once for each format, and never again.

A fixture stays as the version of its time wrote it; ``tests/model/test_formats.py`` loads each and compares what it says.
"""

import json
import sys
from pathlib import Path

import anndata
import numpy as np
import torch
from scipy import sparse

import isd


def cells(n_obs=6, n_vars=40):
    """Counts that need no generator of random numbers, and transcripts of which most share a gene."""
    i, j = np.indices((n_obs, n_vars))
    counts = sparse.csr_matrix(((i * 7 + j * 3) % 11 * ((i + j) % 3 == 0)).astype(np.float32))
    adata = anndata.AnnData(counts)
    adata.var_names = [f"t{k}" for k in range(n_vars)]
    adata.obs_names = [f"cell{k}" for k in range(n_obs)]
    adata.var["gene_id"] = [f"g{k // 3}" for k in range(n_vars)]
    adata.obs["leiden"] = np.array(["b", "a"])[np.arange(n_obs) % 2]
    adata.obs["leiden"] = adata.obs["leiden"].astype("category").cat.reorder_categories(["b", "a"])
    return adata


def outputs(model, classifier):
    """What the model says of the cells, as plain lists."""
    adata = cells()
    mean, std = model.vae.encode_distribution(adata)
    latents = np.linspace(-1, 1, 2 * mean.shape[1], dtype=np.float32).reshape(2, -1)
    expected = model.vae.decode(latents, library_size=100.0, sample=False, seed=0)
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "expected": expected.tolist(),
        "probabilities": classifier.predict(adata, soft=True).to_numpy().tolist(),
        "generated": np.asarray(isd.tl.generate(model, n_obs=3, labels="a", seed=0).obsm["X_isd_vae"]).tolist(),
        "labels": model.labels.tolist(),
        "colors": model.label_colors,
    }


def main(folder):
    torch.set_num_threads(1)
    isd.settings.progress = False
    adata = cells(n_obs=60)
    adata.uns["leiden_colors"] = ["#000001", "#000002"]
    isd.model.VAE.setup_anndata(adata, gene_key="gene_id")
    vae = isd.model.VAE(adata, n_hidden=8, n_latent=3, output_rank=2, dispersion_rank=2)
    vae.train(max_steps=20)
    isd.model.LatentDiffusion.setup_anndata(adata, gene_key="gene_id")
    model = isd.model.LatentDiffusion(adata, vae, n_hidden=8, n_blocks=1)
    model.train(max_steps=20)
    isd.model.Classifier.setup_anndata(adata, gene_key="gene_id")
    classifier = isd.model.Classifier(adata, model, hidden=(8,))
    classifier.train(max_steps=20)
    model.save(folder / "model")
    classifier.save(folder / "classifier")
    (folder / "outputs.json").write_text(json.dumps(outputs(model, classifier)))


if __name__ == "__main__":
    main(Path(__file__).parent / sys.argv[1])
