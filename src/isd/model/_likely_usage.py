"""Which of two likelihoods isoforms of one gene have, told from training cells before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse

from isd.model._dispersions import label_log_likelihood, likely_clump, moments
from isd.model._usage import PSEUDOCOUNT, as_batch
from isd.nn import Segments, dirichlet_multinomial_log_likelihood, isoform_counts

#: Cells that moments and concentrations are taken of, and cells that are then told by them, at most.
_TOLD_BY, _TOLD, _CONCENTRATIONS = 1000, 128, 256
#: Values of cells by features that are dense at a time, at most.
_MAX_VALUES = 2**24
#: Share of the negative log-likelihood by which Dirichlet-multinomial usage has to be better. Isoforms of a gene that vary together within
#: a label speak for it here, and a latent explains most of that: trained models differ by about a thousandth less.
MARGIN = 2e-3
_STEPS, _RATE, _START = 60, 0.2, 50.0


def likely_usage(
    counts: Any,
    rows: np.ndarray,
    gene_of: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    clumps: bool = True,
    seed: int = 0,
) -> str:
    """Whether isoforms of a gene share its spread, or each is negative binomial by itself.

    One half of the cells gives means within labels, dispersions, sizes of clumps and concentrations; the other half is told by
    them under both likelihoods. Means are the same in both.

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
    ``"dirichlet-multinomial"`` or ``"nb"``; the first for fewer than 8 cells, which tell nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> rng = np.random.default_rng(0)
    >>> gene_of = np.repeat(np.arange(10), 2)
    >>> alone = sparse.csr_matrix(rng.negative_binomial(0.5, 0.1, size=(100, 20)) * 1.0)
    >>> likely_usage(alone, np.arange(100), gene_of)
    'nb'
    """
    difference, total = compare_usage(counts, rows, gene_of, labels=labels, clumps=clumps, seed=seed)
    return "nb" if difference.sum() > -MARGIN * total else "dirichlet-multinomial"


def compare_usage(
    counts: Any,
    rows: np.ndarray,
    gene_of: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    clumps: bool = True,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """Nats that the negative binomial has more than the Dirichlet-multinomial, by cell, and the negative log-likelihood of all.

    Parameters
    ----------
    counts, rows, gene_of, labels, clumps, seed
        As in :func:`likely_usage`.
    """
    n_vars, n_genes = len(gene_of), int(gene_of.max()) + 1
    codes = np.zeros(len(rows), dtype=np.int64) if labels is None else np.asarray(labels)
    order = np.random.default_rng([seed, 3]).permutation(len(rows))
    half = len(order) // 2
    told_by = np.sort(order[half:][:_TOLD_BY])
    told = np.sort(order[:half][: min(_TOLD, max(_MAX_VALUES // n_vars, 16))])
    told = told[np.isin(codes[told], codes[told_by])]
    if len(rows) < 8 or not len(told):
        return np.full(1, -np.inf), 0.0
    genes = sparse.csr_matrix((np.ones(n_vars), (np.arange(n_vars), gene_of)), shape=(n_vars, n_genes))
    before = sparse.csr_matrix(counts[rows[told_by]], dtype=np.float64)
    here = sparse.csr_matrix(counts[rows[told]], dtype=np.float64)
    library = np.maximum(np.asarray(before.sum(axis=1)).ravel(), 1.0)
    present, of_before = np.unique(codes[told_by], return_inverse=True)
    of_here = np.searchsorted(present, codes[told])
    shares = _smoothed_shares(before, of_before, library.mean())
    values = []
    for groups in (None, genes):
        found = moments(before, np.arange(len(told_by)), library, groups=groups, labels=of_before)
        clump = likely_clump(found, n_obs=64) if clumps else None
        cells = found._replace(
            counts=here if groups is None else sparse.csr_matrix(here @ groups),
            shares=(shares if groups is None else np.asarray((groups.T @ shares.T).T)).astype(np.float32),
            codes=of_here,
            library=np.maximum(np.asarray(here.sum(axis=1)).ravel(), 1.0),
        )
        values.append(label_log_likelihood(cells, found.dispersions(clump or 0.0), clump).double().numpy())
    usage = _usage_log_likelihood(before, of_before, here, of_here, shares, gene_of, n_genes)
    return values[0] - values[1] - usage, -float(values[0].sum())


def _smoothed_shares(counts: sparse.csr_matrix, codes: np.ndarray, weight: float) -> np.ndarray:
    """Share of each feature in each label's counts, with ``weight`` counts of all cells' shares added."""
    overall = np.asarray(counts.sum(axis=0)).ravel() + PSEUDOCOUNT
    overall /= overall.sum()
    members = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    sums = (members @ counts).toarray()
    shares: np.ndarray = (sums + weight * overall) / (sums.sum(axis=1, keepdims=True) + weight)
    return shares


def _usage_log_likelihood(
    before: sparse.csr_matrix,
    of_before: np.ndarray,
    here: sparse.csr_matrix,
    of_here: np.ndarray,
    shares: np.ndarray,
    gene_of: np.ndarray,
    n_genes: int,
) -> np.ndarray:
    """Nats of isoforms given genes: usage of each label, a concentration of each gene fitted to ``before``."""
    genes = Segments(torch.as_tensor(gene_of), n_genes)
    logits = torch.as_tensor(np.log(shares), dtype=torch.float32)

    def parts(x: sparse.csr_matrix, codes: np.ndarray) -> tuple[Any, torch.Tensor]:
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
    with torch.no_grad():
        each: np.ndarray = dirichlet_multinomial_log_likelihood(found, at, value[found.gene]).double().numpy()
    return each
