"""Usage of isoforms through the VAE's latent: what genes say of it, refined by the diffusion model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from isd.model._gene_encoder import GeneEncoder
from isd.model._generated import Cells
from isd.model._mudata import measured_genes
from isd.model._usage_draw import GeneTotals
from isd.tl._sample import make_sampler, sample_diffusion

if TYPE_CHECKING:
    from isd.model import LatentDiffusion

_TEMPLATES, _NOISE = 22, 23
#: Steps of the sampler, from a little noise.
N_STEPS = 4
#: Precision of the prior on the regression, in units of a principal component's variance.
_RIDGE = 1.0
#: Values of decoded cells that are held at once.
_VALUES = 1 << 24


class GenesToLatent:
    """Draws of a cell's latent given its gene counts.

    A ridge regression of the training cells' posterior means on their gene components gives a latent and how far from it cells
    are. That is an observation with Gaussian noise, and denoising from just that noise level is drawing from the
    posterior under the diffusion model's prior.

    Parameters
    ----------
    model
        Trained diffusion model, with its data attached.
    encoder
        Gene encoder of its VAE.
    seed
        Seed of the draws.
    """

    def __init__(self, model: LatentDiffusion, encoder: GeneEncoder, seed: int) -> None:
        vae = model.vae
        if vae._adata is None:
            raise ValueError(
                'method="diffusion" needs the data that the VAE was trained on, to learn what genes say of its latent; load '
                'the model with adata=, or take method="direct".'
            )
        self.model, self.encoder, self.seed = model, encoder, seed
        adata = vae._validate_anndata()
        train = vae._split()[0]
        if len(train) > 20_000:
            train = np.sort(np.random.default_rng(0).choice(train, 20_000, replace=False))
        counts = adata.X if vae.layer is None else adata.layers[vae.layer]
        measured = measured_genes(adata, encoder.genes.genes.size)
        genes = encoder.genes.sums(sparse.csr_matrix(counts[train])) if measured is None else measured[train]
        x = encoder.scores(genes).cpu().numpy().astype(np.float64)
        self._center = x.mean(axis=0)
        z = vae.encode_distribution(adata, indices=train, progress=False)[0]
        z = np.concatenate([z, np.zeros((len(z), model.module.n_input - z.shape[1]), dtype=z.dtype)], axis=1)
        if model.module.model_library:
            z[:, -1] = vae._log_library(adata)[train]
        z = self._scaled(z).astype(np.float64)
        x = x - self._center
        self._offset = z.mean(axis=0)
        self._weight = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ (z - self._offset))
        residual = (z - self._offset - x @ self._weight)[:, : vae.module.n_latent]
        #: standard deviation of what genes do not say, on the scale on which latents have variance 1
        self.noise = float(np.clip(np.sqrt((residual**2).mean()), 0.02, 3.0))

    def _scaled(self, z: np.ndarray) -> np.ndarray:
        module = self.model.module
        with torch.no_grad():
            return module.scaler(torch.as_tensor(z, dtype=torch.float32, device=module.device)).cpu().numpy()

    def _start(self) -> float:
        """Time at which the schedule's noise, relative to its signal, is that of the regression."""
        schedule = self.model.module.schedule
        times = torch.linspace(0.001, 0.999, 999)
        ones = torch.ones(1, 1)
        signal = torch.cat([schedule.add_noise(ones, 0 * ones, t) for t in times]).flatten()
        noise = torch.cat([schedule.add_noise(0 * ones, ones, t) for t in times]).flatten()
        return float(times[torch.argmin((noise / signal.clamp_min(1e-6) - self.noise).abs())])

    def draw(self, scores: torch.Tensor, codes: np.ndarray | None, library: np.ndarray, k: int) -> Cells:
        """The ``k``-th draw of each cell: its latent, and what else the decoder reads."""
        model, n = self.model, len(scores)
        rng = np.random.default_rng([self.seed, _TEMPLATES, k])
        # genes do not say which batch a cell is from: training cells stand in
        cells = model.vae._cells(np.zeros((n, model.vae.module.n_latent)), np.maximum(library, 1.0), None, rng)
        conditions = np.zeros((n, len(model.n_categories)), dtype=np.int64)
        conditions[:, 0] = len(model.labels) if codes is None else codes
        conditions[:, 1:] = cells.codes
        first = self._offset + (scores.cpu().numpy() - self._center) @ self._weight
        solver, _ = make_sampler(model, None, N_STEPS)
        x = sample_diffusion(
            model,
            conditions,
            guidance_scale=1.0,
            guides=[],
            solver=solver,
            key=(self.seed, _NOISE, k),
            start=self._start(),
            first=first.astype(np.float32),
            progress=False,
        )
        return replace(cells, latents=np.ascontiguousarray(x[:, : model.vae.module.n_latent]))

    def usage(self, cells: Cells, rows: slice, totals: GeneTotals) -> np.ndarray:
        """What the decoder says of the isoforms of genes that some rows express, shape ``(n_entries,)``."""
        vae = self.model.vae
        out = np.empty(len(totals.column))
        cell = totals.cell[totals.pair]
        ends = np.searchsorted(cell, np.arange(totals.n_cells + 1))
        step = max(1, _VALUES // vae.module.n_input)
        for start in range(0, totals.n_cells, step):
            stop = min(start + step, totals.n_cells)
            expected = vae._expected(*cells.tensors(slice(rows.start + start, rows.start + stop), vae.module.device))
            part = slice(int(ends[start]), int(ends[stop]))
            out[part] = expected[cell[part] - start, totals.column[part]]
        out = np.maximum(out, 1e-12)
        return out / np.add.reduceat(out, totals.start)[totals.pair] if len(out) else out
