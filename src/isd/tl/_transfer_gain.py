"""Whether a reference helps on one's own cells: held-out likelihood against scratch and against a shuffled reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats
from scvi.data import _constants

from isd._constants import SPLIT_KEY, SPLIT_TEST, SPLIT_TRAIN, SPLIT_VALIDATION
from isd._progress import track
from isd.model._pretrained import resolve_reference, shuffled_pretrained
from isd.model._split import resolve_split
from isd.model._training import seeded
from isd.model._vae import VAE
from isd.settings import settings

ARMS = ("scratch", "shuffled", "pretrained")
#: Share of the gain that a reference without knowledge may have, of one that is the reference's own.
_SHARE = 0.25
_LEAST = 10
#: Learning rates of the dispersion that the arm from nothing is tried with.
DISPERSION_RATES = (1e-2, 5e-2)


@dataclass(frozen=True, eq=False)
class TransferGain:
    """Outcome of :func:`transfer_gain`.

    Parameters
    ----------
    worth_it
        Whether the reference helps beyond noise, and by what it knows.
    verdict
        The same in a sentence.
    table
        One row an arm, ``"scratch"``, ``"shuffled"`` and ``"pretrained"``: ``neg_log_likelihood`` (nats a cell), ``gain``
        over scratch in nats a cell with its 95% interval ``low`` and ``high``, ``gain_percent``, ``steps`` (means over
        trainings).
    cells
        Log-likelihood of each held-out cell (rows) by arm (columns), nats, means over trainings.

    Examples
    --------
    >>> import pandas as pd
    >>> from isd.tl import TransferGain
    >>> table = pd.DataFrame({"gain": [0.0, 1.2, 9.5]}, index=["scratch", "shuffled", "pretrained"])
    >>> found = TransferGain(worth_it=True, verdict="It helps.", table=table, cells=pd.DataFrame())
    >>> found.worth_it, float(found.table.loc["pretrained", "gain"])  # as isd.tl.transfer_gain returns it
    (True, 9.5)
    """

    worth_it: bool
    verdict: str
    table: pd.DataFrame = field(repr=False)
    cells: pd.DataFrame = field(repr=False)


def transfer_gain(
    reference: Any,
    adata: AnnData,
    *,
    steps: Sequence[float] = (0.25, 0.5, 1.0),
    n_trainings: int = 2,
    n_mc_samples: int = 25,
    from_pretrained_kwargs: dict[str, Any] | None = None,
    train_kwargs: dict[str, Any] | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> TransferGain:
    """Ask one's own cells whether to start a VAE from a reference, before spending a day on it.

    Three models are trained on the training cells: one from nothing, one from the reference, and one from the reference with
    its features in a random order, which has all that comes with it (an architecture, a short training) but what it knows.
    Each is trained for several lengths (the one from nothing at two rates of the dispersion as well), and what is best on a
    fifth of the training cells, kept apart, counts. They are compared by the likelihood of the validation cells (importance-weighted, given their library size), cell by cell.

    Test cells are never read.

    Parameters
    ----------
    reference
        A trained :class:`isd.model.VAE`, a :class:`isd.model.LatentDiffusion`, or the folder of either.
    adata
        Cells registered with ``isd.model.VAE.setup_anndata``; not changed. Validation cells of ``obs["isd_split"]`` are held
        out; without a split, a quarter of the cells.
    steps
        Lengths to try, as shares of each arm's default number of steps.
    n_trainings
        How often all of this is done, with other seeds and other cells kept apart.
    n_mc_samples
        Samples of the likelihood of each cell.
    from_pretrained_kwargs
        Arguments of :meth:`isd.model.VAE.from_pretrained`, such as ``freeze``.
    train_kwargs
        Arguments of :meth:`isd.model.VAE.train`, for all arms.
    seed
        Seed; ``None`` takes ``isd.settings.seed``.
    progress
        Progress bar.

    Returns
    -------
    :class:`TransferGain`. Its intervals take in variation between cells and, where there are several, between trainings.

    Raises
    ------
    ValueError
        If ``adata`` is not registered, there are fewer than 10 held-out or 10 training cells, the reference's likelihood is
        not one of counts, or a number is out of range; and whatever ``from_pretrained`` raises.

    Examples
    --------
    >>> import isd
    >>> atlas = isd.datasets.simulated(n_obs=160, n_vars=60, n_labels=3)
    >>> isd.model.VAE.setup_anndata(atlas)
    >>> reference = isd.model.VAE(atlas, n_latent=4, n_hidden=16, output_rank=6)
    >>> reference.train(max_steps=50, progress=False)
    >>> mine = atlas[:60].copy()
    >>> isd.model.VAE.setup_anndata(mine)
    >>> found = isd.tl.transfer_gain(reference, mine, steps=[0.02], n_trainings=1, n_mc_samples=2, progress=False)
    >>> found.table.columns.tolist()
    ['neg_log_likelihood', 'gain', 'low', 'high', 'gain_percent', 'steps']
    """
    lengths = sorted({float(s) for s in steps})
    if not lengths or not all(0 < s <= 10 for s in lengths):
        raise ValueError(f"steps is {list(steps)}; expected shares of the default number of steps, above 0.")
    if n_trainings < 1 or n_mc_samples < 1:
        raise ValueError(f"n_trainings and n_mc_samples must be at least 1, got {n_trainings} and {n_mc_samples}.")
    manager = VAE._get_most_recent_anndata_manager(adata, required=False)
    if manager is None:
        raise ValueError("adata is not registered yet; call isd.model.VAE.setup_anndata(adata, ...) first.")
    known = resolve_reference(reference, VAE)
    if known.module.likelihood == "normal":
        raise ValueError(
            "the reference gives no likelihood of counts (likelihood='normal'); there is nothing to compare."
        )
    seed = settings.seed if seed is None else int(seed)
    own = {k: v for k, v in manager.registry["setup_args"].items() if k not in ("source_registry",)}
    labels_key = own.get("labels_key")
    codes = np.zeros(adata.n_obs, dtype=int) if labels_key is None else _codes(adata.obs[labels_key])
    train, held_out, _ = resolve_split(adata, codes, validation_size=0.25, seed=seed)
    for name, rows in (("training", train), ("held-out", held_out)):
        if len(rows) < _LEAST:
            raise ValueError(
                f"there are {len(rows)} {name} cells; at least {_LEAST} are needed. Run "
                "isd.pp.split(adata, validation_size=0.25), which gives a share of the cells to it."
            )
    given = dict(train_kwargs or {})
    options = {"seed": seed, **(from_pretrained_kwargs or {})}
    likelihoods: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    lengths_used: dict[str, list[int]] = {arm: [] for arm in ARMS}
    # the reference first: what from_pretrained refuses is then refused before any training
    work = [(k, arm) for k in range(n_trainings) for arm in reversed(ARMS)]
    for k, arm in track(work, "Training with and without the reference", progress=progress):
        cells = _with_inner_split(adata, train, held_out, codes, seed + k)
        VAE.setup_anndata(cells, **own)
        best: tuple[float, int, np.ndarray] | None = None
        # a pretrained model's dispersions are fitted to the cells at its start; from nothing, the usual rate is slow for that
        rates = DISPERSION_RATES if arm == "scratch" and "dispersion_lr" not in given else (None,)
        for share, rate in product(lengths, rates):
            model = _start(arm, known, cells, seed + k, options)
            n_steps = max(1, round(share * model._train_rule()["max_steps"]))
            settled = {"max_steps": n_steps, "seed": seed + k, "gene_encoder": False, "progress": False}
            settled |= {} if rate is None else {"dispersion_lr": rate}
            model.train(**{"early_stopping": False, **settled, **given})
            inner = float(_log_likelihood(model, SPLIT_VALIDATION, n_mc_samples, seed).mean())
            if best is None or inner > best[0]:
                best = (inner, n_steps, _log_likelihood(model, SPLIT_TEST, n_mc_samples, seed))
        assert best is not None
        lengths_used[arm].append(best[1])
        likelihoods[arm].append(best[2])
    return _judge(likelihoods, lengths_used, adata.obs_names[held_out])


def _codes(column: pd.Series) -> np.ndarray:
    return np.asarray(column.astype("category").cat.codes, dtype=int).clip(0)


def _with_inner_split(adata: AnnData, train: np.ndarray, held_out: np.ndarray, codes: np.ndarray, seed: int) -> AnnData:
    """Training and held-out cells; a fifth of the former chooses between lengths, the latter are test cells here."""
    rows = np.sort(np.concatenate([train, held_out]))
    cells = adata[rows].to_memory() if adata.isbacked else adata[rows].copy()
    # registered anew, a copy under the same id would take the place of the caller's cells
    for key in (_constants._SCVI_UUID_KEY, _constants._MANAGER_UUID_KEY):
        cells.uns.pop(key, None)
    if SPLIT_KEY in cells.obs:
        del cells.obs[SPLIT_KEY]
    inner = resolve_split(cells[np.isin(rows, train)], codes[train], validation_size=0.2, seed=seed)
    split = np.full(len(rows), SPLIT_TEST, dtype=object)
    where = np.flatnonzero(np.isin(rows, train))
    split[where[inner[0]]], split[where[inner[1]]] = SPLIT_TRAIN, SPLIT_VALIDATION
    if not len(inner[1]):
        split[where[: max(len(where) // 5, 2)]] = SPLIT_VALIDATION
    cells.obs[SPLIT_KEY] = split
    return cells


def _start(arm: str, reference: VAE, cells: AnnData, seed: int, options: dict[str, Any]) -> VAE:
    if arm == "pretrained":
        return VAE.from_pretrained(reference, cells, **options)
    if arm == "shuffled":
        return shuffled_pretrained(VAE, reference, cells, order_seed=seed, **options)
    return VAE(cells, gene_decoder=reference.module_params["gene_decoder"], seed=seed)


def _log_likelihood(model: VAE, part: str, n_mc_samples: int, seed: int) -> np.ndarray:
    cells = model.adata  # with a union of vocabularies, these have more columns
    rows = np.flatnonzero(cells.obs[SPLIT_KEY] == part)
    with seeded(seed):
        values = model.get_marginal_ll(cells, indices=rows, n_mc_samples=n_mc_samples, return_mean=False)
    return np.asarray(values, dtype=float).ravel()


def _judge(likelihoods: dict[str, list[np.ndarray]], steps: dict[str, list[int]], names: pd.Index) -> TransferGain:
    """Paired differences with intervals, and what they mean."""
    base = np.array(likelihoods["scratch"])
    rows = {}
    for arm in ARMS:
        gain, low, high = interval(np.array(likelihoods[arm]) - base)
        nll = -float(np.mean(likelihoods[arm]))
        percent = 100 * gain / -float(base.mean())
        rows[arm] = [nll, gain, low, high, percent, float(np.mean(steps[arm]))]
    columns = ["neg_log_likelihood", "gain", "low", "high", "gain_percent", "steps"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    table.index.name = "arm"
    own = interval(np.array(likelihoods["pretrained"]) - np.array(likelihoods["shuffled"]))
    gain, low, high, percent = table.loc["pretrained", ["gain", "low", "high", "gain_percent"]]
    chance = max(float(table.loc["shuffled", "gain"]), 0.0)
    said = f"{gain:+.1f} nats a cell ({percent:+.1f}%, 95% interval {low:.1f} to {high:.1f}) against a model trained from nothing"
    worth_it = bool(low > 0 and own[1] > 0 and chance < _SHARE * gain)
    if worth_it:
        verdict = f"Worth it: {said}; with its features shuffled, the reference gives {chance:+.1f}."
    elif low > 0:
        verdict = f"Not by what the reference knows: {said}, but {chance:+.1f} with its features shuffled."
    elif high < 0:
        verdict = f"Not worth it, it does harm: {said}."
    else:
        verdict = f"No gain beyond noise: {said}. More held-out cells would tell a small gain from none."
    cells = pd.DataFrame({arm: np.mean(values, axis=0) for arm, values in likelihoods.items()}, index=names)
    return TransferGain(worth_it, verdict, table, cells)


def interval(differences: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences with its interval, by Student's distribution.

    Parameters
    ----------
    differences
        Shape ``(n_trainings, n_cells)``.
    confidence
        Of the interval.

    Returns
    -------
    Mean, lower and upper end. The variance of the mean is that over cells plus, with several trainings, that between them.
    """
    n_trainings, n_cells = differences.shape
    mean = float(differences.mean())
    variance = float(differences.mean(axis=0).var(ddof=1)) / n_cells
    if n_trainings > 1:
        variance += float(differences.mean(axis=1).var(ddof=1)) / n_trainings
    half = float(stats.t.ppf(0.5 + confidence / 2, n_cells - 1)) * variance**0.5
    return mean, mean - half, mean + half
