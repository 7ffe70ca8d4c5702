"""Cells that anybody could have for free: what a model has to beat before it has earned anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import GENE_ID, UNS_KEY
from isd._counts import classify_counts, get_counts, resolve_layer, row_sums, where
from isd._hash import hash_names
from isd.metrics._genes import GeneMap
from isd.metrics._nulls import label_gaussian, negative_binomial_cells, redraw_usage
from isd.metrics._reference import training_rows
from isd.metrics._yardstick import log_normalize

#: The baselines, weakest claim first.
BASELINES = ("pooled_usage", "independent_nb", "vae_prior", "latent_gaussian", "training_copies")
_NEED_MODEL = ("vae_prior", "latent_gaussian")


def baselines(
    real: AnnData,
    *,
    model: Any = None,
    labels_key: str | None = None,
    layer: str | None = None,
    n_obs: int | None = None,
    which: Sequence[str] | None = None,
    max_train: int = 20_000,
    seed: int = 0,
) -> dict[str, AnnData]:
    """Make the baselines that a generative model must beat, from the training cells of ``real`` only.

    ``"pooled_usage"``
        Training cells whose gene totals are kept and whose isoforms are redrawn, multinomially, with the usage pooled
        over the label's cells. A model that does not beat it has learnt no isoform structure. Needs
        ``var["gene_id"]``.
    ``"independent_nb"``
        Every transcript from a negative binomial of its own, per label (share and dispersion by moments), given
        library sizes of training cells: no correlation between transcripts but through library size and label.
    ``"vae_prior"``
        ``vae.sample_prior``: what the VAE gives without a diffusion model. Cells have no label.
    ``"latent_gaussian"``
        A Gaussian per label fitted to latents and log library size, decoded by the same VAE. On small data this one is
        strong.
    ``"training_copies"``
        Training cells themselves: what pure memorisation gives.

    Parameters
    ----------
    real
        Real cells; rows with ``obs["isd_split"] == "train"`` are used, all rows without that column.
    model
        A trained VAE, or a model that holds one as ``model.vae``: any object with ``sample_prior``,
        ``encode_distribution`` and ``decode``. Without it the two baselines that need one are left out.
    labels_key
        Column of ``obs`` with labels; by default the model's, or ``"leiden"`` if there; else all cells count as one
        label.
    layer
        Layer of the counts; by default ``"counts"`` where there is one, else ``X``.
    n_obs
        Cells of each baseline; by default the number of training cells, at most 5,000. Labels have the training cells'
        proportions.
    which
        Names of the baselines to make; by default all that can be made.
    max_train
        Largest number of training cells to estimate from.
    seed
        Seed.

    Returns
    -------
    AnnData per name: counts where ``real`` has them, labels, ``var`` of ``real``, and ``uns["isd"]`` as generated data
    have it.

    Raises
    ------
    KeyError
        If ``labels_key`` is absent.
    ValueError
        For an unknown name, or one that needs a model or ``var["gene_id"]`` where there is none.

    Examples
    --------
    >>> import anndata as ad
    >>> real = ad.AnnData(np.random.default_rng(0).poisson(3.0, size=(50, 8)).astype("float32"))
    >>> made = baselines(real, n_obs=20)
    >>> {name: fake.shape for name, fake in made.items()}
    {'independent_nb': (20, 8), 'training_copies': (20, 8)}
    """
    return baselines_of_rows(
        real,
        None,
        model=model,
        labels_key=labels_key,
        layer=layer,
        n_obs=n_obs,
        which=which,
        max_train=max_train,
        seed=seed,
    )


def baselines_of_rows(
    real: AnnData,
    every: np.ndarray | None,
    *,
    model: Any = None,
    labels_key: str | None = None,
    layer: str | None = None,
    n_obs: int | None = None,
    which: Sequence[str] | None = None,
    max_train: int = 20_000,
    seed: int = 0,
) -> dict[str, AnnData]:
    """:func:`baselines` of given training rows (``None``: as the split says)."""
    names = _resolve_names(which, model, GENE_ID in real.var)
    if labels_key is None:
        of_model = getattr(model, "labels_key", None)  # without it, baselines of another column than the model's
        labels_key = of_model if of_model in real.obs else "leiden" if "leiden" in real.obs else None
    if labels_key is not None and labels_key not in real.obs:
        raise KeyError(f"labels_key {labels_key!r} is not in real.obs, which has {list(map(str, real.obs.columns))}.")
    classify_counts(get_counts(real, layer), f"real: {where(resolve_layer(real, layer))}")
    rng = np.random.default_rng(seed)
    every = training_rows(real) if every is None else every
    rows = np.sort(rng.choice(every, size=max_train, replace=False)) if every.size > max_train else every
    n_obs = min(rows.size, 5000) if n_obs is None else int(n_obs)
    if n_obs < 1:
        raise ValueError(f"n_obs={n_obs} must be at least 1.")
    counts = sparse.csr_matrix(get_counts(real, layer)[rows]).astype(np.float64)
    counts.data = np.rint(counts.data)  # estimated counts: what is drawn is whole
    counts.eliminate_zeros()
    codes = np.zeros(rows.size, dtype=int) if labels_key is None else _codes(real.obs[labels_key].iloc[rows])
    # cells that lend their label, library size or gene totals: every training cell once before any twice
    lenders = np.concatenate([rng.permutation(rows.size) for _ in range(-(-n_obs // rows.size))])[:n_obs]

    made: dict[str, AnnData] = {}
    for position, name in enumerate(BASELINES):
        if name not in names:
            continue
        draws = np.random.default_rng([seed, position])
        own_labels = True
        if name == "pooled_usage":
            matrix = redraw_usage(counts, codes, GeneMap.from_ids(real.var[GENE_ID]), lenders, draws)
        elif name == "independent_nb":
            matrix = negative_binomial_cells(counts, codes, lenders, draws)
        elif name == "vae_prior":
            own_labels = False
            matrix = _from_prior(_vae(model), real, n_obs, seed)
        elif name == "latent_gaussian":
            matrix = _from_latents(_vae(model), real[rows].copy(), row_sums(counts), codes, lenders, draws, seed)
        else:
            matrix = counts[lenders]
        labels = real.obs[labels_key].iloc[rows[lenders]] if own_labels and labels_key is not None else None
        made[name] = _as_generated(real, matrix, name, labels, labels_key, resolve_layer(real, layer), every, seed)
    return made


def _resolve_names(which: Sequence[str] | None, model: Any, has_genes: bool) -> list[str]:
    possible = [
        name
        for name in BASELINES
        if (model is not None or name not in _NEED_MODEL) and (has_genes or name != "pooled_usage")
    ]
    if which is None:
        return possible
    asked = [which] if isinstance(which, str) else list(which)
    unknown = [name for name in asked if name not in BASELINES]
    if unknown or not asked:
        raise ValueError(f"baselines {unknown or asked} are not known; choose out of {list(BASELINES)}.")
    lacking = [name for name in asked if name not in possible]
    if lacking:
        need = "a trained model (model=...)" if lacking[0] in _NEED_MODEL else f'real.var["{GENE_ID}"]'
        raise ValueError(f"baselines {lacking} cannot be made: {lacking[0]!r} needs {need}.")
    return asked


def _codes(labels: pd.Series) -> np.ndarray:
    """Labels as numbers from 0; cells without one are a label of their own."""
    codes = pd.factorize(labels, sort=False)[0]
    return np.where(codes < 0, codes.max() + 1, codes)


def _vae(model: Any) -> Any:
    vae = getattr(model, "vae", model)
    lacking = [name for name in ("sample_prior", "encode_distribution", "decode") if not hasattr(vae, name)]
    if lacking:
        raise ValueError(
            f"model ({type(model).__name__}) has no {', '.join(lacking)}; give a trained VAE, or a model with one."
        )
    return vae


def _aligned(matrix: Any, names: Any, real: AnnData) -> Any:
    columns = pd.Index(names).get_indexer(real.var_names)
    if (columns < 0).any():
        raise ValueError(
            f"{int((columns < 0).sum())} of the {real.n_vars} features of `real` are unknown to the model."
        )
    return matrix if np.array_equal(columns, np.arange(matrix.shape[1])) else sparse.csr_matrix(matrix)[:, columns]


def _from_prior(vae: Any, real: AnnData, n_obs: int, seed: int) -> Any:
    fake = vae.sample_prior(n_obs, seed=seed)
    return _aligned(get_counts(fake, None), fake.var_names, real)


def _from_latents(
    vae: Any,
    train: AnnData,
    totals: np.ndarray,
    codes: np.ndarray,
    lenders: np.ndarray,
    rng: np.random.Generator,
    seed: int,
) -> Any:
    """Latents (drawn from each cell's posterior) and log library size as one Gaussian per label, decoded again."""
    mean, std = vae.encode_distribution(train)
    latents = mean + std * rng.standard_normal(mean.shape)
    log_library = np.log(np.maximum(totals, 1.0))
    drawn = label_gaussian(np.column_stack([latents, log_library]), codes, codes[lenders], rng)
    # a Gaussian has tails that training cells do not have: no depth beyond what was seen
    library = np.exp(np.clip(drawn[:, -1], log_library.min(), log_library.max()))
    matrix = vae.decode(drawn[:, :-1].astype(np.float32), library_size=library, seed=seed)
    names = getattr(vae, "feature_names", train.var_names)
    return _aligned(matrix, names, train)


def _as_generated(
    real: AnnData,
    counts: Any,
    name: str,
    labels: pd.Series | None,
    labels_key: str | None,
    layer: str | None,
    train_rows: np.ndarray,
    seed: int,
) -> AnnData:
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    obs = pd.DataFrame(index=pd.Index([f"{name}_{i}" for i in range(counts.shape[0])], dtype=object))
    if labels is not None and labels_key is not None:
        obs[labels_key] = labels.to_numpy() if not isinstance(labels.dtype, pd.CategoricalDtype) else labels.array
    elif labels_key is not None:
        column = real.obs[labels_key]
        categories = (
            column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else pd.Index(column.unique())
        )
        obs[labels_key] = pd.Categorical.from_codes(np.full(counts.shape[0], -1), categories=categories)
    fake = AnnData(X=counts if layer is None else log_normalize(counts), obs=obs, var=real.var.copy())
    if layer is not None:
        fake.layers[layer] = counts
    entries = {
        "model": f"baseline: {name}",
        "seed": seed,
        "labels_key": labels_key,
        "layer": layer,
        "train_obs_hash": np.sort(hash_names(real.obs_names[train_rows])),
    }
    fake.uns[UNS_KEY] = {key: value for key, value in entries.items() if value is not None}
    return fake
