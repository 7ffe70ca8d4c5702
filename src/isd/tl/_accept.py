"""Rejection: only generated cells in which classifiers find what was asked for are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd.model._generated import COUNTS_STREAM, Cells, decode_counts, generated_adata
from isd.tl._guides import GuideSpec
from isd.tl._plan import Plan, stream_key


def accepted_cells(
    plan: Plan, specs: Sequence[GuideSpec], *, max_tries: int, progress: bool | None
) -> tuple[Cells, np.ndarray, sparse.csr_matrix, np.ndarray, pd.DataFrame]:
    """Draw each cell until every classifier finds its label in the counts.

    Parameters
    ----------
    plan
        What is to be generated. Attempt 0 is plain generation: cells that are accepted then are those of ``generate``
        without rejection.
    specs
        Classifiers, and the label that each is to find in each cell.
    max_tries
        Most attempts for a cell.
    progress
        Progress bars, those of the latents, of decoding and encoding, for each attempt.

    Returns
    -------
    Cells, their codes, their counts, the number of tries of each, and for each label the number of cells drawn and
    accepted, and their ratio.

    Raises
    ------
    RuntimeError
        If cells are still missing after ``max_tries`` attempts.
    """
    model, n = plan.model, len(plan.codes)
    missing, tries = np.arange(n), np.zeros(n, dtype=np.int64)
    kept: list[tuple[np.ndarray, Cells, np.ndarray, sparse.csr_matrix]] = []
    drawn = np.zeros(len(model.labels), dtype=np.int64)
    for attempt in range(max_tries):
        cells, codes = plan.cells(missing, attempt)
        key = (*stream_key(plan.seed, attempt), COUNTS_STREAM)
        counts = decode_counts(model.vae.module, cells, key=key, progress=progress)
        found = _found(plan, specs, missing, cells, counts, progress)
        tries[missing] += 1
        drawn += np.bincount(plan.codes[missing], minlength=len(drawn))
        at = np.flatnonzero(found)
        if at.size:
            kept.append((missing[at], cells.take(at), codes[at], counts[at]))
        missing = missing[~found]
        if not missing.size:
            break
    asked = np.bincount(plan.codes, minlength=len(drawn))
    accepted = asked - np.bincount(plan.codes[missing], minlength=len(drawn))
    table = pd.DataFrame(
        {"drawn": drawn, "accepted": accepted, "rate": accepted / np.maximum(drawn, 1)},
        index=pd.Index([str(label) for label in model.labels], name="label"),
    )[asked > 0]
    if missing.size:
        lacking = np.unique(plan.codes[missing])
        named = "; ".join(
            f"{model.labels[code]!r}: {int((plan.codes[missing] == code).sum())} of {asked[code]} cells missing, "
            f"{accepted[code] / drawn[code]:.1%} of {drawn[code]} drawn were accepted"
            for code in lacking
        )
        raise RuntimeError(
            f"after {max_tries} tries for each cell, {missing.size} of {n} cells are not accepted ({named}). "
            "Guide more (guidance_scale or classifier_scale above 1), raise max_tries, ask for fewer of these labels, "
            "or train the classifier and the model longer: labels that they confuse are hardly ever accepted."
        )
    rows = np.concatenate([part[0] for part in kept])
    back = np.argsort(rows)
    cells = Cells.concat([part[1] for part in kept]).take(back)
    counts = sparse.csr_matrix(sparse.vstack([part[3] for part in kept], format="csr")[back])
    return cells, np.concatenate([part[2] for part in kept])[back], counts, tries, table


def _found(
    plan: Plan,
    specs: Sequence[GuideSpec],
    rows: np.ndarray,
    cells: Cells,
    counts: sparse.csr_matrix,
    progress: bool | None,
) -> np.ndarray:
    """Whether all classifiers find in the counts what they look for."""
    if plan.model.vae.module.likelihood == "normal":
        # its decoded values stay fractional, and models read whole counts
        counts = counts.copy()
        counts.data = np.rint(counts.data)
        counts.eliminate_zeros()
    found = np.diff(counts.indptr) > 0  # a cell without counts is none of any label
    if not found.any():
        return found
    at = np.flatnonzero(found)
    fake = as_input(plan, rows[at], cells.take(at), counts[at])
    for spec in specs:
        known = {label: code for code, label in enumerate(spec.classifier.labels)}
        predicted = np.array([known[label] for label in spec.classifier.predict(fake, progress=progress)])
        found[at] &= predicted == spec.codes[rows[at]]
    forget(plan.model.vae, fake)
    return found


def as_input(plan: Plan, rows: np.ndarray, cells: Cells, counts: sparse.csr_matrix) -> AnnData:
    """Generated cells as models read them."""
    model = plan.model
    fake = generated_adata(
        model, model.vae, cells, label_codes=plan.codes[rows], seed=plan.seed, provenance={}, counts=counts
    )
    size_factor = model.setup_args.get("size_factor_key")
    if size_factor is not None:
        fake.obs[size_factor] = np.exp(cells.log_library) / float(model.vae.module.size_factor_scale)
    return fake


def forget(model: Any, adata: AnnData) -> None:
    """Let go of data that a model was asked about: scvi keeps hold of all that a model ever saw."""
    for store in (model._setup_adata_manager_store, model._per_instance_manager_store.get(model.id, {})):
        for key in [key for key, manager in store.items() if manager.adata is adata]:
            del store[key]
