"""Sparse minibatches and the layer that reads them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

with warnings.catch_warnings():
    # torch says once in a process that csr tensors are in beta; only the container is used here, none of their products
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), size=(1, 1))


@dataclass(frozen=True)
class SparseBatch:
    """Cells by features, of which only values that are not zero are held: by row, and in training by column too.

    Parameters
    ----------
    row_ptr, cols, values
        The matrix in csr form.
    n_features
        Number of columns.
    col_ptr, rows, values_by_column
        The same matrix in csc form; gradients need it.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0]]).to_sparse_csr()
    >>> batch = SparseBatch(x.crow_indices(), x.col_indices(), x.values(), 3)
    >>> batch.sums()
    tensor([4., 2.])
    """

    row_ptr: Tensor
    cols: Tensor
    values: Tensor
    n_features: int
    col_ptr: Tensor | None = None
    rows: Tensor | None = None
    values_by_column: Tensor | None = None

    def __len__(self) -> int:
        return len(self.row_ptr) - 1

    @property
    def density(self) -> float:
        """Share of the values that are held."""
        return len(self.values) / max(len(self) * self.n_features, 1)

    def sums(self) -> Tensor:
        """Total of each row, shape ``(n,)``."""
        # in double precision: added one by one, small counts are lost in a total above 2^24
        sums = self.values.new_zeros(len(self), dtype=torch.float64)
        row = torch.repeat_interleave(torch.arange(len(self), device=sums.device), self.row_ptr.diff())
        return sums.index_add_(0, row, self.values.double()).to(self.values.dtype)

    def log_normalized(self, target_sum: float) -> SparseBatch:
        """log1p of the values, scaled to ``target_sum`` a row."""
        scale = target_sum / self.sums().clamp_min(1.0)
        values = torch.repeat_interleave(scale, self.row_ptr.diff()).mul_(self.values).log1p_()
        by_column = None
        if self.rows is not None and self.values_by_column is not None:
            by_column = scale[self.rows].mul_(self.values_by_column).log1p_()
        return replace(self, values=values, values_by_column=by_column)


def _weighted_sums(table: Tensor, index: Tensor, ptr: Tensor, values: Tensor) -> Tensor:
    """Sum of the table's rows that each stretch of ``index`` names, weighted by ``values``."""
    return F.embedding_bag(
        index, table, ptr, mode="sum", per_sample_weights=values.to(table.dtype), include_last_offset=True
    )


class _SparseProduct(torch.autograd.Function):
    """``x @ weight`` with ``x`` a :class:`SparseBatch`.

    The gradient of the weight is a sum over cells for each feature, as the product is one over features for each cell:
    with the matrix by column, each row of the gradient is written once, while the cells' rows stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, batch: SparseBatch) -> Tensor:
        ctx.batch = batch
        return _weighted_sums(weight, batch.cols, batch.row_ptr, batch.values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        batch: SparseBatch = ctx.batch
        if batch.rows is None or batch.col_ptr is None or batch.values_by_column is None:
            raise RuntimeError("a SparseBatch must be given by column too (col_ptr, rows, ...) to have a gradient.")
        return _weighted_sums(grad.contiguous(), batch.rows, batch.col_ptr, batch.values_by_column), None


class CountLinear(nn.Module):
    """Linear layer over features and covariates, whose features may come as :class:`SparseBatch`.

    The weight of the features has one row for each feature, shape ``(n_input, n_output)``: a sparse cell reads the
    rows of what it expresses.

    Parameters
    ----------
    n_input
        Number of features.
    n_covariates
        Number of dense columns beside them.
    n_output
        Width of the output.

    Examples
    --------
    >>> import torch
    >>> CountLinear(3, 1, 4)((torch.ones(2, 3), torch.zeros(2, 1))).shape
    torch.Size([2, 4])
    """

    def __init__(self, n_input: int, n_covariates: int, n_output: int) -> None:
        super().__init__()
        self.in_features, self.out_features = n_input + n_covariates, n_output
        # starts as nn.Linear over all columns does
        bound = 1.0 / math.sqrt(max(self.in_features, 1))
        start = torch.empty(n_output, self.in_features).uniform_(-bound, bound)
        self.weight = nn.Parameter(start[:, :n_input].t().contiguous())
        self.covariates = nn.Parameter(start[:, n_input:].t().contiguous()) if n_covariates else None
        self.bias = nn.Parameter(torch.empty(n_output).uniform_(-bound, bound))

    def forward(self, inputs: tuple[Tensor | SparseBatch, Tensor]) -> Tensor:
        """Map features and covariates, ``(n, n_input)`` and ``(n, n_covariates)``, to ``(n, n_output)``."""
        x, covariates = inputs
        rest: Tensor = self.bias
        if self.covariates is not None:
            rest = torch.addmm(self.bias, covariates, self.covariates)
        if isinstance(x, SparseBatch):
            return _SparseProduct.apply(self.weight, x) + rest
        return x @ self.weight + rest
