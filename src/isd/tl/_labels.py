"""Which label each generated cell is asked to have."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import pandas as pd

from isd.model._latent_diffusion import LatentDiffusion

Labels = Literal["match"] | str | int | Mapping[Any, int] | Sequence[Any] | None


def label_codes(model: LatentDiffusion, n_obs: int | None, labels: Labels) -> np.ndarray:
    """Label code of each cell to generate; ``len(model.labels)`` where none is asked for.

    Raises
    ------
    ValueError
        For unknown labels and numbers that do not add up.
    """
    if n_obs is not None and (not _is_whole(n_obs) or n_obs < 1):
        raise ValueError(f"n_obs must be a whole number of at least 1, got {n_obs!r}.")
    n_obs = None if n_obs is None else int(n_obs)
    known = {label: i for i, label in enumerate(model.labels)}

    def code(label: Any) -> int:
        if not isinstance(label, np.generic) and label in known:
            return known[label]  # quick, for arrays with one label a cell
        return code_of(label, model.labels, "label", "labels that the model was trained on")

    trained = model.template_codes_[:, 0]
    if labels is None:
        return np.full(n_obs if n_obs is not None else len(trained), len(known))
    if isinstance(labels, str) and labels == "match" and "match" not in known:
        counts = np.bincount(trained, minlength=len(known))[: len(known)]
        if counts.sum() == 0:
            raise ValueError("the model saw no labelled cells; give labels=None.")
        return np.repeat(np.arange(len(known)), _apportion(counts, len(trained) if n_obs is None else n_obs))
    if isinstance(labels, Mapping):
        for label, number in labels.items():
            if not _is_whole(number) or number < 0:
                raise ValueError(
                    f"labels asks for {number} cells of {label!r}; give whole numbers that are not negative."
                )
        codes = np.repeat([code(k) for k in labels], [int(v) for v in labels.values()]).astype(int)
        if n_obs is not None and len(codes) != n_obs:
            raise ValueError(f"labels add up to {len(codes)} cells, but n_obs is {n_obs}; give one of the two.")
        if not len(codes):
            raise ValueError("labels adds up to no cells.")
        return codes
    if isinstance(labels, (str, bytes)) or np.isscalar(labels):
        return np.full(n_obs if n_obs is not None else len(trained), code(labels))
    values = list(labels)  # type: ignore[arg-type]
    if n_obs is not None and len(values) != n_obs:
        raise ValueError(f"labels has {len(values)} entries, but n_obs is {n_obs}; give one label a cell.")
    if not values:
        raise ValueError("labels is empty.")
    if pd.isna(pd.Series(values, dtype=object)).any():
        raise ValueError("labels has missing values; give labels=None to generate without labels.")
    return np.array([code(v) for v in values])


def _is_whole(value: Any) -> bool:
    return (
        isinstance(value, (Integral, float, np.floating)) and not isinstance(value, bool) and float(value).is_integer()
    )


def check_conditions(
    model: LatentDiffusion, codes: np.ndarray, labels: Labels, *, sharpened: bool, guided: bool
) -> np.ndarray:
    """Refuse labels and guidance that the denoiser knows nothing of; labels that nobody asked for are left out.

    Parameters
    ----------
    model
        The model.
    codes
        Label codes of the cells.
    labels
        What was asked for.
    sharpened
        Whether any classifier-free guidance scale is another than 1.
    guided
        Whether something else than the denoiser brings the labels about.

    Returns
    -------
    Label codes of the cells.
    """
    null = len(model.labels)
    if not model.module.conditional:
        if sharpened:
            raise ValueError("guidance_scale needs a denoiser that sees labels; that of preset='published' does not.")
        if guided or (codes == null).all() or null == 1:
            return codes
        if isinstance(labels, str) and labels == "match":
            warnings.warn(
                "this model's denoiser does not see labels (preset='published'): cells are generated without. "
                "Give classifier= to guide them, or labels=None.",
                UserWarning,
                stacklevel=3,
            )
            return np.full_like(codes, null)
        raise ValueError(
            "this model's denoiser does not see labels (preset='published'); give classifier= to guide them, or labels=None."
        )
    if model.module.label_dropout == 0 and (sharpened or (codes == null).any()):
        raise ValueError(
            "the model was trained with label_dropout=0 and knows no cells without label: "
            "guidance_scale must be 1 and labels be given."
        )
    return codes


def _apportion(counts: np.ndarray, n: int) -> np.ndarray:
    """Whole numbers in proportion to ``counts`` that add up to ``n`` (largest remainders)."""
    exact = counts / counts.sum() * n
    out = np.floor(exact).astype(int)
    order = np.argsort(-(exact - out), kind="stable")
    out[order[: n - out.sum()]] += 1
    return out


def code_of(value: Any, known: Sequence[Any] | np.ndarray, what: str, among: str) -> int:
    """Position of a value among the known ones.

    Raises
    ------
    ValueError
        Naming the known ones, and the one that was probably meant (``"3"`` for ``3``).
    """
    value = value.item() if isinstance(value, np.generic) else value
    values = list(known)
    if value in values:
        return values.index(value)
    same_text = [k for k in values if str(k) == str(value)]
    hint = f" Did you mean {same_text[0]!r} ({type(same_text[0]).__name__})?" if same_text else ""
    raise ValueError(f"{what} {value!r} is not one of the {among}: {values}.{hint}")
