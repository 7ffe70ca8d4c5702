"""From latents to an AnnData of counts: what generation from prior and diffusion model share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from isd._constants import OBSM_VAE, TARGET_SUM, UNS_KEY
from isd._progress import track
from isd.model._files import isd_version

#: Cells that are decoded together, with one random stream: results for a seed do not depend on how cells are batched.
TILE = 256
#: Keys of the random streams of a seed: latents, what stands in for what was not asked for, counts, cells that are
#: drawn anew (their number of tries follows), real cells that generation starts from.
LATENT_STREAM, TEMPLATE_STREAM, COUNTS_STREAM, RETRY_STREAM, START_STREAM = 0, 1, 2, 3, 4
#: Bytes above which dense results are refused.
DENSE_LIMIT = 2 * 1024**3


@dataclass
class Cells:
    """Latents and all else that the decoder needs to know of each cell.

    Parameters
    ----------
    latents
        ``(n, n_latent)``, on the VAE's own scale.
    log_library
        ``(n,)``.
    codes
        Batch and categorical covariates, ``(n, 1 + n_cat_covs)``.
    continuous
        Continuous covariates or ``None``.
    """

    latents: np.ndarray
    log_library: np.ndarray
    codes: np.ndarray
    continuous: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Cells:
        """Some of the cells."""
        continuous = None if self.continuous is None else self.continuous[rows]
        return Cells(self.latents[rows], self.log_library[rows], self.codes[rows], continuous)

    @classmethod
    def concat(cls, parts: Sequence[Cells]) -> Cells:
        """Cells of several parts, one below the other."""
        continuous = [p.continuous for p in parts if p.continuous is not None]
        return cls(
            np.concatenate([p.latents for p in parts]),
            np.concatenate([p.log_library for p in parts]),
            np.concatenate([p.codes for p in parts]),
            np.concatenate(continuous) if continuous else None,
        )

    def tensors(
        self, rows: slice, device: torch.device | str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Rows as tensors, in the order of the decoder's arguments."""
        as_tensor = torch.as_tensor
        return (
            as_tensor(self.latents[rows], device=device),
            as_tensor(self.log_library[rows], device=device).float()[:, None],
            as_tensor(self.codes[rows], device=device),
            None if self.continuous is None else as_tensor(self.continuous[rows], device=device).float(),
        )


def broadcast_library(library_size: float | np.ndarray, n_obs: int) -> np.ndarray:
    """Library sizes as an array of ``n_obs`` positive numbers."""
    library = np.asarray(library_size, dtype=float)
    if library.ndim > 1 or library.size not in (1, n_obs):
        raise ValueError(f"library_size must be one number or {n_obs}, one per cell; got shape {library.shape}.")
    library = np.broadcast_to(library.ravel(), (n_obs,)).copy()
    if not (np.isfinite(library) & (library >= 1)).all():
        raise ValueError("library_size must be finite and at least 1 count.")
    return library


def decode_counts(
    module: Any, cells: Cells, *, key: Sequence[int], first_tile: int = 0, progress: bool | None = None
) -> sparse.csr_matrix:
    """Draw counts for latents, tile by tile, as csr.

    Parameters
    ----------
    module
        :class:`isd.module.VAEModule`.
    cells
        What to decode.
    key
        Key of the random numbers; each tile of 256 cells has a stream of its own, keyed by this and its number.
    first_tile
        Number of the first tile, where the cells are part of more.
    progress
        Progress bar.
    """
    n = len(cells.latents)
    blocks = []
    for tile in track(range(0, n, TILE), "Decoding", progress=progress):
        rng = np.random.default_rng([*key, first_tile + tile // TILE])
        z, log_library, codes, continuous = cells.tensors(slice(tile, tile + TILE), module.device)
        blocks.append(module.sample_counts(z, log_library, codes, continuous, rng))
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))


def log_normalized(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """log1p of counts scaled to 10,000 a cell, as ``pp.recipe`` makes it."""
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1e-12)
    out = sparse.csr_matrix(counts.multiply((TARGET_SUM / totals)[:, None])).astype(np.float32)
    np.log1p(out.data, out=out.data)
    return out


def label_column(labels: np.ndarray, codes: np.ndarray) -> pd.Categorical:
    """Categorical column from codes; codes beyond the labels are missing values."""
    codes = np.where(codes >= len(labels), -1, codes)
    categories = pd.Index(labels.tolist())
    return pd.Categorical.from_codes(codes.tolist(), categories=categories)


def generated_adata(
    model: Any,
    vae: Any,
    cells: Cells,
    *,
    label_codes: np.ndarray | None,
    seed: int,
    provenance: dict[str, Any],
    counts: sparse.csr_matrix | None = None,
    progress: bool | None = None,
) -> AnnData:
    """Decode cells into an AnnData that looks like the one that the model was trained on.

    Parameters
    ----------
    model
        The model that generates; gives labels, features, layer and provenance.
    vae
        Its VAE.
    cells
        What to decode.
    label_codes
        Label of each cell, or ``None`` where none was asked for.
    seed
        Seed of the counts.
    provenance
        Entries of ``uns["isd"]``.
    counts
        Counts of the cells, where they are decoded already.
    progress
        Progress bar.

    Returns
    -------
    AnnData with counts in the layer (or ``X``) that the model reads, ``obs`` columns for label, batch and covariates,
    ``var`` of the training data, ``obsm["X_isd_vae"]`` and ``uns["isd"]``.
    """
    if counts is None:
        counts = decode_counts(vae.module, cells, key=(seed, COUNTS_STREAM), progress=progress)
    parts = generated_parts(model, vae, cells, label_codes=label_codes, provenance=provenance)
    return with_counts(parts, counts, model.layer)


def with_counts(parts: dict[str, Any], counts: sparse.csr_matrix, layer: str | None) -> AnnData:
    """AnnData of :func:`generated_parts` with counts where the model reads them."""
    if layer is None:
        return AnnData(X=counts, **parts)
    return AnnData(X=log_normalized(counts), layers={layer: counts}, **parts)


def generated_parts(
    model: Any,
    vae: Any,
    cells: Cells,
    *,
    label_codes: np.ndarray | None,
    provenance: dict[str, Any],
    first: int = 0,
) -> dict[str, Any]:
    """All of generated data but the counts, as arguments of :class:`anndata.AnnData`.

    Parameters
    ----------
    model, vae, cells, label_codes, provenance
        As for :func:`generated_adata`.
    first
        Number of the first cell, which gives it its name.
    """
    n = len(cells.latents)
    obs = pd.DataFrame(index=pd.Index([f"generated_{first + i}" for i in range(n)], dtype=object))
    if model.labels_key is not None:
        codes = np.full(n, len(model.labels)) if label_codes is None else label_codes
        obs[model.labels_key] = label_column(model.labels, codes)
    batch_key = model.setup_args.get("batch_key")
    if batch_key is not None:
        obs[batch_key] = label_column(model.batches, cells.codes[:, 0])
    for k, (key, categories) in enumerate(model.covariate_categories.items()):
        obs[key] = label_column(categories, cells.codes[:, 1 + k])
    if cells.continuous is not None:
        for k, key in enumerate(model.setup_args["continuous_covariate_keys"]):
            obs[key] = cells.continuous[:, k]
    var = model.feature_table.copy()
    uns: dict[str, Any] = {}
    if model.label_colors is not None:
        uns[f"{model.labels_key}_colors"] = list(model.label_colors)
    entries: dict[str, Any] = {
        "version": isd_version(),
        "model": type(model).__name__,
        "fingerprint": model.fingerprint,
        "vae_fingerprint": vae.fingerprint,
        "labels_key": model.labels_key,
        "layer": model.layer,
        "train_obs_hash": model.train_obs_hash,
        "likelihood": vae.module.likelihood,
        **provenance,
    }
    # h5ad has no None
    uns[UNS_KEY] = {k: v for k, v in entries.items() if v is not None}
    return {"obs": obs, "var": var, "obsm": {OBSM_VAE: cells.latents}, "uns": uns}
