"""Terms of the negative binomial log-likelihood, plain and in clumps, with their derivatives in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isd.nn._clumps import clump_terms
from isd.nn._gamma_ratio import gamma_ratio


class ChunkTerms(NamedTuple):
    """Log-likelihood of a chunk of features, and its gradients.

    Parameters
    ----------
    zeros
        Minus the sum of the terms of zeros, of every cell.
    values
        The rest, of every count that is not zero.
    by_mean, by_theta
        Gradients by the logs of mean and inverse dispersion, of the chunk's shape.
    by_clump
        Gradient by the log of the mean excess of a clump, of every feature; ``None`` without clumps.
    """

    zeros: Tensor
    values: Tensor
    by_mean: Tensor
    by_theta: Tensor
    by_clump: Tensor | None


def negative_binomial_chunk(
    rate: Tensor,
    raw: Tensor,
    bounds: tuple[float, float],
    flat: Tensor,
    x: Tensor,
    log_rate: Tensor,
    log_clump: Tensor | None = None,
) -> ChunkTerms:
    """Terms of a chunk of features, where what is zero and what is not have different forms.

    Parameters
    ----------
    rate, raw
        Mean (overwritten), and log inverse dispersion before it is clamped to the bounds.
    bounds
        Limits of the log inverse dispersion.
    flat, x, log_rate
        Positions of the counts that are not zero, their values, and the log of their means.
    log_clump
        Log of the mean excess of a clump, of every feature (:func:`isd.nn.clump_terms`); ``None`` for a plain negative binomial.
    """
    low, high = torch.aminmax(raw)
    outside = bool((low < bounds[0]) | (high > bounds[1]))
    log_theta = raw.clamp(*bounds) if outside else raw
    theta = log_theta.exp()
    if log_clump is not None:
        rate = rate.mul_(torch.sigmoid(-log_clump))  # of clumps, each of 1 + r counts
    ratio = rate / theta
    # as if all were zero: -theta log(1 + mean / theta)
    zero = torch.log1p(ratio).mul_(theta)
    zeros = zero.sum(1)
    by_mean = rate.div_(ratio.add_(1.0)).neg_()  # -mean theta / (mean + theta)
    by_theta = zero.add_(by_mean).neg_()
    by_clump = None
    # the rest where they are not
    some_log_theta = torch.take(log_theta, flat)
    if log_clump is None:
        some_theta, log_ratio = torch.take(theta, flat), log_rate - some_log_theta
        above = log_ratio.exp().add_(1.0)
        values, slope = gamma_ratio(some_theta, x)
        # -log1p(1 / ratio) and not the difference of two logs, which is lost in rounding where the ratio is large
        values.sub_(torch.nn.functional.softplus(log_ratio.neg_(), threshold=1e6).mul_(x)).sub_(torch.lgamma(x + 1.0))
        some_by_mean = x / above
        some_by_theta = slope.mul_(some_theta).sub_(some_by_mean)
    else:
        column = flat % raw.shape[1]
        by_clump = torch.sigmoid(log_clump).mul_(by_mean.sum(0)).neg_()  # clumps that are larger are fewer
        values, some_by_mean, some_by_theta, some_by_clump = clump_terms(x, log_rate, some_log_theta, log_clump[column])
        by_clump.index_add_(0, column, some_by_clump)
    by_mean.view(-1).index_add_(0, flat, some_by_mean)
    by_theta.view(-1).index_add_(0, flat, some_by_theta)
    if outside:
        by_theta.masked_fill_(raw != log_theta, 0.0)
    return ChunkTerms(zeros, values, by_mean, by_theta, by_clump)
