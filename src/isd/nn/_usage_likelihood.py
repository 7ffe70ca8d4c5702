"""Log-likelihood of isoform counts given gene counts under a decoder's last layer, chunk by chunk."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isd.nn._gamma_ratio import gamma_ratio
from isd.nn._likelihood import CHUNK, Factors, _Gradient, _over

#: Logits of usage are held to plus and minus this: their exponentials then need no largest one taken off, and add up
#: inside single precision. The pooled usage that they start from is above e^-20.
LOGIT_LIMIT = 80.0
_SMALLEST = 1e-30


class Columns(NamedTuple):
    """Counts that are not zero, by column: as a csc matrix holds them.

    Parameters
    ----------
    ptr
        Where each column starts, shape ``(n_columns + 1,)``.
    rows, values
        Cell and count, shape ``(n_stored,)``.

    Examples
    --------
    >>> import torch
    >>> from isd.nn import Columns
    >>> x = torch.tensor([[0.0, 3.0], [2.0, 0.0]]).to_sparse_csc()
    >>> Columns(x.ccol_indices(), x.row_indices(), x.values()).values
    tensor([2., 3.])
    """

    ptr: Tensor
    rows: Tensor
    values: Tensor


class _Chunk(NamedTuple):
    """Some genes, their isoforms, and which stored counts of both are theirs."""

    genes: slice
    columns: slice
    stored: slice
    stored_totals: slice


def usage_log_likelihood(
    counts: Columns,
    totals: Columns,
    sizes: Tensor,
    usage: Factors,
    log_concentration: Tensor,
    *,
    head: Factors | None = None,
    log_concentration_range: tuple[float, float] = (-torch.inf, torch.inf),
) -> tuple[Tensor, Tensor]:
    r"""Dirichlet-multinomial log-likelihood of a minibatch: its sum, which has a gradient, and that of each cell.

    .. math::

        \log p(x \mid n) = \sum_{g: n_g > 0} \left[ \log\frac{n_g!\,\Gamma(\kappa_g)}{\Gamma(n_g + \kappa_g)}
        + \sum_{t \in g: x_t > 0} \log\frac{\Gamma(x_t + \kappa_g \pi_t)}{x_t!\,\Gamma(\kappa_g \pi_t)} \right],
        \qquad \pi = \mathrm{softmax}_g(\text{logits})

    Only counts that are not zero have terms. The shares of a gene's other isoforms enter through the softmax, which
    exists for some genes at a time; the gradient is written down beside the values, as :func:`log_likelihood` does.

    Parameters
    ----------
    counts
        Counts of isoforms by column: isoforms of genes with several, gene by gene.
    totals
        Counts of these genes by column.
    sizes
        Number of isoforms of each of them, shape ``(n_genes,)``.
    usage
        Layer that gives the logits of usage.
    log_concentration
        Log concentration of each gene, shape ``(n_genes,)``.
    head
        Layer whose outputs are added to it, cell by cell.
    log_concentration_range
        Limits that it is clamped to; beyond them it has no gradient.

    Returns
    -------
    A scalar, and a tensor of shape ``(n,)``, in nats.

    Raises
    ------
    ValueError
        If numbers of isoforms or genes do not fit each other.

    Examples
    --------
    >>> import torch
    >>> counts = Columns(torch.tensor([0, 1, 2]), torch.tensor([0, 0]), torch.tensor([3.0, 1.0]))
    >>> totals = Columns(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([4.0]))
    >>> layer = Factors(torch.zeros(1, 1), torch.zeros(1, 2), torch.zeros(2))
    >>> # pseudocounts 1 and 1: all of (4, 0), (3, 1), ... (0, 4) are equally likely
    >>> total, each = usage_log_likelihood(counts, totals, torch.tensor([2]), layer, torch.log(torch.tensor([2.0])))
    >>> each.exp()
    tensor([0.2000])
    """
    n_isoforms, n_genes = len(usage.bias), len(log_concentration)
    if len(sizes) != n_genes or len(counts.ptr) != n_isoforms + 1 or len(totals.ptr) != n_genes + 1:
        raise ValueError(
            f"usage has {n_isoforms} isoforms of {n_genes} genes, but counts {len(counts.ptr) - 1} columns, totals "
            f"{len(totals.ptr) - 1}, and sizes {len(sizes)} genes."
        )
    extra = (None, None, None) if head is None else head
    return _UsageLikelihood.apply(counts, totals, sizes, log_concentration_range, *usage, log_concentration, *extra)


class _UsageLikelihood(torch.autograd.Function):
    """Sum over cells, with its gradient made in the same pass, and the value of each cell (without one)."""

    @staticmethod
    def forward(
        ctx: Any,
        counts: Columns,
        totals: Columns,
        sizes: Tensor,
        bounds: tuple[float, float],
        scores: Tensor,
        loadings: Tensor,
        bias: Tensor,
        log_concentration: Tensor,
        head_scores: Tensor | None,
        head_loadings: Tensor | None,
        head_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        with_grad = any(ctx.needs_input_grad)
        with torch.autocast(device_type=loadings.device.type, enabled=False):
            usage = Factors(scores.to(loadings.dtype), loadings, bias)
            head = None
            if head_scores is not None and head_loadings is not None and head_bias is not None:
                head = Factors(head_scores.to(loadings.dtype), head_loadings, head_bias)
            values, grads = _passes(counts, totals, sizes, bounds, usage, log_concentration, head, with_grad)
        ctx.grads = grads
        given = (scores, loadings, bias, log_concentration, head_scores, head_loadings, head_bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in given]
        ctx.mark_non_differentiable(values)
        return values.sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if g is None else (g * grad.to(g.dtype)).to(dtype)
            for g, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        ]
        return None, None, None, None, *scaled


def _chunks(counts: Columns, totals: Columns, offsets: Tensor, n_cells: int) -> list[_Chunk]:
    """Whole genes, as many as fit the cache."""
    device = offsets.device
    width = max(CHUNK.get(device.type, CHUNK["cuda"]) // max(n_cells, 1), 1)
    n_isoforms, n_genes = int(offsets[-1]), len(offsets) - 1
    targets = torch.arange(0, n_isoforms, width, device=device)
    starts = torch.searchsorted(offsets, targets, right=True) - 1
    edges = torch.unique(torch.cat([starts, starts.new_tensor([n_genes])]))
    columns = offsets[edges]
    parts = (edges, columns, counts.ptr[columns], totals.ptr[edges])
    slices = [[slice(a, b) for a, b in pairwise(p)] for p in (part.tolist() for part in parts)]
    return [_Chunk(*four) for four in zip(*slices, strict=True)]


def _passes(
    counts: Columns,
    totals: Columns,
    sizes: Tensor,
    bounds: tuple[float, float],
    usage: Factors,
    log_concentration: Tensor,
    head: Factors | None,
    with_grad: bool,
) -> tuple[Tensor, list[Tensor | None] | None]:
    """Log-likelihood of each cell, and the gradient of their sum by all that has one."""
    n, device, dtype = len(usage.scores), usage.scores.device, usage.loadings.dtype
    offsets = F.pad(sizes.cumsum(0), (1, 0))
    gradient = _Gradient(usage) if with_grad else None
    head_gradient = _Gradient(head) if with_grad and head is not None else None
    d_concentration = torch.zeros_like(log_concentration) if with_grad else None

    def work(part: list[_Chunk]) -> tuple[Tensor, Tensor, Tensor | None]:
        values = usage.scores.new_zeros(n)
        d_scores = torch.zeros_like(usage.scores)
        d_head = None if head is None else torch.zeros_like(head.scores)
        for chunk in part:
            # features by cells: the sums over a gene's isoforms then run along whole rows
            columns, genes = chunk.columns, chunk.genes
            logits = torch.addmm(usage.bias[columns, None], usage.loadings[:, columns].t(), usage.scores.t())
            low, high = torch.aminmax(logits)
            outside = None
            if low < -LOGIT_LIMIT or high > LOGIT_LIMIT:
                outside = logits.abs() > LOGIT_LIMIT
                logits.clamp_(-LOGIT_LIMIT, LOGIT_LIMIT)
            weights = logits.exp_()
            starts = offsets[genes.start : genes.stop + 1] - columns.start
            index = torch.arange(len(weights), device=device)
            sums = F.embedding_bag(index, weights, starts, mode="sum", include_last_offset=True)
            gene_of = torch.repeat_interleave(torch.arange(len(sums), device=device), starts.diff())

            if head is None:
                raw = log_concentration[genes, None]
            else:
                bias = log_concentration[genes] + head.bias[genes]
                raw = torch.addmm(bias[:, None], head.loadings[:, genes].t(), head.scores.t())
            log_kappa = raw.clamp(*bounds)
            kappa = log_kappa.exp()

            column, rows, x = _stored(counts, columns, chunk.stored, dtype)
            gene = gene_of[column]
            of_gene = gene * n + rows
            alpha = torch.take(weights, column * n + rows).div_(torch.take(sums, of_gene))
            alpha.mul_(kappa[gene, 0] if head is None else torch.take(kappa, of_gene)).clamp_min_(_SMALLEST)
            value, slope = gamma_ratio(alpha, x)
            values.index_add_(0, rows, value.sub_(torch.lgamma(x + 1.0)))

            of_total, total_rows, total = _stored(totals, genes, chunk.stored_totals, dtype)
            total_flat = of_total * n + total_rows
            all_alpha = kappa[of_total, 0] if head is None else torch.take(kappa, total_flat)
            value, total_slope = gamma_ratio(all_alpha, total)
            values.index_add_(0, total_rows, torch.lgamma(total + 1.0).sub_(value))
            if gradient is None or d_concentration is None:
                continue

            by_alpha = slope.mul_(alpha)
            pull = torch.zeros_like(sums)
            pull.view(-1).index_add_(0, of_gene, by_alpha)
            by_logit = weights.mul_(pull.div(sums).neg_().index_select(0, gene_of))
            by_logit.view(-1).index_add_(0, column * n + rows, by_alpha)
            if outside is not None:
                by_logit.masked_fill_(outside, 0.0)
            d_scores.add_(gradient.put(by_logit.t(), columns))
            pull.view(-1).index_add_(0, total_flat, total_slope.mul_(all_alpha), alpha=-1.0)
            if head is None:
                by_kappa = pull.sum(1)
                d_concentration[genes] = torch.where(raw[:, 0] == log_kappa[:, 0], by_kappa, 0.0)
            else:
                pull.masked_fill_(raw != log_kappa, 0.0)
                d_concentration[genes] = pull.sum(1)
                if head_gradient is not None and d_head is not None:
                    d_head.add_(head_gradient.put(pull.t(), genes))
        return values, d_scores, d_head

    parts = _over(_chunks(counts, totals, offsets, n), work, device)
    values, d_scores, d_head = parts[0]
    for more, more_scores, more_head in parts[1:]:
        values.add_(more)
        d_scores.add_(more_scores)
        if d_head is not None and more_head is not None:
            d_head.add_(more_head)
    if gradient is None:
        return values, None
    grads = [d_scores, gradient.loadings, gradient.bias, d_concentration]
    if head_gradient is None:
        return values, [*grads, None, None, None]
    return values, [*grads, d_head, head_gradient.loadings, head_gradient.bias]


def _stored(counts: Columns, columns: slice, stored: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Column (counted from the first), row and value of the counts of some columns."""
    rows = counts.rows[stored].long()
    lengths = counts.ptr[columns.start : columns.stop + 1].diff()
    index = torch.arange(len(lengths), device=rows.device)
    column = torch.repeat_interleave(index, lengths, output_size=len(rows))
    return column, rows, counts.values[stored].to(dtype)
