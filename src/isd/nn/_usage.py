"""Likelihood of isoform counts given the counts of their genes, for what is not zero only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isd.nn._gamma_ratio import gamma_ratio
from isd.nn._segments import Segments
from isd.nn._sparse import SparseBatch

#: Below this, a pseudocount of an isoform is no longer told from 0 in single precision.
_SMALLEST = 1e-20
#: Cells times genes up to which a table of them is made.
_TABLE = 1 << 24


class IsoformCounts(NamedTuple):
    """Counts of a minibatch by cell and gene: only genes with counts in a cell and with several isoforms.

    Attributes
    ----------
    n_cells
        Number of cells.
    cell, gene, total
        Of each pair of a cell and a gene that has counts there: cell, gene, counts of the gene, shape ``(n_pairs,)``.
    pair, column, value
        Of each isoform of these genes: pair, feature, counts, shape ``(n_entries,)``, ordered by pair.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[3.0, 1.0]]).to_sparse_csr()
    >>> batch = SparseBatch(x.crow_indices(), x.col_indices(), x.values(), 2)
    >>> counts = isoform_counts(batch, Segments(torch.tensor([0, 0])))
    >>> counts.total, counts.value
    (tensor([4.]), tensor([3., 1.]))
    """

    n_cells: int
    cell: Tensor
    gene: Tensor
    total: Tensor
    pair: Tensor
    column: Tensor
    value: Tensor


def isoform_counts(batch: SparseBatch, genes: Segments) -> IsoformCounts:
    """Counts of isoforms by cell and gene.

    Parameters
    ----------
    batch
        Cells by features.
    genes
        Gene of each feature.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0]]).to_sparse_csr()
    >>> batch = SparseBatch(x.crow_indices(), x.col_indices(), x.values(), 3)
    >>> counts = isoform_counts(batch, Segments(torch.tensor([0, 1, 1])))
    >>> counts.cell, counts.total, counts.column, counts.value  # gene 0 has one isoform: nothing to say about it
    (tensor([0]), tensor([4.]), tensor([1, 2]), tensor([3., 1.]))
    """
    cell = torch.repeat_interleave(torch.arange(len(batch), device=batch.cols.device), batch.row_ptr.diff())
    cols = batch.cols.long()
    gene = genes.segment_of[cols]
    kept = (genes.sizes[gene] > 1) & (batch.values > 0)
    cell, cols, gene, values = cell[kept], cols[kept], gene[kept], batch.values[kept]
    key = cell * genes.n_segments + gene
    if len(batch) * genes.n_segments <= _TABLE:
        # a table of all cells and genes is faster than sorting
        table = values.new_zeros(len(batch) * genes.n_segments).index_add_(0, key, values)
        keys = torch.nonzero(table).flatten()
        total = table[keys]
        position = torch.empty(len(table), dtype=torch.int64, device=key.device)
        position[keys] = torch.arange(len(keys), device=key.device)
        of = position[key]
    else:
        keys, of = torch.unique(key, return_inverse=True)
        total = values.new_zeros(len(keys)).index_add_(0, of, values)
    pair_cell, pair_gene = keys // genes.n_segments, keys % genes.n_segments
    column, pair = genes.features(pair_gene)
    sizes = genes.sizes[pair_gene]
    start = sizes.cumsum(0) - sizes
    # a value that is stored twice counts twice
    count = values.new_zeros(len(column)).index_add_(0, start[of] + genes.rank(cols), values)
    return IsoformCounts(len(batch), pair_cell, pair_gene, total, pair, column, count)


def pair_log_softmax(counts: IsoformCounts, logits: Tensor) -> Tensor:
    """Log usage of each entry: softmax of ``logits``, shape ``(n_entries,)``, within each pair of cell and gene.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[3.0, 1.0]]).to_sparse_csr()
    >>> batch = SparseBatch(x.crow_indices(), x.col_indices(), x.values(), 2)
    >>> counts = isoform_counts(batch, Segments(torch.tensor([0, 0])))
    >>> pair_log_softmax(counts, torch.log(torch.tensor([6.0, 2.0]))).exp()
    tensor([0.7500, 0.2500])
    """
    n = len(counts.total)
    largest = logits.new_full((n,), -torch.inf).scatter_reduce(0, counts.pair, logits.detach(), "amax")
    shifted = logits - largest.index_select(0, counts.pair)
    sums = logits.new_zeros(n).index_add(0, counts.pair, shifted.exp())
    return shifted - sums.log().index_select(0, counts.pair)


class _GammaRatio(torch.autograd.Function):
    """``lgamma(theta + x) - lgamma(theta)``, with its derivative by ``theta``."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, x: Tensor) -> Tensor:
        value, slope = gamma_ratio(theta, x)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


def _rising(theta: Tensor, x: Tensor) -> Tensor:
    return _GammaRatio.apply(theta.clamp_min(_SMALLEST), x)


def dirichlet_multinomial_log_likelihood(
    counts: IsoformCounts, logits: Tensor, log_concentration: Tensor, *, constant: bool = True
) -> Tensor:
    r"""Log-likelihood of the isoforms' counts given the genes' counts, Dirichlet-multinomial in each gene.

    .. math::

        \log p(x \mid n) = \log\frac{n!\,\Gamma(\kappa)}{\Gamma(n + \kappa)}
        + \sum_{t: x_t > 0} \log\frac{\Gamma(x_t + \kappa\pi_t)}{x_t!\,\Gamma(\kappa\pi_t)},
        \qquad \pi = \mathrm{softmax}(\text{logits})

    Parameters
    ----------
    counts
        As :func:`isoform_counts` gives them.
    logits
        Logits of usage of each entry, shape ``(n_entries,)``.
    log_concentration
        :math:`\log\kappa` of each pair of cell and gene, shape ``(n_pairs,)``, natural logarithm.
    constant
        Whether to count :math:`n! / \prod x_t!`, which no parameter changes.

    Returns
    -------
    Log-likelihood of each cell, in nats, shape ``(n_cells,)``: the sum over its genes with several isoforms.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[3.0, 1.0]]).to_sparse_csr()
    >>> batch = SparseBatch(x.crow_indices(), x.col_indices(), x.values(), 2)
    >>> counts = isoform_counts(batch, Segments(torch.tensor([0, 0])))
    >>> # two isoforms, pseudocounts 1 and 1: all of (4, 0), (3, 1), ... (0, 4) are equally likely
    >>> dirichlet_multinomial_log_likelihood(counts, torch.zeros(2), torch.log(torch.tensor([2.0]))).exp()
    tensor([0.2000])
    """
    log_usage = pair_log_softmax(counts, logits)
    seen = torch.nonzero(counts.value > 0).flatten()
    pair, x = counts.pair[seen], counts.value[seen]
    values = _rising((log_usage[seen] + log_concentration[pair]).exp(), x)
    per_pair = -_rising(log_concentration.exp(), counts.total)
    if constant:
        values = values - torch.lgamma(x + 1)
        per_pair = per_pair + torch.lgamma(counts.total + 1)
    return _per_cell(counts, per_pair.index_add(0, pair, values))


def multinomial_log_likelihood(counts: IsoformCounts, logits: Tensor, *, constant: bool = True) -> Tensor:
    """The same without spread of usage between cells: the limit of a large concentration.

    Parameters
    ----------
    counts, logits, constant
        As in :func:`dirichlet_multinomial_log_likelihood`.

    Returns
    -------
    Log-likelihood of each cell, in nats, shape ``(n_cells,)``.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[3.0, 1.0]]).to_sparse_csr()
    >>> batch = SparseBatch(x.crow_indices(), x.col_indices(), x.values(), 2)
    >>> counts = isoform_counts(batch, Segments(torch.tensor([0, 0])))
    >>> multinomial_log_likelihood(counts, torch.zeros(2)).exp()  # 4 of 16
    tensor([0.2500])
    """
    seen = torch.nonzero(counts.value > 0).flatten()
    x = counts.value[seen]
    values = x * pair_log_softmax(counts, logits)[seen]
    per_pair = torch.zeros_like(counts.total)
    if constant:
        values = values - torch.lgamma(x + 1)
        per_pair = torch.lgamma(counts.total + 1)
    return _per_cell(counts, per_pair.index_add(0, counts.pair[seen], values))


def _per_cell(counts: IsoformCounts, per_pair: Tensor) -> Tensor:
    return per_pair.new_zeros(counts.n_cells).index_add(0, counts.cell, per_pair)
