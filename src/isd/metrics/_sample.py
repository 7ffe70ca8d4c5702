"""A set of cells in every space that metrics look at, and what a comparison of two such sets may use."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from isd._counts import get_counts
from isd.metrics._genes import GeneMap
from isd.metrics._labels import Labels
from isd.metrics._memorization import row_hashes
from isd.metrics._usage import label_sums
from isd.metrics._yardstick import Yardstick, log_normalize

#: The group of all cells together.
ALL = "all"
_CHUNK = 4096
#: Features whose correlations are compared, and genes whose two main isoforms are.
_N_CORRELATED, _N_PAIRS = 200, 200


@dataclass(frozen=True, eq=False)
class Sample:
    """Cells in every space.

    Parameters
    ----------
    points
        ``"features"`` (csr), ``"pcs"``, ``"log_totals"`` (one column), ``"residuals"`` (varying features minus their
        label's mean) and ``"pairs"`` (the same of the two main isoforms of genes), as far as asked for.
    labels
        Label of each cell, ``None`` where there is none.
    kept
        Rows whose counts are held.
    counts
        Counts of those rows, csr, columns in the yardstick's order; ``None`` if nobody asked.
    hashes
        Hash of each row's counts; ``None`` if nobody asked.
    """

    points: dict[str, Any]
    labels: np.ndarray
    kept: np.ndarray
    counts: sparse.csr_matrix | None = None
    hashes: np.ndarray | None = None

    def rows(self, group: str) -> np.ndarray:
        """Rows of a label, or of :data:`ALL`."""
        return np.arange(self.labels.size) if group == ALL else np.flatnonzero(self.labels == group)


@dataclass(frozen=True, eq=False)
class Frozen:
    """What training cells fix besides the yardstick.

    Parameters
    ----------
    labels
        Labels that have a mean of their own.
    correlated
        Positions among the yardstick's features of those whose correlations are compared.
    feature_means
        Their mean per label, and over all cells in the last row.
    pairs
        Columns of the two main isoforms of genes, first ones and then second ones; empty without genes.
    pair_means
        Their mean per label, and over all cells in the last row.
    genes
        Which transcript belongs to which gene; ``None`` if that is not known.
    switching
        Transcripts whose usage changes between labels by 0.1 or more in training cells, ``(n_labels, n_vars)``;
        ``None`` without genes.
    """

    labels: tuple[str, ...]
    correlated: np.ndarray
    feature_means: np.ndarray
    pairs: np.ndarray
    pair_means: np.ndarray
    genes: GeneMap | None = None
    switching: np.ndarray | None = None

    def residuals(self, values: np.ndarray, means: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Values minus the mean of their label (of all cells, for a label that training cells lack)."""
        position = {label: row for row, label in enumerate(self.labels)}
        return values - means[[position.get(label, len(self.labels)) for label in labels]]


def freeze(
    counts: sparse.csr_matrix, features: Any, labels: np.ndarray, known: tuple[str, ...], genes: GeneMap | None
) -> Frozen:
    """Fit on training cells: which features vary most, which isoforms are the main ones, and means per label."""
    from isd.metrics._usage import usage_change, usage_of_sums

    position = {label: row for row, label in enumerate(known)}
    codes = np.array([position.get(label, -1) for label in labels], dtype=int)
    sizes = np.bincount(codes[codes >= 0], minlength=len(known))

    def means(values: Any) -> np.ndarray:
        overall = np.asarray(values.mean(axis=0), dtype=np.float64).reshape(1, -1)
        per_label = label_sums(values, codes, len(known)) / np.maximum(sizes, 1)[:, None]
        return np.vstack([np.where(sizes[:, None] > 0, per_label, overall), overall])

    mean = np.asarray(features.mean(axis=0)).ravel()
    variance = np.asarray(features.multiply(features).mean(axis=0)).ravel() - mean**2
    correlated = np.sort(np.argsort(-variance, kind="stable")[:_N_CORRELATED])
    pairs, switching = np.empty(0, dtype=int), None
    if genes is not None:
        pairs = _main_isoforms(counts, genes)
        sums = label_sums(counts, codes, len(known)) if known else np.zeros((0, counts.shape[1]))
        with np.errstate(invalid="ignore"):
            switching = np.abs(usage_change(usage_of_sums(sums, genes, 50.0)[0])) >= 0.1
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    return Frozen(
        labels=known,
        correlated=correlated,
        feature_means=means(features[:, correlated]),
        pairs=pairs,
        pair_means=means(log_normalize(counts[:, pairs], totals=totals)) if pairs.size else np.empty((1, 0)),
        genes=genes,
        switching=switching,
    )


def _main_isoforms(counts: sparse.csr_matrix, genes: GeneMap) -> np.ndarray:
    """Columns of the two most abundant isoforms of the genes whose second one is seen most (in 5% of cells or more)."""
    sums = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    detected = np.bincount(counts.indices, minlength=counts.shape[1]) / counts.shape[0]
    order, starts = genes.segments
    by_sum = order[np.lexsort((-sums[order], genes.gene_of[order]))]
    several = np.flatnonzero(genes.n_isoforms > 1)
    first, second = by_sum[starts[several]], by_sum[starts[several] + 1]
    often = np.flatnonzero(detected[second] >= 0.05)
    chosen = often[np.argsort(-sums[second[often]], kind="stable")[:_N_PAIRS]]
    return np.concatenate([first[chosen], second[chosen]])


@dataclass(frozen=True, eq=False)
class Context:
    """What every comparison of one call of ``evaluate`` shares.

    Parameters
    ----------
    yardstick, frozen
        What training cells fixed.
    labels
        Labels and groups.
    train, reference
        Training cells (at most 50,000) and held-out cells.
    n_boot, n_jobs, max_cells, min_cells, seed
        Arguments of ``evaluate``.
    train_hashes
        Hashes of all training rows' counts, if asked for.
    cache
        What comparisons leave for the next one (floors, nearest distances).
    """

    yardstick: Yardstick
    frozen: Frozen
    labels: Labels
    train: Sample
    reference: Sample
    n_boot: int
    n_jobs: int
    max_cells: int
    min_cells: int | None
    seed: int
    train_hashes: np.ndarray | None = None
    cache: dict[Any, Any] = field(default_factory=dict)

    def seed_of(self, *names: str) -> int:
        """Seed of one comparison: the same whatever else is computed."""
        keys = (zlib.crc32(name.encode()) for name in names)
        return int(np.random.SeedSequence([self.seed, *keys]).generate_state(1)[0] >> 1)

    def smallest(self, min_n: int) -> int:
        """Number of cells that a group needs."""
        return min_n if self.min_cells is None else self.min_cells


def make_sample(
    yardstick: Yardstick,
    frozen: Frozen,
    adata: AnnData,
    layer: str | None,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    needs: frozenset[str],
    max_counts: int,
    seed: int,
) -> Sample:
    """Cells of an AnnData in the spaces that are needed, a few thousand at a time.

    Parameters
    ----------
    yardstick, frozen
        What training cells fixed.
    adata, layer
        Where the counts are.
    rows
        Rows to take, in increasing order.
    labels
        Label of each of them.
    needs
        Out of ``"residuals"``, ``"pairs"``, ``"counts"`` and ``"hashes"``.
    max_counts
        Largest number of rows whose counts are held, drawn with ``seed``.
    seed
        Seed of that draw.
    """
    counts = get_counts(adata, layer)
    columns = yardstick.align(adata.var_names)
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(rows.size)[:max_counts]) if "counts" in needs else np.empty(0, dtype=int)
    features, totals, pairs, held, hashes = [], [], [], [], []
    for start in range(0, max(rows.size, 1), _CHUNK):
        block = sparse.csr_matrix(counts[rows[start : start + _CHUNK]])
        if columns is not None:
            block = block[:, columns]
        features.append(yardstick.features(block))
        totals.append(np.asarray(block.sum(axis=1), dtype=np.float64).ravel())
        if "pairs" in needs and frozen.pairs.size:
            pairs.append(log_normalize(block[:, frozen.pairs], totals=totals[-1]).toarray())
        if "counts" in needs:
            held.append(block[kept[(kept >= start) & (kept < start + _CHUNK)] - start].astype(np.float32))
        if "hashes" in needs:
            hashes.append(row_hashes(block))
    stacked = sparse.csr_matrix(sparse.vstack(features, format="csr"))
    points: dict[str, Any] = {
        "features": stacked,
        "pcs": yardstick.project(stacked),
        "log_totals": np.log1p(np.concatenate(totals))[:, None],
    }
    if "residuals" in needs:
        values = stacked[:, frozen.correlated].toarray()
        points["residuals"] = frozen.residuals(values, frozen.feature_means, labels)
    if pairs:
        points["pairs"] = frozen.residuals(np.concatenate(pairs), frozen.pair_means, labels)
    return Sample(
        points=points,
        labels=labels,
        kept=kept,
        counts=sparse.csr_matrix(sparse.vstack(held, format="csr")) if held else None,
        hashes=np.concatenate(hashes) if hashes else None,
    )
