"""Encoder and decoder of the count VAE, and their published (SCimilarity-shaped) form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isd.nn._likelihood import Factors
from isd.nn._sparse import CountLinear, SparseBatch

Activation = Literal["silu", "prelu", "relu", "gelu"]
Norm = Literal["layer", "batch", "none"]


def _activation(name: Activation) -> nn.Module:
    modules = {"silu": nn.SiLU, "prelu": nn.PReLU, "relu": nn.ReLU, "gelu": nn.GELU}
    if name not in modules:
        raise ValueError(f"activation {name!r} is unknown; choose one of {sorted(modules)}.")
    return modules[name]()


def _norm(name: Norm, dim: int) -> nn.Module:
    if name == "layer":
        return nn.LayerNorm(dim)
    if name == "batch":
        return nn.BatchNorm1d(dim)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"norm {name!r} is unknown; choose 'layer', 'batch' or 'none'.")


#: Precision of the normal prior on a shift of a logit: weaker than that on what the network adds (``shrinkage``), so that
#: what a batch does to all cells alike is said here.
SHIFT_SHRINKAGE = 1.0


class MLP(nn.Sequential):
    """Blocks of linear layer, normalisation, activation and dropout.

    Parameters
    ----------
    n_input
        Number of input columns.
    hidden
        Widths of the blocks.
    norm, activation, dropout
        What follows each linear layer.
    n_covariates
        Where given, the first layer is a :class:`CountLinear` with so many columns beside its input, and is called with
        a pair.

    Examples
    --------
    >>> import torch
    >>> from isd.nn import MLP
    >>> MLP(3, [8, 4], norm="layer", activation="silu", dropout=0.0)(torch.zeros(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        n_input: int,
        hidden: Sequence[int],
        *,
        norm: Norm = "layer",
        activation: Activation = "silu",
        dropout: float = 0.0,
        n_covariates: int | None = None,
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            first = n_covariates is not None and not layers
            linear = CountLinear(n_input, n_covariates or 0, width) if first else nn.Linear(n_input, width)
            block = [linear, _norm(norm, width), _activation(activation)]
            if dropout > 0:
                block.append(nn.Dropout(dropout))
            layers.append(nn.Sequential(*block))
            n_input = width
        super().__init__(*layers)


class CountEncoder(nn.Module):
    """Encode log-normalised expression, log library size and covariates into a latent Gaussian or point.

    Parameters
    ----------
    n_input
        Number of features.
    n_covariates
        Columns of covariates that are appended to the input (log library size included).
    n_hidden, n_layers, norm, activation, dropout
        Shape of the network.
    n_latent
        Width of the latent.
    deterministic
        ``True`` gives a point (variance zero), as the published autoencoder does.
    l2_normalize
        Put the latent on the unit sphere (published autoencoder).

    Examples
    --------
    >>> import torch
    >>> from isd.nn import CountEncoder
    >>> encoder = CountEncoder(5, 1, n_hidden=8, n_layers=1, n_latent=2)
    >>> mean, variance = encoder(torch.zeros(3, 5), torch.zeros(3, 1))
    >>> mean.shape, variance.shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        n_input: int,
        n_covariates: int,
        *,
        n_hidden: int,
        n_layers: int,
        n_latent: int,
        norm: Norm = "layer",
        activation: Activation = "silu",
        dropout: float = 0.0,
        deterministic: bool = False,
        l2_normalize: bool = False,
    ) -> None:
        super().__init__()
        self.body = MLP(
            n_input,
            [n_hidden] * n_layers,
            norm=norm,
            activation=activation,
            dropout=dropout,
            n_covariates=n_covariates,
        )
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_var = None if deterministic else nn.Linear(n_hidden, n_latent)
        if self.log_var is not None:
            # start from a posterior narrower than the prior: the first steps then carry a signal
            nn.init.zeros_(self.log_var.weight)
            nn.init.constant_(self.log_var.bias, -2.0)
        self.l2_normalize = l2_normalize

    def forward(self, x: Tensor | SparseBatch, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent, each ``(n, n_latent)``."""
        h = self.body((x, covariates))
        mean = self.mean(h)
        if self.l2_normalize:
            mean = F.normalize(mean, p=2.0, dim=1)
        if self.log_var is None:
            return mean, torch.zeros_like(mean)
        return mean, torch.exp(0.5 * self.log_var(h).clamp(-14.0, 6.0))


class LowRankLinear(nn.Module):
    """Linear layer through a bottleneck: ``(h A + a) V + b`` with ``V`` of shape ``(rank, n_output)``.

    On few cells a full output layer has more weights than there are counts to learn them from; with many features it
    is most of the work.

    Parameters
    ----------
    n_input, n_output
        Width of input and output.
    rank
        Width of the bottleneck.

    Examples
    --------
    >>> import torch
    >>> from isd.nn import LowRankLinear
    >>> layer = LowRankLinear(4, 100, rank=2)
    >>> layer(torch.zeros(3, 4)).shape, sum(p.numel() for p in layer.parameters())  # 500 in a full layer
    (torch.Size([3, 100]), 310)
    """

    def __init__(self, n_input: int, n_output: int, rank: int) -> None:
        super().__init__()
        self.scores = nn.Linear(n_input, rank)
        nn.init.zeros_(self.scores.bias)
        self.loadings = nn.Parameter(torch.randn(rank, n_output) * 0.1)
        self.bias = nn.Parameter(torch.zeros(n_output))

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(n, n_input)`` to ``(n, n_output)``."""
        return torch.addmm(self.bias, self.scores(h), self.loadings)

    def factors(self, h: Tensor) -> Factors:
        """Outputs that are not multiplied out."""
        return Factors(self.scores(h), self.loadings, self.bias)

    def spread(self, h: Tensor) -> Tensor:
        """Mean square over the rows of ``h`` of what is added to the bias, summed over outputs, without making them.

        Parameters
        ----------
        h
            Input of the layer, shape ``(n, n_input)``.
        """
        scores = self.scores(h)
        return ((scores.T @ scores @ self.loadings) * self.loadings).sum() / len(h)


class CountDecoder(nn.Module):
    """Decode a latent and covariates into logits per feature, with further heads where a likelihood needs them.

    Parameters
    ----------
    n_latent
        Width of the latent.
    n_covariates
        Columns of covariates (log library size included).
    n_output
        Number of features.
    n_hidden, n_layers, norm, activation, dropout
        Shape of the network.
    heads
        Names of further outputs of shape ``(n, n_output)``, initialised to zero, such as ``"dispersion"``
        (added to the per-feature log dispersion) and ``"dropout"`` (zero inflation logits).
    output_rank, head_rank
        Rank of the layer that gives ``"mean"``, and of those of the heads; 0 for full layers.
    shrinkage, head_shrinkage
        Precision of the prior that ``penalty`` adds up, for the mean's logits and for the heads.
    n_head_outputs
        Number of outputs of the heads, where it is not that of features.
    shift_columns
        Columns of the covariates that shift the logits of the mean, each feature's by a number of its own, besides
        what the network makes of them. Such a shift is the same for every latent: it holds for a label in a batch that
        it was never seen in.

    Examples
    --------
    >>> import torch
    >>> from isd.nn import CountDecoder
    >>> decoder = CountDecoder(2, 1, 5, n_hidden=8, n_layers=1, heads=["dispersion"]).eval()
    >>> {name: tuple(value.shape) for name, value in decoder(torch.zeros(3, 2), torch.zeros(3, 1)).items()}
    {'mean': (3, 5), 'dispersion': (3, 5)}
    """

    def __init__(
        self,
        n_latent: int,
        n_covariates: int,
        n_output: int,
        *,
        n_hidden: int,
        n_layers: int,
        norm: Norm = "layer",
        activation: Activation = "silu",
        dropout: float = 0.0,
        heads: Sequence[str] = (),
        output_rank: int = 0,
        head_rank: int = 0,
        shrinkage: float = 0.0,
        head_shrinkage: float = 0.0,
        n_head_outputs: int | None = None,
        shift_columns: slice = slice(0, 0),
    ) -> None:
        super().__init__()
        n_heads = n_output if n_head_outputs is None else n_head_outputs
        self.shrinkage, self.head_shrinkage = shrinkage, head_shrinkage
        self.body = MLP(
            n_latent + n_covariates, [n_hidden] * n_layers, norm=norm, activation=activation, dropout=dropout
        )
        self.mean: LowRankLinear | nn.Linear = _output(n_hidden, n_output, output_rank)
        self.heads = nn.ModuleDict({name: _output(n_hidden, n_heads, head_rank) for name in heads})
        for head in self.heads.values():
            last = head.scores if isinstance(head, LowRankLinear) else head
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.shift_columns = shift_columns
        n_shifts = len(range(*shift_columns.indices(n_covariates)))
        self.shift = nn.Parameter(torch.zeros(n_shifts, n_output)) if n_shifts else None

    def forward(self, z: Tensor, covariates: Tensor) -> dict[str, Tensor]:
        """Outputs by name: ``"mean"`` (logits), one entry for each head, and in training ``"penalty"``, a scalar."""
        h = self.body(torch.cat([z, covariates], dim=1))
        out = {"mean": self.shifted(self.mean(h), covariates)}
        for name, head in self.heads.items():
            out[name] = head(h)
        if self.training:
            out["penalty"] = self.penalty(h)
        return out

    def factors(self, z: Tensor, covariates: Tensor) -> tuple[dict[str, Factors], Tensor | None]:
        """The same outputs by name, not multiplied out, for :func:`log_likelihood`; and the penalty in training."""
        h = self.body(torch.cat([z, covariates], dim=1))
        return self.layer_factors(h, covariates), self.penalty(h) if self.training else None

    def shifted(self, logits: Tensor, covariates: Tensor) -> Tensor:
        """Logits of the mean, with the shifts that the covariates give."""
        return logits if self.shift is None else logits + covariates[:, self.shift_columns] @ self.shift

    def layer_factors(self, h: Tensor, covariates: Tensor) -> dict[str, Factors]:
        """Factors of the mean, with shifts, and of the heads."""
        out = {name: self._factors(layer, h) for name, layer in {"mean": self.mean, **self.heads}.items()}
        if self.shift is not None:
            scores, loadings, bias = out["mean"]
            given = covariates[:, self.shift_columns]
            out["mean"] = Factors(torch.cat([scores, given], dim=1), torch.cat([loadings, self.shift]), bias)
        return out

    def penalty(self, h: Tensor) -> Tensor:
        """Negative log prior of the low-rank layers, up to a constant.

        The prior is on what the layers give and not on their weights, which could hide in each other: normal with
        precision ``shrinkage`` around the bias for the logits, with ``head_shrinkage`` around zero for the heads. A
        feature with few counts stays near its mean; one with many is not held back.
        """
        total = h.new_zeros(())
        if self.shrinkage and isinstance(self.mean, LowRankLinear):
            total = total + 0.5 * self.shrinkage * self.mean.spread(h)
        if self.head_shrinkage:
            for head in self.heads.values():
                if isinstance(head, LowRankLinear):
                    total = total + 0.5 * self.head_shrinkage * (head.spread(h) + head.bias.square().sum())
        if self.shift is not None:
            total = total + 0.5 * SHIFT_SHRINKAGE * self.shift.square().sum()
        return total

    @staticmethod
    def _factors(layer: nn.Module, h: Tensor) -> Factors:
        if isinstance(layer, LowRankLinear):
            return layer.factors(h)
        return Factors(h, layer.weight.t(), layer.bias)  # type: ignore[operator, arg-type]


def _output(n_input: int, n_output: int, rank: int) -> LowRankLinear | nn.Linear:
    """A full layer where the bottleneck would save nothing."""
    return LowRankLinear(n_input, n_output, rank) if 0 < rank < min(n_input, n_output) else nn.Linear(n_input, n_output)
