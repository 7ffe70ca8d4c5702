"""Isoforms from the counts of genes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from isd._constants import UNS_KEY
from isd._counts import classify_counts, get_counts, resolve_layer, where
from isd._progress import track
from isd.model._files import isd_version
from isd.model._gene_encoder import GeneEncoder
from isd.model._generated import log_normalized
from isd.model._usage import MAX_ENTRIES
from isd.model._usage_draw import GeneTotals, draw_isoforms
from isd.pp._match_genes import GeneMatch, match_genes
from isd.settings import settings
from isd.tl._encode import vae_of
from isd.tl._generate import check_model
from isd.tl._genes_to_latent import GenesToLatent

if TYPE_CHECKING:
    from isd.model import VAE, LatentDiffusion

Output = Literal["samples", "mean", "usage"]
Method = Literal["direct", "diffusion"]
#: Column of ``var``, and of ``obs`` for several draws.
INFERABLE, DRAW = "isd_inferable", "isd_draw"
#: Key of the random streams.
_STREAM = 21
#: Cells whose components are computed at once.
_SCORED = 4096


def infer_isoforms(
    model: VAE | LatentDiffusion,
    gene_adata: AnnData,
    n_samples: int = 1,
    labels: str | Sequence[Any] | None = None,
    *,
    output: Output = "samples",
    method: Method = "direct",
    std: bool = False,
    layer: str | None = None,
    seed: int | None = None,
    batch_size: int = 256,
    progress: bool | None = None,
) -> AnnData:
    """Infer the counts of isoforms from the counts of genes: each cell's isoforms add up to its observed genes.

    The usage of isoforms follows the cell's gene counts (their principal components, through a map that was fitted to the
    model's training cells), and counts are drawn from a Dirichlet-multinomial with a concentration of each gene, so that cells
    of equal gene counts differ as real ones do.

    Parameters
    ----------
    model
        A trained :class:`isd.model.VAE`, or a :class:`isd.model.LatentDiffusion`, whose VAE is taken. Its features need a
        gene map (``var["gene_id"]``). A VAE without :attr:`~isd.model.VAE.gene_encoder` fits one now.
    gene_adata
        Cells or samples by genes, raw counts. Genes are matched by identifier (``var_names``, ``var["gene_id"]``,
        ``var["gene_ids"]``) or symbol (``var_names``, ``var["gene_name"]``, ``var["gene_symbols"]``), versions aside.
    n_samples
        Number of draws of each cell. Several come one below the other, all cells of the first draw before those of the second,
        with the number of the draw in ``obs["isd_draw"]``.
    labels
        Column of ``gene_adata.obs`` or one label a cell, where the gene encoder has terms for labels
        (``vae.fit_gene_encoder(with_labels=True)``); cells without a label are fine. ``None`` uses none.
    output
        ``"samples"``: counts, drawn. ``"mean"``: expected counts, in ``X`` and ``layers["mean"]``. ``"usage"``: expected
        share of each isoform in its gene, in ``X``, for the genes that a cell expresses.
    method
        ``"direct"``: usage straight from the genes. ``"diffusion"``: through the latent of a
        :class:`isd.model.LatentDiffusion` and its decoder; draws then share what genes leave open about the cell. Slower, not better
        where both were compared (``docs/notes/genes.md``), and it needs the training data attached. Means are over 8 draws of the
        latent.
    std
        With ``output="mean"``: standard deviation of the draws too, in ``layers["std"]``.
    layer
        Layer of the counts of genes; ``None`` takes ``"counts"`` if there, else ``X``.
    seed
        Seed of the draws; ``None`` takes ``isd.settings.seed``. The draw of a cell depends on the seed and on its row.
    batch_size
        Cells at once; changes nothing but memory.
    progress
        Progress bar.

    Returns
    -------
    AnnData with the model's features, sparse. Draws are where the model reads counts, as :func:`isd.tl.generate` puts them.
    ``obs`` and ``obsm`` are those of ``gene_adata``; ``var["isd_inferable"]`` is true for the isoforms of genes of which training
    cells expressed more than one; for others, usage is a guess or, with one isoform, needs none. ``uns["isd"]`` says what was
    done. Isoforms of genes that ``gene_adata`` lacks have no counts.

    Raises
    ------
    TypeError
        If ``model`` or ``gene_adata`` is something else; ``method="diffusion"`` needs a diffusion model.
    KeyError
        If the model's features have no gene map; if ``layer`` or the column of labels is absent.
    ValueError
        If the model is not trained; if ``method="diffusion"`` and no data are attached; if the data are isoforms, or share
        no gene with the model; if draws are asked for and counts are fractional; for an unknown ``output``.

    Warns
    -----
    UserWarning
        With the numbers of genes that the data lack, of ambiguous symbols, and of columns that repeat a gene; if labels are
        given that the gene encoder has no terms for.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.VAE.setup_anndata(adata)
    >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
    >>> vae.train(max_steps=5, progress=False)
    >>> vae.fit_gene_encoder(max_steps=5, progress=False)
    >>> genes = isd.pp.to_mudata(adata)["gene"]
    >>> cells = isd.tl.infer_isoforms(vae, genes, seed=0)
    >>> cells.shape, bool((cells.X.sum(1) == genes.X.sum(1)).all())
    ((80, 60), True)
    """
    vae = vae_of(model)
    if output not in get_args(Output):
        raise ValueError(f"output is {output!r}; expected one of {', '.join(map(repr, get_args(Output)))}.")
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; expected one of {', '.join(map(repr, get_args(Method)))}.")
    if method == "diffusion":
        check_model(model)
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if output != "samples" and n_samples > 1:
        raise ValueError(f'n_samples={n_samples} goes with output="samples"; {output!r} is one result a cell.')
    if std and output != "mean":
        raise ValueError(f'std=True goes with output="mean", not with {output!r}.')
    if not isinstance(gene_adata, AnnData):
        raise TypeError(f"gene_adata must be an AnnData, got {type(gene_adata).__name__}.")
    if not vae.is_trained:
        raise ValueError("the VAE is not trained yet; call vae.train() first.")
    genes = vae.gene_map()
    match = match_genes(gene_adata, genes, vae.feature_table, vae.gene_column)
    matrix = get_counts(gene_adata, layer)
    name = where(resolve_layer(gene_adata, layer))
    if classify_counts(matrix, name) == "fractional" and output == "samples":
        raise ValueError(
            f"{name} holds fractional counts; draws divide whole counts among isoforms. Round them first "
            '(isd.pp.round_counts(gene_adata)), or take output="mean" or "usage".'
        )
    encoder = vae.require_gene_encoder(progress=progress)
    codes = _codes(encoder, gene_adata, labels)
    seed = settings.seed if seed is None else int(seed)
    present = None if match.present.all() else match.present
    starts = range(0, gene_adata.n_obs, batch_size)
    through = None
    if method == "diffusion":
        through = _Through(model, encoder, match, matrix, present, codes, seed, n_samples if output == "samples" else 8)
    parts: list[list[sparse.csr_matrix]] = [[] for _ in range(n_samples + std)]
    for first in track(starts, "Inferring isoforms", total=len(starts), progress=progress):
        counts = match.counts(matrix[first : first + batch_size])
        for piece in _pieces(counts, genes.n_isoforms):
            inferred = _infer(encoder, counts[piece], present, codes, first + piece.start, through)
            if output == "samples":
                for k in range(n_samples):
                    key = (seed, _STREAM, k)
                    usage = inferred.usages[min(k, len(inferred.usages) - 1)]
                    draws = draw_isoforms(inferred.totals, usage, inferred.concentration, key, first + piece.start)
                    parts[k].append(inferred.matrix(draws))
            elif output == "usage":
                parts[0].append(inferred.matrix(inferred.usage, single=1.0))
            else:
                parts[0].append(inferred.matrix(inferred.mean))
                if std:
                    parts[1].append(inferred.matrix(inferred.std, single=0.0))
    stacked = [sparse.csr_matrix(sparse.vstack(blocks, format="csr")).astype(np.float32) for blocks in parts]
    provenance = {
        "version": isd_version(),
        "model": type(model).__name__,
        "fingerprint": model.fingerprint,
        "vae_fingerprint": vae.fingerprint,
        "gene_encoder_fingerprint": encoder.fingerprint,
        "inferred_from": "genes",
        "method": method,
        "output": output,
        "seed": seed,
        "n_samples": n_samples,
        "layer": vae.layer,
        "labels_key": vae.labels_key,
        "train_obs_hash": vae.train_obs_hash,
        **match.summary(),
    }
    return _assemble(vae, encoder, gene_adata, stacked, provenance, output, std)


@dataclass(frozen=True)
class _Inferred:
    """Usage of some cells' isoforms, and what it takes to write them into rows of all features."""

    totals: GeneTotals
    usages: list[np.ndarray]
    concentration: np.ndarray
    single: sparse.csr_matrix
    columns_of_single: np.ndarray
    n_vars: int

    @property
    def usage(self) -> np.ndarray:
        return np.mean(self.usages, axis=0)

    @property
    def mean(self) -> np.ndarray:
        return self.totals.total[self.totals.pair] * self.usage

    @property
    def std(self) -> np.ndarray:
        """Of Dirichlet-multinomials, one for each usage."""
        n, kappa = self.totals.total, self.concentration
        scale = (n * (n + kappa) / (1 + kappa))[self.totals.pair]
        within = np.mean([scale * usage * (1 - usage) for usage in self.usages], axis=0)
        return np.sqrt(within + n[self.totals.pair] ** 2 * np.var(self.usages, axis=0))

    def matrix(self, values: np.ndarray, single: float | None = None) -> sparse.csr_matrix:
        """Cells by features; ``single`` stands in for the counts of genes with one isoform."""
        alone = self.single.tocoo()
        rows = np.concatenate([self.totals.cell[self.totals.pair], alone.coords[0]])
        columns = np.concatenate([self.totals.column, self.columns_of_single[alone.coords[1]]])
        data = np.concatenate([values, alone.data if single is None else np.full(alone.data.size, single)])
        kept = data != 0
        shape = (self.totals.n_cells, self.n_vars)
        return sparse.csr_matrix((data[kept].astype(np.float32), (rows[kept], columns[kept])), shape=shape)


class _Through:
    """Draws of all cells' latents: they do not depend on how cells are batched later."""

    def __init__(
        self,
        model: Any,
        encoder: GeneEncoder,
        match: GeneMatch,
        matrix: Any,
        present: np.ndarray | None,
        codes: np.ndarray | None,
        seed: int,
        n_draws: int,
    ) -> None:
        self.latents = GenesToLatent(model, encoder, seed)
        scores, library = [], []
        for start in range(0, matrix.shape[0], _SCORED):
            counts = match.counts(matrix[start : start + _SCORED])
            scores.append(encoder.scores(counts, present))
            library.append(np.asarray(counts.sum(axis=1)).ravel())
        everything = torch.cat(scores), codes, np.concatenate(library)
        self.draws = [self.latents.draw(*everything, k) for k in range(n_draws)]

    def usages(self, rows: slice, totals: GeneTotals) -> list[np.ndarray]:
        return [self.latents.usage(cells, rows, totals) for cells in self.draws]


def _infer(
    encoder: GeneEncoder,
    counts: sparse.csr_matrix,
    present: np.ndarray | None,
    codes: np.ndarray | None,
    first: int,
    through: _Through | None,
) -> _Inferred:
    genes = encoder.genes
    rows = slice(first, first + counts.shape[0])
    labels = None if codes is None else codes[rows]
    totals, usage, concentration = encoder.usage(encoder.scores(counts, present), counts, labels)
    usages = [usage] if through is None else through.usages(rows, totals)
    order, start = genes.segments
    alone = np.flatnonzero(genes.n_isoforms == 1)
    single = sparse.csr_matrix(counts[:, alone])
    return _Inferred(totals, usages, concentration, single, order[start[alone]], genes.gene_of.size)


def _pieces(counts: sparse.csr_matrix, n_isoforms: np.ndarray) -> Iterator[slice]:
    """Rows whose expressed genes have, together, as many isoforms as are held at once."""
    entries = np.asarray((counts > 0) @ n_isoforms).ravel()
    ends = np.cumsum(entries) // MAX_ENTRIES
    cuts = [0, *(np.flatnonzero(np.diff(ends)) + 1), counts.shape[0]]
    return (slice(int(a), int(b)) for a, b in pairwise(cuts) if b > a)


def _codes(encoder: GeneEncoder, adata: AnnData, labels: str | Sequence[Any] | None) -> np.ndarray | None:
    """Codes of the labels that were given; cells without one, or with one that is not the model's, have none."""
    if labels is None:
        return None
    if isinstance(labels, str):
        if labels not in adata.obs:
            raise KeyError(
                f"labels {labels!r} is not in gene_adata.obs, which has {list(map(str, adata.obs.columns))}."
            )
        values: Any = adata.obs[labels].astype(object)
    else:
        values = list(labels)
        if len(values) != adata.n_obs:
            raise ValueError(f"{len(values)} labels were given for {adata.n_obs} cells.")
    if not encoder.uses_labels:
        warnings.warn(
            "labels are not used: the model's gene encoder has no terms for labels. "
            "vae.fit_gene_encoder(with_labels=True) fits one that has.",
            UserWarning,
            stacklevel=3,
        )
        return None
    codes = pd.Index(encoder.labels, dtype=object).get_indexer(pd.Index(values, dtype=object))
    return np.where(codes < 0, len(encoder.labels), codes).astype(np.int64)


def _assemble(
    vae: VAE,
    encoder: GeneEncoder,
    source: AnnData,
    matrices: list[sparse.csr_matrix],
    provenance: dict[str, Any],
    output: Output,
    std: bool,
) -> AnnData:
    """The result, with what the gene-level data say of the cells."""
    genes = encoder.genes
    var = vae.feature_table.copy()
    # a last entry for features without a gene
    var[INFERABLE] = np.append(encoder.inferable, False)[genes.gene_of]
    obs = source.obs.copy()
    obsm = {key: value.copy() for key, value in source.obsm.items()}
    # h5ad has no None
    uns: dict[str, Any] = {UNS_KEY: {k: v for k, v in provenance.items() if v is not None}}
    uns |= {k: list(v) for k, v in source.uns.items() if k.endswith("_colors")}
    parts: dict[str, Any] = {"obs": obs, "var": var, "obsm": obsm, "uns": uns}
    if output == "usage":
        return AnnData(X=matrices[0], **parts)
    if output == "mean":
        layers = {"mean": matrices[0].copy()}
        if std:
            layers["std"] = matrices[1]
        return AnnData(X=matrices[0], layers=layers, **parts)
    n_samples = len(matrices)
    if n_samples > 1:
        drawn = [obs.assign(**{DRAW: k}).set_index(obs.index.astype(str) + f"-draw{k}") for k in range(n_samples)]
        parts["obs"] = pd.concat(drawn)
        parts["obsm"] = {key: _repeat(value, n_samples, parts["obs"].index) for key, value in obsm.items()}
    counts = sparse.csr_matrix(sparse.vstack(matrices, format="csr")) if n_samples > 1 else matrices[0]
    if vae.layer is None:
        return AnnData(X=counts, **parts)
    return AnnData(X=log_normalized(counts), layers={vae.layer: counts}, **parts)


def _repeat(values: Any, times: int, index: pd.Index) -> Any:
    """Rows of an entry of ``obsm``, once for each draw."""
    if isinstance(values, pd.DataFrame):
        return pd.concat([values] * times).set_axis(index)
    if sparse.issparse(values):
        return sparse.csr_matrix(sparse.vstack([values] * times))
    return np.concatenate([np.asarray(values)] * times)
