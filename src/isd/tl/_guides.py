"""Guidance as users give it, checked and laid out cell by cell: scales, classifiers, what they guide to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from isd.diffusion import ClassifierGuide
from isd.model._classifier import Classifier, check_belongs
from isd.model._latent_diffusion import LatentDiffusion
from isd.tl._labels import code_of


@dataclass(frozen=True)
class GuideSpec:
    """One classifier and what it guides each cell to.

    Parameters
    ----------
    classifier
        The classifier.
    codes
        Code, among the classifier's labels, of each cell.
    scale
        Weight of its gradient.
    start_step
        It guides below this step of the schedule's.
    """

    classifier: Classifier
    codes: np.ndarray
    scale: float
    start_step: int

    def guide(self, rows: slice, device: torch.device, n_timesteps: int) -> ClassifierGuide:
        """Guide of some of the cells."""
        return ClassifierGuide(
            self.classifier.log_prob(torch.as_tensor(self.codes[rows], device=device)),
            self.scale,
            start_guide_step=self.start_step,
            n_timesteps=n_timesteps,
        )


def as_pairs(classifier: Any) -> list[tuple[Classifier, Any]]:
    """Classifiers as ``(classifier, label)``; the label is ``None`` where it is the one that each cell is asked for.

    Raises
    ------
    TypeError
        If something else is among them.
    """
    if classifier is None:
        return []
    if isinstance(classifier, Classifier) or _is_pair(classifier):
        classifier = [classifier]
    if not isinstance(classifier, Sequence) or isinstance(classifier, str):
        raise TypeError(
            "classifier must be an isd.model.Classifier, a pair (classifier, label), or a sequence of these, "
            f"got {type(classifier).__name__}."
        )
    out = []
    for item in classifier:
        if isinstance(item, Classifier):
            out.append((item, None))
        elif _is_pair(item):
            out.append((item[0], item[1]))
        else:
            raise TypeError(f"classifier holds {item!r}; give isd.model.Classifier or pairs (classifier, label).")
    return out


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, (tuple, list))
        and len(item) == 2
        and isinstance(item[0], Classifier)
        and not isinstance(item[1], (Classifier, tuple, list))
    )


def check_classifier(classifier: Classifier, model: LatentDiffusion, *, same_labels: bool) -> None:
    """Raise where a classifier cannot guide a model.

    Raises
    ------
    ValueError
        If it is not trained, belongs to another model, or knows other labels where it must know the same.
    """
    if not classifier.is_trained:
        raise ValueError("the classifier is not trained yet; call its train() first.")
    check_belongs(classifier, model)
    if same_labels and list(classifier.labels) != list(model.labels):
        raise ValueError(
            f"the classifier knows other labels than the model: {list(classifier.labels)} of "
            f"{classifier.labels_key!r} against {list(model.labels)} of {model.labels_key!r}. "
            "Say what it is to guide to: classifier=(classifier, label)."
        )


def resolve_guides(
    model: LatentDiffusion,
    codes: np.ndarray,
    classifier: Any,
    classifier_scale: float | Sequence[float] | None,
    start_guide_step: int | Sequence[int] | None,
) -> list[GuideSpec]:
    """Classifiers with their scales, windows, and the label of each cell; those of scale 0 are among them.

    Raises
    ------
    ValueError
        If numbers do not fit the classifiers, a classifier cannot guide the model, or a label is unknown.
    """
    pairs = as_pairs(classifier)
    if not pairs:
        if np.any(classifier_scale):
            raise ValueError(f"classifier_scale={classifier_scale} needs a classifier.")
        return []
    defaults = model.generate_defaults
    scales = _one_each("classifier_scale", classifier_scale, len(pairs))
    steps = _one_each("start_guide_step", start_guide_step, len(pairs))
    out = []
    for (one, label), scale, step in zip(pairs, scales, steps, strict=True):
        check_classifier(one, model, same_labels=label is None)
        if label is None:
            if (codes == len(model.labels)).any():
                raise ValueError("a classifier guides towards labels; give labels, or no classifier.")
            targets = codes
        else:
            code = code_of(label, one.labels, "label", f"labels of the classifier of {one.labels_key!r}")
            targets = np.full(len(codes), code)
        if scale is None:
            scale = defaults["classifier_scale"] or 1.0
        n_timesteps = model.module.schedule.n_timesteps
        if step is None:
            step = min(int(defaults["start_guide_step"]), round(n_timesteps * one.module.start_guide_time))
        if not 0 <= float(scale) < np.inf:
            raise ValueError(f"classifier_scale must be a finite number that is not negative, got {scale}.")
        if not 0 <= int(step) <= n_timesteps:
            raise ValueError(f"start_guide_step is {step}; a number in 0 ... {n_timesteps} is expected.")
        out.append(GuideSpec(one, targets, float(scale), int(step)))
    return out


def _one_each(name: str, value: Any, n: int) -> list[Any]:
    if value is None or isinstance(value, Real) or np.ndim(value) == 0:
        return [value] * n
    values = list(value)
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} numbers for {n} classifiers; give one number, or one each.")
    return values


def resolve_scales(model: LatentDiffusion, codes: np.ndarray, guidance_scale: Any) -> float | np.ndarray:
    """Classifier-free scale: one number where all cells have the same, else one a cell.

    Raises
    ------
    ValueError
        If a label is unknown, or numbers are of another number than cells, negative or not finite.
    """
    if isinstance(guidance_scale, Mapping):
        by_code = np.ones(len(model.labels) + 1)
        for label, scale in guidance_scale.items():
            by_code[code_of(label, model.labels, "guidance_scale: label", "labels of the model")] = scale
        values = by_code[codes]
    else:
        values = np.asarray(guidance_scale, dtype=float)
        if values.ndim and values.shape != (len(codes),):
            raise ValueError(
                f"guidance_scale has shape {values.shape}; give one number, {{label: number}}, or one for each of the "
                f"{len(codes)} cells."
            )
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"guidance_scale must be finite and not be negative, got {guidance_scale}.")
    if values.ndim == 0 or (values == values[0]).all():
        return float(values.flat[0])
    return values
