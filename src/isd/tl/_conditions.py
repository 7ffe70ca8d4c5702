"""Batch and covariates of generated cells, and training rows that stand in for what was not asked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from isd.model._latent_diffusion import LatentDiffusion
from isd.tl._labels import code_of

#: Column of a model's codes that holds the batch; that of the first covariate follows.
_BATCH = 1


def asked_codes(model: LatentDiffusion, batch: Any, covariates: Mapping[str, Any] | None) -> dict[int, int]:
    """Code that is asked for in each column of the model's codes: batch and categorical covariates.

    Raises
    ------
    TypeError
        If ``covariates`` is no mapping.
    ValueError
        If a batch, a covariate or a category is unknown, or has no training cells.
    """
    trained = model.template_codes_
    asked: dict[int, int] = {}
    names: dict[int, str] = {}
    if batch is not None:
        asked[_BATCH] = model.vae._batch_code(batch)
        names[_BATCH] = f"batch {batch!r}"
    if covariates is not None and not isinstance(covariates, Mapping):
        raise TypeError(f"covariates must be a mapping such as {{'donor': 'd1'}}, got {type(covariates).__name__}.")
    known = model.covariate_categories
    for key, value in (covariates or {}).items():
        if key not in known:
            batch_key = model.setup_args.get("batch_key")
            hint = f" {key!r} is the model's batch: give batch={value!r}." if key == batch_key else ""
            raise ValueError(
                f"covariates names {key!r}, but the categorical covariates of the model are {list(known)} "
                f"(categorical_covariate_keys of setup_anndata).{hint}"
            )
        column = _BATCH + 1 + list(known).index(key)
        asked[column] = code_of(value, known[key], key, f"categories of {key!r}")
        names[column] = f"{key} {value!r}"
    for column, code in asked.items():
        if not (trained[:, column] == code).any():
            raise ValueError(f"{names[column]} has no training cells; the model cannot have learnt it.")
    return asked


def template_rows(
    model: LatentDiffusion, codes: np.ndarray, asked: Mapping[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Training row that stands in for what is not asked for (batch, covariates, depth): one of the same label.

    Parameters
    ----------
    model
        The model.
    codes
        Label codes of the cells.
    asked
        What :func:`asked_codes` gave.
    rng
        Source of randomness.

    Raises
    ------
    ValueError
        If a label has no training cells.
    """
    trained = model.template_codes_
    allowed = np.ones(len(trained), dtype=bool)
    for column, code in asked.items():
        allowed &= trained[:, column] == code
    out = np.zeros(len(codes), dtype=int)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        same = np.ones(len(trained), dtype=bool) if code == len(model.labels) else trained[:, 0] == code
        if not same.any():
            raise ValueError(f"label {model.labels[code]!r} has no training cells; the model cannot have learnt it.")
        # a combination that was never seen: the rest of the row is taken from what was asked for, else from the label
        pool = next(p for p in (same & allowed, allowed, same) if p.any())
        out[rows] = rng.choice(np.flatnonzero(pool), size=len(rows))
    return out


def full_codes(
    model: LatentDiffusion, codes: np.ndarray, templates: np.ndarray, asked: Mapping[int, int]
) -> np.ndarray:
    """Codes of label, batch and covariates of each cell: those asked for, the others of its training row."""
    out = model.template_codes_[templates].copy()
    out[:, 0] = codes
    for column, code in asked.items():
        out[:, column] = code
    return out


def extrapolated(model: LatentDiffusion, codes: np.ndarray) -> np.ndarray:
    """Whether no training cell has the label, batch and covariates of a cell together; warns and names them.

    Parameters
    ----------
    model
        The model.
    codes
        Codes of label, batch and covariates, shape ``(n, 2 + n_cat_covs)``; without a label, the rest counts.

    Returns
    -------
    Boolean array of shape ``(n,)``.
    """
    combinations, unseen, which = _unseen(model, codes)
    if unseen.any():
        named = [_describe(model, combination) for combination in combinations[unseen]]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        warnings.warn(
            f"no training cell has {'; '.join(named[:5])}{more}: these cells are an extrapolation of the model "
            '(obs["isd_extrapolated"] marks them).',
            UserWarning,
            stacklevel=3,
        )
    return unseen[which]


def heard_codes(model: LatentDiffusion, codes: np.ndarray) -> np.ndarray:
    """Codes that the diffusion model is given: of combinations that it never saw, only the label.

    The latent is to hold the cell's biology, and the decoder adds batch and covariates. Where a label was never seen in
    a batch, its latents of other batches are a better guess than what the denoiser makes of a combination that is new to
    it (``docs/notes/realism.md``).

    Parameters
    ----------
    model
        The model.
    codes
        Codes of label, batch and covariates, shape ``(n, 2 + n_cat_covs)``.

    Returns
    -------
    Codes of the same shape; those not given are the null token's.
    """
    if not model.module.label_dropout or codes.shape[1] < 2:
        # a null token that training never showed says nothing
        return codes
    _, unseen, which = _unseen(model, codes)
    out = codes.copy()
    null = np.array(model.module.n_categories)
    new = unseen[which]
    without_label = codes[:, 0] == null[0]
    out[new, 2:] = null[2:]
    out[new & ~without_label, 1] = null[1]
    return out


def _unseen(model: LatentDiffusion, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Combinations, whether no training cell has them, and the combination of each cell."""
    combinations, which = np.unique(codes, axis=0, return_inverse=True)
    trained = np.unique(model.template_codes_, axis=0)
    null = len(model.labels)
    unseen = np.zeros(len(combinations), dtype=bool)
    for i, combination in enumerate(combinations):
        first = 1 if combination[0] == null else 0
        unseen[i] = not (trained[:, first:] == combination[first:]).all(axis=1).any()
    return combinations, unseen, which.ravel()


def _describe(model: LatentDiffusion, combination: np.ndarray) -> str:
    known: list[tuple[str | None, np.ndarray]] = [
        (model.labels_key, model.labels),
        (model.setup_args.get("batch_key"), model.batches),
        *model.covariate_categories.items(),
    ]
    parts = [
        f"{key}={categories[code]!r}"
        for (key, categories), code in zip(known, combination.tolist(), strict=True)
        if key is not None and code < len(categories)
    ]
    return " with ".join(parts)
