"""Genes whose isoforms are worth a look: chosen by rule, not by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import GENE_ID, GENE_NAME
from isd.pl._cells import Reference, Sample, choose_cells

#: Counts of a gene in a label below which its usage is not looked at.
_MIN_COUNTS = 50


def choose_genes(
    real: AnnData,
    generated: AnnData,
    *,
    labels_key: str | None,
    layer: str | None,
    reference: Reference = "test",
    n_switching: int = 2,
    n_furthest: int = 2,
    max_cells: int = 20_000,
    seed: int = 0,
) -> list[tuple[str, str]]:
    """Genes that switch isoforms between labels of real cells, and genes whose usage generated cells get wrong.

    Parameters
    ----------
    real, generated
        Cells with counts and ``var["gene_id"]`` (or ``"gene_name"``).
    labels_key, layer, reference, max_cells, seed
        As for :func:`isd.pl.isoform_usage`.
    n_switching
        Genes whose usage in one label differs most from all real cells together.
    n_furthest
        Further genes whose usage in generated cells differs most from real ones, beyond the scatter of
        counts (mean over labels, weighted by counts).

    Returns
    -------
    Pairs of a gene and the reason; empty where no gene has two isoforms and 50 counts in a label.
    """
    column = next((name for name in (GENE_ID, GENE_NAME) if name in real.var), None)
    if column is None:
        return []
    pair = choose_cells(
        real, generated, labels_key=labels_key, layer=layer, groups=None, reference=reference, max_cells=max_cells,
        seed=seed,
    )  # fmt: skip
    codes, genes = pd.factorize(real.var[column].astype(object).map(str, na_action="ignore"))
    known = codes >= 0
    codes = codes[known]
    groups: tuple[str | None, ...] = pair.groups or (None,)
    usage, totals = {}, {}
    for name, sample in (("real", pair.real), ("generated", pair.generated)):
        sums = _sums(sample, groups)[:, known]
        totals[name] = _by_gene(sums, codes, len(genes))
        usage[name] = sums / np.maximum(totals[name], 1e-12)[:, codes]
    several = np.bincount(codes, minlength=len(genes)) > 1
    enough = {name: (of >= _MIN_COUNTS) & several for name, of in totals.items()}
    overall = (usage["real"] * totals["real"][:, codes]).sum(axis=0) / np.maximum(totals["real"].sum(axis=0), 1e-12)[
        codes
    ]
    # total variation: the share of counts that would have to change isoform
    switch = _by_gene(np.abs(usage["real"] - overall), codes, len(genes)) / 2
    error = _by_gene(np.abs(usage["real"] - usage["generated"]), codes, len(genes)) / 2
    switching = np.where(enough["real"], switch, 0.0).max(axis=0)
    both = enough["real"] & enough["generated"]
    weight = np.where(both, totals["real"], 0.0)
    # counts scatter: what two samples of the same usage would differ by on average is no error
    scatter = sum(1 / np.maximum(of, 1) for of in totals.values())
    expected = _by_gene(np.sqrt(usage["real"] * (1 - usage["real"])), codes, len(genes)) * np.sqrt(
        scatter / (2 * np.pi)
    )
    error = np.maximum(error - expected, 0.0)
    furthest = (error * weight).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-12)
    chosen: dict[int, str] = {}
    for score, n, reason in (
        (switching, n_switching, "one of the genes whose usage differs most between labels of real cells"),
        (furthest, n_furthest, "one of the genes whose usage in generated cells differs most from real cells"),
    ):
        order = [int(i) for i in np.argsort(-score, kind="stable") if score[i] > 0 and int(i) not in chosen]
        chosen |= dict.fromkeys(order[:n], reason)
    return [(str(genes[i]), reason) for i, reason in chosen.items()]


def _sums(sample: Sample, groups: tuple[str | None, ...]) -> np.ndarray:
    """Counts of each feature pooled over each label's cells, shape ``(n_groups, n_vars)``."""
    masks = [np.ones(sample.n, bool) if group is None else sample.labels == group for group in groups]
    return np.stack([np.asarray(sample.counts[mask].sum(axis=0, dtype=np.float64)).ravel() for mask in masks])


def _by_gene(values: np.ndarray, codes: np.ndarray, n_genes: int) -> np.ndarray:
    return np.stack([np.bincount(codes, row, n_genes) for row in values])
