"""Simulated isoform counts: single cells, bulk samples, or both from one truth."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd.datasets._annotation import make_obs, make_switches, make_var
from isd.datasets._draw import allot, draw_counts, label_proportions, row_blocks, stream
from isd.datasets._world import World, make_world, pooled_truth
from isd.settings import settings

Kind = Literal["single_cell", "bulk", "both"]

#: Values of the pool of cells that bulk samples are mixed from: a quarter of a gigabyte.
_POOL_VALUES = 1 << 26


@overload
def simulated(
    n_obs: int = ...,
    n_vars: int = ...,
    n_labels: int = ...,
    kind: Literal["single_cell", "bulk"] = ...,
    **kwargs: Any,
) -> AnnData: ...
@overload
def simulated(
    n_obs: int = ..., n_vars: int = ..., n_labels: int = ..., *, kind: Literal["both"], **kwargs: Any
) -> tuple[AnnData, AnnData]: ...
def simulated(  # type: ignore[misc]  # the overloads leave out the options
    n_obs: int = 3000,
    n_vars: int = 2000,
    n_labels: int = 8,
    kind: Kind = "single_cell",
    *,
    n_bulk: int | None = None,
    n_batches: int = 1,
    batch_effect: float = 0.2,
    mean_depth: float | None = None,
    depth_sd: float = 0.35,
    bulk_depth: float = 1e6,
    bulk_shift: float = 0.6,
    cells_per_sample: tuple[int, int] = (50, 500),
    n_programs: int = 5,
    label_effect: float = 1.3,
    program_effect: float = 0.45,
    switch_fraction: float = 0.15,
    usage_effect: float = 0.6,
    seed: int | None = 0,
    progress: bool | None = None,
) -> AnnData | tuple[AnnData, AnnData]:
    r"""Simulate isoform counts with labels, continuous programs, isoform switches and batches, and keep the truth.

    Genes have a long-tailed number of isoforms and log-normal means. A cell's expression is its label's (each label
    changes some genes, half-shared with a neighbouring label) plus ``n_programs`` continuous programs that many genes
    follow, so that genes are correlated within labels. The usage of a gene's isoforms is Dirichlet, changes places in
    one label for the *switching* genes, and drifts with the programs. Counts are negative binomial around
    library size times share, with a dispersion for every gene:

    .. math::

        \log \mu_{cg} = b_g + e_{\ell(c) g} + 2\tanh(z_c / 2)^\top w_g + s_{\beta(c) g}, \qquad
        \pi_{ct} = \mathrm{softmax}_{t \in g}(u_{\ell(c) t} + z_c^\top v_t), \qquad
        y_{ct} \sim \mathrm{NB}(\lambda_c\, \mu_{cg}\pi_{ct} / \textstyle\sum_{h} \mu_{ch},\; 1 / \phi_g)

    A bulk sample is a mixture of 50 to 500 cells of several labels, with its own depth and a shift of every transcript
    that all samples share (another protocol). Counts are made in blocks of rows: 20,000 x 180,000 needs no more memory
    than its result and about half a gigabyte.

    Parameters
    ----------
    n_obs
        Cells; samples where ``kind="bulk"``.
    n_vars
        Transcripts.
    n_labels
        Labels, at most ``n_obs``.
    kind
        ``"single_cell"``, ``"bulk"``, or ``"both"``: the same transcripts and labels measured twice.
    n_bulk
        Samples where ``kind="both"``; by default a tenth of the cells, at least 50.
    n_batches
        Batches (series), of about equal size and independent of the labels.
    batch_effect
        Standard deviation of the log fold change that a batch gives a gene; nothing where there is one batch.
    mean_depth
        Mean total counts of a cell. Default: 2,200 for 2,000 transcripts, growing with ``(n_vars / 2000) ** 0.4``
        (13,000 for 180,000).
    depth_sd
        Standard deviation of log library size, cells and samples.
    bulk_depth
        Mean total counts of a bulk sample.
    bulk_shift
        Standard deviation of the log shift of a transcript in bulk.
    cells_per_sample
        Fewest and most cells that are mixed into a bulk sample.
    n_programs
        Continuous programs.
    label_effect, program_effect
        Standard deviation of the log fold changes of the genes that a label (about one in six) or a program (about
        one in three) changes.
    switch_fraction
        Share of the genes with several isoforms that switch isoforms in one label.
    usage_effect
        Standard deviation of the change in usage logits per unit of a program, for the isoforms that follow it.
    seed
        Seed; ``None`` takes :attr:`isd.settings.seed <isd.settings.Settings.seed>`. The same arguments give the same
        counts.
    progress
        Show a bar; by default for large results when somebody is looking.

    Returns
    -------
    AnnData, or for ``kind="both"`` the tuple ``(single_cell, bulk)``, with

    ``X``
        csr counts, float32 (whole numbers): float32 and not uint32, because differences of unsigned numbers wrap around
        and torch has no arithmetic for them; the memory is the same.
    ``obs``
        Metadata columns as an ARCHS4 file has them, ``batch``, and ``leiden``: the true label, ``"0"`` the largest,
        categories in numeric order. In bulk: the label with the largest share of the sample's cells.
    ``var``
        Index of versioned transcript ids; ``gene_id``, ``gene_name``, ``transcript_name``, ``true_dispersion``
        (:math:`\phi_g`), and ``true_bulk_shift`` in bulk.
    ``obsm["true_program"]``
        :math:`z_c`, ``(n_obs, n_programs)``; in bulk the mean over the sample's cells. Bulk has
        ``obsm["true_proportions"]`` too, ``(n_obs, n_labels)``.
    ``varm["true_mean"]``, ``varm["true_usage"]``
        Expected counts at a depth of 10,000 and expected usage, pooled over the label's cells, ``(n_vars, n_labels)``.
        In bulk: of the cells that are mixed, without the shift.
    ``varm["true_loadings"]``, ``varm["true_usage_loadings"]``
        :math:`w_g` of the transcript's gene and :math:`v_t`, ``(n_vars, n_programs)``.
    ``uns["true_switches"]``
        Frame with ``gene_id``, ``transcript``, ``label`` and ``delta``: usage in the label minus the mean over the
        other labels. Two rows a switch: the isoform that loses, then the one that gains.
    ``uns["simulated"]``
        The arguments.

    Every cell has at least one count. There is no ``layers["counts"]``: :func:`isd.pp.recipe` makes it.

    Raises
    ------
    ValueError
        For an unknown ``kind`` and for numbers out of range.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(200, 300, n_labels=3)
    >>> adata.shape, list(adata.obs["leiden"].cat.categories)
    ((200, 300), ['0', '1', '2'])
    >>> cells, bulk = isd.datasets.simulated(200, 300, n_labels=3, kind="both", n_bulk=20)
    >>> bool((cells.var_names == bulk.var_names).all())
    True
    """
    if kind not in ("single_cell", "bulk", "both"):
        raise ValueError(f'kind is {kind!r}; expected "single_cell", "bulk" or "both".')
    if n_bulk is None:
        n_bulk = max(50, n_labels, n_obs // 10)
    for name, value, least in (
        ("n_labels", n_labels, 1),
        ("n_obs", n_obs, n_labels),
        ("n_bulk", n_bulk, n_labels),
        ("n_vars", n_vars, 2),
        ("n_batches", n_batches, 1),
        ("n_programs", n_programs, 1),
    ):
        if int(value) != value or value < least:
            why = " (one for every label)" if least == n_labels and least > 1 else ""
            raise ValueError(f"{name} is {value}; expected a whole number of at least {least}{why}.")
    if mean_depth is None:
        mean_depth = 2200.0 * (n_vars / 2000) ** 0.4
    for name, number in (("mean_depth", mean_depth), ("bulk_depth", bulk_depth)):
        if not 0 < number < 2**24:
            raise ValueError(
                f"{name} is {number}; expected counts above 0 and below 2**24 (float32 is exact to there)."
            )
    for name, number in (
        ("batch_effect", batch_effect),
        ("depth_sd", depth_sd),
        ("bulk_shift", bulk_shift),
        ("label_effect", label_effect),
        ("program_effect", program_effect),
        ("usage_effect", usage_effect),
    ):
        if not 0 <= number < np.inf:
            raise ValueError(f"{name} is {number}; expected a standard deviation of 0 or more.")
    if not 0 <= switch_fraction <= 1:
        raise ValueError(f"switch_fraction is {switch_fraction}; expected a share from 0 to 1.")
    fewest, most = cells_per_sample
    if not 1 <= fewest <= most:
        raise ValueError(f"cells_per_sample is {cells_per_sample}; expected (fewest, most) with 1 <= fewest <= most.")

    seed = settings.seed if seed is None else int(seed)
    world = make_world(
        n_vars,
        n_labels,
        n_programs,
        n_batches,
        label_effect=label_effect,
        program_effect=program_effect,
        switch_fraction=switch_fraction,
        usage_effect=usage_effect,
        batch_effect=batch_effect,
        rng=stream(seed, 0),
    )
    var = make_var(world, stream(seed, 1))
    proportions = label_proportions(n_labels, stream(seed, 2))
    arguments = {
        "kind": kind,
        "n_labels": n_labels,
        "n_batches": n_batches,
        "n_programs": n_programs,
        "batch_effect": float(batch_effect),
        "mean_depth": float(mean_depth),
        "depth_sd": float(depth_sd),
        "bulk_depth": float(bulk_depth),
        "bulk_shift": float(bulk_shift),
        "cells_per_sample": np.array(cells_per_sample),
        "label_effect": float(label_effect),
        "program_effect": float(program_effect),
        "switch_fraction": float(switch_fraction),
        "usage_effect": float(usage_effect),
        "seed": seed,
    }
    made = []
    if kind != "bulk":
        made.append(_cells(world, var, proportions, n_obs, mean_depth, depth_sd, seed, progress))
    if kind != "single_cell":
        n_samples = n_obs if kind == "bulk" else n_bulk
        made.append(
            _bulk(
                world, var, proportions, n_samples, bulk_depth, depth_sd, bulk_shift, cells_per_sample, seed, progress
            )
        )
    for adata in made:
        adata.uns["simulated"] = dict(arguments)
    return (made[0], made[1]) if kind == "both" else made[0]


def _cells(
    world: World,
    var: pd.DataFrame,
    proportions: np.ndarray,
    n_obs: int,
    mean_depth: float,
    depth_sd: float,
    seed: int,
    progress: bool | None,
) -> AnnData:
    rng = stream(seed, 10)
    n_labels, n_batches = len(proportions), len(world.batch_effect)
    labels = rng.permutation(np.repeat(np.arange(n_labels), allot(proportions, n_obs)))
    batches = rng.permutation(np.resize(np.arange(n_batches), n_obs))
    programs = world.draw_programs(labels, rng)
    # labels differ a little in depth, as large and small cells do
    by_label = rng.normal(0.0, 0.4 * depth_sd, n_labels)[labels]
    depth = mean_depth * rng.lognormal(by_label - depth_sd**2 / 2, depth_sd)

    shares = np.zeros((n_labels, var.shape[0]))

    def expected(rows: slice) -> np.ndarray:
        share = world.composition(labels[rows], programs[rows], batches[rows])
        onehot = (labels[rows] == np.arange(n_labels)[:, None]).astype(np.float32)
        np.add(shares, onehot @ share, out=shares)
        share *= depth[rows, None].astype(np.float32)
        return share

    counts = draw_counts(expected, n_obs, world.dispersion[world.gene_of], seed, 11, progress, "Simulating cells")
    mean, usage = pooled_truth(world, shares, np.bincount(labels, minlength=n_labels))
    obs = make_obs("single_cell", labels, n_labels, batches, n_batches, rng)
    return _assemble(world, counts, obs, var, mean, usage, {"true_program": programs})


def _bulk(
    world: World,
    var: pd.DataFrame,
    proportions: np.ndarray,
    n_obs: int,
    depth: float,
    depth_sd: float,
    shift_sd: float,
    cells_per_sample: tuple[int, int],
    seed: int,
    progress: bool | None,
) -> AnnData:
    rng = stream(seed, 20)
    n_labels, n_batches, n_vars = len(proportions), len(world.batch_effect), var.shape[0]
    # samples mix cells of one pool: that many distinct cells carry the variation, and no cell is computed twice
    per_label = int(np.clip(_POOL_VALUES // n_vars // n_labels, 2, 100))
    pool_label = np.repeat(np.arange(n_labels), per_label)
    pool_program = world.draw_programs(pool_label, rng)
    pool = np.empty((pool_label.size, n_vars), dtype=np.float32)
    for block in row_blocks(pool_label.size, n_vars):
        pool[block] = world.composition(pool_label[block], pool_program[block])
    in_label = (pool_label == np.arange(n_labels)[:, None]).astype(np.float32)
    mean, usage = pooled_truth(world, (in_label @ pool).astype(np.float64), np.full(n_labels, per_label))

    labels = rng.permutation(np.repeat(np.arange(n_labels), allot(proportions, n_obs)))
    batches = rng.permutation(np.resize(np.arange(n_batches), n_obs))
    wanted = rng.dirichlet(np.ones(n_labels), n_obs)
    rows = np.arange(n_obs)
    largest = wanted.argmax(axis=1)
    wanted[rows, largest], wanted[rows, labels] = wanted[rows, labels], wanted[rows, largest].copy()
    n_cells = rng.integers(cells_per_sample[0], cells_per_sample[1], n_obs, endpoint=True)
    weights = rng.multinomial(n_cells, np.repeat(wanted, per_label, axis=1) / per_label).astype(np.float32)
    weights /= n_cells[:, None]
    # what was mixed, not what was wanted: few cells can put another label first
    mixed = weights @ in_label.T
    labels = mixed.argmax(axis=1)
    depths = depth * rng.lognormal(-(depth_sd**2) / 2, depth_sd, n_obs)
    shift = rng.normal(0.0, shift_sd, n_vars).astype(np.float32)
    batch_factor = np.exp(world.batch_effect)
    gene_of = world.gene_of

    def expected(rows: slice) -> np.ndarray:
        share = weights[rows] @ pool
        share *= np.exp(shift)
        if n_batches > 1:
            share *= batch_factor[batches[rows]][:, gene_of]
        share *= (depths[rows] / share.sum(axis=1, dtype=np.float64)).astype(np.float32)[:, None]
        return share

    # many cells average their own noise away: what is left is a sixth of it
    counts = draw_counts(expected, n_obs, world.dispersion[gene_of] / 6, seed, 21, progress, "Simulating samples")
    obs = make_obs("bulk", labels, n_labels, batches, n_batches, rng)
    truth = {"true_program": weights @ pool_program, "true_proportions": mixed}
    adata = _assemble(world, counts, obs, var.assign(true_bulk_shift=shift), mean, usage, truth)
    adata.var["true_dispersion"] /= 6
    return adata


def _assemble(
    world: World,
    counts: sparse.csr_matrix,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    mean: np.ndarray,
    usage: np.ndarray,
    obsm: dict[str, np.ndarray],
) -> AnnData:
    return AnnData(
        X=counts,
        obs=obs,
        var=var.copy(),
        obsm=obsm,
        varm={
            "true_mean": mean,
            "true_usage": usage,
            "true_loadings": np.ascontiguousarray(world.loadings.T[world.gene_of]),
            "true_usage_loadings": np.ascontiguousarray(world.usage_loadings.T),
        },
        uns={"true_switches": make_switches(world, var, usage)},
    )
