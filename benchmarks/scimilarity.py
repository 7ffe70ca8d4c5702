"""How published outputs become count means: logits of a softmax against the inverse of the logarithm.

Makes a folder in SCimilarity's layout from an autoencoder of the published kind (width 256, 64 latents) that is trained on genes of a
simulated atlas (7,000 cells less a third of the twelve labels, 2,000 transcripts), and fine-tunes `VAE.from_scimilarity` on
other cells of all labels. Prints the reconstruction loss of 200 validation cells before and after each stretch of steps.

    python benchmarks/scimilarity.py --world 0 --cells 300 --steps 150        (about 6 minutes on one core)
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn

import isd
from isd.model import VAE
from isd.model._scimilarity import match_symbols
from isd.model._scimilarity_files import read_scimilarity
from isd.model._statistics import feature_share

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def write_folder(vae: VAE, folder: Path, symbols) -> None:
    """Weights of an autoencoder of the published preset, under the published names."""
    ours, n = vae.module.state_dict(), vae.module_params["n_layers"]
    encoder, decoder = {}, {}
    for i in range(n):
        for theirs, part, at in ((encoder, "encoder", 1), (decoder, "decoder", int(i > 0))):
            weight = ours[f"{part}.body.{i}.0.weight"]
            first_rows = part == "encoder" and i == 0  # kept by feature
            theirs[f"network.{i}.{at}.weight"] = (weight.t() if first_rows else weight).contiguous().clone()
            theirs[f"network.{i}.{at}.bias"] = ours[f"{part}.body.{i}.0.bias"]
            for key in NORM:
                theirs[f"network.{i}.{at + 1}.{key}"] = ours[f"{part}.body.{i}.1.{key}"]
            theirs[f"network.{i}.{at + 2}.weight"] = ours[f"{part}.body.{i}.2.weight"]
    for key in ("weight", "bias"):
        encoder[f"network.{n}.{key}"] = ours[f"encoder.mean.{key}"]
        decoder[f"network.{n}.{key}"] = ours[f"decoder.mean.{key}"]
    torch.save({"state_dict": encoder}, folder / "encoder.ckpt")
    torch.save({"state_dict": decoder}, folder / "decoder.ckpt")
    (folder / "gene_order.tsv").write_text("\n".join(symbols) + "\n")


def atlas_folder(cells: ad.AnnData, folder: Path, steps: int) -> None:
    codes, names = pd.factorize(cells.var["gene_name"].astype(str))
    sums = sparse.csr_matrix((np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)))
    genes = ad.AnnData(
        sparse.csr_matrix(cells.X @ sums), obs=cells.obs[["leiden"]].copy(), var=pd.DataFrame(index=names)
    )
    VAE.setup_anndata(genes)
    vae = VAE(genes, preset="published", n_hidden=256, n_latent=64)
    vae.train(max_steps=steps)
    write_folder(vae, folder, names)


class InverseLog(nn.Module):
    """Log of expm1 of the published outputs, and an offset for each feature that is fitted to the pooled shares."""

    def __init__(self, last: nn.Linear) -> None:
        super().__init__()
        self.last, self.offset = last, nn.Parameter(torch.zeros(last.out_features))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        values = nn.functional.softplus(10 * self.last(h)) / 10
        return torch.log(torch.expm1(values) + 1e-4) + self.offset


def use_inverse_log(vae: VAE, folder: Path, train: np.ndarray) -> None:
    published = read_scimilarity(folder)
    group_of, gene_of, _ = match_symbols(vae.adata.var["gene_name"], published.genes)
    rows, module = gene_of[group_of], vae.module
    last = nn.Linear(published.encoder.shape[1], vae.adata.n_vars)
    with torch.no_grad():
        last.weight.copy_(published.decoder.last["weight"][rows])
        last.bias.copy_(published.decoder.last["bias"][rows])
        module.decoder.mean = InverseLog(last)
        z = torch.tensor(vae.get_latent_representation(indices=train))
        shares = torch.softmax(module.decoder.mean(module.decoder.body(nn.functional.normalize(z, dim=1))), 1).mean(0)
        pooled = feature_share(vae.adata.X, train)
        pooled = torch.tensor(np.maximum(pooled, 0.1 * pooled[pooled > 0].min())).float()
        module.decoder.mean.offset.copy_(pooled.log() - shares.log())
    plain = module._get_generative_input
    module._get_generative_input = lambda *a, **k: {**plain(*a, **k), "fused": False}
    with torch.no_grad():
        vae._start_dispersion(train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=0, help="seed of the simulation")
    parser.add_argument("--cells", type=int, default=300, help="training cells")
    parser.add_argument("--steps", type=int, default=150, help="steps of each of three stretches of fine-tuning")
    parser.add_argument("--atlas-steps", type=int, default=3000)
    args = parser.parse_args()
    isd.settings.progress = False
    cells = isd.datasets.simulated(n_obs=9000, n_vars=2000, n_labels=12, seed=args.world)
    atlas, mine = cells[:7000], cells[7000:].copy()
    order = np.random.default_rng(args.world).permutation(mine.n_obs)
    mine.obs["isd_split"] = "test"
    mine.obs.iloc[order[: args.cells], -1] = "train"
    mine.obs.iloc[order[args.cells : args.cells + 200], -1] = "validation"
    VAE.setup_anndata(mine)
    train, validation = (np.flatnonzero(mine.obs["isd_split"] == part) for part in ("train", "validation"))

    def loss(vae: VAE) -> float:
        return float(vae.get_reconstruction_error(indices=validation)["reconstruction_loss"])

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        atlas_folder(atlas[atlas.obs["leiden"].astype(int) < 8].copy(), folder, args.atlas_steps)
        for arm in ("softmax", "inverse of the logarithm"):
            vae = VAE.from_scimilarity(folder, mine, min_genes=100)
            if arm != "softmax":
                use_inverse_log(vae, folder, train)
            losses = [loss(vae)]
            for seed in range(3):
                vae.train(max_steps=args.steps, early_stopping=False, seed=seed)
                losses.append(loss(vae))
            print(f"{arm:28s}", " ".join(f"{value:8.1f}" for value in losses), flush=True)


if __name__ == "__main__":
    main()
