"""Classifier of noised latents: what guides a diffusion model by its gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from isd.nn._time import timestep_embedding


class NoiseClassifier(nn.Module):
    """Time-conditional MLP from a noised latent to class logits.

    Parameters
    ----------
    n_input
        Width of the latent.
    n_classes
        Number of classes.
    hidden
        Widths of the layers; the published classifier has 512, 512 and 256.
    dropout
        Dropout after each layer.

    Examples
    --------
    >>> import torch
    >>> from isd.nn import NoiseClassifier
    >>> NoiseClassifier(5, 3, hidden=(16, 8))(torch.zeros(4, 5), torch.rand(4)).shape
    torch.Size([4, 3])
    """

    def __init__(
        self, n_input: int, n_classes: int, *, hidden: Sequence[int] = (512, 512, 256), dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden = list(hidden)
        self.n_time = hidden[0] // 4 * 2
        self.time = nn.Sequential(nn.Linear(self.n_time, hidden[0]), nn.SiLU(), nn.Linear(hidden[0], hidden[0]))
        widths = [n_input, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.times = nn.ModuleList(nn.Linear(hidden[0], b) for b in hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(b) for b in hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden[-1], n_classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits of shape ``(n, n_classes)`` for noised latents ``x`` at times ``t`` (``(n,)``)."""
        emb = self.time(timestep_embedding(t, self.n_time))
        h = x
        for layer, time, norm in zip(self.layers, self.times, self.norms, strict=True):
            h = self.dropout(nn.functional.silu(norm(layer(h) + time(emb))))
        return self.output(h)
