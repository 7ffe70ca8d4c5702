"""From the counts of genes to the usage of their isoforms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isd.nn._segments import Segments
from isd.nn._sparse import SparseBatch, _weighted_sums
from isd.nn._usage import IsoformCounts, dirichlet_multinomial_log_likelihood

#: Standard deviation below which a coordinate says nothing.
_SMALLEST_SD = 1e-4


class UsagePredictor(nn.Module):
    r"""Usage of isoforms given the counts of genes: a low-rank map of principal components, and a concentration a gene.

    .. math::

        \pi_{ct} = \mathrm{softmax}_{t \in g}\big(\log u_t + b_t + z_c^\top w_t + v_{\ell(c) t}\big), \qquad
        z_c = \mathrm{standardise}(f(s_c)), \qquad x_{cg\cdot} \sim \mathrm{DirMult}(n_{cg},\; \kappa_g \pi_{cg\cdot})

    with :math:`s_c` the principal components of a cell's log-normalised gene counts, :math:`u` the pooled usage, and :math:`f`
    linear or a network of one hidden layer. What is learnt starts at 0, the pooled usage.

    Parameters
    ----------
    codes
        Gene of each feature, -1 where it has none, shape ``(n_features,)``.
    n_genes
        Number of genes.
    n_components
        Number of principal components.
    rank
        Width of :math:`z`.
    n_hidden
        Width of the hidden layer; 0 for a linear map.
    n_labels
        Number of labels with a term of their own; 0 for none.
    dropout
        Dropout in the hidden layer.

    Examples
    --------
    >>> import torch
    >>> predictor = UsagePredictor(torch.tensor([0, 0, 1]), n_genes=2, n_components=3, rank=2)
    >>> with torch.no_grad():  # before anything is learnt
    ...     predictor.usage(torch.zeros(1, 2), torch.tensor([0, 1, 2]))
    tensor([[0.5000, 0.5000, 1.0000]])
    """

    position: Tensor
    log_pooled: Tensor
    inferable: Tensor
    gene_mean: Tensor
    axes: Tensor
    z_mean: Tensor
    z_sd: Tensor

    def __init__(
        self,
        codes: Tensor,
        *,
        n_genes: int,
        n_components: int,
        rank: int,
        n_hidden: int = 0,
        n_labels: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.genes = Segments(codes, n_genes)
        self.n_genes, self.n_labels = n_genes, n_labels
        n_shared = len(self.genes.shared)
        # where a feature's row is in the tables below; features that are alone in their gene have none
        position = torch.full((self.genes.n_features,), -1)
        position[self.genes.shared] = torch.arange(n_shared)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("log_pooled", torch.zeros(n_shared))
        self.register_buffer("inferable", torch.zeros(n_genes, dtype=torch.bool))
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("axes", torch.zeros(n_genes, n_components))
        self.register_buffer("z_mean", torch.zeros(rank))
        self.register_buffer("z_sd", torch.ones(rank))
        if n_hidden:
            hidden = nn.Linear(n_components, n_hidden)
            self.project: nn.Module = nn.Sequential(
                hidden, nn.SiLU(), nn.Dropout(dropout), nn.Linear(n_hidden, rank, bias=False)
            )
        else:
            self.project = nn.Linear(n_components, rank, bias=False)
        self.weight = nn.Parameter(torch.zeros(n_shared, rank))
        self.bias = nn.Parameter(torch.zeros(n_shared))
        self.label_bias = nn.Parameter(torch.zeros(n_labels, n_shared)) if n_labels else None
        self.log_concentration = nn.Parameter(torch.full((n_genes,), 50.0).log())
        self.mean_log_concentration = nn.Parameter(torch.tensor(50.0).log())

    def scores(self, genes: SparseBatch, present: Tensor | None = None) -> Tensor:
        """Principal components of cells.

        Parameters
        ----------
        genes
            Log-normalised counts of genes, ``(n, n_genes)``.
        present
            Genes that were measured, shape ``(n_genes,)``; the others are taken to be at their mean.

        Returns
        -------
        Shape ``(n, n_components)``.
        """
        mean = self.gene_mean if present is None else self.gene_mean * present
        return _weighted_sums(self.axes, genes.cols, genes.row_ptr, genes.values) - mean @ self.axes

    def hidden(self, scores: Tensor) -> Tensor:
        """Coordinates :math:`z` of cells, ``(n, rank)``; in training standardised over the minibatch."""
        z = self.project(scores)
        if self.training and len(z) > 1:
            mean, sd = z.mean(0), (z.var(0, unbiased=False) + _SMALLEST_SD**2).sqrt()
        else:
            mean, sd = self.z_mean, self.z_sd
        return (z - mean) / sd

    @torch.no_grad()
    def calibrate(self, scores: Tensor) -> None:
        """Take mean and standard deviation of the coordinates from all training cells, ``(n, n_components)``."""
        training = self.training
        self.eval()
        z = self.project(scores)
        self.z_mean.copy_(z.mean(0))
        self.z_sd.copy_((z.var(0, unbiased=False) + _SMALLEST_SD**2).sqrt())
        self.train(training)

    def _logits(self, z: Tensor, labels: Tensor | None, rows: Tensor) -> Tensor:
        logits = torch.addmm(self.log_pooled[rows] + self.bias[rows], z, self.weight[rows].t())
        if self.label_bias is not None and labels is not None:
            terms = self.label_bias[:, rows]
            # cells without a label get no term
            logits = logits + torch.cat([terms, terms.new_zeros(1, len(rows))])[labels]
        return logits

    def entry_logits(self, z: Tensor, counts: IsoformCounts, labels: Tensor | None = None) -> Tensor:
        """Logits of usage where cells have counts.

        Parameters
        ----------
        z
            Coordinates as :meth:`hidden` gives them, ``(n, rank)``.
        counts
            Counts of the same cells.
        labels
            Codes of labels, ``n_labels`` for cells without one; ``None`` where none has one.

        Returns
        -------
        Shape ``(n_entries,)``, as :func:`isd.nn.dirichlet_multinomial_log_likelihood` takes them. Memory: cells by isoforms of
        those genes that any of the cells expresses.
        """
        # features that any cell needs, and where each is among them; sorting would take longer
        needed = torch.zeros(self.genes.n_features, dtype=torch.bool, device=counts.column.device)
        needed[counts.column] = True
        columns = torch.nonzero(needed).flatten()
        at = torch.cumsum(needed, 0).sub_(1)
        dense = self._logits(z, labels, self.position[columns])
        index = (counts.cell * len(columns)).index_select(0, counts.pair) + at.index_select(0, counts.column)
        return dense.flatten().index_select(0, index)

    def log_likelihood(
        self, z: Tensor, counts: IsoformCounts, labels: Tensor | None = None, offset: Tensor | None = None
    ) -> Tensor:
        """Log-likelihood of isoforms given genes of each cell, nats, ``(n,)``.

        Parameters
        ----------
        z, counts, labels
            As in :meth:`entry_logits`.
        offset
            Added to the logits, ``(n_entries,)``.
        """
        logits = self.entry_logits(z, counts, labels)
        if offset is not None:
            logits = logits + offset
        return dirichlet_multinomial_log_likelihood(counts, logits, self.log_concentration[counts.gene])

    def usage(self, z: Tensor, columns: Tensor, labels: Tensor | None = None) -> Tensor:
        """Expected usage of chosen features.

        Parameters
        ----------
        z, labels
            As in :meth:`entry_logits`.
        columns
            Positions of features, shape ``(n_chosen,)``: whole genes, since shares add up to 1 over what is chosen.

        Returns
        -------
        Shape ``(n, n_chosen)``.
        """
        inner, _ = self.genes.subset(columns)
        position = self.position[columns]
        several = torch.nonzero(position >= 0).flatten()
        logits = z.new_zeros(len(z), len(columns))
        logits[:, several] = self._logits(z, labels, position[several])
        return inner.softmax(logits)

    def penalty(self, weight: float, label_weight: float) -> Tensor:
        """Minus the log density of normal priors on what is learnt, up to a constant.

        Parameters
        ----------
        weight
            Precision of the prior on the isoforms' terms.
        label_weight
            Precision of the prior on the labels' terms.
        """
        total = weight * (self.weight.square().sum() + self.bias.square().sum())
        if self.label_bias is not None:
            total = total + label_weight * self.label_bias.square().sum()
        spread = (self.log_concentration - self.mean_log_concentration).square().sum()
        return 0.5 * (total + spread)
