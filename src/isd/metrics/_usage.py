"""Usage of a gene's isoforms: shares per label, distances between them, and switches. Totals of genes are kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from isd.metrics._genes import GeneMap


@dataclass(frozen=True, eq=False)
class IsoformUsage:
    """Outcome of :func:`isoform_usage`.

    Parameters
    ----------
    usage
        Share of each transcript in its gene's counts, per label, shape ``(n_labels, n_vars)``; NaN for genes with one
        transcript, without identifier, or with fewer than ``min_counts`` counts in the label.
    totals
        Counts of each gene per label, shape ``(n_labels, n_genes)``.
    labels
        The labels, in order.
    genes
        Which transcript belongs to which gene.

    Examples
    --------
    >>> from isd.metrics import isoform_usage
    >>> counts = np.array([[3, 1, 5], [1, 3, 5]])
    >>> found = isoform_usage(counts, ["g1", "g1", "g2"], ["a", "b"], min_counts=1)
    >>> found.labels.tolist(), found.usage.round(2).tolist(), found.totals.tolist()
    (['a', 'b'], [[0.75, 0.25, nan], [0.25, 0.75, nan]], [[4.0, 5.0], [4.0, 5.0]])
    """

    usage: np.ndarray
    totals: np.ndarray
    labels: np.ndarray
    genes: GeneMap


def label_sums(counts: Any, codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Sum of the rows of each label, dense, shape ``(n_labels, n_vars)``; codes below 0 belong to none."""
    rows = np.flatnonzero(codes >= 0)
    members = sparse.csr_matrix((np.ones(rows.size), (codes[rows], rows)), shape=(n_labels, codes.size))
    sums = members @ counts
    return np.asarray(sums.toarray() if sparse.issparse(sums) else sums, dtype=np.float64)


def isoform_usage(
    counts: Any,
    gene_ids: Sequence[Any] | np.ndarray | pd.Series,
    labels: Sequence[Any] | np.ndarray | None = None,
    *,
    min_counts: float = 50.0,
) -> IsoformUsage:
    """Usage of each gene's isoforms per label, from counts pooled over the label's cells.

    Parameters
    ----------
    counts
        Raw counts of transcripts, shape ``(n_obs, n_vars)``, csr or dense.
    gene_ids
        Gene of each transcript (``var["gene_id"]``), shape ``(n_vars,)``.
    labels
        Label of each cell, shape ``(n_obs,)``; ``None`` pools all cells. Cells whose label is ``None`` are left out.
    min_counts
        Counts that a gene needs in a label: shares of fewer are noise.

    Returns
    -------
    :class:`IsoformUsage`. Cost: one sparse product; ``O(n_labels n_vars)`` memory.

    Raises
    ------
    ValueError
        If lengths do not fit.

    Examples
    --------
    >>> found = isoform_usage(np.array([[30, 70, 5], [90, 10, 5]]), ["g", "g", "h"], ["a", "b"])
    >>> found.usage.round(1).tolist()
    [[0.3, 0.7, nan], [0.9, 0.1, nan]]
    """
    genes = GeneMap.from_ids(gene_ids)
    if genes.gene_of.size != counts.shape[1]:
        raise ValueError(f"counts has {counts.shape[1]} columns but {genes.gene_of.size} gene_ids were given.")
    if labels is None:
        names, codes = np.array(["all"], dtype=object), np.zeros(counts.shape[0], dtype=int)
    else:
        codes, names = pd.factorize(pd.Series(np.asarray(labels, dtype=object)), sort=True)
        names = np.asarray(names, dtype=object)
    if codes.size != counts.shape[0]:
        raise ValueError(f"counts has {counts.shape[0]} rows but {codes.size} labels were given.")
    sums = label_sums(counts, codes, names.size)
    usage, totals = usage_of_sums(sums, genes, min_counts)
    return IsoformUsage(usage, totals, names, genes)


def usage_of_sums(sums: np.ndarray, genes: GeneMap, min_counts: float) -> tuple[np.ndarray, np.ndarray]:
    """Usage ``(n_labels, n_vars)`` and gene totals ``(n_labels, n_genes)`` of counts summed per label."""
    totals = genes.sums(sums)
    usable = (totals >= max(min_counts, 1e-12)) & (genes.n_isoforms > 1)
    usage = sums / genes.spread(np.where(usable, totals, np.nan))
    return usage, totals


def _defined(usage: np.ndarray, genes: GeneMap) -> np.ndarray:
    """Genes whose usage is known, shape ``(n_labels, n_genes)``."""
    return genes.sums(~np.isnan(usage)) > 0


def usage_js_distance(p: np.ndarray, q: np.ndarray, genes: GeneMap) -> np.ndarray:
    """Jensen-Shannon distance between the usages of each gene, per label.

    Parameters
    ----------
    p, q
        Usage as in :class:`IsoformUsage`, shape ``(n_labels, n_vars)``.
    genes
        The map of transcripts to genes.

    Returns
    -------
    Square root of the divergence in bits, shape ``(n_labels, n_genes)``: 0 (the same) to 1 (no isoform in common), NaN
    where either usage is unknown.

    References
    ----------
    Lin 1991, IEEE Trans. Inf. Theory 37:145, equation 3.3 (two distributions of equal weight).

    Examples
    --------
    >>> genes = GeneMap.from_ids(["g", "g"])
    >>> usage_js_distance(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), genes).tolist()
    [[1.0]]
    """
    middle = (p + q) / 2
    terms = _entropy_terms(middle) - (_entropy_terms(p) + _entropy_terms(q)) / 2
    known = ~np.isnan(terms)
    divergence = genes.sums(np.where(known, terms, 0.0))
    return np.where(_defined(middle, genes), np.sqrt(np.clip(divergence, 0, 1)), np.nan)


def usage_entropy(usage: np.ndarray, genes: GeneMap) -> np.ndarray:
    """Entropy (bits) of each gene's usage per label, shape ``(n_labels, n_genes)``; NaN where it is unknown.

    Parameters
    ----------
    usage
        Shape ``(n_labels, n_vars)``.
    genes
        The map of transcripts to genes.

    Examples
    --------
    >>> usage_entropy(np.array([[0.5, 0.5]]), GeneMap.from_ids(["g", "g"])).tolist()
    [[1.0]]
    """
    terms = _entropy_terms(usage)
    return np.where(_defined(usage, genes), genes.sums(np.nan_to_num(terms, nan=0.0)), np.nan)


def _entropy_terms(p: np.ndarray) -> np.ndarray:
    positive = p > 0  # False for NaN, which stays
    return -p * np.log2(p, out=np.zeros_like(p), where=positive)


def dominant_isoform(usage: np.ndarray, genes: GeneMap) -> np.ndarray:
    """Column of each gene's most used isoform per label (the first of several), -1 where usage is unknown.

    Parameters
    ----------
    usage
        Shape ``(n_labels, n_vars)``.
    genes
        The map of transcripts to genes.

    Returns
    -------
    Whole numbers of shape ``(n_labels, n_genes)``.

    Examples
    --------
    >>> dominant_isoform(np.array([[0.2, 0.5, 0.8]]), GeneMap.from_ids(["g", "h", "g"])).tolist()
    [[2, 1]]
    """
    order, starts = genes.segments
    if not starts.size:
        return np.full((usage.shape[0], genes.genes.size), -1, dtype=np.int64)
    values = usage[:, order]
    largest = np.fmax.reduceat(values, starts, axis=1)
    lengths = np.diff(np.append(starts, order.size))
    # columns of a gene are in increasing order: the first that reaches the maximum
    columns = np.where(values == np.repeat(largest, lengths, axis=1), order, usage.shape[1])
    first = np.minimum.reduceat(columns, starts, axis=1)
    return np.where(first < usage.shape[1], first, -1)


def usage_change(usage: np.ndarray) -> np.ndarray:
    """Usage in each label minus the mean usage over the other labels: isoform switches, with sign and size.

    Parameters
    ----------
    usage
        Shape ``(n_labels, n_vars)``, NaN where unknown.

    Returns
    -------
    Shape ``(n_labels, n_vars)``; NaN where usage is unknown in the label or in all others.

    Examples
    --------
    >>> usage_change(np.array([[0.9], [0.1], [0.3]])).round(2).ravel().tolist()
    [0.7, -0.5, -0.2]
    """
    known = ~np.isnan(usage)
    total, n = np.where(known, usage, 0.0).sum(axis=0), known.sum(axis=0)
    others = n - known
    mean = np.divide(total - np.where(known, usage, 0.0), others, out=np.full(usage.shape, np.nan), where=others > 0)
    return usage - mean
