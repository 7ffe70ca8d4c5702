"""Fitting of what tells the usage of isoforms from the counts of genes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse

from isd._constants import TARGET_SUM
from isd._progress import track
from isd.metrics import GeneMap
from isd.model._training import learning_rate_factor, seeded
from isd.nn import SparseBatch
from isd.nn._usage import IsoformCounts, isoform_counts
from isd.nn._usage_predictor import UsagePredictor

#: Training cells, and stored counts of them, that the fit reads into memory at most.
MAX_CELLS, MAX_VALUES = 50_000, 100_000_000
#: Isoforms of expressed genes, summed over cells, that are held at once.
MAX_ENTRIES = 1 << 22
#: Learning rate of concentrations while usage stays.
_SETTLING_LR = 0.05
#: Counts that each isoform is given before usage is pooled.
PSEUDOCOUNT = 0.5


@dataclass(frozen=True)
class UsageSettings:
    """How a VAE's gene encoder predicts usage, and how it is fitted (:meth:`VAE.fit_gene_encoder`).

    Parameters
    ----------
    n_components
        Principal components of gene counts.
    rank
        Width of what usage follows.
    n_hidden
        Hidden layer between them, 0 for a linear map.
    dropout
        Dropout in the hidden layer.
    with_labels
        Whether labels have terms of their own.
    lr
        Learning rate of the usage terms; that of the concentrations is ``concentration_lr``. Both warm up and anneal.
    settling
        Share of the steps, the last ones, in which usage stays and only the concentrations move (at 0.05).
    batch_size, max_steps
        Cells in a step, and most steps.
    validate_every
        Steps between looks at validation cells.
    penalty, label_penalty
        Precision of the priors on the isoforms' and labels' terms.

    Examples
    --------
    >>> import isd
    >>> isd.model.UsageSettings(rank=16, with_labels=True).penalty
    100.0
    """

    n_components: int = 30
    rank: int = 8
    n_hidden: int = 0
    dropout: float = 0.0
    with_labels: bool = False
    lr: float = 1e-2
    concentration_lr: float = 0.1
    settling: float = 0.0
    batch_size: int = 64
    max_steps: int = 400
    validate_every: int = 25
    penalty: float = 100.0
    label_penalty: float = 100.0


def usage_settings(n_train: int) -> list[UsageSettings]:
    """Settings that follow the number of training cells; of several, validation cells choose."""
    # a few stiff directions or many free ones: data differ in which they want
    stiff = UsageSettings(rank=8, penalty=100.0, max_steps=300 if n_train < 2000 else 600)
    if n_train < 250:
        return [stiff]
    if n_train < 2000:
        return [stiff, UsageSettings(rank=32, penalty=30.0)]
    # concentrations that run ahead of usage hold it back: what usage has not explained yet counts as scatter
    bent = UsageSettings(
        rank=32,
        penalty=30.0,
        n_hidden=128,
        lr=1e-2,
        concentration_lr=0.02,
        batch_size=256,
        max_steps=800,
        validate_every=50,
    )
    if n_train < 10_000:
        return [stiff, bent]
    # with so many cells, usage nearly as a multinomial has it, and how it scatters afterwards
    return [replace(bent, concentration_lr=0.002, settling=0.2, max_steps=2000, validate_every=100)]


def as_batch(matrix: sparse.csr_matrix, device: torch.device | str = "cpu") -> SparseBatch:
    """A csr matrix as the networks read it."""
    parts = (matrix.indptr, matrix.indices, matrix.data.astype(np.float32, copy=False))
    row_ptr, cols, values = (torch.as_tensor(part, device=device) for part in parts)
    return SparseBatch(row_ptr.long(), cols.long(), values, matrix.shape[1])


def gene_log_normalized(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """log1p of gene counts scaled to 10,000 in ``totals``."""
    out = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    out.data *= np.repeat((TARGET_SUM / np.maximum(totals, 1e-12)).astype(np.float32), np.diff(out.indptr))
    np.log1p(out.data, out=out.data)
    return out


def gene_scores(
    predictor: UsagePredictor,
    counts: sparse.csr_matrix,
    present: np.ndarray | None = None,
    *,
    share: float = 1.0,
    chunk: int = 4096,
) -> torch.Tensor:
    """Principal components of cells from their gene counts.

    Parameters
    ----------
    predictor
        Fitted or about to be.
    counts
        Counts of the predictor's genes, ``(n, n_genes)``.
    present
        Genes that were measured; ``None`` for all.
    share
        Share of all counts that these genes have in the training cells.
    chunk
        Cells at once.
    """
    device = predictor.axes.device
    measured = None if present is None else torch.as_tensor(present, device=device).float()
    parts = []
    for start in range(0, counts.shape[0], chunk):
        rows = sparse.csr_matrix(counts[start : start + chunk])
        totals = np.asarray(rows.sum(axis=1), dtype=np.float64).ravel() / share
        with torch.no_grad():
            parts.append(predictor.scores(as_batch(gene_log_normalized(rows, totals), device), measured))
    return torch.cat(parts) if parts else torch.zeros(0, predictor.axes.shape[1], device=device)


@dataclass
class _Data:
    """Cells in memory: isoform counts, scores of gene PCs, label codes, and how many entries each cell has."""

    counts: sparse.csr_matrix
    scores: torch.Tensor
    labels: torch.Tensor | None
    entries: np.ndarray

    def batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows in pieces of at most :data:`MAX_ENTRIES` entries."""
        ends = np.cumsum(self.entries[rows]) // MAX_ENTRIES
        return np.split(rows, np.flatnonzero(np.diff(ends)) + 1)

    def part(self, predictor: UsagePredictor, rows: np.ndarray) -> tuple[IsoformCounts, torch.Tensor | None]:
        """Counts and labels, as the log-likelihood takes them."""
        batch = as_batch(sparse.csr_matrix(self.counts[rows]), self.scores.device)
        labels = None if self.labels is None else self.labels[torch.as_tensor(rows, device=self.labels.device)]
        return isoform_counts(batch, predictor.genes), labels


def fit_usage(
    counts: Any,
    genes: GeneMap,
    train: np.ndarray,
    validation: np.ndarray,
    *,
    gene_counts: sparse.csr_matrix | None = None,
    labels: np.ndarray | None = None,
    n_labels: int = 0,
    settings: UsageSettings | Sequence[UsageSettings] | None = None,
    max_steps: int | None = None,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> tuple[UsagePredictor, UsageSettings, dict[str, list[float]]]:
    """Fit a :class:`~isd.nn.UsagePredictor`, and keep what validation cells like best.

    Parameters
    ----------
    counts
        Counts of isoforms, ``(n_obs, n_vars)``, in memory or backed.
    genes
        Gene of each isoform.
    train, validation
        Rows to fit on and to choose by; nothing else is read. Of more than 50,000 training rows, so many are drawn.
    gene_counts
        Counts of genes by which usage is told, ``(n_obs, n_genes)``; by default the sums of their isoforms.
    labels, n_labels
        Codes of labels, ``n_labels`` for rows without one; used where the settings say so.
    settings
        Of several, what validation cells like best is kept; without these, the first is taken. By default
        :func:`usage_settings`.
    max_steps
        Most steps, fewer than the settings have.
    seed
        Seed of rows, starting weights and minibatches.
    device
        Where to compute.
    progress
        Progress bar.

    Returns
    -------
    The predictor, its settings, and ``{"step", "train", "validation"}``: log-likelihood a cell, nats.
    """
    with seeded(seed) as seed:
        rng = np.random.default_rng([seed, 7])
        train = _within_memory(counts, train, rng)
        validation = _within_memory(counts, validation, rng, share=0.2)
        x = sparse.csr_matrix(counts[np.sort(train)], dtype=np.float32)
        told_by = genes.sums(x).astype(np.float32) if gene_counts is None else gene_counts[np.sort(train)]
        if settings is None:
            settings = usage_settings(len(train))
        candidates = [settings] if isinstance(settings, UsageSettings) else list(settings)
        if max_steps is not None:
            candidates = [replace(s, max_steps=min(max_steps, s.max_steps)) for s in candidates]
        use_labels = labels is not None and n_labels > 1
        held = sparse.csr_matrix(counts[np.sort(validation)], dtype=np.float32) if len(validation) else None
        fits: list[tuple[UsagePredictor, UsageSettings, dict[str, list[float]]]] = []
        for candidate in candidates if held is not None else candidates[:1]:
            n_components = max(1, min(candidate.n_components, min(told_by.shape) - 1))
            chosen = replace(candidate, n_components=n_components, with_labels=candidate.with_labels and use_labels)
            predictor = make_predictor(genes, chosen, n_labels)
            if fits and fits[0][0].axes.shape == predictor.axes.shape:
                for name in ("log_pooled", "inferable", "axes", "gene_mean"):
                    getattr(predictor, name).copy_(getattr(fits[0][0], name))
            else:
                _start(predictor, x, told_by, genes, seed)
            predictor.to(device)
            codes = labels if chosen.with_labels else None
            fitted = _data(predictor, genes, x, told_by, None if codes is None else codes[np.sort(train)])
            judged = None
            if held is not None:
                seen = genes.sums(held) if gene_counts is None else gene_counts[np.sort(validation)]
                judged = _data(predictor, genes, held, seen, None if codes is None else codes[np.sort(validation)])
            history = _optimise(predictor, chosen, fitted, judged, rng, progress)
            fits.append((predictor, chosen, history))
    predictor, settings, history = max(fits, key=lambda fit: max(fit[2]["validation"], default=0.0))
    return predictor.eval(), settings, history


def _data(
    predictor: UsagePredictor,
    genes: GeneMap,
    x: sparse.csr_matrix,
    gene_counts: sparse.csr_matrix,
    labels: np.ndarray | None,
) -> _Data:
    entries = (genes.sums(x) > 0) @ np.where(genes.n_isoforms > 1, genes.n_isoforms, 0)
    codes = None if labels is None else torch.as_tensor(labels, device=predictor.axes.device)
    return _Data(x, gene_scores(predictor, gene_counts), codes, np.asarray(entries).ravel())


def make_predictor(genes: GeneMap, settings: UsageSettings, n_labels: int) -> UsagePredictor:
    """A predictor of these genes, with nothing learnt."""
    return UsagePredictor(
        torch.as_tensor(genes.gene_of),
        n_genes=genes.genes.size,
        n_components=settings.n_components,
        rank=settings.rank,
        n_hidden=settings.n_hidden,
        dropout=settings.dropout,
        n_labels=n_labels if settings.with_labels else 0,
    )


def _within_memory(counts: Any, rows: np.ndarray, rng: np.random.Generator, share: float = 1.0) -> np.ndarray:
    """Rows, or as many of them, drawn, as fit into the memory that the fit allows itself."""
    if not len(rows):
        return rows
    some = np.sort(rng.choice(rows, min(len(rows), 256), replace=False))
    stored = sparse.csr_matrix(counts[some]).nnz / len(some)
    most = int(max(2, share * min(MAX_CELLS, MAX_VALUES / max(stored, 1.0))))
    return np.sort(rows if len(rows) <= most else rng.choice(rows, most, replace=False))


def _start(
    predictor: UsagePredictor, x: sparse.csr_matrix, gene_counts: sparse.csr_matrix, genes: GeneMap, seed: int
) -> None:
    """Fill what is computed and not learnt: pooled usage, principal axes of genes, which genes have isoforms to tell."""
    from sklearn.decomposition import PCA

    totals = np.asarray(x.sum(axis=0), dtype=np.float64).ravel()
    shared = predictor.genes.shared.numpy()
    pooled = totals[shared] + PSEUDOCOUNT
    gene = genes.gene_of[shared]
    sums = np.bincount(gene, pooled, minlength=genes.genes.size)
    predictor.log_pooled.copy_(torch.as_tensor(np.log(pooled / sums[gene])))
    expressed = np.bincount(gene[totals[shared] > 0], minlength=genes.genes.size)
    predictor.inferable.copy_(torch.as_tensor(expressed > 1))
    normalized = gene_log_normalized(gene_counts, np.asarray(gene_counts.sum(axis=1), dtype=np.float64).ravel())
    n_components = predictor.axes.shape[1]
    if min(normalized.shape) > 1:
        pca = PCA(n_components, svd_solver="arpack", random_state=seed).fit(normalized)
        first = max(float(np.sqrt(pca.explained_variance_[0])), 1e-6)
        predictor.axes.copy_(torch.as_tensor(pca.components_.T / first))
    predictor.gene_mean.copy_(torch.as_tensor(np.asarray(normalized.mean(axis=0)).ravel()))


def learning_rates(settings: UsageSettings, progress: float) -> tuple[float, float]:
    """Learning rates of the usage terms and of the concentrations at a share of the steps.

    Examples
    --------
    >>> from isd.model import UsageSettings
    >>> settings = UsageSettings(lr=0.01, concentration_lr=0.002, settling=0.2)
    >>> [[round(rate, 4) for rate in learning_rates(settings, share)] for share in (0.08, 0.82)]
    [[0.01, 0.002], [0.0, 0.05]]
    """
    last = 1 - settings.settling
    if progress < last:
        factor = learning_rate_factor(progress / last, "one_cycle")
        return settings.lr * factor, settings.concentration_lr * factor
    return 0.0, _SETTLING_LR * learning_rate_factor((progress - last) / max(settings.settling, 1e-12), "one_cycle")


def _optimise(
    predictor: UsagePredictor,
    settings: UsageSettings,
    data: _Data,
    judged: _Data | None,
    rng: np.random.Generator,
    progress: bool | None,
) -> dict[str, list[float]]:
    """Adam on penalised likelihood; the weights that validation cells like best stay."""
    n = data.counts.shape[0]
    slow = [predictor.log_concentration, predictor.mean_log_concentration]
    rest = [p for p in predictor.parameters() if not any(p is q for q in slow)]
    optimizer = torch.optim.Adam(
        [{"params": rest, "lr": settings.lr}, {"params": slow, "lr": settings.concentration_lr}], fused=True
    )
    history: dict[str, list[float]] = {"step": [], "train": [], "validation": []}
    best, best_state = -np.inf, None
    size = min(settings.batch_size, n)
    running: list[float] = []
    order = np.empty(0, dtype=np.int64)
    n_steps = settings.max_steps
    own = _without_itself(predictor, data.counts)
    for step in track(range(n_steps + 1), "Fitting usage of isoforms", progress=progress if progress else False):
        if step % settings.validate_every == 0 or step == n_steps:
            predictor.calibrate(data.scores)
            if judged is not None:
                value = mean_log_likelihood(predictor, judged)
                history["step"].append(float(step))
                history["train"].append(float(np.mean(running)) if running else float("nan"))
                history["validation"].append(value)
                running = []
                if value > best:
                    best, best_state = value, copy.deepcopy(predictor.state_dict())
            predictor.train()
        if step == n_steps:
            break
        if len(order) < size:
            order = rng.permutation(n)
        rows, order = order[:size], order[size:]
        for group, rate in zip(optimizer.param_groups, learning_rates(settings, step / n_steps), strict=True):
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        total, done = 0.0, 0
        scores = data.scores[torch.as_tensor(rows, device=data.scores.device)]
        for piece in data.batches(rows):
            counts, labels = data.part(predictor, piece)
            # standardised over the whole minibatch, whatever pieces it comes in
            z = predictor.hidden(scores)[done : done + len(piece)]
            done += len(piece)
            if labels is not None:
                # some cells are shown without their label, so that those that have none are predicted well
                hidden = torch.rand(len(labels), device=labels.device) < 0.3
                labels = labels.masked_fill(hidden, predictor.n_labels)
            loss = -predictor.log_likelihood(z, counts, labels, own(counts)).sum() / size
            loss.backward()
            total += float(loss.detach())
        (predictor.penalty(settings.penalty, settings.label_penalty) / n).backward()
        optimizer.step()
        running.append(-total)
    if best_state is not None:
        predictor.load_state_dict(best_state)
    return history


def _without_itself(predictor: UsagePredictor, x: sparse.csr_matrix) -> Callable[[IsoformCounts], torch.Tensor]:
    """What pooled usage, as logits, changes by where a training cell's own counts are taken out of it.

    A gene that few cells express has a pooled usage that is mostly that of each of these cells: told by it, they would seem
    to scatter less than cells that are held out.
    """
    shared = predictor.genes.shared
    sums = torch.as_tensor(np.asarray(x.sum(axis=0), dtype=np.float64).ravel(), device=shared.device)
    sums = sums.index_select(0, shared) + PSEUDOCOUNT

    def offset(counts: IsoformCounts) -> torch.Tensor:
        mine = sums[predictor.position[counts.column]]
        # that of the gene is the same for all isoforms, and no softmax knows it
        return torch.log((mine - counts.value) / mine).float()

    return offset


@torch.no_grad()
def mean_log_likelihood(predictor: UsagePredictor, data: _Data) -> float:
    """Log-likelihood of isoforms given genes, nats a cell."""
    predictor.eval()
    total = 0.0
    rows = np.arange(data.counts.shape[0])
    for chunk in np.array_split(rows, max(1, -(-len(rows) // 1024))):
        for piece in data.batches(chunk):
            z = predictor.hidden(data.scores[torch.as_tensor(piece, device=data.scores.device)])
            total += float(predictor.log_likelihood(z, *data.part(predictor, piece)).double().sum())
    return total / len(rows)
