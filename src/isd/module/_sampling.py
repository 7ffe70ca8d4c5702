"""Drawing counts from rates, exactly as many as asked for, without a draw for every feature that stays zero."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

#: Standard deviations by which the first stretch of time is longer than what the total takes on average.
_MARGIN = 3.0


def gamma_rates(mean: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    r"""Gamma-distributed rates with the given mean and shape, the mixing part of a negative binomial.

    .. math:: \lambda \sim \mathrm{Gamma}(\theta, \theta / \mu), \quad
              x \mid \lambda \sim \mathrm{Poisson}(\lambda) \;\Rightarrow\; x \sim \mathrm{NB}(\mu, \theta)

    Parameters
    ----------
    mean, theta
        Mean and inverse dispersion, shape ``(n_obs, n_vars)`` (``theta`` may broadcast).
    rng
        Source of randomness.
    """
    theta = np.broadcast_to(theta, mean.shape)
    draws = rng.standard_gamma(theta.astype(np.float32), dtype=np.float32)
    # float32 gamma draws with a tiny shape underflow to 0: a rate of zero, which is what they stand for
    return mean * (draws / theta)


def multinomial_row(rates: np.ndarray, total: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features that have counts, in rising order, and their counts: exactly ``total``, in proportion to ``rates``.

    Parameters
    ----------
    rates
        Non-negative, shape ``(n_vars,)``. Without any positive rate, all are taken as equal.
    total
        Number of counts.
    rng
        Source of randomness.

    Examples
    --------
    >>> import numpy as np
    >>> index, counts = multinomial_row(np.array([1.0, 0.0, 3.0]), 8, np.random.default_rng(0))
    >>> index.tolist(), counts.sum().item()
    ([0, 2], 8)
    """
    n_vars = len(rates)
    cumulative = np.cumsum(rates, dtype=np.float64)
    if not cumulative[-1] > 0:
        cumulative = np.arange(1, n_vars + 1, dtype=np.float64)
    if total <= n_vars:
        # one search per count is cheaper than one binomial per feature
        return _runs(_search(cumulative, total, rng))
    shares = np.diff(cumulative, prepend=0.0) / cumulative[-1]
    counts = rng.multinomial(total, shares / max(shares.sum(), 1.0))
    index = np.flatnonzero(counts)
    return index, counts[index]


def draw_counts(
    mean: Tensor,
    theta: Tensor | None,
    totals: np.ndarray,
    rng: np.random.Generator,
    *,
    clump: Tensor | None = None,
    exact: bool = True,
) -> sparse.csr_matrix:
    r"""Over-dispersed counts of some rows, in time that follows the counts and not the features.

    Wanted are Gamma rates :math:`\lambda_j \sim \mathrm{Gamma}(\theta_j, \theta_j / \mu_j)` and, given them, a multinomial with
    the row's total. Most features of a wide row get no count, so their rates need not be known: let counts come in
    over time, those of feature :math:`j` at rate :math:`\lambda_j`. The first ``total`` of them are that multinomial. Up to
    time :math:`t`, each feature has :math:`\mathrm{NB}(t \mu_j, \theta_j)` counts, which is a Poisson number of clusters,

    .. math:: K_j \sim \mathrm{Poisson}\!\left(\theta_j \log(1 + t \mu_j / \theta_j)\right),

    of logarithmic sizes. Clusters of all features together are one Poisson number and one search for each of them. At a
    time by which there are enough counts, ``total`` of them are kept at random, since they came in at independent uniform
    times; where there are not yet enough, time goes on with the rates' posterior. Nothing is approximated.

    With ``clump``, it is clumps that come in over time, each of a geometric number of counts, until there are ``total`` counts;
    of the last clump, so many as are missing.

    Parameters
    ----------
    mean
        Means, shape ``(n_obs, n_vars)``; only their ratios matter where totals are exact.
    theta
        Inverse dispersion, of a shape that broadcasts to that of ``mean``; ``None`` for Poisson counts.
    totals
        Total counts of each row, at least 1.
    rng
        Source of randomness: each row gets a stream of its own from it.
    clump
        Mean excess of a clump of each feature, shape ``(n_vars,)``; ``None`` for single counts. Not for Poisson counts.
    exact
        Whether rows have exactly these totals. Otherwise every feature is negative binomial by itself (``totals`` only
        says which way is quicker), and a row has at least one count.

    Returns
    -------
    csr matrix of ``float32`` counts, indices sorted.

    References
    ----------
    Quenouille, A relation between the logarithmic, Poisson, and negative binomial series (1949); for the sizes Kemp,
    Efficient generation of logarithmically distributed pseudo-random variables (1981), algorithm LK.

    Examples
    --------
    >>> import numpy as np, torch
    >>> counts = draw_counts(torch.ones(1, 500), torch.ones(500), np.array([40]), np.random.default_rng(0))
    >>> counts.shape, counts.sum().item()
    ((1, 500), 40.0)
    """
    n_obs, n_vars = mean.shape
    streams = rng.spawn(n_obs)
    totals = np.asarray(totals).astype(np.int64)
    wide = totals <= n_vars
    excess = None
    if clump is not None and theta is not None:
        mean, excess = mean / (1 + clump), clump.double().cpu().numpy()
    means = mean.cpu().numpy()
    thetas = None if theta is None else np.broadcast_to(theta.cpu().numpy(), means.shape)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    if theta is not None and wide.any():
        times = np.ones(n_obs)
        if exact:
            times = _times(mean.sum(1).double().cpu().numpy(), (mean.square() / theta).sum(1).cpu().numpy(), totals)
        ratio_tensor = mean * torch.as_tensor(times, dtype=mean.dtype, device=mean.device)[:, None] / theta
        # running sums of tiny rates need more digits; torch's are several times quicker than numpy's
        cumulative = torch.cumsum(torch.log1p(ratio_tensor) * theta, 1, dtype=torch.float64).cpu().numpy()
        ratio = ratio_tensor.cpu().numpy()
    for i, stream in enumerate(streams):
        total = int(totals[i])
        if thetas is None:
            if not exact:
                total = max(int(stream.poisson(means[i].sum(dtype=np.float64))), 1)
            rows.append(multinomial_row(means[i], total, stream))
        elif wide[i]:
            goal = total if exact else None
            found = _first_counts(means[i], thetas[i], cumulative[i], ratio[i], times[i], goal, stream)
            rows.append(found if excess is None else clumps_of_counts(*found, excess, goal, stream))
        else:
            rates = gamma_rates(means[i], thetas[i], stream)
            if not exact:
                counts = stream.poisson(rates)
                index = np.flatnonzero(counts)
                index, counts = (index, counts[index]) if index.size else multinomial_row(rates, 1, stream)
                if excess is not None:
                    index, counts = clumps_of_counts(index, counts, excess, None, stream)
                rows.append((index, counts))
            elif excess is None:
                rows.append(multinomial_row(rates, total, stream))
            else:
                rows.append(_clumps_row(rates, excess, total, stream))
    return csr_rows(rows, n_vars)


def _times(expected: np.ndarray, spread: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Time by which each row most likely has its total: on average a few standard deviations more than it takes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = totals / expected
        deviation = np.sqrt(totals + unit**2 * spread) / totals
        times = unit * (1.0 + np.minimum(_MARGIN * deviation, 1.0))
    # rows without rates have no time: they fall back to equal rates
    return np.where(np.isfinite(times), times, 1.0)


def _first_counts(
    mean: np.ndarray,
    theta: np.ndarray,
    cumulative: np.ndarray,
    ratio: np.ndarray,
    time: float,
    total: int | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The first ``total`` counts of a row, or all up to time 1 (and at least one)."""
    if not (cumulative[-1] > 0 and np.isfinite(cumulative[-1])):
        return multinomial_row(np.zeros(len(mean)), total or 1, rng)
    index, counts = _clustered(cumulative, ratio, rng)
    if total is None:
        if index.size:
            return index, counts
        total = 1
    missing = total - int(counts.sum())
    if missing <= 0:
        return _keep(index, counts, total, rng)
    # not yet enough: what came in so far says something about the rates, and time goes on with those
    mean, theta = mean.astype(np.float64), theta.astype(np.float64)
    new, more = index, counts
    while missing > 0:
        posterior = theta.copy()
        posterior[new] += more
        mean = mean * posterior / (theta + mean * time)
        theta = posterior
        time = float(_times(mean.sum(), (mean**2 / theta).sum(), np.asarray(missing)))
        ratio = mean * time / theta
        new, more = _clustered(np.cumsum(theta * np.log1p(ratio)), ratio, rng)
        if more.sum() > missing:
            new, more = _keep(new, more, missing, rng)
        index, counts = _add(np.concatenate([index, new]), np.concatenate([counts, more]))
        missing -= int(more.sum())
    return index, counts


def clumps_of_counts(
    index: np.ndarray, number: np.ndarray, excess: np.ndarray, total: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Features and their counts, where so many clumps came in.

    Parameters
    ----------
    index, number
        Features, in rising order, and numbers of clumps.
    excess
        Mean excess of a clump of each feature.
    total
        Counts after which no more are taken, at most the number of clumps; ``None`` for all.
    rng
        Source of randomness.

    Examples
    --------
    >>> import numpy as np
    >>> index, number = np.array([0, 3]), np.array([5, 4])
    >>> found = clumps_of_counts(index, number, np.full(4, 0.5), 7, np.random.default_rng(0))
    >>> found[0].tolist(), found[1].sum().item()
    ([0, 3], 7)
    """
    chance = 1.0 / (1.0 + excess[index])
    if total is None:
        return index, number + rng.negative_binomial(number, chance)
    # given the rates, clumps come in an order that says nothing of their features
    owner = rng.permutation(np.repeat(np.arange(len(index)), number))
    sizes = rng.geometric(chance[owner])
    ends = np.cumsum(sizes)
    last = int(np.searchsorted(ends, total))
    sizes[last] -= ends[last] - total
    counts = np.bincount(owner[: last + 1], sizes[: last + 1], minlength=len(index)).astype(np.int64)
    left = counts > 0
    return index[left], counts[left]


def _clumps_row(
    rates: np.ndarray, excess: np.ndarray, total: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`multinomial_row`, for clumps: many at once while surely more are needed, the last ones in order."""
    rates = rates.astype(np.float64)
    shares = rates / rates.sum() if rates.sum() > 0 else np.full(len(rates), 1.0 / len(rates))
    shares /= max(shares.sum(), 1.0)
    size = 1.0 + float(shares @ excess)
    # a geometric number of mean 1 + r has a second moment of (1 + r)(1 + 2r)
    deviation = math.sqrt(max(float(shares @ ((1.0 + excess) * (1.0 + 2.0 * excess))) - size**2, 0.0))
    counts = np.zeros(len(rates), dtype=np.int64)
    missing = total
    while missing > len(rates):
        number = missing / size
        surely = int(number - 8.0 * (deviation / size) * math.sqrt(number))
        if surely < 1:
            break
        more = rng.multinomial(surely, shares)
        some = np.flatnonzero(more)
        more[some] += rng.negative_binomial(more[some], 1.0 / (1.0 + excess[some]))
        if more.sum() > missing:
            continue
        counts += more
        missing -= int(more.sum())
    if missing:
        index, clumps = multinomial_row(shares, missing, rng)
        index, more = clumps_of_counts(index, clumps, excess, missing, rng)
        counts[index] += more
    index = np.flatnonzero(counts)
    return index, counts[index]


def _clustered(cumulative: np.ndarray, ratio: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features with counts and their counts: as many clusters as their rates give, of logarithmic sizes."""
    index = _search(cumulative, int(rng.poisson(cumulative[-1])), rng)
    odds = ratio[index].astype(np.float64)
    sizes = np.ones(len(index), dtype=np.int64)
    # uniform on (0, 1]: their logarithms are finite
    v = 1.0 - rng.random(len(index))
    large = np.flatnonzero(v * (1.0 + odds) < odds)
    if large.size:
        q = -np.expm1((rng.random(large.size) - 1.0) * np.log1p(odds[large]))
        q = np.clip(q, 1e-300, 1.0 - 2.0**-53)
        # beyond what any cell holds, sizes need not be told apart
        sizes[large] += np.minimum(np.log(v[large]) / np.log(q), 2.0**40).astype(np.int64)
    return _add(index, sizes)


def _search(cumulative: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` draws of a feature in proportion to its step, in rising order."""
    # searching for sorted points touches memory in order
    points = np.sort(rng.random(n)) * cumulative[-1]
    return np.minimum(np.searchsorted(cumulative, points, side="right"), len(cumulative) - 1)


def _keep(index: np.ndarray, counts: np.ndarray, total: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``total`` of the counts, at random."""
    ends = np.cumsum(counts)
    n = int(ends[-1])
    drop = n - total
    if not drop:
        return index, counts
    # draw whichever are fewer; both take time and memory in proportion to ``total``
    chosen = rng.choice(n, min(drop, total), replace=False, shuffle=False)
    drawn = np.bincount(np.searchsorted(ends, chosen, side="right"), minlength=len(index))
    counts = counts - drawn if drop <= total else drawn
    left = counts > 0
    return index[left], counts[left]


def _runs(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different values of a sorted array, and how often each occurs."""
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    return index[starts], np.diff(starts, append=len(index))


def _add(index: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features in rising order, each once, with the sum of its counts."""
    if not index.size:
        return index, counts
    step = np.diff(index, prepend=-1)
    if step.min() < 0:
        order = np.argsort(index, kind="stable")
        index, counts = index[order], counts[order]
        step = np.diff(index, prepend=-1)
    starts = np.flatnonzero(step)
    return index[starts], np.add.reduceat(counts, starts)


def csr_rows(rows: list[tuple[np.ndarray, np.ndarray]], n_vars: int) -> sparse.csr_matrix:
    """Rows, each its columns and its counts, as one ``float32`` csr matrix of shape ``(len(rows), n_vars)``."""
    indptr = np.concatenate([[0], np.cumsum([len(index) for index, _ in rows])])
    indices = np.concatenate([index for index, _ in rows]).astype(np.int32)
    data = np.concatenate([counts for _, counts in rows]).astype(np.float32)
    return sparse.csr_matrix((data, indices, indptr.astype(np.int32)), shape=(len(rows), n_vars))
