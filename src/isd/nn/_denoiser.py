"""Denoising networks over latent vectors: a conditional AdaLN MLP (default) and the published MLP U-Net."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from isd.nn._conditions import Conditions
from isd.nn._time import timestep_embedding


class _AdaLNBlock(nn.Module):
    def __init__(self, dim: int, dim_condition: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = nn.Linear(dim_condition, 3 * dim)
        self.net = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        # zero gate: every block starts as the identity
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return x + gate * self.net(self.norm(x) * (1 + scale) + shift)


class AdaLNDenoiser(nn.Module):
    """Residual MLP whose blocks are modulated by time and conditions (adaptive layer norm, zero-initialised).

    Parameters
    ----------
    n_input
        Width of the vectors that are denoised.
    n_categories
        Number of categories of each condition; the code after the last one is the null token.
    n_hidden, n_blocks, dropout
        Shape of the network.

    References
    ----------
    Peebles & Xie, Scalable diffusion models with transformers (2023), section 3.2 (adaLN-Zero).

    Examples
    --------
    >>> import torch
    >>> net = AdaLNDenoiser(3, [2], n_hidden=8, n_blocks=1)
    >>> net(torch.zeros(4, 3), torch.rand(4), torch.zeros(4, 1, dtype=torch.long)).shape
    torch.Size([4, 3])
    """

    def __init__(
        self, n_input: int, n_categories: Sequence[int], *, n_hidden: int = 128, n_blocks: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conditions = Conditions(n_categories, n_hidden)
        self.time = nn.Sequential(nn.Linear(n_hidden, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_hidden))
        self.input = nn.Linear(n_input, n_hidden)
        self.blocks = nn.ModuleList(_AdaLNBlock(n_hidden, n_hidden, dropout) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(n_hidden, elementwise_affine=False)
        self.modulation = nn.Linear(n_hidden, 2 * n_hidden)
        self.output = nn.Linear(n_hidden, n_input)
        self.n_hidden = n_hidden
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """Prediction of shape ``(n, n_input)`` for noised ``x`` at times ``t`` (``(n,)``) under ``codes``."""
        condition = nn.functional.silu(self.time(timestep_embedding(t, self.n_hidden)) + self.conditions(codes))
        h = self.input(x)
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.output(self.norm(h) * (1 + scale) + shift)


class _TimeBlock(nn.Module):
    def __init__(self, n_input: int, n_output: int, dim_time: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_input, n_output)
        self.time = nn.Linear(dim_time, n_output)
        self.norm = nn.LayerNorm(n_output)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return nn.functional.silu(self.norm(self.linear(x) + self.time(emb)))


class MLPUNet(nn.Module):
    """MLP in the form of a U-Net with additive skips: the denoiser of the published configuration.

    Parameters
    ----------
    n_input
        Width of the vectors that are denoised.
    n_categories
        Number of categories of each condition (their embedding is added to the time's).
    hidden
        Widths on the way down; the way up mirrors them.
    use_conditions
        ``False`` (published) ignores the codes: guidance is then a classifier's task alone.

    References
    ----------
    Luo et al., scDiffusion: conditional generation of high-quality single-cell data (2024).

    Examples
    --------
    >>> import torch
    >>> from isd.nn import MLPUNet
    >>> net = MLPUNet(5, [3], hidden=(16, 8))
    >>> net(torch.zeros(4, 5), torch.rand(4), torch.zeros(4, 1, dtype=torch.long)).shape
    torch.Size([4, 5])
    """

    def __init__(
        self,
        n_input: int,
        n_categories: Sequence[int],
        *,
        hidden: Sequence[int] = (512, 512, 256, 128),
        use_conditions: bool = False,
    ) -> None:
        super().__init__()
        hidden = list(hidden)
        dim_time = hidden[0]
        self.n_time = dim_time // 4 * 2
        self.conditions = Conditions(n_categories, dim_time)
        self.use_conditions = use_conditions
        if not use_conditions:
            self.conditions.requires_grad_(False)
        self.time = nn.Sequential(nn.Linear(self.n_time, dim_time), nn.SiLU(), nn.Linear(dim_time, dim_time))
        self.input = _TimeBlock(n_input, hidden[0], dim_time)
        self.down = nn.ModuleList(_TimeBlock(a, b, dim_time) for a, b in itertools.pairwise(hidden))
        up = hidden[::-1]
        self.up = nn.ModuleList(_TimeBlock(a, b, dim_time) for a, b in itertools.pairwise(up))
        self.output = nn.Linear(hidden[0], n_input)

    def forward(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """Prediction of shape ``(n, n_input)`` for noised ``x`` at times ``t`` (``(n,)``)."""
        emb = self.time(timestep_embedding(t, self.n_time))
        if self.use_conditions:
            emb = emb + self.conditions(codes)
        h = self.input(x, emb)
        skips = []
        for block in self.down:
            skips.append(h)
            h = block(h, emb)
        for block in self.up:
            h = block(h, emb) + skips.pop()
        return self.output(h)
