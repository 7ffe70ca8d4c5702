"""The probabilistic network of a VAE whose encoder reads genes, though its data are isoforms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from scvi.module.base import auto_move_data
from torch import Tensor
from torch.nn import functional as F

from isd._constants import TARGET_SUM
from isd.module._minibatch import sparse_batch, sum_columns, with_columns
from isd.module._vae import VAEModule
from isd.nn import SparseBatch

EncoderRows = Literal["isoform", "gene"]
ENCODER_ROWS: tuple[str, ...] = ("isoform", "gene")


class SummedVAEModule(VAEModule):
    r"""Variational autoencoder of isoform counts whose encoder sums isoforms to genes before the logarithm.

    With counts :math:`x_t` of isoforms, :math:`n_g = \sum_{t \in g} x_t` of genes and :math:`N = \sum_g n_g`, the
    encoder's first layer reads

    .. math::

        \text{rows of genes:} \quad \sum_g \log(1 + 10^4 n_g / N)\, W_g, \qquad
        \text{rows of isoforms:} \quad \sum_t \frac{x_t}{n_g} \log(1 + 10^4 n_g / N)\, W_t .

    The second divides a gene's logarithm over its isoforms by their usage. Where all isoforms of a gene have the row of
    their gene, both are the same; then rows of isoforms can learn what isoforms say beyond their gene.

    The decoder reads the latent's direction, as an autoencoder whose latents were on the unit sphere has learnt it.

    Parameters
    ----------
    n_input
        Number of isoforms.
    n_genes
        Number of genes that the encoder knows: the sum that counts are normalised by is over them.
    n_groups
        Number of genes in the data, those that the encoder does not know included. These count in nothing but rows of isoforms.
    encoder_rows
        ``"isoform"`` or ``"gene"``.
    **kwargs
        Further arguments of :class:`VAEModule`.

    Attributes
    ----------
    group_of
        Gene of each isoform, shape ``(n_input,)``; genes that the encoder knows are numbered first.

    Raises
    ------
    ValueError
        If ``encoder_rows`` is unknown, or the likelihood is not one of counts.

    Examples
    --------
    >>> import torch
    >>> from isd.module import SummedVAEModule
    >>> module = SummedVAEModule(5, n_genes=2, n_groups=3, n_hidden=8, n_latent=2)
    >>> module.group_of.copy_(torch.tensor([0, 0, 1, 1, 2])).tolist()
    [0, 0, 1, 1, 2]
    """

    likelihood_of_stored = True
    group_of: Tensor

    def __init__(
        self, n_input: int, *, n_genes: int, n_groups: int, encoder_rows: EncoderRows = "isoform", **kwargs: Any
    ) -> None:
        if encoder_rows not in ENCODER_ROWS:
            raise ValueError(f"encoder_rows {encoder_rows!r} is unknown; choose one of {ENCODER_ROWS}.")
        if kwargs.get("likelihood", "nb") == "normal":
            raise ValueError("likelihood 'normal' gives no counts; choose 'nb', 'zinb' or 'poisson'.")
        # plain facts that building the encoder needs, before torch's constructor has run
        object.__setattr__(self, "encoder_rows", encoder_rows)
        object.__setattr__(self, "n_genes", n_genes)
        object.__setattr__(self, "n_groups", n_groups)
        super().__init__(n_input, **kwargs)
        self.register_buffer("group_of", torch.zeros(n_input, dtype=torch.int64))

    encoder_rows: EncoderRows
    n_genes: int
    n_groups: int

    def _n_encoded(self, n_input: int) -> int:
        return n_input if self.encoder_rows == "isoform" else self.n_genes

    # -- encoding ----------------------------------------------------------------------------------------------

    def _encoder_input(self, x: Tensor, rows: SparseBatch | None) -> Tensor | SparseBatch:
        """Logarithms of genes, or their parts of isoforms; sparse where that is faster, as in :class:`VAEModule`."""
        rows = sparse_batch(x, by_column=torch.is_grad_enabled()) if rows is None else rows
        values = self.gene_logs(rows) if self.encoder_rows == "gene" else self.isoform_shares(rows)
        if not self._read_sparse(x, rows):
            csr = (values.row_ptr, values.cols, values.values)
            return torch.sparse_csr_tensor(*csr, size=(len(values), values.n_features)).to_dense()
        return with_columns(values) if torch.is_grad_enabled() else values

    def gene_logs(self, rows: SparseBatch) -> SparseBatch:
        """log1p of the counts of genes that the encoder knows, scaled to 10,000; shape ``(n, n_genes)``."""
        group = self.group_of[rows.cols.long()]
        known = group < self.n_genes
        cell = torch.repeat_interleave(torch.arange(len(rows), device=group.device), rows.row_ptr.diff())
        row_ptr = F.pad(torch.bincount(cell[known], minlength=len(rows)).cumsum(0), (1, 0))
        kept = SparseBatch(
            row_ptr.to(rows.row_ptr.dtype), rows.cols[known], rows.values[known].contiguous(), rows.n_features
        )
        return sum_columns(kept, self.group_of, self.n_genes).log_normalized(TARGET_SUM)

    def isoform_shares(self, rows: SparseBatch) -> SparseBatch:
        """The same logarithm for each isoform, times its share of its gene; shape ``(n, n_input)``."""
        group = self.group_of[rows.cols.long()]
        cell = torch.repeat_interleave(torch.arange(len(rows), device=group.device), rows.row_ptr.diff())
        flat = group.add_(cell, alpha=self.n_groups)
        sums = rows.values.new_zeros(len(rows) * self.n_groups).index_add_(0, flat, rows.values)
        # in double precision: see SparseBatch.sums
        totals = sums.view(len(rows), self.n_groups)[:, : self.n_genes].sum(1, dtype=torch.float64)
        scale = (TARGET_SUM / totals.clamp_min(1.0)).to(sums.dtype)
        of_gene = sums[flat].clamp_min_(torch.finfo(sums.dtype).tiny)  # zeros may be stored, too
        values = rows.values / of_gene * torch.log1p(of_gene.mul_(scale[cell]))
        return replace(rows, values=values, col_ptr=None, rows=None, values_by_column=None)

    # -- decoding ----------------------------------------------------------------------------------------------

    @auto_move_data
    def generative(self, z: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As :meth:`VAEModule.generative`, of the latent's direction."""
        return super().generative(F.normalize(z, dim=-1), *args, **kwargs)
