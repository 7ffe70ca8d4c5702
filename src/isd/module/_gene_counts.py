"""Distribution of isoform counts as gene counts and usage."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from isd.nn import Segments


class GeneIsoformCounts(Distribution):
    """Counts of genes, and of their isoforms given these: Dirichlet-multinomial in each gene.

    Parameters
    ----------
    gene_counts
        Distribution of the genes' counts, batch shape ``(..., n_genes)``. Genes with several isoforms come first.
    logits
        Logits of usage of the isoforms of these genes, shape ``(..., n_shared)``, in the order of ``shared``.
    concentration
        Concentrations, of a shape that broadcasts to ``(..., n_multi)``.
    shared
        Columns of these isoforms, gene by gene, shape ``(n_shared,)``.
    genes
        Gene of every isoform.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Poisson
    >>> genes = Segments(torch.tensor([0, 1, 0]))
    >>> logits = torch.log(torch.tensor([[1.0, 3.0]]))
    >>> px = GeneIsoformCounts(Poisson(torch.tensor([[8.0, 1.0]])), logits, torch.ones(1), torch.tensor([0, 2]), genes)
    >>> px.mean
    tensor([[2., 1., 6.]])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.nonnegative_integer

    def __init__(
        self, gene_counts: Distribution, logits: Tensor, concentration: Tensor, shared: Tensor, genes: Segments
    ) -> None:
        self.gene_counts, self.logits, self.concentration = gene_counts, logits, concentration
        self.shared, self.genes = shared, genes
        batch = gene_counts.batch_shape[:-1]
        super().__init__(batch, torch.Size([genes.n_features]), validate_args=False)

    @cached_property
    def log_usage(self) -> Tensor:
        """Log usage of the isoforms of genes with several, shape ``(..., n_shared)``."""
        every = self.logits.new_zeros((*self.logits.shape[:-1], self.genes.n_features))
        every = self.genes.log_softmax(every.index_copy(-1, self.shared, self.logits))
        return every.index_select(-1, self.shared)

    @property
    def usage(self) -> Tensor:
        """Share of every isoform in its gene, shape ``(..., n_vars)``; 1 where there is no other."""
        usage = self.logits.new_ones((*self.logits.shape[:-1], self.genes.n_features))
        return usage.index_copy(-1, self.shared, self.log_usage.exp())

    @property
    def gene_mean(self) -> Tensor:
        """Expected counts of genes, shape ``(..., n_genes)``."""
        return self.gene_counts.mean

    @property
    def mean(self) -> Tensor:
        """Expected counts of isoforms, shape ``(..., n_vars)``."""
        return self.genes.expand(self.gene_mean) * self.usage

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-likelihood of counts of shape ``(..., n_vars)``, in nats, shape ``(...)``: one number for a cell.

        For whole cells and not for training; :func:`isd.nn.usage_log_likelihood` is what training uses.
        """
        value = value.double()
        totals = self.genes.sum(value)
        out = self.gene_counts.log_prob(totals.to(self.logits.dtype)).double().sum(-1)
        x, inner = value[..., self.shared], self.genes.segment_of[self.shared]
        n_multi = int(inner[-1]) + 1
        kappa = self.concentration.double().expand(*out.shape, n_multi)
        alpha = kappa[..., inner] * self.log_usage.double().exp()
        some = torch.where(x > 0, torch.lgamma(x + alpha) - torch.lgamma(alpha) - torch.lgamma(x + 1), 0.0).sum(-1)
        n = totals[..., :n_multi]
        whole = (torch.lgamma(n + 1) + torch.lgamma(kappa) - torch.lgamma(n + kappa)).sum(-1)
        return out + some + whole
