"""Negative binomial counts that come in clumps."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

from isd.nn import clump_terms


class _Terms(torch.autograd.Function):
    """:func:`isd.nn.clump_terms`, with its derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_mean: Tensor, log_theta: Tensor, log_clump: Tensor) -> Tensor:
        values, *slopes = clump_terms(x, log_mean, log_theta, log_clump)
        ctx.save_for_backward(*slopes)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad * slope for slope in ctx.saved_tensors)


class ClumpedNegativeBinomial(Distribution):
    r"""A negative binomial number of clumps, each of a geometric number of counts.

    .. math::

        x = \sum_{i=1}^{N} (1 + G_i), \quad N \sim \mathrm{NB}\!\left(\tfrac{\mu}{1 + r}, \theta\right), \quad
        P(G_i = g) = \frac{r^g}{(1 + r)^{g + 1}}

    with mean :math:`\mu` and variance :math:`\mu (1 + 2 r) + \mu^2 / \theta`. Single counts alone, :math:`r = 0`, are the negative
    binomial.

    Parameters
    ----------
    mu, theta
        Mean and inverse dispersion of the number of clumps.
    clump
        Mean excess of a clump, :math:`r`.
    scale
        Shares of the library, as in scvi-tools' distributions.

    Notes
    -----
    The logarithm of probabilities of counts above 16 is that of a negative binomial of the same mean and variance.

    Examples
    --------
    >>> import torch
    >>> px = ClumpedNegativeBinomial(torch.tensor([2.0]), torch.tensor([4.0]), torch.tensor([0.5]))
    >>> px.mean, px.variance
    (tensor([2.]), tensor([5.]))
    >>> px.log_prob(torch.tensor([0.0])).exp()  # 4 / 3 clumps on average, in none of four parts
    tensor([0.3164])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.nonnegative_integer

    def __init__(self, mu: Tensor, theta: Tensor, clump: Tensor, scale: Tensor | None = None) -> None:
        self.mu, self.theta, self.clump = broadcast_all(mu, theta, clump)
        self.scale = scale
        super().__init__(self.mu.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Means of the counts."""
        mean: Tensor = self.mu
        return mean

    @property
    def variance(self) -> Tensor:
        """Variances of the counts."""
        variance: Tensor = self.mu * (1 + 2 * self.clump) + self.mu.square() / self.theta
        return variance

    def get_normalized(self, key: str) -> Tensor:
        """``"mu"`` or ``"scale"``, as scvi-tools asks its distributions."""
        if key == "mu":
            return self.mean
        if key != "scale" or self.scale is None:
            raise ValueError(f"normalized key {key!r} is unknown; this distribution has 'mu' and, if given, 'scale'.")
        return self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts."""
        value, mu, theta, clump = torch.broadcast_tensors(value, self.mu, self.theta, self.clump)
        out = -theta * torch.log1p(mu / (1 + clump) / theta)
        at = value > 0
        tiny = torch.finfo(mu.dtype).tiny
        logs = mu[at].clamp_min(tiny).log(), theta[at].log(), clump[at].clamp_min(tiny).log()
        some: Tensor = _Terms.apply(value[at].to(mu.dtype), *logs)
        return out.masked_scatter(at, out[at] + some)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Draws, of torch's random numbers."""
        shape = self._extended_shape(torch.Size(sample_shape))
        mu, theta, clump = (t.expand(shape) for t in (self.mu, self.theta, self.clump))
        rates = torch.distributions.Gamma(
            theta, theta * (1 + clump) / mu.clamp_min(torch.finfo(mu.dtype).tiny)
        ).sample()
        number = torch.poisson(rates)
        some = number > 0
        # what so many geometric numbers add up to is negative binomial
        out = number.clone()
        out[some] += torch.poisson(torch.distributions.Gamma(number[some], 1 / clump[some].clamp_min(1e-12)).sample())
        return out
