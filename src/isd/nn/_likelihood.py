"""Log-likelihood of sparse counts under a decoder's last layers, without a matrix of cells by features."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isd.nn._negative_binomial import negative_binomial_chunk
from isd.nn._sparse import SparseBatch

#: Cells times features that are in work at once: what the processor's cache holds, and what keeps a GPU busy.
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}

Kind = Literal["nb", "poisson", "normal"]
_T = TypeVar("_T")
_C = TypeVar("_C")


class Factors(NamedTuple):
    """Outputs of a layer, not multiplied out: ``scores @ loadings + bias``.

    Parameters
    ----------
    scores
        Shape ``(n, rank)``.
    loadings
        Shape ``(rank, n_features)``.
    bias
        Shape ``(n_features,)``.

    Examples
    --------
    >>> import torch
    >>> Factors(torch.ones(2, 1), torch.tensor([[1.0, 2.0]]), torch.zeros(2)).part(slice(1, 2))
    tensor([[2.],
            [2.]])
    """

    scores: Tensor
    loadings: Tensor
    bias: Tensor

    def part(self, columns: slice, out: Tensor | None = None) -> Tensor:
        """Outputs of some features, shape ``(n, n_columns)``; written to ``out`` if it is given."""
        return torch.addmm(self.bias[columns], self.scores, self.loadings[:, columns], out=out)


class _Chunk(NamedTuple):
    """Some features, and which of the batch's values by column lie there."""

    columns: slice
    first: int
    last: int

    @property
    def first_column(self) -> int:
        return self.columns.start

    def stored(self, batch: SparseBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Positions in the chunk, rows and values of what is not zero."""
        assert batch.col_ptr is not None and batch.rows is not None and batch.values_by_column is not None
        width = self.columns.stop - self.columns.start
        column = torch.arange(width, device=batch.rows.device)
        lengths = batch.col_ptr[self.columns.start : self.columns.stop + 1].diff()
        rows = batch.rows[self.first : self.last].long()
        flat = torch.repeat_interleave(column, lengths, output_size=len(rows)).add_(rows, alpha=width)
        return flat, rows, batch.values_by_column[self.first : self.last]


def _chunks(batch: SparseBatch) -> list[_Chunk]:
    if batch.col_ptr is None or batch.rows is None or batch.values_by_column is None:
        raise ValueError("the log-likelihood reads counts by column; give col_ptr, rows and values_by_column.")
    width = max(CHUNK.get(batch.values.device.type, CHUNK["cuda"]) // max(len(batch), 1), 1)
    if width > 16:
        # rows an odd number of cache lines apart: at a power of two, all cells of a feature would share a place in the
        # cache, and writing a count takes ten times as long
        width = (width // 16 | 1) * 16
    edges = [*range(0, batch.n_features, width), batch.n_features]
    stored = batch.col_ptr[torch.tensor(edges, device=batch.rows.device)].tolist()
    ends = zip(edges, edges[1:], stored, stored[1:], strict=False)
    return [_Chunk(slice(start, stop), first, last) for start, stop, first, last in ends]


def _over(chunks: list[_C], work: Callable[[list[_C]], _T], device: torch.device) -> list[_T]:
    """Give each thread its share of the chunks, and return what each makes of it, in order.

    Operations on a chunk take a tenth of a millisecond: handing each of them to several threads costs more than that,
    and many times more where the processor is shared, since each waits for the slowest.
    """
    n_threads = min(torch.get_num_threads(), len(chunks)) if device.type == "cpu" else 1
    if n_threads == 1:
        return [work(chunks)]
    inference = torch.is_inference_mode_enabled()

    def share(i: int) -> _T:
        torch.set_num_threads(1)  # of this thread
        with torch.inference_mode(inference), torch.no_grad():
            return work(chunks[i::n_threads])

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(share, range(n_threads)))
    finally:
        torch.set_num_threads(before)  # matrix products share one setting


def log_likelihood(
    kind: Kind,
    batch: SparseBatch,
    mean: Factors,
    *,
    log_library: Tensor,
    log_theta: Tensor | None = None,
    log_clump: Tensor | None = None,
    head: Factors | None = None,
    log_theta_range: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[Tensor, Tensor]:
    r"""Log-likelihood of a minibatch: its sum, which has a gradient, and that of each cell, which has none.

    .. math::

        \log \mathrm{NB}(x \mid \mu, \theta) = -\theta \log(1 + \mu / \theta)
        + \left[ x \log \frac{\mu}{\mu + \theta} + \log \frac{\Gamma(x + \theta)}{\Gamma(\theta) \, x!} \right]

    with mean :math:`\mu = \ell \, \mathrm{softmax}(\mathrm{logits})`: what is in brackets is nothing where :math:`x = 0`.
    Features are taken in chunks, and gradients are written down in closed form beside the values. Of all that has the
    size of cells by features, means and their gradients are held, since the softmax joins all features; the rest
    exists for one chunk at a time.

    Parameters
    ----------
    kind
        ``"nb"``, ``"poisson"``, or ``"normal"``: unit variance around the layer's outputs, without softmax.
    batch
        Counts (for ``"normal"``: values), with their form by column.
    mean
        Layer that gives the logits.
    log_library
        Log library size, shape ``(n, 1)``.
    log_theta
        Log inverse dispersion of each feature, for ``"nb"``.
    log_clump
        Log of the mean excess of a clump of each feature, for ``"nb"`` of clumps of counts (:func:`isd.nn.clump_terms`).
        ``None`` for single counts.
    head
        Layer whose outputs are added to ``log_theta``.
    log_theta_range
        Limits that it is clamped to; beyond them it has no gradient.

    Returns
    -------
    A scalar, and a tensor of shape ``(n,)``.

    Raises
    ------
    ValueError
        If the kind is unknown, ``"nb"`` has no ``log_theta``, or the batch has no form by column.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0, 3.0]])
    >>> csr, csc = x.to_sparse_csr(), x.to_sparse_csc()
    >>> by_column = csc.ccol_indices(), csc.row_indices(), csc.values()
    >>> batch = SparseBatch(csr.crow_indices(), csr.col_indices(), csr.values(), 2, *by_column)
    >>> mean = Factors(torch.zeros(1, 1), torch.zeros(1, 2), torch.zeros(2))
    >>> total, each = log_likelihood("poisson", batch, mean, log_library=torch.log(torch.tensor([[3.0]])))
    >>> round(float(total), 4)  # 3 log 1.5 - 3 - log 3!
    -3.5754
    """
    if kind not in ("nb", "poisson", "normal"):
        raise ValueError(f"kind {kind!r} is unknown; choose 'nb', 'poisson' or 'normal'.")
    if kind == "nb" and log_theta is None:
        raise ValueError("kind 'nb' needs log_theta, the log inverse dispersion of each feature.")
    extra = (None, None, None) if head is None else head
    return _LogLikelihood.apply(kind, batch, log_library, log_theta_range, *mean, log_theta, log_clump, *extra)


class _LogLikelihood(torch.autograd.Function):
    """Sum over cells, with its gradient made in the same passes, and the value of each cell (without one)."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        batch: SparseBatch,
        log_library: Tensor,
        bounds: tuple[float, float],
        scores: Tensor,
        loadings: Tensor,
        bias: Tensor,
        log_theta: Tensor | None,
        log_clump: Tensor | None,
        head_scores: Tensor | None,
        head_loadings: Tensor | None,
        head_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        with_grad = any(ctx.needs_input_grad)
        with torch.autocast(device_type=loadings.device.type, enabled=False):
            mean = Factors(scores.to(loadings.dtype), loadings, bias)
            head = None
            if head_scores is not None and head_loadings is not None and head_bias is not None:
                head = Factors(head_scores.to(loadings.dtype), head_loadings, head_bias)
            offset = log_library.to(loadings.dtype).reshape(-1, 1)
            values, grads = _passes(kind, batch, offset, bounds, mean, log_theta, log_clump, head, with_grad)
        ctx.grads = grads
        given = (scores, loadings, bias, log_theta, log_clump, head_scores, head_loadings, head_bias)
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


class _Sums(NamedTuple):
    """What is added up over chunks."""

    values: Tensor
    #: of the gradients by the log mean, shape ``(n, 1)``
    pull: Tensor
    scores: Tensor
    head_scores: Tensor | None


class _Gradient:
    """Gradient by the factors of a layer, from that by its outputs in chunks of features."""

    def __init__(self, layer: Factors) -> None:
        self.layer = layer
        self.loadings, self.bias = torch.empty_like(layer.loadings), torch.empty_like(layer.bias)

    def put(self, grad: Tensor, columns: slice) -> Tensor:
        """Set it for some features; returns the gradient by the scores."""
        torch.mm(self.layer.scores.t(), grad, out=self.loadings[:, columns])
        torch.sum(grad, 0, out=self.bias[columns])
        return grad @ self.layer.loadings[:, columns].t()


def _passes(
    kind: Kind,
    batch: SparseBatch,
    log_library: Tensor,
    bounds: tuple[float, float],
    mean: Factors,
    log_theta: Tensor | None,
    log_clump: Tensor | None,
    head: Factors | None,
    with_grad: bool,
) -> tuple[Tensor, list[Tensor | None] | None]:
    """Log-likelihood of each cell, and the gradient of their sum by all that has one."""
    n, chunks, device = len(batch), _chunks(batch), mean.scores.device
    gradient = _Gradient(mean) if with_grad else None
    head_gradient = _Gradient(head) if with_grad and head is not None else None
    d_theta = torch.empty_like(log_theta) if with_grad and log_theta is not None else None
    d_clump = torch.empty_like(log_clump) if with_grad and log_clump is not None else None

    def sums() -> _Sums:
        zero = mean.scores.new_zeros
        return _Sums(zero(n), zero(n, 1), torch.zeros_like(mean.scores), None if head is None else zero(head[0].shape))

    def normal(part: list[_Chunk]) -> _Sums:
        out = sums()
        for chunk in part:
            flat, _, x = chunk.stored(batch)
            rest = mean.part(chunk.columns).neg_()
            rest.view(-1).index_add_(0, flat, x.to(rest.dtype))
            out.values.sub_(rest.square().sum(1), alpha=0.5)
            if gradient is not None:
                out.scores.add_(gradient.put(rest, chunk.columns))
        return out

    if kind == "normal":
        total = _add(_over(chunks, normal, device))
        total.values.sub_(0.5 * math.log(2 * math.pi) * batch.n_features)
        return total.values, None if gradient is None else [total.scores, gradient.loadings, gradient.bias, *[None] * 5]

    # the softmax is over all features: its normaliser comes first, and what it was made of stays. Room for it is asked
    # for here and not in threads, whose memory goes back to the system with them and would come back page by page
    room = {c.first_column: mean.scores.new_empty(n, c.columns.stop - c.columns.start) for c in chunks}
    tops: dict[int, Tensor] = {}

    def normalize(part: list[_Chunk]) -> Tensor:
        logs = []
        for chunk in part:
            logits = mean.part(chunk.columns, out=room[chunk.first_column])
            top = tops[chunk.first_column] = logits.amax(1, keepdim=True)
            weights = logits.sub_(top).exp_()
            logs.append(weights.sum(1, keepdim=True).log_().add_(top))
        return torch.cat(logs, dim=1).logsumexp(1, keepdim=True)

    normalizer = torch.cat(_over(chunks, normalize, device), dim=1).logsumexp(1, keepdim=True)
    slopes = {} if gradient is None else {key: torch.empty_like(weights) for key, weights in room.items()}

    def counts(part: list[_Chunk]) -> _Sums:
        out = sums()
        for chunk in part:
            columns = chunk.columns
            flat, rows, x = chunk.stored(batch)
            x = x.to(normalizer.dtype)
            weights, top = room[chunk.first_column], tops[chunk.first_column]
            rate = torch.mul(
                weights, torch.exp(top + (log_library - normalizer)), out=slopes.get(chunk.first_column, weights)
            )
            # a rate that single precision cannot hold is taken for the smallest that it can
            log_rate = torch.take(rate, flat).clamp_min_(torch.finfo(rate.dtype).tiny).log_()
            if kind == "poisson":
                values = x * log_rate - torch.lgamma(x + 1.0)
                by_mean = rate.neg_()
                by_mean.view(-1).index_add_(0, flat, x)
            else:
                assert log_theta is not None
                if head is None:
                    raw = log_theta[columns].expand_as(rate)
                else:
                    bias = log_theta[columns] + head.bias[columns]
                    raw = torch.addmm(bias, head.scores, head.loadings[:, columns])
                some_clump = None if log_clump is None else log_clump[columns]
                zeros, values, by_mean, by_theta, by_clump = negative_binomial_chunk(
                    rate, raw, bounds, flat, x, log_rate, some_clump
                )
                out.values.sub_(zeros)
                if d_clump is not None and by_clump is not None:
                    d_clump[columns] = by_clump
                if d_theta is not None:
                    torch.sum(by_theta, 0, out=d_theta[columns])
                if head_gradient is not None and out.head_scores is not None:
                    out.head_scores.add_(head_gradient.put(by_theta, columns))
            out.values.index_add_(0, rows, values)
            if gradient is not None:  # the slopes have taken the place of the rates
                out.pull.add_(by_mean.sum(1, keepdim=True))
        return out

    total = _add(_over(chunks, counts, device))
    if kind == "poisson":
        total.values.sub_(log_library.exp().squeeze(1))
    if gradient is None:
        return total.values, None

    def through_normalizer(part: list[_Chunk]) -> Tensor:
        out = torch.zeros_like(mean.scores)
        for chunk in part:
            weights, top = room.pop(chunk.first_column), tops[chunk.first_column]
            by_logit = slopes.pop(chunk.first_column).sub_(weights.mul_(total.pull * torch.exp(top - normalizer)))
            out.add_(gradient.put(by_logit, chunk.columns))
        return out

    for scores in _over(chunks, through_normalizer, device):
        total.scores.add_(scores)
    grads = [total.scores, gradient.loadings, gradient.bias, d_theta, d_clump]
    if head_gradient is None:
        return total.values, [*grads, None, None, None]
    return total.values, [*grads, total.head_scores, head_gradient.loadings, head_gradient.bias]


def _add(parts: list[_Sums]) -> _Sums:
    first, *others = parts
    for other in others:
        for one, two in zip(first, other, strict=True):
            if one is not None and two is not None:
                one.add_(two)
    return first
