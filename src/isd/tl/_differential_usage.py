"""Isoform switches between labels: change of usage, its posterior probability, and false discovery rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

from isd._constants import GENE_NAME
from isd._counts import get_counts
from isd._progress import track
from isd.model._gene_encoder import GeneEncoder
from isd.model._mudata import measured_genes
from isd.settings import settings
from isd.tl._encode import vae_of

if TYPE_CHECKING:
    from isd.model import VAE, LatentDiffusion

#: Cells at once, and values of one block of posterior draws.
_CHUNK, _DRAWS = 256, 1 << 23
#: Range in which the weight of the model's prediction, in counts, is looked for.
_WEIGHT = (0.5, 1e4)
_REST = "rest"


def differential_usage(
    model: VAE | LatentDiffusion,
    adata: AnnData | None = None,
    group1: Any = None,
    group2: Any = None,
    labels_key: str | None = None,
    *,
    delta: float = 0.1,
    fdr_target: float = 0.05,
    min_counts: float = 10,
    n_samples: int = 1000,
    seed: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Find isoforms whose usage differs between two groups of cells.

    The usage of a gene in a group has a Dirichlet posterior. Its centre before the data is what the model predicts from the
    gene counts of the cells, the mean of both groups; the weight of that, in counts, is fitted to all genes in both groups. The
    group's counts add to it, each cell's worth less the more of them come from one cell (they are Dirichlet-multinomial
    with the model's concentration :math:`\kappa_g`):

    .. math::

        \theta_g \sim \mathrm{Dir}\Big(w\, m_g + n_\mathrm{eff}\, \hat p_g\Big), \qquad
        n_\mathrm{eff} = \frac{(1 + \kappa_g)\,(\sum_c n_{cg})^2}{\sum_c n_{cg}^2 + \kappa_g \sum_c n_{cg}}

    Parameters
    ----------
    model
        A trained :class:`isd.model.VAE`, or a :class:`isd.model.LatentDiffusion`, whose VAE is taken. A VAE without
        :attr:`~isd.model.VAE.gene_encoder` fits one now.
    adata
        Cells with the model's features in any order, raw counts where the model reads them; ``None`` takes the model's own.
    group1, group2
        Label, or several; ``group2=None`` is all other cells that have a label.
    labels_key
        Column of ``obs``; ``None`` takes the model's.
    delta
        Change of usage that matters: smaller ones are no discovery.
    fdr_target
        Expected share of false ones among the discoveries.
    min_counts
        Counts that a gene needs in either group; others are left out.
    n_samples
        Draws from the posterior.
    seed
        Seed of these; ``None`` takes ``isd.settings.seed``.
    progress
        Progress bar.

    Returns
    -------
    Frame with a row for each isoform of the genes with several isoforms and enough counts, the surest first, indexed by
    isoform: ``gene``, ``gene_name`` (where known), ``isoform``, ``usage1`` and ``usage2`` (posterior means), ``effect``
    (their difference), ``proba_du`` (posterior probability that the difference exceeds ``delta`` either way), ``fdr``
    (expected share of false ones among this row and all above), ``is_du_fdr_{fdr_target}``, ``counts1`` and ``counts2`` (of
    the gene), ``group1`` and ``group2``.

    Raises
    ------
    KeyError
        If the column, a label, or the gene map is absent.
    ValueError
        If the model is not trained, a group has no cells or they overlap, or features are missing.

    References
    ----------
    The decision rule is that of Lopez et al. 2018 (scVI) and Newton et al. 2004: rows are called while the mean of
    ``1 - proba_du`` stays at ``fdr_target``.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=120, n_vars=60, n_labels=2)
    >>> isd.model.VAE.setup_anndata(adata)
    >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
    >>> vae.train(max_steps=5, progress=False)
    >>> vae.fit_gene_encoder(max_steps=50, progress=False)
    >>> table = isd.tl.differential_usage(vae, group1="0")
    >>> list(table.columns[:8])
    ['gene', 'gene_name', 'isoform', 'usage1', 'usage2', 'effect', 'proba_du', 'fdr']
    """
    vae = vae_of(model)
    if not vae.is_trained:
        raise ValueError("the VAE is not trained yet; call vae.train() first.")
    for name, value, low, high in (("delta", delta, 0, 1), ("fdr_target", fdr_target, 0, 1)):
        if not low <= value < high:
            raise ValueError(f"{name} must lie in [{low}, {high}), got {value}.")
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2, got {n_samples}.")
    if group1 is None:
        raise ValueError("group1 is missing: give a label, or several.")
    if adata is None:
        adata = vae._validate_anndata()
    key = labels_key or vae.labels_key
    if key is None:
        raise KeyError("the model was set up without labels; name a column of obs: labels_key=...")
    rows1, rows2, names = _groups(adata, key, group1, group2)
    genes = vae.gene_map()
    columns = adata.var_names.get_indexer(vae.feature_names)
    if (columns < 0).any():
        raise ValueError(f"adata lacks {int((columns < 0).sum())} of the model's {len(columns)} features.")
    same = len(columns) == adata.n_vars and bool((columns == np.arange(adata.n_vars)).all())
    matrix = get_counts(adata, "X" if vae.layer is None else vae.layer)
    encoder = vae.require_gene_encoder(progress=progress)
    seed = settings.seed if seed is None else int(seed)
    measured = measured_genes(adata, genes.genes.size)
    order = None if same else columns
    sides = [
        _pool(encoder, matrix, measured, rows, order, f"Usage of {name}", progress)
        for rows, name in zip((rows1, rows2), names, strict=True)
    ]
    # one centre for both: predictions of each group were fitted to its counts, and would count them twice
    centre = (sides[0].predicted + sides[1].predicted) / 2
    sides = [replace(side, predicted=centre) for side in sides]
    enough = (genes.n_isoforms > 1) & (sides[0].total >= min_counts) & (sides[1].total >= min_counts)
    features = np.flatnonzero(np.append(enough, False)[genes.gene_of])
    weight = _prior_weight(sides, genes.gene_of, enough)
    alphas = [side.posterior(genes.gene_of, weight)[features] for side in sides]
    codes = genes.gene_of[features]
    usage = [alpha / np.bincount(codes, alpha, minlength=genes.genes.size)[codes] for alpha in alphas]
    table = pd.DataFrame(
        {
            "gene": genes.genes[codes],
            "isoform": vae.feature_names[features],
            "usage1": usage[0],
            "usage2": usage[1],
            "effect": usage[0] - usage[1],
            "proba_du": _probability(alphas, codes, delta, n_samples, np.random.default_rng([seed, 31])),
            "counts1": sides[0].total[codes],
            "counts2": sides[1].total[codes],
            "group1": names[0],
            "group2": names[1],
        },
        index=pd.Index(vae.feature_names[features], name=None),
    )
    if GENE_NAME in vae.feature_table:
        table.insert(1, GENE_NAME, vae.feature_table[GENE_NAME].to_numpy()[features])
    order = np.lexsort((-table["effect"].abs().to_numpy(), -table["proba_du"].to_numpy()))
    table = table.iloc[order]
    fdr = np.cumsum(1 - table["proba_du"].to_numpy()) / np.arange(1, len(table) + 1)
    table.insert(table.columns.get_loc("proba_du") + 1, "fdr", fdr)
    table.insert(table.columns.get_loc("fdr") + 1, f"is_du_fdr_{fdr_target:g}", fdr <= fdr_target)
    return table


@dataclass(frozen=True)
class _Side:
    """A group: counts and predicted usage of each isoform, counts and their worth of each gene."""

    counts: np.ndarray
    predicted: np.ndarray
    total: np.ndarray
    effective: np.ndarray

    def scale(self) -> np.ndarray:
        """What one count of each gene is worth."""
        return np.divide(self.effective, self.total, out=np.zeros_like(self.total), where=self.total > 0)

    def posterior(self, gene_of: np.ndarray, weight: float) -> np.ndarray:
        """Parameters of the Dirichlet posteriors, of each isoform."""
        return weight * self.predicted + np.append(self.scale(), 0.0)[gene_of] * self.counts


def _pool(
    encoder: GeneEncoder,
    matrix: Any,
    measured: sparse.csr_matrix | None,
    rows: np.ndarray,
    columns: np.ndarray | None,
    description: str,
    progress: bool | None,
) -> _Side:
    genes = encoder.genes
    counts, expected = np.zeros(genes.gene_of.size), np.zeros(genes.gene_of.size)
    total, square = np.zeros(genes.genes.size), np.zeros(genes.genes.size)
    starts = range(0, len(rows), _CHUNK)
    bar = progress if progress is not None or len(rows) > 20_000 else False
    for start in track(starts, description, progress=bar):
        x = sparse.csr_matrix(matrix[rows[start : start + _CHUNK]])
        x = x if columns is None else sparse.csr_matrix(x[:, columns])
        per_gene = genes.sums(x)
        counts += np.asarray(x.sum(axis=0)).ravel()
        total += np.asarray(per_gene.sum(axis=0)).ravel()
        square += np.asarray(per_gene.multiply(per_gene).sum(axis=0)).ravel()
        scores = encoder.scores(per_gene if measured is None else measured[rows[start : start + _CHUNK]])
        totals, usage, _ = encoder.usage(scores, per_gene)
        expected += np.bincount(totals.column, totals.total[totals.pair] * usage, minlength=expected.size)
    kappa = encoder.predictor.log_concentration.detach().exp().cpu().numpy().astype(np.float64)
    effective = np.divide((1 + kappa) * total**2, square + kappa * total, out=np.zeros_like(total), where=total > 0)
    known = np.append(total, 0.0)[genes.gene_of]
    predicted = np.divide(expected, known, out=np.zeros_like(expected), where=known > 0)
    return _Side(counts, predicted, total, effective)


def _prior_weight(sides: Sequence[_Side], gene_of: np.ndarray, genes: np.ndarray) -> float:
    """Counts that the model's prediction is worth: those under which all genes' counts are likeliest."""
    parts = []
    for side in sides:
        known = genes & (side.total > 0)
        features = np.flatnonzero(np.append(known, False)[gene_of] & (side.predicted > 0))
        worth = (np.append(side.scale(), 0.0)[gene_of] * side.counts)[features]
        parts.append((worth, side.predicted[features], side.effective[known]))
    if not any(len(effective) for *_, effective in parts):
        return 1.0

    def minus_log_likelihood(log_weight: float) -> float:
        weight, total = np.exp(log_weight), 0.0
        for worth, predicted, effective in parts:
            total += float((gammaln(worth + weight * predicted) - gammaln(weight * predicted)).sum())
            total -= float((gammaln(effective + weight) - gammaln(weight)).sum())
        return -total

    return float(np.exp(minimize_scalar(minus_log_likelihood, bounds=np.log(_WEIGHT), method="bounded").x))


def _probability(
    alphas: Sequence[np.ndarray], codes: np.ndarray, delta: float, n_samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Share of draws in which usages differ by more than ``delta``; a marginal of a Dirichlet is a beta."""
    n_genes = int(codes.max(initial=-1)) + 1
    rest = [np.maximum(np.bincount(codes, a, minlength=n_genes)[codes] - a, 1e-8) for a in alphas]
    out = np.zeros(codes.size)
    step = max(1, _DRAWS // n_samples)
    for start in range(0, codes.size, step):
        part = slice(start, start + step)
        first, second = (
            rng.beta(np.maximum(a[part], 1e-8), r[part], size=(n_samples, len(a[part])))
            for a, r in zip(alphas, rest, strict=True)
        )
        out[part] = (np.abs(first - second) > delta).mean(axis=0)
    return out


def _groups(adata: AnnData, key: str, group1: Any, group2: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, str]]:
    """Rows of both groups, and what to call them."""
    if key not in adata.obs:
        raise KeyError(f"labels_key {key!r} is not in adata.obs, which has {list(map(str, adata.obs.columns))}.")
    labels = adata.obs[key].astype(object)
    known = list(pd.unique(labels.dropna()))

    def rows(group: Any, name: str) -> tuple[np.ndarray, str]:
        wanted = list(group) if isinstance(group, (list, tuple, set, np.ndarray, pd.Index)) else [group]
        unknown = [w for w in wanted if w not in known]
        if unknown:
            raise KeyError(f"{name}: {unknown[0]!r} is not a label of obs[{key!r}]; there are {known[:20]}.")
        return np.flatnonzero(labels.isin(wanted).to_numpy()), ", ".join(map(str, wanted))

    first, name1 = rows(group1, "group1")
    if group2 is None:
        second, name2 = np.setdiff1d(np.flatnonzero(labels.notna().to_numpy()), first), _REST
    else:
        second, name2 = rows(group2, "group2")
    if np.intersect1d(first, second).size:
        raise ValueError(f"group1 ({name1}) and group2 ({name2}) share cells.")
    if not first.size or not second.size:
        raise ValueError(f"group1 ({name1}) has {first.size} cells and group2 ({name2}) {second.size}; both need some.")
    return first, second, (name1, name2)
