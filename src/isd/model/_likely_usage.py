"""Which of two likelihoods isoforms of one gene have, told from training cells before anything is trained."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from isd.model._dispersions import likely_clump, moments
from isd.model._usage import PSEUDOCOUNT, as_batch
from isd.module import ClumpedNegativeBinomial
from isd.nn import IsoformCounts, Segments, dirichlet_multinomial_log_likelihood, isoform_counts

#: Cells that moments and concentrations are taken of, and cells that are then told by them, at most.
_TOLD_BY, _TOLD, _CONCENTRATIONS = 1000, 128, 256
#: Values of cells by features that are dense at a time, at most.
_MAX_VALUES = 2**24
#: Share of the negative log-likelihood by which one of the two has to be better, to be that of all genes. Isoforms of a gene that vary
#: together within a label speak for Dirichlet-multinomial usage here, and a latent explains most of that: trained models differ by about a
#: thousandth less.
MARGIN = 2e-3
_STEPS, _RATE, _START = 60, 0.2, 50.0


class UsageChoice(NamedTuple):
    """What isoforms of a gene have in common.

    Parameters
    ----------
    likelihood
        ``"dirichlet-multinomial"`` or ``"nb"``.
    together
        Whether a gene's isoforms share its spread, shape ``(n_genes,)``: with ``"nb"`` none do.
    """

    likelihood: str
    together: np.ndarray


class UsageComparison(NamedTuple):
    """Nats that the negative binomial has more than the Dirichlet-multinomial.

    Parameters
    ----------
    by_cell
        Shape ``(n_cells,)``.
    by_gene, error
        Sum over cells and its standard error, shape ``(n_genes,)``.
    total
        Negative log-likelihood of all cells.
    """

    by_cell: np.ndarray
    by_gene: np.ndarray
    error: np.ndarray
    total: float


def likely_usage(
    counts: Any,
    rows: np.ndarray,
    gene_of: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    clumps: bool = True,
    seed: int = 0,
) -> UsageChoice:
    """Whether isoforms of a gene share its spread, or each is negative binomial by itself.

    One half of the cells gives means within labels, dispersions, sizes of clumps and concentrations; the other half is told by
    them under both likelihoods, and the first half by the second. Means are the same in both. Where one likelihood is clearly better, it
    is that of all genes. Where the two are alike, a gene's isoforms share its spread if that is better for this gene by a standard error.

    Parameters
    ----------
    counts
        Counts of isoforms, in memory or backed.
    rows
        Training rows.
    gene_of
        Gene of each isoform, from 0, shape ``(n_vars,)``.
    labels
        Code of each of ``rows``, shape ``(len(rows),)``.
    clumps
        Whether counts come in clumps.
    seed
        Seed of the halves.

    Returns
    -------
    :class:`UsageChoice`; Dirichlet-multinomial for fewer than 8 cells, which tell nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> rng = np.random.default_rng(0)
    >>> gene_of = np.repeat(np.arange(10), 2)
    >>> common_and_rare = np.tile([0.02, 0.5], 10)
    >>> alone = sparse.csr_matrix(rng.negative_binomial(0.5, common_and_rare, size=(100, 20)) * 1.0)
    >>> likely_usage(alone, np.arange(100), gene_of).likelihood
    'nb'
    """
    several = np.bincount(gene_of) > 1
    found = compare_usage(counts, rows, gene_of, labels=labels, clumps=clumps, seed=seed)
    if found is None or found.by_cell.sum() <= -MARGIN * found.total:
        return UsageChoice("dirichlet-multinomial", several)
    together = several & (found.by_gene < -found.error)
    if found.by_cell.sum() > MARGIN * found.total or not together.any():
        return UsageChoice("nb", np.zeros_like(several))
    return UsageChoice("dirichlet-multinomial", together)


def compare_usage(
    counts: Any,
    rows: np.ndarray,
    gene_of: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    clumps: bool = True,
    seed: int = 0,
) -> UsageComparison | None:
    """Cells told by others under both likelihoods, gene by gene; ``None`` for cells too few to tell.

    Parameters
    ----------
    counts, rows, gene_of, labels, clumps, seed
        As in :func:`likely_usage`.
    """
    n_vars, n_genes = len(gene_of), int(gene_of.max()) + 1
    codes = np.zeros(len(rows), dtype=np.int64) if labels is None else np.asarray(labels)
    order = np.random.default_rng([seed, 3]).permutation(len(rows))
    half = len(order) // 2
    if len(rows) < 8:
        return None
    genes = sparse.csr_matrix((np.ones(n_vars), (np.arange(n_vars), gene_of)), shape=(n_vars, n_genes))
    by_cell, by_gene, square, total, n_cells = [], np.zeros(n_genes), np.zeros(n_genes), 0.0, 0
    for some, others in ((order[half:], order[:half]), (order[:half], order[half:])):
        told_by = np.sort(some[:_TOLD_BY])
        told = np.sort(others[: min(_TOLD, max(_MAX_VALUES // n_vars, 16))])
        told = told[np.isin(codes[told], codes[told_by])]
        if not len(told):
            continue
        before = sparse.csr_matrix(counts[rows[told_by]], dtype=np.float64)
        here = sparse.csr_matrix(counts[rows[told]], dtype=np.float64)
        present, of_before = np.unique(codes[told_by], return_inverse=True)
        of_here = np.searchsorted(present, codes[told])
        library = np.maximum(np.asarray(before.sum(axis=1)).ravel(), 1.0)
        shares = _smoothed_shares(before, of_before, library.mean())
        alone = _by_feature(before, of_before, here, of_here, shares, clumps)
        total -= float(alone.sum())
        difference = np.asarray((genes.T @ alone.T).T)
        of_genes = np.asarray((genes.T @ shares.T).T)
        difference -= _by_feature(
            sparse.csr_matrix(before @ genes), of_before, sparse.csr_matrix(here @ genes), of_here, of_genes, clumps
        )
        difference -= _usage_by_gene(before, of_before, here, of_here, shares, gene_of, n_genes)
        by_cell.append(difference.sum(axis=1))
        by_gene += difference.sum(axis=0)
        square += np.square(difference).sum(axis=0)
        n_cells += len(told)
    if n_cells < 2:
        return None
    variance = (square - by_gene**2 / n_cells) / (n_cells - 1)
    return UsageComparison(np.concatenate(by_cell), by_gene, np.sqrt(np.maximum(n_cells * variance, 0.0)), total)


def _by_feature(
    before: sparse.csr_matrix,
    of_before: np.ndarray,
    here: sparse.csr_matrix,
    of_here: np.ndarray,
    shares: np.ndarray,
    clumps: bool,
) -> np.ndarray:
    """Log-likelihood of each count of ``here``, dense, with means of ``shares`` and dispersions and clumps of ``before``."""
    library = np.maximum(np.asarray(before.sum(axis=1)).ravel(), 1.0)
    found = moments(before, np.arange(before.shape[0]), library, labels=of_before)
    clump = likely_clump(found, n_obs=64) if clumps else 0.0
    theta = np.asarray(found.dispersions(clump), dtype=np.float64)
    size = np.maximum(np.asarray(here.sum(axis=1)).ravel(), 1.0)
    mean = np.maximum(shares[of_here] * size[:, None], 1e-12)
    # that of no clump at all, which is cheap, and of the few counts that are not zero
    values = -theta * np.log1p(mean / ((1.0 + clump) * theta))
    seen = here.tocoo()
    at = (seen.row, seen.col)
    mu, x = torch.as_tensor(mean[at]), torch.as_tensor(seen.data)
    px = ClumpedNegativeBinomial(mu, torch.as_tensor(theta[seen.col]), torch.full_like(mu, max(clump, 1e-8)))
    values[at] = px.log_prob(x).numpy()
    return values


def _smoothed_shares(counts: sparse.csr_matrix, codes: np.ndarray, weight: float) -> np.ndarray:
    """Share of each feature in each label's counts, with ``weight`` counts of all cells' shares added."""
    overall = np.asarray(counts.sum(axis=0)).ravel() + PSEUDOCOUNT
    overall /= overall.sum()
    members = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    sums = (members @ counts).toarray()
    shares: np.ndarray = (sums + weight * overall) / (sums.sum(axis=1, keepdims=True) + weight)
    return shares


def _usage_by_gene(
    before: sparse.csr_matrix,
    of_before: np.ndarray,
    here: sparse.csr_matrix,
    of_here: np.ndarray,
    shares: np.ndarray,
    gene_of: np.ndarray,
    n_genes: int,
) -> np.ndarray:
    """Nats of isoforms given genes, dense: usage of each label, a concentration of each gene fitted to ``before``."""
    genes = Segments(torch.as_tensor(gene_of), n_genes)
    logits = torch.as_tensor(np.log(shares), dtype=torch.float32)

    def parts(x: sparse.csr_matrix, codes: np.ndarray) -> tuple[IsoformCounts, torch.Tensor]:
        found = isoform_counts(as_batch(x), genes)
        return found, logits[torch.as_tensor(codes)[found.cell[found.pair]], found.column]

    found, at = parts(before[:_CONCENTRATIONS], of_before[:_CONCENTRATIONS])
    with torch.enable_grad():
        value = torch.full((n_genes,), float(np.log(_START)), requires_grad=True)
        middle = torch.tensor(float(np.log(_START)), requires_grad=True)
        optimizer = torch.optim.Adam([value, middle], lr=_RATE)
        for step in range(_STEPS):
            optimizer.param_groups[0]["lr"] = _RATE * (1 - step / _STEPS)
            optimizer.zero_grad()
            fit = dirichlet_multinomial_log_likelihood(found, at, value[found.gene], constant=False).sum()
            # as UsagePredictor has it: genes that say little take the concentration of all
            (0.5 * (value - middle).square().sum() - fit).backward()
            optimizer.step()
    found, at = parts(here, of_here)
    # each pair of a cell and a gene as a cell of its own
    each = found._replace(n_cells=len(found.cell), cell=torch.arange(len(found.cell)))
    values = np.zeros((here.shape[0], n_genes))
    with torch.no_grad():
        told = dirichlet_multinomial_log_likelihood(each, at, value[found.gene])
    values[found.cell.numpy(), found.gene.numpy()] = told.double().numpy()
    return values
