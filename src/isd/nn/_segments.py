"""Features in groups, such as the isoforms of a gene: sums and softmax within each group, without a loop over groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Segments(nn.Module):
    """Which features belong together, and what is computed within each group of them.

    Works on the last axis of dense tensors, for features in any order, on the device that the module is on. Nothing here
    is learnt or saved.

    Parameters
    ----------
    codes
        Group of each feature, whole numbers of shape ``(n_features,)``. A negative one means a group of its own: these come
        after all others, in the order of the features.
    n_segments
        Number of groups, not counting those of negative codes; by default one more than the largest code. Groups without
        a feature sum to 0, and their ``logsumexp`` is minus infinity.

    Attributes
    ----------
    segment_of
        Group of each feature, shape ``(n_features,)``.
    sizes
        Number of features in each group, shape ``(n_segments,)``.
    shared
        Features that are not alone in their group, increasing.
    n_features, n_segments
        Numbers of features and of groups.

    Examples
    --------
    >>> import torch
    >>> genes = Segments(torch.tensor([0, 1, 0, -1]))
    >>> genes.sum(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    tensor([[4., 2., 4.]])
    >>> genes.softmax(torch.zeros(1, 4))
    tensor([[0.5000, 1.0000, 0.5000, 1.0000]])
    """

    segment_of: Tensor
    sizes: Tensor
    shared: Tensor
    _order: Tensor
    _start: Tensor
    _rank: Tensor

    def __init__(self, codes: Tensor, n_segments: int | None = None) -> None:
        super().__init__()
        codes = torch.as_tensor(codes)
        if codes.ndim != 1 or codes.is_floating_point() or codes.is_complex():
            raise ValueError(
                f"codes must be whole numbers of shape (n_features,), got {codes.dtype} {tuple(codes.shape)}."
            )
        codes = codes.to(torch.int64).clone()
        largest = int(codes.max()) + 1 if codes.numel() else 0
        n_segments = max(largest, 0) if n_segments is None else int(n_segments)
        if largest > n_segments:
            raise ValueError(f"codes reach {largest - 1}, but n_segments is {n_segments}.")
        alone = codes < 0
        codes[alone] = n_segments + torch.arange(int(alone.sum()), device=codes.device)
        self.n_features, self.n_segments = len(codes), n_segments + int(alone.sum())
        sizes = torch.bincount(codes, minlength=self.n_segments)
        start = sizes.cumsum(0) - sizes
        order = torch.argsort(codes, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(self.n_features, device=codes.device) - start[codes[order]]
        shared = torch.nonzero(sizes[codes] > 1).flatten()
        # plain facts about the features, which whoever owns them saves
        for name, value in (("segment_of", codes), ("sizes", sizes), ("shared", shared)):
            self.register_buffer(name, value, persistent=False)
        for name, value in (("_order", order), ("_start", start), ("_rank", rank)):
            self.register_buffer(name, value, persistent=False)
        self._shared_only: Segments | None = None

    def shared_only(self) -> Segments:
        """Groups of the features in ``shared`` alone, for logits of these; made once.

        A feature that is alone in its group always has a share of 1: a layer of logits needs no column for it.
        """
        if self.shared.numel() == self.n_features:
            return self
        if self._shared_only is None or self._shared_only.segment_of.device != self.segment_of.device:
            inner = self.subset(self.shared)[0]
            object.__setattr__(self, "_shared_only", inner)  # not a submodule: it follows by the check above
        assert self._shared_only is not None
        return self._shared_only

    def subset(self, columns: Tensor) -> tuple[Segments, Tensor]:
        """Groups of chosen features.

        Parameters
        ----------
        columns
            Positions of features, shape ``(n_chosen,)``.

        Returns
        -------
        The same for tensors of shape ``(..., n_chosen)``, with groups renumbered in their order, and which group each of them
        is here. Sums and shares are over the chosen features of a group.
        """
        kept, codes = torch.unique(self.segment_of[columns], return_inverse=True)
        return Segments(codes, len(kept)), kept

    def features(self, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Features of chosen groups, one group after the other.

        Parameters
        ----------
        segments
            Positions of groups, shape ``(n_chosen,)``; repeats are allowed.

        Returns
        -------
        Positions of features, and for each the position in ``segments`` that it is listed for; both of shape ``(n_listed,)``.
        """
        sizes = self.sizes[segments]
        of = torch.repeat_interleave(torch.arange(len(segments), device=sizes.device), sizes)
        within = torch.arange(len(of), device=sizes.device) - (sizes.cumsum(0) - sizes)[of]
        return self._order[self._start[segments][of] + within], of

    def rank(self, columns: Tensor) -> Tensor:
        """Position of each chosen feature among those of its group, in the order of :meth:`features`."""
        return self._rank[columns]

    def sum(self, values: Tensor) -> Tensor:
        """Sum within each group, shape ``(..., n_segments)`` for values of shape ``(..., n_features)``."""
        self._check(values)
        out = values.new_zeros((*values.shape[:-1], self.n_segments))
        return out.index_add(values.ndim - 1, self.segment_of, values)

    def expand(self, per_segment: Tensor) -> Tensor:
        """Value of its group for each feature, shape ``(..., n_features)`` for values of shape ``(..., n_segments)``."""
        return per_segment.index_select(per_segment.ndim - 1, self.segment_of)

    def logsumexp(self, logits: Tensor) -> Tensor:
        """Logarithm of the sum of exponentials within each group, shape ``(..., n_segments)``."""
        self._check(logits)
        return self._logsumexp(logits)

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Logarithm of :meth:`softmax`; exactly 0 for a feature that is alone in its group."""
        self._check(logits)
        if self.shared.numel() == self.n_features:
            return logits - self.expand(self._logsumexp(logits))
        inner = self.shared_only()
        shared = logits.index_select(logits.ndim - 1, self.shared)
        values = shared - inner.expand(inner._logsumexp(shared))
        return torch.zeros_like(logits).index_copy(logits.ndim - 1, self.shared, values)

    def softmax(self, logits: Tensor) -> Tensor:
        """Shares within each group, which add up to 1; exactly 1 for a feature that is alone in its group.

        Parameters
        ----------
        logits
            Shape ``(..., n_features)``; minus infinity is a share of 0.

        Returns
        -------
        Tensor of that shape. Features that are alone take no part in the computation, and have no gradient.
        """
        return self.log_softmax(logits).exp()

    def _logsumexp(self, logits: Tensor) -> Tensor:
        largest = self._max(logits.detach())
        # an empty group, or one of shares 0 only, must not become infinity minus infinity
        largest = torch.where(torch.isfinite(largest), largest, torch.zeros_like(largest))
        return self.sum((logits - self.expand(largest)).exp()).log() + largest

    def _max(self, values: Tensor) -> Tensor:
        # along the first axis: many times faster than along the last
        flat = values.reshape(values.shape[:-1].numel(), self.n_features).t().contiguous()
        index = self.segment_of[:, None].expand(-1, flat.shape[1])
        out = flat.new_full((self.n_segments, flat.shape[1]), -torch.inf)
        return out.scatter_reduce_(0, index, flat, "amax").t().reshape(*values.shape[:-1], self.n_segments)

    def _check(self, values: Tensor) -> None:
        if values.shape[-1] != self.n_features:
            raise ValueError(f"expected {self.n_features} features on the last axis, got shape {tuple(values.shape)}.")
