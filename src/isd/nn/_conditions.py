"""Categorical conditions (label, batch, ...) as embeddings with a null token, or as one-hot columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def one_hot_conditions(codes: Tensor, n_categories: Sequence[int]) -> Tensor:
    """One-hot columns of several categorical attributes, side by side; the null code gives a row of zeros.

    Parameters
    ----------
    codes
        Integer codes of shape ``(n, len(n_categories))``; the code ``n_categories[k]`` is the null token.
    n_categories
        Number of categories of each attribute. Attributes with one category take no column.

    Returns
    -------
    Tensor of shape ``(n, sum of n_categories over attributes with more than one)``.

    Examples
    --------
    >>> import torch
    >>> from isd.nn import one_hot_conditions
    >>> one_hot_conditions(torch.tensor([[1, 0], [3, 1]]), [3, 2])  # 3 of 3: not given
    tensor([[0., 1., 0., 1., 0.],
            [0., 0., 0., 0., 1.]])
    """
    parts = [F.one_hot(codes[:, k].long(), n + 1)[:, :n].to(torch.float32) for k, n in enumerate(n_categories) if n > 1]
    if not parts:
        return torch.zeros(codes.shape[0], 0, device=codes.device)
    return torch.cat(parts, dim=1)


class Conditions(nn.Module):
    """Sum of the embeddings of several categorical attributes, each with a null token.

    Parameters
    ----------
    n_categories
        Number of categories of each attribute; code ``n_categories[k]`` means "not given".
    dim
        Width of the embedding.

    Examples
    --------
    >>> import torch
    >>> from isd.nn import Conditions
    >>> conditions = Conditions([3, 2], dim=4)
    >>> conditions(torch.tensor([[0, 1], [2, 0]])).shape, conditions.null(1)
    (torch.Size([2, 4]), tensor([[3, 2]]))
    """

    def __init__(self, n_categories: Sequence[int], dim: int) -> None:
        super().__init__()
        self.n_categories = tuple(int(n) for n in n_categories)
        self.embeddings = nn.ModuleList(nn.Embedding(n + 1, dim) for n in self.n_categories)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=1.0)  # type: ignore[arg-type]

    def null(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Codes that condition on nothing, shape ``(n, n_attributes)``."""
        return torch.tensor(self.n_categories, device=device, dtype=torch.long).expand(n, -1)

    def drop(self, codes: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
        """Replace codes by the null token: each attribute by itself, and all together, with ``probability``.

        Dropping attributes one by one is what lets a model be asked for a label in any batch; dropping
        all at once is what classifier-free guidance needs for its unconditional term.
        """
        if probability <= 0 or not self.n_categories:
            return codes
        n, k = codes.shape
        alone = torch.rand(n, k, device=codes.device, generator=generator) < probability
        if k > 1:
            alone = alone | (torch.rand(n, 1, device=codes.device, generator=generator) < probability)
        return torch.where(alone, self.null(n, codes.device), codes)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed codes of shape ``(n, n_attributes)``."""
        out = self.embeddings[0](codes[:, 0])
        for k in range(1, len(self.n_categories)):
            out = out + self.embeddings[k](codes[:, k])
        return out
