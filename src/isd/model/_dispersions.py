"""Dispersions, and mean sizes of clumps, that training starts from: by moments within labels, and by likelihood."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize_scalar

from isd.module._minibatch import sparse_batch
from isd.nn import Factors, log_likelihood

#: Rows that moments are taken of, at most: more do not change a start.
_MAX_ROWS = 2000
#: Dispersions that moments may start from: nearly Poisson, and a variance of ten times the squared mean.
_DISPERSIONS = (np.exp(-5.0), 10.0)
#: Cells whose likelihood tells the size of clumps, at most, and values of cells by features.
_MAX_LIKELY, _MAX_VALUES = 256, 2**24
#: Mean excesses of a clump that training may start from.
CLUMPS = (0.003, 2.0)


class Moments(NamedTuple):
    """Sums over cells of what their label's mean does not say.

    Parameters
    ----------
    excess
        Squared deviations from the means less the means, of each feature.
    mean, square
        Means, and their squares.
    shares
        Share of each feature in each label's counts, shape ``(n_codes, n_features)``.
    counts, codes, library
        The cells: counts, row of ``shares``, library size.
    """

    excess: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    shares: np.ndarray
    counts: sparse.csr_matrix
    codes: np.ndarray
    library: np.ndarray

    def dispersions(self, clump: float = 0.0) -> np.ndarray:
        """Inverse dispersion of each feature, where clumps of ``1 + clump`` counts have their part of the variance."""
        excess, square = self.excess - 2 * clump * self.mean, self.square
        # features alike but for their abundance: each says as much as its root
        root = np.sqrt(np.maximum(square, 1e-30))
        together = max((excess / root)[square > 0].sum() / root.sum(), _DISPERSIONS[0])
        # the error of one feature's dispersion is at least sqrt(2 / square); dispersions differ by about their size
        weight = 2 / together**2
        dispersion: np.ndarray = (excess + weight * together) / (square + weight)
        return 1 / np.clip(dispersion, *_DISPERSIONS)


def moments(
    counts: Any,
    rows: np.ndarray,
    library: np.ndarray,
    *,
    groups: sparse.csr_matrix | None = None,
    labels: np.ndarray | None = None,
    seed: int = 0,
) -> Moments:
    r"""Moments of each feature within labels.

    With mean :math:`\mu_{cf} = \ell_c m_{k(c) f}`, where :math:`m_{kf}` is the share of feature :math:`f` in the counts of label
    :math:`k`, a negative binomial of inverse dispersion :math:`\theta` has variance :math:`\mu + \mu^2 / \theta`, and one of clumps of
    :math:`1 + r` counts :math:`\mu (1 + 2 r) + \mu^2 / \theta`, so that

    .. math:: 1 / \theta_f = \sum_c \left[(x_{cf} - \mu_{cf})^2 - (1 + 2 r) \mu_{cf}\right] / \sum_c \mu_{cf}^2 .

    :meth:`Moments.dispersions` draws it towards the value of all features together, :math:`\bar\phi`, by a weight of
    :math:`2 / \bar\phi^2` beside the sum of :math:`\mu_{cf}^2`: the ratio of two variances, that of the estimate in the Poisson limit and
    that of dispersions which differ by as much as their size. Features with few counts take that of all together.

    Parameters
    ----------
    counts
        Matrix of counts, in memory or backed.
    rows
        Training rows; of more than 2,000, so many are drawn.
    library
        Library size of each of ``rows``, shape ``(len(rows),)``.
    groups
        Matrix of shape ``(n_vars, n_groups)`` that adds features up, such as isoforms to genes.
    labels
        Code of each of ``rows``, shape ``(len(rows),)``; labels of one cell say nothing.
    seed
        Seed of the draw.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(rows), _MAX_ROWS, replace=False) if len(rows) > _MAX_ROWS else np.arange(len(rows))
    drawn = drawn[np.argsort(rows[drawn])]
    chosen = sparse.csr_matrix(counts[rows[drawn]], dtype=np.float64)
    chosen = chosen if groups is None else sparse.csr_matrix(chosen @ groups)
    size = library[drawn].astype(np.float64)
    codes = np.zeros(len(drawn), int) if labels is None else np.unique(labels[drawn], return_inverse=True)[1]
    if np.bincount(codes).max() < 2:
        codes = np.zeros(len(drawn), int)
    n_features = chosen.shape[1]
    excess, mean, square = np.zeros(n_features), np.zeros(n_features), np.zeros(n_features)
    shares = np.zeros((codes.max() + 1, n_features), dtype=np.float32)
    for code in range(len(shares)):
        here = np.flatnonzero(codes == code)
        part, sizes = chosen[here], size[here]
        share = np.asarray(part.sum(axis=0)).ravel() / sizes.sum()
        shares[code] = share
        if len(here) < 2:
            continue
        spread = np.asarray(part.multiply(part).sum(axis=0)).ravel() - 2 * share * (part.T @ sizes)
        spread += share**2 * (sizes @ sizes)
        # one mean was estimated from these cells
        excess += spread * len(here) / (len(here) - 1) - share * sizes.sum()
        mean += share * sizes.sum()
        square += share**2 * (sizes @ sizes)
    return Moments(excess, mean, square, shares, chosen, codes, size)


def likely_clump(found: Moments, seed: int = 0, n_obs: int = _MAX_LIKELY) -> float:
    """Mean excess of a clump, the same for all features, under which some of the cells are most likely.

    Each feature has the mean that its label's share says, and the dispersion that the moments leave beside clumps of that size.

    Parameters
    ----------
    found
        Moments within labels.
    seed
        Seed of the draw of cells.
    n_obs
        Number of cells at most.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> rng = np.random.default_rng(0)
    >>> counts = sparse.csr_matrix(rng.poisson(1.0, size=(200, 30)) * 1.0)
    >>> likely_clump(moments(counts, np.arange(200), np.full(200, 30.0))) < 0.01
    True
    """
    there, n_features = found.counts.shape
    n = min(there, n_obs, max(_MAX_VALUES // n_features, 16))
    some = np.sort(np.random.default_rng(seed).choice(there, n, replace=False))
    few = found._replace(counts=found.counts[some], codes=found.codes[some], library=found.library[some])

    def loss(log_clump: float) -> float:
        clump = float(np.exp(log_clump))
        return -float(label_log_likelihood(few, few.dispersions(clump), clump).double().sum())

    bounds = (float(np.log(CLUMPS[0])), float(np.log(CLUMPS[1])))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, options={"xatol": 0.05}).x))


@torch.no_grad()
def label_log_likelihood(found: Moments, inverse_dispersion: np.ndarray, clump: float | None) -> torch.Tensor:
    """Log-likelihood of cells whose means are what their label's shares say, nats, shape ``(n_obs,)``.

    Parameters
    ----------
    found
        The cells, and the shares.
    inverse_dispersion
        Of each feature, shape ``(n_features,)``.
    clump
        Mean excess of a clump, the same for all features; ``None`` for a plain negative binomial.
    """
    x = sparse.csr_matrix(found.counts, dtype=np.float32)
    n_features = x.shape[1]
    row_ptr, columns, values = (torch.as_tensor(part) for part in (x.indptr, x.indices, x.data))
    batch = sparse_batch(torch.sparse_csr_tensor(row_ptr, columns, values, x.shape), by_column=True)
    present, codes = np.unique(found.codes, return_inverse=True)
    # what a label was never seen with has next to no share there
    logits = torch.as_tensor(np.log(np.maximum(found.shares[present], 1e-12)), dtype=torch.float32)
    _, each = log_likelihood(
        "nb",
        batch,
        Factors(torch.eye(len(present))[torch.as_tensor(codes)], logits, torch.zeros(n_features)),
        log_library=torch.as_tensor(np.log(found.library), dtype=torch.float32)[:, None],
        log_theta=torch.as_tensor(np.log(inverse_dispersion), dtype=torch.float32),
        log_clump=None if clump is None else torch.full((n_features,), float(np.log(clump))),
    )
    return each
