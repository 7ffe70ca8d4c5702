"""The truth of a simulated data set: genes, isoforms, labels and programs, and what a cell is expected to express."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isd._constants import TARGET_SUM

_LARGEST_GENE = 200
_LOWEST_USAGE = 1e-4
#: Difference in base usage that two isoforms need to change places: less would drown in the programs' effect.
_LEAST_GAP = 0.4


@dataclass(frozen=True)
class World:
    """Parameters that single cells and bulk samples share (``G`` genes, ``V`` transcripts, ``L`` labels, ``K`` programs).

    Attributes
    ----------
    sizes, starts
        Isoforms of each gene, and where its block of transcripts starts, ``(G,)``.
    log_mean
        Log mean of each gene, in arbitrary units, ``(G,)``.
    dispersion
        Negative binomial ``1 / theta`` of each gene, ``(G,)``.
    label_effect
        Log fold change of each gene in each label, ``(L, G)``.
    loadings
        Log fold change of each gene per unit of each program, ``(K, G)``.
    label_program
        Mean program score of each label, ``(L, K)``.
    usage_logits
        Log usage of each transcript in each label where all programs are zero, ``(L, V)``.
    usage_loadings
        Change of these logits per unit of each program, ``(K, V)``.
    switches
        Gene, its transcript that loses, its transcript that gains, and the label: ``(n_switches, 4)``.
    batch_effect
        Log fold change of each gene in each batch, ``(n_batches, G)``.
    """

    sizes: np.ndarray
    starts: np.ndarray
    log_mean: np.ndarray
    dispersion: np.ndarray
    label_effect: np.ndarray
    loadings: np.ndarray
    label_program: np.ndarray
    usage_logits: np.ndarray
    usage_loadings: np.ndarray
    switches: np.ndarray
    batch_effect: np.ndarray

    @property
    def gene_of(self) -> np.ndarray:
        """Gene of each transcript, ``(V,)``."""
        return np.repeat(np.arange(self.sizes.size), self.sizes)

    def composition(self, labels: np.ndarray, programs: np.ndarray, batches: np.ndarray | None = None) -> np.ndarray:
        """Compute the expected share of each transcript in each cell: rows of ``(n, V)`` float32 that sum to one."""
        gene = self.log_mean + self.label_effect[labels]
        if batches is not None:
            gene += self.batch_effect[batches]
        # a fold change levels off: a program three units away does not multiply a gene by e^9
        gene += np.tanh(programs / 2.0) @ (2.0 * self.loadings)
        gene -= gene.max(axis=1, keepdims=True)
        gene = np.exp(gene, dtype=np.float32)
        usage = self.usage_logits[labels]
        usage += programs @ self.usage_loadings
        np.exp(usage, out=usage)
        gene /= np.add.reduceat(usage, self.starts, axis=1)
        usage *= np.repeat(gene, self.sizes, axis=1)
        usage /= usage.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        return usage

    def draw_programs(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Program scores of cells, ``(n, K)``: a cloud around the label's own, bent along the first program."""
        own = rng.standard_normal((labels.size, self.loadings.shape[0]), dtype=np.float32)
        if own.shape[1] > 1:  # curved, so that no linear model is the truth
            own[:, 1] = 0.8 * own[:, 1] + 0.4 * (own[:, 0] ** 2 - 1.0)
        return 0.8 * own + self.label_program[labels]


def make_world(
    n_vars: int,
    n_labels: int,
    n_programs: int,
    n_batches: int,
    *,
    label_effect: float,
    program_effect: float,
    switch_fraction: float,
    usage_effect: float,
    batch_effect: float,
    rng: np.random.Generator,
) -> World:
    """Draw the parameters that cells and samples share; the scales are those of :func:`isd.datasets.simulated`."""
    sizes = _isoforms_per_gene(n_vars, rng)
    n_genes = sizes.size
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    log_mean = rng.normal(0.0, 2.0, n_genes).astype(np.float32)

    # a label changes some genes, half of them together with a neighbouring label, so that some labels are alike
    own = _sparse_normal((n_labels, n_genes), 0.12, label_effect, rng)
    shared = _sparse_normal(((n_labels + 1) // 2, n_genes), 0.06, label_effect, rng)
    effect = own + shared[np.arange(n_labels) // 2] if n_labels > 1 else np.zeros_like(own)

    loadings = _sparse_normal((n_programs, n_genes), 0.35, program_effect, rng)
    label_program = (0.6 * rng.standard_normal((n_labels, n_programs))).astype(np.float32)

    base = _base_usage(sizes, starts, rng)
    logits = np.tile(np.log(base), (n_labels, 1)).astype(np.float32)
    switches = _switches(base, sizes, starts, log_mean, n_labels, switch_fraction, rng)
    for _, loses, gains, label in switches:
        logits[label, [loses, gains]] = logits[label, [gains, loses]]
    usage_loadings = _sparse_normal((n_programs, n_vars), 0.3, usage_effect, rng)
    usage_loadings[:, np.repeat(sizes, sizes) == 1] = 0.0
    # the programs move switching isoforms less, so that a switch stays the switch that the table says it is
    usage_loadings[:, switches[:, 1:3].ravel()] *= 0.3

    return World(
        sizes=sizes,
        starts=starts,
        log_mean=log_mean,
        dispersion=np.exp(rng.normal(np.log(0.45), 0.5, n_genes)).astype(np.float32),
        label_effect=effect,
        loadings=loadings,
        label_program=label_program,
        usage_logits=logits,
        usage_loadings=usage_loadings,
        switches=switches,
        batch_effect=(batch_effect * rng.standard_normal((n_batches, n_genes))).astype(np.float32)
        * np.float32(n_batches > 1),
    )


def pooled_truth(world: World, share_sums: np.ndarray, n_cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean expression at :data:`~isd._constants.TARGET_SUM` and pooled usage of each label, both ``(V, L)`` float32."""
    mean = share_sums / np.maximum(n_cells, 1)[:, None]
    gene = np.add.reduceat(mean, world.starts, axis=1)
    usage = mean / np.maximum(np.repeat(gene, world.sizes, axis=1), np.finfo(np.float64).tiny)
    return (mean * TARGET_SUM).T.astype(np.float32), usage.T.astype(np.float32)


def _isoforms_per_gene(n_vars: int, rng: np.random.Generator) -> np.ndarray:
    """Long-tailed block sizes that sum to ``n_vars``: a quarter ones, about one gene in sixty above twenty."""
    sizes = np.ceil(rng.lognormal(0.7, 1.1, n_vars)).astype(np.int64)
    sizes = np.minimum(sizes, _LARGEST_GENE)
    n_genes = int(np.searchsorted(np.cumsum(sizes), n_vars)) + 1
    sizes = sizes[:n_genes]
    sizes[-1] -= sizes.sum() - n_vars
    return sizes


def _base_usage(sizes: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dirichlet usage, concentration ``1.6 / size + 0.05`` each: a few isoforms of a gene carry most of it."""
    gamma = rng.standard_gamma(np.repeat(1.6 / sizes + 0.05, sizes))
    usage = gamma / np.repeat(np.add.reduceat(gamma, starts), sizes)
    usage = np.maximum(usage, _LOWEST_USAGE)
    return usage / np.repeat(np.add.reduceat(usage, starts), sizes)


def _switches(
    base: np.ndarray,
    sizes: np.ndarray,
    starts: np.ndarray,
    log_mean: np.ndarray,
    n_labels: int,
    fraction: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Genes whose major isoform changes places with a minor one in one label; the well expressed come first."""
    gap = np.zeros(sizes.size)
    multi = np.flatnonzero(sizes > 1)
    if n_labels < 2 or multi.size == 0 or fraction == 0:
        return np.empty((0, 4), dtype=np.int64)
    major, minor = np.empty_like(sizes), np.empty_like(sizes)
    for gene in multi:
        order = np.argsort(base[starts[gene] : starts[gene] + sizes[gene]])[::-1] + starts[gene]
        major[gene], minor[gene] = order[0], order[-1] if sizes[gene] < 4 else order[sizes[gene] // 2]
        gap[gene] = base[major[gene]] - base[minor[gene]]
    candidates = multi[gap[multi] > _LEAST_GAP]
    n = min(candidates.size, max(1, round(fraction * multi.size)))
    if n == 0:
        return np.empty((0, 4), dtype=np.int64)
    # half of them where they can be seen (abundant), half anywhere
    ranked = candidates[np.argsort(-log_mean[candidates])]
    chosen = ranked[: n // 2]
    chosen = np.concatenate([chosen, rng.choice(ranked[n // 2 :], n - n // 2, replace=False)])
    label = rng.permutation(np.resize(np.arange(n_labels), n))
    return np.column_stack([chosen, major[chosen], minor[chosen], label])


def _sparse_normal(shape: tuple[int, int], density: float, sd: float, rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(sd)
    values[rng.random(shape, dtype=np.float32) >= density] = 0.0
    return values
