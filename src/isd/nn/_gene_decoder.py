"""Decoder of two levels: a gene's share of the counts, and its isoforms' share of the gene."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from isd.nn._autoencoder import CountDecoder, LowRankLinear
from isd.nn._likelihood import Factors

#: Where log concentrations start: usage that hardly differs between cells of the same latent.
LOG_CONCENTRATION_INIT = math.log(50.0)


class GeneDecoder(CountDecoder):
    """:class:`CountDecoder` over genes, with logits of usage for the isoforms of genes that have several.

    Logits of usage are the log of the training cells' pooled usage plus a layer of low rank that starts at zero: what
    few counts can say about usage is said once for many isoforms.

    Parameters
    ----------
    n_latent, n_covariates
        As in :class:`CountDecoder`.
    n_genes
        Number of genes, the ``"mean"`` and the other heads have one output for each.
    sizes
        Number of isoforms of each gene that has several, in the order of the logits of usage.
    usage_rank
        Rank of the layer that gives these logits.
    usage_shrinkage
        Precision of the normal prior on how far a logit of usage is from its pooled value.
    concentration_rank, concentration_shrinkage
        Rank of a layer that moves a gene's log concentration from cell to cell, 0 for one concentration a gene, and the
        precision of the prior on what it adds.
    **shape
        Further arguments of :class:`CountDecoder`.

    Examples
    --------
    >>> import torch
    >>> decoder = GeneDecoder(4, 1, 3, torch.tensor([2, 2]), n_hidden=8, n_layers=1)
    >>> out = decoder.eval()(torch.zeros(5, 4), torch.zeros(5, 1))
    >>> {name: tuple(value.shape) for name, value in out.items()}
    {'mean': (5, 3), 'usage': (5, 4)}
    """

    log_pooled: Tensor

    def __init__(
        self,
        n_latent: int,
        n_covariates: int,
        n_genes: int,
        sizes: Tensor,
        *,
        n_hidden: int,
        usage_rank: int = 8,
        usage_shrinkage: float = 0.0,
        concentration_rank: int = 0,
        concentration_shrinkage: float = 0.0,
        **shape: Any,
    ) -> None:
        super().__init__(n_latent, n_covariates, n_genes, n_hidden=n_hidden, **shape)
        n_isoforms = int(sizes.sum())
        self.usage_shrinkage, self.concentration_shrinkage = usage_shrinkage, concentration_shrinkage
        self.usage = _zero_start(LowRankLinear(n_hidden, n_isoforms, min(usage_rank, n_isoforms)))
        self.log_concentration = nn.Parameter(torch.full((len(sizes),), LOG_CONCENTRATION_INIT))
        self.mean_log_concentration = nn.Parameter(torch.tensor(LOG_CONCENTRATION_INIT))
        self.concentration: LowRankLinear | None = None
        if concentration_rank:
            self.concentration = _zero_start(LowRankLinear(n_hidden, len(sizes), min(concentration_rank, len(sizes))))
        # equal shares until the training cells are known
        even = -torch.log(torch.repeat_interleave(sizes.float(), sizes))
        self.register_buffer("log_pooled", even)

    def forward(self, z: Tensor, covariates: Tensor) -> dict[str, Tensor]:
        """Outputs of :class:`CountDecoder`, ``"usage"`` (logits) and, where it differs by cell, ``"concentration"``."""
        h = self.body(torch.cat([z, covariates], dim=1))
        out = {"mean": self.shifted(self.mean(h), covariates), "usage": self.usage(h) + self.log_pooled}
        for name, head in self.heads.items():
            out[name] = head(h)
        if self.concentration is not None:
            out["concentration"] = self.concentration(h)
        if self.training:
            out["penalty"] = self.penalty(h)
        return out

    def factors(self, z: Tensor, covariates: Tensor) -> tuple[dict[str, Factors], Tensor | None]:
        """The same, not multiplied out, for :func:`log_likelihood` and :func:`usage_log_likelihood`."""
        h = self.body(torch.cat([z, covariates], dim=1))
        out = self.layer_factors(h, covariates)
        usage = self.usage.factors(h)
        out["usage"] = usage._replace(bias=usage.bias + self.log_pooled)
        if self.concentration is not None:
            out["concentration"] = self.concentration.factors(h)
        return out, self.penalty(h) if self.training else None

    def penalty(self, h: Tensor) -> Tensor:
        """Negative log priors: those of :class:`CountDecoder`, of usage, and of concentrations.

        Log concentrations are normal with variance 1 around a mean that is learnt: genes with few counts take that of
        the others.
        """
        total = super().penalty(h)
        if self.usage_shrinkage:
            prior = self.usage.spread(h) + self.usage.bias.square().sum()
            total = total + 0.5 * self.usage_shrinkage * prior
        total = total + 0.5 * (self.log_concentration - self.mean_log_concentration).square().sum()
        if self.concentration is not None and self.concentration_shrinkage:
            prior = self.concentration.spread(h) + self.concentration.bias.square().sum()
            total = total + 0.5 * self.concentration_shrinkage * prior
        return total


def _zero_start(layer: LowRankLinear) -> LowRankLinear:
    nn.init.zeros_(layer.scores.weight)
    return layer
