"""Choice of guidance on validation cells: labels that are met, without losing variety."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import SPLIT_KEY, SPLIT_TRAIN, SPLIT_VALIDATION
from isd._counts import get_counts
from isd._progress import track
from isd.metrics import Yardstick, classifier_auc, coverage
from isd.metrics._classifier import label_finder
from isd.model._classifier import Classifier
from isd.model._latent_diffusion import LatentDiffusion
from isd.model._validation import check_features
from isd.settings import settings
from isd.tl._generate import check_model, generate
from isd.tl._guides import check_classifier

#: Training cells that the yardstick and the classifier of labels are fitted to.
_MAX_TRAIN = 5_000
#: Cells that each setting draws, in all.
_DRAWN = 2_400
#: Trees of the forest that tells generated from validation cells.
_TREES = 100
#: Neighbour that sets the radius of a cell in `coverage`; labels need more validation cells than this.
_K = 5
#: Validation cells that guidance can be tuned on.
MIN_VALIDATION = 2 * (_K + 1)
_OVERALL = ""


@dataclass(frozen=True, eq=False)
class GuidanceChoice:
    """Outcome of :func:`tune_guidance`: arguments of :func:`generate`, and what they were chosen by.

    Parameters
    ----------
    guidance_scale
        One number, or ``{label: number}`` if it was chosen by label.
    classifier_scale
        Weight of the classifier's gradient; 0 where it does not pay.
    start_guide_step
        Step below which the classifier guides; ``None`` is its default.
    table
        One row for each setting, overall (``label`` is ``""``) and for each label: ``guidance_scale``,
        ``classifier_scale``, ``start_guide_step``, ``label``, ``n`` cells, ``agreement``, ``coverage`` and ``auc`` (means over
        draws) with their standard errors ``agreement_se``, ``coverage_se`` and ``auc_se``, ``real_agreement`` (of the validation
        cells themselves), ``score`` and ``score_se``, and ``chosen``. The AUC of a label is that of its cells' scores in the forest of all.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=120, n_vars=60, n_labels=2)
    >>> isd.pp.split(adata, validation_size=0.3)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> choice = isd.tl.tune_guidance(model, adata, scales=(1, 2), progress=False)
    >>> fake = isd.tl.generate(model, n_obs=4, guidance_scale=choice.guidance_scale)
    >>> choice.table["guidance_scale"].unique().tolist()
    [1.0, 2.0]
    """

    guidance_scale: float | dict[Any, float]
    classifier_scale: float
    start_guide_step: int | None
    table: pd.DataFrame = field(repr=False)


class _Setting(NamedTuple):
    guidance_scale: float
    classifier_scale: float
    start_guide_step: int | None


def tune_guidance(
    model: LatentDiffusion,
    adata: AnnData,
    *,
    scales: Sequence[float] = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0),
    classifier: Classifier | None = None,
    classifier_scales: Sequence[float] = (0.0, 0.25, 0.5, 1.0),
    start_guide_steps: Sequence[int] | None = None,
    by_label: bool = False,
    n_obs: int | None = None,
    n_draws: int | None = None,
    tolerance: float | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    **generate_kwargs: Any,
) -> GuidanceChoice:
    """Choose guidance by what it does to labels and to variety, on validation cells.

    Each setting generates as many cells as there are validation cells, with their labels. Three numbers judge it:

    - agreement, how often a classifier trained on real training cells finds the label that was asked for
      (:func:`isd.metrics.label_agreement`, on features). Cells that are found in their label more often than validation
      cells are no better than those found less often: they are too pure;
    - coverage, how many validation cells have a generated one near (:func:`isd.metrics.coverage`, on principal components
      of training cells);
    - the AUC with which a random forest tells them from the validation cells (:func:`isd.metrics.classifier_auc`, on the
      same components). Strong guidance distorts what a label consists of, long before coverage shows it.

    The score is the mean of three parts that are 1 at best: ``1 - abs(agreement / real - 1)``, coverage over that without guidance,
    and ``1 - 2 * max(AUC - 0.5, 0)``. Of the settings within noise of the best, the one that guides least is chosen.

    Only training and validation cells are read, never test cells, so that these can still judge the result.

    Parameters
    ----------
    model
        A trained :class:`isd.model.LatentDiffusion`.
    adata
        Real cells with the model's features, labels and ``obs["isd_split"]``; not changed.
    scales
        Classifier-free scales to try; 1 is tried in any case. A denoiser that sees no labels is tried at 1 only.
    classifier
        A :class:`isd.model.Classifier` of the model to try beside.
    classifier_scales
        Its scales, each with each of ``scales``; 0 is tried in any case.
    start_guide_steps
        Steps below which it guides; ``None`` tries its default only.
    by_label
        Whether to choose a ``guidance_scale`` for each label. Labels of fewer than 12 validation cells say too little
        and have the one that is best overall. The classifier's setting is one for all.
    n_obs
        Number of validation cells to compare with; ``None`` takes all, at most 2,000.
    n_draws
        Number of times that each setting generates, all settings with the same seeds. ``None`` draws 2,400 cells in all, in 2
        to 8 times: few validation cells tell little of one draw.
    tolerance
        Difference of scores that counts as noise; ``None`` is the standard error of its mean over draws of the same seed,
        pooled over the settings.
    seed
        Seed; ``None`` takes ``isd.settings.seed``.
    progress
        Progress bar.
    **generate_kwargs
        Further arguments of :func:`generate`, such as ``sampler`` and ``n_steps``.

    Returns
    -------
    :class:`GuidanceChoice`.

    Raises
    ------
    KeyError
        If ``adata`` has no split or no labels.
    ValueError
        If there are too few cells, the model has one label, features differ, or a number is out of range.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=120, n_vars=60, n_labels=2)
    >>> isd.pp.split(adata, validation_size=0.3)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> choice = isd.tl.tune_guidance(model, adata, scales=(1, 2), progress=False)
    >>> fake = isd.tl.generate(model, n_obs=4, guidance_scale=choice.guidance_scale)
    """
    check_model(model)
    tried = _settings(model, scales, classifier, classifier_scales, start_guide_steps)
    if n_draws is not None and (n_draws < 1 or (n_draws < 2 and tolerance is None)):
        raise ValueError(f"n_draws is {n_draws}; at least 2 are needed to know the noise (1 with tolerance=).")
    if tolerance is not None and not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance must be a finite number that is not negative, got {tolerance}.")
    seed = settings.seed if seed is None else int(seed)
    train, validation = training_and_validation(model, adata, n_obs, seed, _MAX_TRAIN)
    if n_draws is None:
        n_draws = min(max(-(-_DRAWN // len(validation)), 2), 8)
    key, names = model.labels_key, adata.var_names
    counts = get_counts(adata, model.layer or "X")
    yardstick = Yardstick.fit(sparse.csr_matrix(counts[train]), names, max_cells=_MAX_TRAIN, seed=seed)
    features = [yardstick.features(sparse.csr_matrix(counts[rows])) for rows in (train, validation)]
    real_pcs = yardstick.project(features[1])
    labels = np.asarray(adata.obs[key].astype(object))
    asked = labels[validation]
    # one classifier for the real cells and all settings, of features as in evaluate: components leave labels out that few features tell
    find = label_finder(features[0].toarray(), labels[train], seed=seed)
    names_asked = np.array([str(label) for label in asked], dtype=object)
    met = [find(features[1].toarray()) == names_asked]
    told = []
    seeds = [int(s) for s in np.random.SeedSequence([seed, 51]).generate_state(n_draws)]
    runs = [(setting, s) for setting in tried for s in seeds]
    made = []
    for setting, one in track(runs, "Trying guidance", progress=progress):
        guided: dict[str, Any] = {
            "classifier": classifier,
            "classifier_scale": setting.classifier_scale,
            "start_guide_step": setting.start_guide_step,
        }
        # a denoiser that sees no labels keeps those that were asked for only with a guide: unguided, it is told none
        blind = not model.module.conditional and not setting.classifier_scale
        fake = generate(
            model,
            len(asked) if blind else None,
            labels=None if blind else asked.tolist(),
            guidance_scale=setting.guidance_scale,
            **(guided if setting.classifier_scale else {}),
            seed=one,
            progress=False,
            **generate_kwargs,
        )
        values = yardstick.features(get_counts(fake, model.layer or "X"))
        made.append(yardstick.project(values))
        told.append(classifier_auc(real_pcs, made[-1], n_estimators=_TREES, n_boot=0, seed=one).scores)
        met.append(find(values.toarray()) == names_asked)
    drawn = [made[i : i + n_draws] for i in range(0, len(made), n_draws)]
    groups = {_OVERALL: np.ones(len(asked), dtype=bool)} | {
        label: asked == label for label in model.labels if (asked == label).any()
    }
    rows, scores = [], {}
    for label, mine in groups.items():
        scored = np.array(told)[:, np.tile(mine, 2)]
        judged = _judge(np.array(met)[:, mine], real_pcs[mine], [[x[mine] for x in xs] for xs in drawn], scored)
        scores[label] = judged["score"]
        for i, setting in enumerate(tried):
            row = {name: value[i] for name, value in judged.items() if name != "score"}
            row["score"] = judged["score"][i].mean()
            row["score_se"] = _standard_error(judged["score"][i])
            rows.append({**setting._asdict(), "label": label, "n": int(mine.sum()), **row})
    best = _choose(tried, scores[_OVERALL], tolerance)
    chosen = dict.fromkeys(groups, best)
    if by_label:
        # the classifier's setting is one number for all cells: scales are compared at the one that is best overall
        same = [i for i, setting in enumerate(tried) if setting[1:] == tried[best][1:]]
        for label, mine in groups.items():
            if label != _OVERALL and mine.sum() >= MIN_VALIDATION:
                chosen[label] = same[_choose([tried[i] for i in same], scores[label][same], tolerance)]
    table = pd.DataFrame(rows)
    table["chosen"] = [i % len(tried) == chosen[row["label"]] for i, row in enumerate(rows)]
    setting = tried[best]
    by = {label: tried[chosen.get(label, best)].guidance_scale for label in model.labels}
    return GuidanceChoice(
        guidance_scale=by if by_label else setting.guidance_scale,
        classifier_scale=setting.classifier_scale,
        start_guide_step=setting.start_guide_step,
        table=table,
    )


def _settings(
    model: LatentDiffusion,
    scales: Sequence[float],
    classifier: Classifier | None,
    classifier_scales: Sequence[float],
    start_guide_steps: Sequence[int] | None,
) -> list[_Setting]:
    """Settings to try, the one that guides least first."""
    if len(model.labels) < 2:
        raise ValueError("guidance is towards labels, and the model has one only; there is nothing to tune.")
    for name, values in (("scales", scales), ("classifier_scales", classifier_scales)):
        if not all(0 <= float(v) < np.inf for v in values):
            raise ValueError(f"{name} must be finite numbers that are not negative, got {values}.")
    # without a null condition there is plain sampling only
    free = model.module.conditional and model.module.label_dropout > 0
    own = sorted({1.0, *(float(s) for s in scales)} if free else {1.0})
    if classifier is None:
        return [_Setting(scale, 0.0, None) for scale in own]
    check_classifier(classifier, model, same_labels=True)
    steps = [None] if start_guide_steps is None else sorted({int(s) for s in start_guide_steps})
    out = [_Setting(scale, 0.0, None) for scale in own]
    out += [_Setting(s, float(c), t) for s in own for c in sorted(set(classifier_scales)) if c for t in steps]
    # how much a setting guides, as far as two kinds of guidance and their windows can be compared
    return sorted(out, key=lambda s: (abs(s.guidance_scale - 1) + s.classifier_scale, s.start_guide_step or 0))


def training_and_validation(
    model: LatentDiffusion, adata: AnnData, n_obs: int | None, seed: int, max_train: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation cells with a label that the model knows; test cells are not looked at."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData of real cells, got {type(adata).__name__}.")
    check_features(model.feature_names, adata.var_names)
    for name, hint in (
        (SPLIT_KEY, "call isd.pp.split(adata) before training"),
        (model.labels_key, "labels are needed"),
    ):
        if name not in adata.obs:
            raise KeyError(f"adata.obs has no {name!r}: {hint}. It has {list(map(str, adata.obs.columns))}.")
    side = adata.obs[SPLIT_KEY].astype(str).to_numpy()
    known = adata.obs[model.labels_key].astype(object).isin(list(model.labels)).to_numpy()
    trained = np.isin(np.arange(len(model.labels)), model.template_codes_[:, 0])
    learnt = adata.obs[model.labels_key].astype(object).isin(list(model.labels[trained])).to_numpy()
    train, validation = (
        np.flatnonzero(known & (side == SPLIT_TRAIN)),
        np.flatnonzero(learnt & (side == SPLIT_VALIDATION)),
    )
    if len(validation) < MIN_VALIDATION or len(train) < 10:
        raise ValueError(
            f"adata has {len(train)} training and {len(validation)} validation cells with a label in "
            f'obs["{SPLIT_KEY}"]; at least 10 and {MIN_VALIDATION} are needed: isd.pp.split(adata, validation_size=...).'
        )
    wanted = min(len(validation), 2000) if n_obs is None else n_obs
    if int(wanted) != wanted or not MIN_VALIDATION <= wanted <= len(validation):
        raise ValueError(
            f"n_obs is {n_obs}; a whole number in {MIN_VALIDATION} ... {len(validation)} (validation cells) is expected."
        )
    rng = np.random.default_rng([seed, 50])
    if len(train) > max_train:
        train = np.sort(rng.choice(train, max_train, replace=False))
    return train, np.sort(rng.choice(validation, int(wanted), replace=False))


def _judge(met: np.ndarray, real: np.ndarray, drawn: list[list[np.ndarray]], told: np.ndarray) -> dict[str, Any]:
    """Agreement, coverage, AUC and score of each setting for some of the cells; the first setting is without guidance.

    ``met`` has the real cells in its first row, then each draw of each setting; ``told`` has a row for each draw of each setting, with
    the forest's scores of the real cells and then of the generated ones. ``score`` has shape ``(n_settings, n_draws)``, the others
    one number a setting. With too few cells for `coverage` it is NaN.
    """
    from sklearn.metrics import roc_auc_score

    n_draws = len(drawn[0])
    agreement = met[1:].mean(axis=1).reshape(-1, n_draws)
    covered = np.full(agreement.shape, np.nan)
    if len(real) > _K:
        covered = np.array([[coverage(real, x, k=_K) for x in xs] for xs in drawn])
    is_generated = np.repeat([False, True], len(real))
    auc = np.array([roc_auc_score(is_generated, scores) for scores in told]).reshape(agreement.shape)
    floor = float(met[0].mean())
    plain = covered[0].mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        label_part = 1.0 - np.abs(agreement / floor - 1.0) if floor > 0 else np.ones_like(agreement)
        variety_part = covered / plain if plain > 0 else np.ones_like(covered)
    judged: dict[str, Any] = {"real_agreement": np.full(len(agreement), floor)}
    for name, values in (("agreement", agreement), ("coverage", covered), ("auc", auc)):
        judged[name] = values.mean(axis=1)
        judged[f"{name}_se"] = [_standard_error(row) for row in values]
    judged["score"] = (label_part + variety_part + 1.0 - 2.0 * np.maximum(auc - 0.5, 0.0)) / 3.0
    return judged


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _choose(tried: Sequence[_Setting], scores: np.ndarray, tolerance: float | None) -> int:
    """First setting (they are sorted: least guidance first) whose score is within noise of the best."""
    means = scores.mean(axis=1)
    best = int(means.argmax())
    if tolerance is None:
        # settings share their noise, draw by draw; few draws say little of what is left, which is pooled over the settings
        differences = np.delete(scores - scores[best], best, axis=0)
        spread = differences.var(axis=1, ddof=1).mean() if len(differences) else 0.0
        tolerance = float(np.sqrt(spread / scores.shape[1]))
    return int(np.flatnonzero(means >= means[best] - tolerance)[0])
