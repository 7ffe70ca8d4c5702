"""Counts that come in clumps: a negative binomial number of clumps, each of a geometric number of counts."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from isd.nn._gamma_ratio import gamma_ratio

#: Largest count whose sum over numbers of clumps is written out; larger ones have a negative binomial of the same moments.
MOST = 16
#: Log mean below which a large count's probability is taken to be in proportion to the mean.
_LOG_LEAST = -27.0
#: Counts whose sums are taken together: (smallest, largest).
_GROUPS = ((2, 4), (5, MOST))


class ClumpTerms(NamedTuple):
    """What a count that is not zero adds to the log-likelihood of a zero, and its derivatives.

    Parameters
    ----------
    values
        ``log P(x) - log P(0)``.
    by_mean, by_theta, by_clump
        Derivatives of ``values`` by the logs of the mean, of the inverse dispersion and of the mean excess of a clump.

    Examples
    --------
    >>> terms = clump_terms(torch.zeros(1), *torch.zeros(3, 1))
    >>> bool((terms.values == 0).all())  # a zero that is stored is a zero
    True
    """

    values: Tensor
    by_mean: Tensor
    by_theta: Tensor
    by_clump: Tensor


def clump_terms(x: Tensor, log_mean: Tensor, log_theta: Tensor, log_clump: Tensor) -> ClumpTerms:
    r"""Terms of counts where :math:`x = \sum_{i=1}^{N} (1 + G_i)`.

    .. math::

        N \sim \mathrm{NB}\!\left(\tfrac{\mu}{1 + r}, \theta\right), \quad
        P(G_i = g) = \frac{r^g}{(1 + r)^{g + 1}}, \quad
        P(x) = \sum_{i=1}^{x} P(N = i) \binom{x - 1}{i - 1} \frac{r^{x - i}}{(1 + r)^{x}}

    with :math:`\mathrm{E}\,x = \mu` and :math:`\mathrm{Var}\,x = \mu (1 + 2 r) + \mu^2 / \theta`. Above 16, a negative binomial of this
    mean and variance takes its place.

    Parameters
    ----------
    x, log_mean, log_theta, log_clump
        Counts, and the logs of their means :math:`\mu`, inverse dispersions :math:`\theta` and mean excess of a clump :math:`r`;
        one shape, of one dimension.

    Returns
    -------
    Four tensors of this shape.

    Examples
    --------
    Of mean 1 and inverse dispersion 1, with 1.25 counts in a clump: there are 0.8 clumps on average.

    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> terms = clump_terms(one, zero, zero, torch.tensor([0.25]).log())
    >>> round(float(terms.values.exp()), 4)  # one clump against none, 0.8 / 1.8, and a single count in it, 1 / 1.25
    0.3556
    """
    log_size = torch.nn.functional.softplus(log_clump)  # log(1 + r)
    log_ratio = log_mean - log_size - log_theta
    # log of the chance of another clump, q = rate / (rate + theta), and theta / (rate + theta)
    log_q = -torch.nn.functional.softplus(-log_ratio)
    rest = torch.sigmoid(-log_ratio)
    # for a single count; and means, over the numbers of clumps that counts may be, of the number and of the slope of its
    # weight by theta
    sums = torch.stack((log_theta + log_q - log_size, torch.ones_like(x), torch.ones_like(x)))
    # nothing for a zero that is stored
    sums.mul_(x.clamp_max(1.0))
    given = torch.stack((x, log_q, log_theta, log_clump, log_size))
    for low, high in _GROUPS:
        at = torch.nonzero((x >= low) & (x <= high) if high < MOST else x >= low).squeeze(1)
        if len(at):
            sums.index_copy_(1, at, _sums(given.index_select(1, at), high))
    values, number, slope = sums
    share = number * rest
    apart = torch.sigmoid(log_clump)  # r / (1 + r)
    by_mean, by_theta = share, slope - share
    # with larger clumps there are fewer of them, and a count is more easily the same clump's as another
    by_clump = x - number - apart * (x + share)
    many = torch.nonzero(x > MOST).squeeze(1)
    if len(many):
        terms = _many(x[many], log_mean[many], log_theta[many], log_clump[many], log_ratio[many])
        for out, new in zip((values, by_mean, by_theta, by_clump), terms, strict=True):
            out[many] = new
    return ClumpTerms(values, by_mean, by_theta, by_clump)


@cache
def _constants(high: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of clumps ``i``, as many ones, and the log of the ways to part ``k`` counts into ``i`` clumps over ``i!``.

    Row ``k`` and column ``i - 1`` of these; minus infinity where there is no way.
    """
    rows = [
        [math.log(math.comb(k - 1, i - 1)) - math.lgamma(i + 1) if i <= k else -math.inf for i in range(1, high + 1)]
        for k in range(1, high + 1)
    ]
    i = torch.arange(1, high + 1, dtype=dtype, device=device)
    return i, torch.ones_like(i), torch.tensor([[-math.inf] * high, *rows], dtype=dtype, device=device)


def _sums(given: Tensor, high: int) -> Tensor:
    """Logs of the sums over numbers of clumps, and the means of the number and of the slope by log theta, shape ``(3, n)``.

    What is above ``high`` is taken for it.
    """
    x, log_q, log_theta, log_clump, log_size = given
    x = x.clamp_max(high)
    i, ones, ways = _constants(high, x.dtype, x.device)
    theta = log_theta.exp().unsqueeze(1)
    # Gamma(theta + i) / Gamma(theta), and its derivative by log theta
    steps = theta + (i - 1)
    rising, harmonic = steps.log().cumsum(1), (theta / steps).cumsum(1)
    # each clump beyond the first takes the place of a count within one
    odds = (log_q - log_clump).unsqueeze(1)
    terms = torch.addcmul(rising, odds, i).add_(ways.index_select(0, x.int()))
    # torch.logsumexp takes three times as long
    top = terms.amax(1, keepdim=True)
    weights = terms.sub_(top).exp_()
    total, number, slope = weights @ ones, weights @ i, (harmonic.mul_(weights)) @ ones
    values = total.log().add_(top.squeeze(1)).add_(x * (log_clump - log_size))
    return torch.stack((values, number.div_(total), slope.div_(total)))


def _many(
    x: Tensor, log_mean: Tensor, log_theta: Tensor, log_clump: Tensor, log_ratio: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By a negative binomial of the same mean and variance."""
    # the products of gamma_ratio leave single precision where means are next to nothing
    below = (log_mean - _LOG_LEAST).clamp_max(0.0)
    log_mean = log_mean - below
    mean, theta = log_mean.exp(), log_theta.exp()
    extra = 2 * (log_clump - log_mean).exp()
    joint = 1 / (1 / theta + extra)
    rising, slope = gamma_ratio(joint, x)
    odds = mean / joint
    value = rising - torch.lgamma(x + 1) - x * torch.log1p(1 / odds) - joint * torch.log1p(odds)
    by_mean = (x - mean) / (1 + odds)
    by_joint = joint * (slope - torch.log1p(odds)) - by_mean
    # log P(0) of the clumps, taken off; its derivatives by the logs of the rate and of theta
    ratio = log_ratio.exp()
    none = theta * torch.log1p(ratio)
    none_by_rate = ratio * theta / (1 + ratio)
    pull = joint * extra
    return (
        value + none + below,
        by_mean + by_joint * pull + none_by_rate,
        by_joint * joint / theta + none - none_by_rate,
        -by_joint * pull - torch.sigmoid(log_clump) * none_by_rate,
    )
