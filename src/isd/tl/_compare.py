"""Choice between trained models on validation cells: by likelihood, and by how hard their cells are to tell from real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._counts import get_counts
from isd._progress import track
from isd.metrics import Yardstick, classifier_auc
from isd.model._latent_diffusion import LatentDiffusion
from isd.model._training import seeded
from isd.settings import settings
from isd.tl._generate import check_model, generate
from isd.tl._tune import training_and_validation

#: Training cells that the yardstick is fitted to.
_MAX_TRAIN = 5_000


@dataclass(frozen=True, eq=False)
class ModelChoice:
    """Outcome of :func:`compare_models`.

    Parameters
    ----------
    best
        Name of the model that was chosen.
    table
        One row a model, best first: ``auc_features`` and ``auc_pcs`` (means over draws), ``auc`` (mean of both),
        ``auc_se`` (its standard error over cells and draws), ``neg_log_likelihood`` (nats a cell, importance-weighted;
        ``NaN`` where the decoder has no likelihood of counts), ``within_noise`` (of the lowest ``auc``) and ``chosen``.
        ``floor`` is ``auc`` of one half of the validation cells against the other.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=120, n_vars=60, n_labels=2)
    >>> isd.pp.split(adata, validation_size=0.3)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> options = {"n_draws": 1, "n_estimators": 10, "n_mc_samples": 2, "progress": False}
    >>> found = isd.tl.compare_models({"a": model, "b": model}, adata, **options)
    >>> len(found.table), found.best in ("a", "b")
    (2, True)
    """

    best: Any
    table: pd.DataFrame = field(repr=False)


def compare_models(
    models: Mapping[Any, LatentDiffusion] | Sequence[LatentDiffusion],
    adata: AnnData,
    *,
    n_obs: int | None = None,
    n_draws: int = 2,
    n_estimators: int = 200,
    n_mc_samples: int = 50,
    tolerance: float | None = None,
    seed: int | None = None,
    n_jobs: int = 1,
    progress: bool | None = None,
    **generate_kwargs: Any,
) -> ModelChoice:
    """Choose between trained models on validation cells, by a two-sample test and by likelihood.

    Likelihood alone chooses models that leave their latent unused, or that say of a feature that it is mostly absent and
    at times huge; a two-sample test alone is noisy. So both are asked: of the models whose cells a random forest tells
    from validation cells no better than from the hardest one's, within noise, the most likely one is chosen. The
    likelihood is that of the autoencoder, for validation cells given their library size.

    Only training and validation cells are read, never test cells, so that these can still judge the result.

    Parameters
    ----------
    models
        Trained :class:`isd.model.LatentDiffusion` models of the same features and labels key, at least two; a mapping
        gives their names, otherwise they are numbered.
    adata
        Real cells with the models' features, labels and ``obs["isd_split"]``, by which all models were trained; not
        changed.
    n_obs
        Number of validation cells to compare with; ``None`` takes all, at most 2,000.
    n_draws
        Number of sets of cells that each model generates.
    n_estimators
        Number of trees.
    n_mc_samples
        Samples of the importance-weighted likelihood of each cell.
    tolerance
        Difference in AUC that counts as noise; ``None`` is the standard error of the best model's (bootstrap over cells
        and variance over draws).
    seed
        Seed; ``None`` takes ``isd.settings.seed``.
    n_jobs
        Processor cores of the forests.
    progress
        Progress bar.
    **generate_kwargs
        Further arguments of :func:`generate`, such as ``guidance_scale`` or ``latents``.

    Returns
    -------
    :class:`ModelChoice`.

    Raises
    ------
    KeyError
        If ``adata`` has no split or no labels.
    ValueError
        If there are fewer than two models or too few cells, features differ, or a number is out of range.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=160, n_vars=60, n_labels=2)
    >>> isd.pp.split(adata, validation_size=0.3)
    >>> models = {}
    >>> for n_latent in (4, 16):
    ...     isd.model.VAE.setup_anndata(adata)
    ...     vae = isd.model.VAE(adata, n_latent=n_latent)
    ...     vae.train(max_steps=5, progress=False)
    ...     isd.model.LatentDiffusion.setup_anndata(adata)
    ...     models[n_latent] = isd.model.LatentDiffusion(adata, vae=vae)
    ...     models[n_latent].train(max_steps=5, progress=False)
    >>> choice = isd.tl.compare_models(models, adata, n_estimators=10, n_mc_samples=2, progress=False)
    >>> choice.best in models
    True
    """
    named = dict(models) if isinstance(models, Mapping) else dict(enumerate(models))
    if len(named) < 2:
        raise ValueError(f"models has {len(named)} model(s); at least two are needed to choose between.")
    for model in named.values():
        check_model(model)
    if n_draws < 1:
        raise ValueError(f"n_draws is {n_draws}; expected at least 1.")
    if tolerance is not None and not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance must be a finite number that is not negative, got {tolerance}.")
    first = next(iter(named.values()))
    for name, model in named.items():
        if model.labels_key != first.labels_key or model.layer != first.layer:
            raise ValueError(
                f"model {name!r} was set up with labels_key={model.labels_key!r} and layer={model.layer!r}, the first one "
                f"with {first.labels_key!r} and {first.layer!r}; models of the same set-up can be compared."
            )
    seed = settings.seed if seed is None else int(seed)
    rows = {name: training_and_validation(model, adata, n_obs, seed, _MAX_TRAIN) for name, model in named.items()}
    train, validation = rows[next(iter(named))]
    for name, (_, other) in rows.items():
        if not np.array_equal(other, validation):
            raise ValueError(
                f"model {name!r} does not know the same labels as the first one; train both on the same cells."
            )
    counts = get_counts(adata, first.layer or "X")
    yardstick = Yardstick.fit(sparse.csr_matrix(counts[train]), adata.var_names, max_cells=_MAX_TRAIN, seed=seed)
    real = yardstick.features(sparse.csr_matrix(counts[validation]))
    asked = adata.obs[first.labels_key].astype(object).to_numpy()[validation].tolist()
    options: dict[str, Any] = {"n_estimators": n_estimators, "seed": seed, "n_jobs": n_jobs}

    def judge(x: Any, y: Any, n_boot: int) -> tuple[np.ndarray, float]:
        """AUC on features and on PCs, and the bootstrap variance of their mean."""
        two = [
            classifier_auc(x.toarray(), y.toarray(), n_boot=n_boot, **options),
            classifier_auc(yardstick.project(x), yardstick.project(y), n_boot=n_boot, **options),
        ]
        # the same bootstrap cells in both: their draws can be averaged pair by pair
        variance = float(np.mean([one.draws for one in two], axis=0).var()) if n_boot else float("nan")
        return np.array([one.auc for one in two]), variance

    half = np.random.default_rng([seed, 61]).permutation(real.shape[0])
    middle = len(half) // 2
    floor = float(judge(real[half[:middle]], real[half[middle : 2 * middle]], 0)[0].mean())
    seeds = [int(s) for s in np.random.SeedSequence([seed, 60]).generate_state(n_draws)]
    table = []
    for name in track(list(named), "Comparing models", progress=progress):
        model = named[name]
        found, variances = [], []
        for one in seeds:
            fake = generate(model, labels=asked, seed=one, progress=False, **generate_kwargs)
            auc, variance = judge(real, yardstick.features(get_counts(fake, model.layer or "X")), 100)
            found.append(auc)
            variances.append(variance)
        means = np.mean(found, axis=1)
        between = means.var(ddof=1) / n_draws if n_draws > 1 else 0.0
        nll = float("nan")
        if model.vae.module.likelihood != "normal":
            with seeded(seed):
                nll = -float(model.vae.get_marginal_ll(adata[validation].copy(), n_mc_samples=n_mc_samples))
        auc_features, auc_pcs = np.mean(found, axis=0)
        table.append(
            {
                "model": name,
                "auc_features": auc_features,
                "auc_pcs": auc_pcs,
                "auc": means.mean(),
                # the cells compared with are the same in all draws
                "auc_se": float(np.sqrt(np.mean(variances) + between)),
                "floor": floor,
                "neg_log_likelihood": nll,
            }
        )
    frame = pd.DataFrame(table).set_index("model")
    lowest = frame["auc"].idxmin()
    # below the floor is no better than at it
    reached = frame["auc"].clip(lower=min(floor, 0.5))
    noise = float(frame.loc[lowest, "auc_se"]) if tolerance is None else tolerance
    frame["within_noise"] = reached <= reached.min() + noise
    candidates = frame[frame["within_noise"]]
    known = candidates["neg_log_likelihood"].dropna()
    best = known.idxmin() if len(known) else lowest
    frame["chosen"] = frame.index == best
    order = frame.assign(_last=~frame["within_noise"]).sort_values(
        ["chosen", "_last", "auc"], ascending=[False, True, True]
    )
    return ModelChoice(best=best, table=order.drop(columns="_last"))
