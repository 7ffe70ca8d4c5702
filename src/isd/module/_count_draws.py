"""Counts drawn for the latents of a VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import BaseModuleClass
from torch import Tensor, nn

from isd._constants import TARGET_SUM
from isd.module._sampling import draw_counts
from isd.nn import CountDecoder, LowRankLinear

#: Values of one decoded array when counts are drawn: 8 MB, which allocators hand out again rather than ask the system
#: for anew; more rows at once where all of a full output layer has to be read for them
DECODED_AT_ONCE, DECODED_AT_ONCE_FULL = 2**21, 2**23


class CountDraws(BaseModuleClass):
    """How :class:`VAEModule` draws counts."""

    decoder: CountDecoder
    n_input: int
    likelihood: str
    log_clump: nn.Parameter | None
    use_size_factor: bool

    @property
    def output_rank(self) -> int:
        """Rank of the output layer for the mean; 0 for a full layer."""
        mean = self.decoder.mean
        return len(mean.loadings) if isinstance(mean, LowRankLinear) else 0

    @torch.inference_mode()
    def sample_counts(
        self,
        z: Tensor,
        log_library: Tensor,
        codes: Tensor,
        continuous: Tensor | None,
        rng: np.random.Generator,
    ) -> sparse.csr_matrix:
        """Draw counts for given latents; the total of each cell is its library size, rounded.

        With a size factor in place of the library size, totals scatter around it.

        For ``"normal"`` there is no count distribution: the decoded log-normalised values (not below zero)
        are put back on the scale of counts and scaled to the library size; they stay fractional.

        Cells are decoded a few at a time, so that memory does not grow with their number; how many depends on the
        shape of the network alone, so that the same cells give the same counts.

        Parameters
        ----------
        z
            Latents of shape ``(n, n_latent)``.
        log_library
            Log library size, shape ``(n, 1)``.
        codes, continuous
            Covariates, shapes ``(n, 1 + n_cat_covs)`` and ``(n, n_continuous_cov)``.
        rng
            Source of randomness.

        Returns
        -------
        csr matrix of shape ``(n, n_vars)``, ``float32``.
        """
        step = max(1, (DECODED_AT_ONCE if self.output_rank else DECODED_AT_ONCE_FULL) // self.n_input)
        blocks, streams = [], self._streams(rng)
        for start in range(0, len(z), step):
            rows = slice(start, start + step)
            some = None if continuous is None else continuous[rows]
            px = self.generative(z[rows], log_library[rows], codes[rows], some)[MODULE_KEYS.PX_KEY]
            totals = np.maximum(np.rint(np.exp(log_library[rows].double().cpu().numpy().ravel())), 1.0)
            blocks.append(self._draw(px, totals, *streams))
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))

    def _streams(self, rng: np.random.Generator) -> Sequence[np.random.Generator]:
        """One stream for each kind of draw: what a cell gets then does not depend on how many are drawn at once."""
        return [rng]

    def _draw(self, px: Any, totals: np.ndarray, *streams: np.random.Generator) -> sparse.csr_matrix:
        rng = streams[0]
        if self.likelihood == "normal":
            # no share of a cell is above one: latents far from those of the training must not end as infinity
            values = np.expm1(px.mean.clamp(0.0, float(np.log1p(TARGET_SUM))).cpu().numpy())
            values *= totals[:, None] / np.maximum(values.sum(1, keepdims=True), 1e-12)
            return sparse.csr_matrix(values, dtype=np.float32)
        if self.likelihood == "poisson":
            mean, theta = px.rate, None
        else:
            mean, theta = px.mu, px.theta
        if self.likelihood == "zinb":
            seen = rng.random(tuple(mean.shape), dtype=np.float32) >= torch.sigmoid(px.zi_logits).cpu().numpy()
            mean = mean * torch.as_tensor(seen, device=mean.device)
        clump = None if self.log_clump is None else self.log_clump.detach().exp()
        return draw_counts(mean, theta, totals, rng, clump=clump, exact=not self.use_size_factor)
