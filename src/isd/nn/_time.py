"""Embedding of the diffusion time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(t: Tensor, dim: int, *, scale: float = 1000.0, max_period: float = 10_000.0) -> Tensor:
    r"""Sinusoidal embedding of time.

    Parameters
    ----------
    t
        Times in [0, 1], shape ``(n,)``.
    dim
        Width of the embedding (even).
    scale
        ``t * scale`` takes the place of the step index of a discrete diffusion.
    max_period
        Longest period, in units of ``t * scale``.

    Returns
    -------
    Tensor of shape ``(n, dim)``: cosines, then sines.

    References
    ----------
    Vaswani et al., Attention is all you need (2017), section 3.5; as used in Ho et al. (2020).

    Examples
    --------
    >>> import torch
    >>> timestep_embedding(torch.zeros(2), 4).tolist()[0]
    [1.0, 1.0, 0.0, 0.0]
    """
    if dim % 2:
        raise ValueError(f"dim must be even, got {dim}.")
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = (t.float() * scale)[:, None] * freqs[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
