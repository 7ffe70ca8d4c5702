"""What a VAE of counts is trained and judged by: the bound with its priors, and the likelihood of held-out cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn
from torch.distributions import Distribution, Normal
from torch.nn import functional as F

from isd._constants import TARGET_SUM
from isd.module._minibatch import to_dense, with_columns
from isd.nn import log_likelihood

LOG_THETA_RANGE = (-8.0, 12.0)
#: precision of the prior on the log sizes of clumps around the mean of all features: they differ by a factor of 1.6 or so
CLUMP_SHRINKAGE = 4.0
_ROWS, _FACTORS = "rows", "factors"


class CountLoss(BaseModuleClass):
    """The loss of :class:`VAEModule`, and its bound on the likelihood of a cell."""

    likelihood: str
    deterministic: bool
    log_theta: nn.Parameter
    log_clump: nn.Parameter | None
    label_head: nn.Linear | None
    label_weight: float
    n_train: Tensor

    @staticmethod
    def log_normalize(x: Tensor) -> Tensor:
        """log1p of counts scaled to 10,000 a cell."""
        return torch.log1p(x * (TARGET_SUM / x.sum(dim=1, keepdim=True).clamp_min(1.0)))

    def reconstruction_loss(self, px: Distribution, x: Tensor) -> Tensor:
        """Negative log-likelihood per cell (for ``"normal"``: of log-normalised values, unit variance)."""
        x = to_dense(x)
        return -px.log_prob(self.log_normalize(x) if self.likelihood == "normal" else x).sum(dim=-1)

    def _reconstruction(
        self, x: Tensor, inference_outputs: dict[str, Any], generated: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood: sum over cells, with its gradient, and that of each cell."""
        if _FACTORS not in generated:
            rec = self.reconstruction_loss(generated[MODULE_KEYS.PX_KEY], x)
            return rec.sum(), rec
        rows = with_columns(inference_outputs[_ROWS])
        factors = generated[_FACTORS]
        total, each = log_likelihood(
            self.likelihood,  # type: ignore[arg-type]
            rows.log_normalized(TARGET_SUM) if self.likelihood == "normal" else rows,
            factors["mean"],
            log_library=inference_outputs[MODULE_KEYS.LIBRARY_KEY],
            log_theta=self.log_theta if self.likelihood == "nb" else None,
            log_clump=self.log_clump,
            head=factors.get("dispersion"),
            log_theta_range=LOG_THETA_RANGE,
        )
        return -total, -each

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """Negative evidence lower bound, averaged over the batch; in training with priors and the label's likelihood."""
        x = tensors[REGISTRY_KEYS.X_KEY]
        total, rec = self._reconstruction(x, inference_outputs, generative_outputs)
        if self.deterministic:
            kl = torch.zeros_like(rec)
        else:
            mean, var = inference_outputs[MODULE_KEYS.QZM_KEY], inference_outputs[MODULE_KEYS.QZV_KEY]
            kl = 0.5 * (mean.square() + var - 1.0 - var.log()).sum(dim=1)
        loss = total / len(rec) + (kl_weight * kl).mean()
        if self.training:
            loss = loss + (generative_outputs["penalty"] + self._clump_penalty()) / self.n_train
            if self.label_head is not None:
                loss = loss + self.label_weight * self.label_loss(
                    inference_outputs[MODULE_KEYS.Z_KEY], tensors[REGISTRY_KEYS.LABELS_KEY]
                )
        return LossOutput(loss=loss, reconstruction_loss=rec, kl_local=kl)

    def _clump_penalty(self) -> Tensor | float:
        """Negative log prior on the clumps: rare features say little of theirs."""
        if self.log_clump is None:
            return 0.0
        return 0.5 * CLUMP_SHRINKAGE * (self.log_clump - self.log_clump.mean()).square().sum()

    def label_loss(self, z: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood of the labels given latents, per cell; cells without a label count as zero.

        Parameters
        ----------
        z
            Latents of shape ``(n, n_latent)``.
        labels
            Codes, shape ``(n, 1)``; ``n_labels`` for none.
        """
        assert self.label_head is not None
        labels = labels.reshape(-1).long()
        known = labels < self.label_head.out_features
        return F.cross_entropy(self.label_head(z[known]), labels[known], reduction="sum") / len(labels)

    @torch.inference_mode()
    def marginal_ll(
        self, tensors: dict[str, Tensor], n_mc_samples: int = 100, return_mean: bool = False, **kwargs: Any
    ) -> Tensor | float:
        """Importance-weighted estimate of the log-likelihood of each cell given its library size.

        References
        ----------
        Burda, Grosse & Salakhutdinov, Importance weighted autoencoders (2016), equation 8.
        """
        moved = {k: v.to(self.device) if torch.is_tensor(v) else v for k, v in tensors.items()}
        x = moved[REGISTRY_KEYS.X_KEY]
        inputs = self._get_inference_input(moved)
        terms = []
        for _ in range(n_mc_samples):
            q = self.inference(**inputs)
            z, mean, var = q[MODULE_KEYS.Z_KEY], q[MODULE_KEYS.QZM_KEY], q[MODULE_KEYS.QZV_KEY]
            generated = self.generative(**self._get_generative_input(moved, q))
            term = -self._reconstruction(x, q, generated)[1]
            if not self.deterministic:
                log_prior = Normal(0.0, 1.0).log_prob(z).sum(dim=1)
                log_posterior = Normal(mean, var.sqrt()).log_prob(z).sum(dim=1)
                term = term + log_prior - log_posterior
            terms.append(term)
        estimate = torch.logsumexp(torch.stack(terms), dim=0) - float(np.log(n_mc_samples))
        return float(estimate.mean()) if return_mean else estimate
