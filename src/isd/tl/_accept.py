"""Rejection: only generated cells in which classifiers find what was asked for are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS

from isd._progress import track
from isd.model._generated import COUNTS_STREAM, TILE, Cells, decode_counts
from isd.tl._guides import GuideSpec
from isd.tl._plan import Plan, stream_key
from isd.tl._stream import Stream


@dataclass(frozen=True)
class Accepted:
    """Cells that classifiers accept.

    Parameters
    ----------
    cells
        What was decoded.
    codes
        Label, batch and covariates of each cell.
    tries
        Number of draws of each cell.
    n_network_calls
        Most network calls of a cell's draw.
    counts
        Counts, or ``None`` where they are on disk.
    """

    cells: Cells
    codes: np.ndarray
    tries: np.ndarray
    n_network_calls: int
    counts: sparse.csr_matrix | None

    def rates(self, labels: np.ndarray) -> pd.DataFrame:
        """Cells drawn and accepted of each label, and their ratio."""
        n = len(labels)
        accepted = np.bincount(self.codes[:, 0], minlength=n)[:n]
        drawn = np.bincount(self.codes[:, 0], weights=self.tries, minlength=n)[:n].astype(np.int64)
        return pd.DataFrame(
            {"drawn": drawn, "accepted": accepted, "rate": accepted / np.maximum(drawn, 1)},
            index=pd.Index([str(label) for label in labels], name="label"),
        )[accepted > 0]

    @classmethod
    def concat(cls, parts: Sequence[Accepted]) -> Accepted:
        """Cells of several parts, one below the other."""
        counts = [p.counts for p in parts if p.counts is not None]
        return cls(
            Cells.concat([p.cells for p in parts]),
            np.concatenate([p.codes for p in parts]),
            np.concatenate([p.tries for p in parts]),
            max(p.n_network_calls for p in parts),
            sparse.csr_matrix(sparse.vstack(counts, format="csr")) if counts else None,
        )


def accepted_cells(
    plan: Plan,
    specs: Sequence[GuideSpec],
    *,
    within: slice,
    max_tries: int,
    network_calls: Callable[[], int],
    stream: Stream | None = None,
    progress: bool | None = None,
) -> Accepted:
    """Draw each cell until every classifier finds its label in the counts, tile by tile.

    Each tile is drawn anew by itself, from streams of its own: its cells are the same in memory, on disk, in a part, and
    after an interruption.

    Parameters
    ----------
    plan
        What is to be generated. Attempt 0 is plain generation: cells that are accepted then are those of ``generate``
        without rejection.
    specs
        Classifiers, and the label that each is to find in each cell.
    within
        Which of the cells: whole tiles.
    max_tries
        Most attempts for a cell.
    network_calls
        Says how many network calls a cell of the last draw took.
    stream
        Where tiles are kept as they are done; ``None`` keeps them in memory.
    progress
        Progress bar over tiles.

    Raises
    ------
    RuntimeError
        If cells of a tile are still missing after ``max_tries`` attempts.
    """
    tiles = []
    for start in track(range(within.start, within.stop, TILE), "Drawing cells", progress=progress):
        saved = None if stream is None else stream.read_tile(start - within.start)
        if saved is not None:
            fixed = {name: saved.pop(name) for name in ("all_codes", "tries", "n_network_calls")}
            tile = Accepted(Cells(**saved), fixed["all_codes"], fixed["tries"], int(fixed["n_network_calls"]), None)
        else:
            rows = slice(start, min(start + TILE, within.stop))
            tile = _accepted_tile(plan, specs, rows, max_tries=max_tries, network_calls=network_calls)
            if stream is not None:
                about = {"all_codes": tile.codes, "tries": tile.tries, "n_network_calls": tile.n_network_calls}
                stream.write_tile(start - within.start, tile.counts, {**about, **vars(tile.cells)})
                tile = replace(tile, counts=None)
        tiles.append(tile)
    return Accepted.concat(tiles)


def _accepted_tile(
    plan: Plan, specs: Sequence[GuideSpec], rows: slice, *, max_tries: int, network_calls: Callable[[], int]
) -> Accepted:
    """Cells of one tile, each drawn until it is accepted."""
    tile, n = rows.start // TILE, rows.stop - rows.start
    missing, tries = np.arange(n), np.zeros(n, dtype=np.int64)
    kept: list[tuple[np.ndarray, Cells, np.ndarray, sparse.csr_matrix]] = []
    calls = 0
    for attempt in range(max_tries):
        cells, codes = plan.tile(rows, missing, attempt)
        key = (*stream_key(plan.seed, attempt, tile), COUNTS_STREAM)
        first_tile = 0 if attempt else tile
        counts = decode_counts(plan.model.vae.module, cells, key=key, first_tile=first_tile, progress=False)
        calls = max(calls, network_calls())
        found = _found(plan, specs, rows.start + missing, cells, counts)
        tries[missing] += 1
        at = np.flatnonzero(found)
        if at.size:
            kept.append((missing[at], cells.take(at), codes[at], counts[at]))
        missing = missing[~found]
        if not missing.size:
            break
    if missing.size:
        raise RuntimeError(_lacking(plan, rows, missing, tries, max_tries))
    back = np.argsort(np.concatenate([part[0] for part in kept]))
    return Accepted(
        cells=Cells.concat([part[1] for part in kept]).take(back),
        codes=np.concatenate([part[2] for part in kept])[back],
        tries=tries,
        n_network_calls=calls,
        counts=sparse.csr_matrix(sparse.vstack([part[3] for part in kept], format="csr")[back]),
    )


def _lacking(plan: Plan, rows: slice, missing: np.ndarray, tries: np.ndarray, max_tries: int) -> str:
    """What is said where cells are not accepted."""
    codes = plan.codes[rows]
    named = []
    for code in np.unique(codes[missing]):
        asked, lack = int((codes == code).sum()), int((codes[missing] == code).sum())
        drawn = int(tries[codes == code].sum())
        named.append(
            f"{plan.model.labels[code]!r}: {lack} of {asked} cells missing, {(asked - lack) / drawn:.1%} of {drawn} drawn "
            "were accepted"
        )
    return (
        f"after {max_tries} tries for each cell, {missing.size} of the cells {rows.start} to {rows.stop - 1} are not accepted "
        f"({'; '.join(named)}). Guide more (guidance_scale or classifier_scale above 1), raise max_tries, ask for fewer of "
        "these labels, or train the classifier and the model longer: labels that they confuse are hardly ever accepted."
    )


def _found(
    plan: Plan, specs: Sequence[GuideSpec], rows: np.ndarray, cells: Cells, counts: sparse.csr_matrix
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
    latents, log_library = encoded(plan.model.vae.module, cells.take(at), counts[at])
    for spec in specs:
        predicted = spec.classifier.probabilities(latents, log_library).argmax(1)
        found[at] &= predicted == spec.codes[rows[at]]
    return found


@torch.inference_mode()
def encoded(module: Any, cells: Cells, counts: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Latents of generated counts, and the log library sizes that the encoder read there.

    The same as encoding an AnnData of them, without making one for every few cells.

    Parameters
    ----------
    module
        :class:`isd.module.VAEModule`.
    cells
        Batch, covariates and depth of the cells.
    counts
        Their counts, ``(n, n_vars)``.
    """
    indptr, indices, values = (torch.from_numpy(a) for a in (counts.indptr, counts.indices, counts.data))
    x = torch.sparse_csr_tensor(indptr, indices, values, size=counts.shape)
    codes = torch.from_numpy(cells.codes)
    tensors = {REGISTRY_KEYS.X_KEY: x, REGISTRY_KEYS.BATCH_KEY: codes[:, :1]}
    if codes.shape[1] > 1:
        tensors[REGISTRY_KEYS.CAT_COVS_KEY] = codes[:, 1:]
    if cells.continuous is not None:
        tensors[REGISTRY_KEYS.CONT_COVS_KEY] = torch.from_numpy(cells.continuous).float()
    if module.use_size_factor:
        factors = np.exp(cells.log_library) / float(module.size_factor_scale)
        tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY] = torch.from_numpy(factors).float()[:, None].to(module.device)
    inputs = module._get_inference_input(tensors)
    mean = module.inference(**inputs)["qzm"].cpu().numpy()
    return mean, inputs["log_library"].cpu().numpy().ravel()


def forget(model: Any, adata: AnnData) -> None:
    """Let go of data that a model was asked about: scvi keeps hold of all that a model ever saw."""
    for store in (model._setup_adata_manager_store, model._per_instance_manager_store.get(model.id, {})):
        for key in [key for key, manager in store.items() if manager.adata is adata]:
            del store[key]
