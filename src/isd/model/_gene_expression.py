"""Genes in a VAE: whether its decoder has them, expression of genes, usage of their isoforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS

from isd._progress import track
from isd.model._base import IsdModel
from isd.model._generated import DENSE_LIMIT
from isd.model._likely_usage import likely_usage
from isd.model._loading import sorted_rows
from isd.model._presets import FEW
from isd.model._units import decoder_units
from isd.module import GeneIsoformCounts
from isd.settings import settings

_USAGE_STREAM = 12
_USAGE_OPTIONS = (
    "usage_likelihood",
    "usage_rank",
    "usage_shrinkage",
    "concentration_rank",
    "concentration_shrinkage",
    "split_genes",
)
_GENE_LIKELIHOODS = ("nb", "poisson")
#: Isoforms above which a decoder whose isoforms are negative binomial by themselves has no genes by default: its likelihood goes
#: through all features.
_WIDE = 20_000


def default_usage(n_train: int) -> dict[str, Any]:
    """Rank of usage and its priors, by the number of training cells.

    Parameters
    ----------
    n_train
        Number of training cells.

    Examples
    --------
    >>> [default_usage(n)["usage_rank"] for n in (300, 3000)]
    [8, 16]
    """
    few = n_train < FEW
    return {
        "usage_likelihood": "dirichlet-multinomial",
        "usage_rank": 8 if few else 16,
        "usage_shrinkage": 30.0 if few else 10.0,
        "concentration_rank": 0,
        "concentration_shrinkage": 10.0,
    }


def use_gene_decoder(asked: bool | None, likelihood: str, gene_key: str | None, gene_of: np.ndarray | None) -> bool:
    """Whether a VAE's decoder has genes.

    Parameters
    ----------
    asked
        What the user said; ``None`` for nothing.
    likelihood
        Of the counts.
    gene_key, gene_of
        What was registered.

    Raises
    ------
    ValueError
        If it was asked for and cannot be.
    """
    several = gene_of is not None and bool((np.bincount(gene_of) > 1).any())
    if asked is None:
        return several and likelihood in _GENE_LIKELIHOODS
    if not asked:
        return False
    if gene_of is None:
        raise ValueError('gene_decoder=True needs genes: VAE.setup_anndata(adata, gene_key="gene_id").')
    if not several:
        raise ValueError(
            f"gene_decoder=True, but every gene of var[{gene_key!r}] has one transcript: there is no usage to learn. "
            "Leave out gene_decoder, or give data that tell isoforms apart."
        )
    if likelihood not in _GENE_LIKELIHOODS:
        raise ValueError(
            f"gene_decoder=True needs likelihood 'nb' or 'poisson', got {likelihood!r}; leave out one of the two."
        )
    return True


def refuse_usage_options(params: dict[str, Any]) -> None:
    """Raise for options of usage that a decoder without genes has not; take out those of a saved model."""
    found = [name for name in _USAGE_OPTIONS if name in params]
    if found:
        raise ValueError(
            f"{', '.join(found)} need{'s' if len(found) == 1 else ''} a decoder with genes: set up the data with gene_key, "
            "and leave gene_decoder at None or True."
        )


class GeneExpression(IsdModel):
    """What a VAE says about genes and their isoforms."""

    def _with_usage(self, params: dict[str, Any], asked: bool | None, n_train: int) -> tuple[bool, dict[str, Any]]:
        """Whether the decoder has genes after all, and settings of the module with those of usage."""
        given = {name: params[name] for name in _USAGE_OPTIONS if params.get(name) is not None}
        params = {name: value for name, value in params.items() if name not in _USAGE_OPTIONS}
        likelihood = given.get("usage_likelihood")
        # a concentration that differs between cells is the Dirichlet-multinomial's
        if (
            likelihood is None
            and self._adata is not None
            and params["likelihood"] == "nb"
            and not given.get("concentration_rank")
            and given.get("split_genes") is None
        ):
            assert self.gene_of is not None and self.gene_names is not None
            train = self._split()[0]
            likelihood, together = likely_usage(
                self.get_from_registry(self.adata, REGISTRY_KEYS.X_KEY),
                train,
                self.gene_of,
                labels=self.label_codes()[train],
                clumps=params.get("clumps") is not False,
            )
            given["usage_likelihood"] = likelihood
            if likelihood == "nb" and asked is None and len(given) == 1 and len(self.gene_of) > _WIDE:
                return False, params
            apart = (np.bincount(self.gene_of) > 1) & ~together
            if likelihood != "nb" and apart.any():
                given["split_genes"] = [str(name) for name in self.gene_names[apart]]
        return True, {**default_usage(n_train), **params, **given}

    @property
    def split_genes(self) -> list[str] | None:
        """Genes whose isoforms stand by themselves in a decoder with genes; ``None`` for none."""
        found: list[str] | None = self.module_params.get("split_genes")
        return found

    def _decoder_units(self, split_genes: Sequence[str] | None) -> tuple[np.ndarray, pd.Index]:
        """What a decoder with genes gives shares of the counts to, and their names."""
        assert self.gene_of is not None and self.gene_names is not None
        return decoder_units(self.gene_of, self.gene_names, self.feature_names, split_genes)

    def _unit_sums(self) -> sparse.csr_matrix | None:
        """Matrix of shape ``(n_vars, n_units)`` that adds up what the decoder has one output for; ``None`` without genes."""
        if not self.module_params["gene_decoder"]:
            return None
        codes, names = self._decoder_units(self.split_genes)
        return _adding(codes, len(names))

    def _gene_sums(self) -> sparse.csr_matrix:
        """Matrix of shape ``(n_vars, n_genes)`` that adds isoforms up."""
        gene_of, names = self.gene_of, self.gene_names
        if gene_of is None or names is None:
            raise ValueError(
                "the model knows no genes; set up the data with "
                'VAE.setup_anndata(adata, gene_key="gene_id") and train it again.'
            )
        return _adding(gene_of, len(names))

    def _decoded(
        self,
        adata: AnnData,
        rows: np.ndarray,
        n_samples: int,
        batch_size: int,
        seed: int | None,
        progress: bool | None,
    ) -> Iterator[tuple[slice, int, Any, np.ndarray]]:
        """Distribution of the counts of some cells, chunk by chunk and sample by sample, and their library size."""
        seed = settings.seed if seed is None else int(seed)
        loader = self._make_data_loader(adata=adata, indices=rows, batch_size=batch_size)
        start = 0
        for tensors in track(loader, "Decoding", total=-(-len(rows) // batch_size), progress=progress):
            inputs = self.module._get_inference_input(tensors)
            out = self.module.inference(**inputs)
            mean, std = out["qzm"], out["qzv"].sqrt()
            part = slice(start, start + len(mean))
            start = part.stop
            log_library = inputs["log_library"].to(mean.device)
            # each cell has a stream of its own: draws do not depend on how cells are batched
            streams = [np.random.default_rng([seed, _USAGE_STREAM, int(row)]) for row in rows[part]]
            for k in range(n_samples):
                z = mean
                if n_samples > 1:
                    noise = np.stack([stream.standard_normal(mean.shape[1], dtype=np.float32) for stream in streams])
                    z = mean + std * torch.as_tensor(noise, device=mean.device)
                px = self.module.generative(z, log_library, inputs["codes"], inputs["continuous"])["px"]
                yield part, k, px, log_library.exp().cpu().numpy()

    def _check_genes(self, genes: Sequence[str] | None) -> np.ndarray:
        """Positions of genes."""
        names = self.gene_names
        assert names is not None
        if genes is None:
            return np.arange(len(names))
        if isinstance(genes, str):
            raise TypeError(f"genes must be a list of names, got the text {genes!r}; give [{genes!r}].")
        found = pd.Series(np.arange(len(names)), index=names).groupby(level=0).first().reindex(list(genes))
        if found.isna().any():
            unknown = [str(g) for g in found.index[found.isna()]]
            raise ValueError(
                f"{len(unknown)} genes are not the model's ({', '.join(unknown[:5])}); "
                f"it has {len(names)}, named by var[{self.gene_key!r}] (model.gene_names)."
            )
        return found.to_numpy().astype(np.int64)

    @torch.inference_mode()
    def get_gene_expression(
        self,
        adata: AnnData | None = None,
        *,
        indices: Sequence[int] | None = None,
        genes: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1.0,
        n_samples: int = 1,
        batch_size: int = 256,
        seed: int | None = None,
        return_numpy: bool = False,
        progress: bool | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Expected expression of each gene, the sum over its isoforms.

        Works for a decoder with genes, and for one without whose data were set up with ``gene_key``.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        indices
            Rows to use.
        genes
            Genes to return; all by default.
        library_size
            Scale of the result: 1 gives shares of the cell's counts, ``"latent"`` each cell's own total.
        n_samples
            Draws from each cell's posterior whose mean is returned; 1 takes the mean of the posterior instead.
        batch_size
            Cells decoded at once.
        seed
            Seed of these draws; ``None`` takes ``isd.settings.seed``.
        return_numpy
            Return an array rather than a DataFrame.
        progress
            Progress bar.

        Returns
        -------
        ``(n_cells, n_genes)``, ``float32``, indexed by names of cells and genes.

        Raises
        ------
        ValueError
            If the model knows no genes, a gene is unknown, or the result would take more than 2 GB.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata, gene_key="gene_id")
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.train(max_steps=5, progress=False)
        >>> shares = vae.get_gene_expression()
        >>> shares.shape == (80, adata.var["gene_id"].nunique()), bool(abs(shares.sum(axis=1) - 1).max() < 1e-5)
        (True, True)
        """
        self._check_if_trained(warn=False, message="the VAE is not trained yet; call vae.train() first.")
        sums = self._gene_sums()
        columns = self._check_genes(genes)
        _check_samples(n_samples)
        adata = self._validate_anndata(adata)
        rows, back = sorted_rows(indices, adata.n_obs)
        if len(rows) * len(columns) * 4 > DENSE_LIMIT:
            raise ValueError("the result would take more than 2 GB; give genes or fewer indices.")
        values = np.zeros((len(rows), len(columns)), dtype=np.float32)
        for part, _, px, library in self._decoded(adata, rows, n_samples, batch_size, seed, progress):
            if isinstance(px, GeneIsoformCounts) and not self.split_genes:
                expected = px.gene_mean.cpu().numpy()
            else:
                expected = _means(px, self.module.likelihood) @ sums
            shares = expected / expected.sum(1, keepdims=True)
            values[part] += shares[:, columns] * (library if library_size == "latent" else library_size) / n_samples
        values = values[back]
        if return_numpy:
            return values
        assert self.gene_names is not None
        return pd.DataFrame(values, index=adata.obs_names[rows[back]], columns=self.gene_names[columns])

    @torch.inference_mode()
    def get_isoform_usage(
        self,
        adata: AnnData | None = None,
        *,
        indices: Sequence[int] | None = None,
        labels: Literal["all"] | Sequence[Any] | None = "all",
        genes: Sequence[str] | None = None,
        n_samples: int = 1,
        return_mean: bool = True,
        batch_size: int = 256,
        seed: int | None = None,
        return_numpy: bool = False,
        progress: bool | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Usage of isoforms: the share of each in its gene's expected counts, by label or cell by cell.

        Works for a decoder with genes, and for one without whose data were set up with ``gene_key``.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        indices
            Rows to use.
        labels
            ``"all"``: one row for each of the model's labels that has cells; a list: one for each of these. The usage of a
            label is that of its cells' expected counts added up, which weighs a cell by how much it expresses the gene.
            ``None``: one row for each cell.
        genes
            Genes whose isoforms to return; all by default, which takes much memory cell by cell.
        n_samples
            Draws from each cell's posterior; 1 takes the mean of the posterior instead.
        return_mean
            With several draws: ``True`` gives their mean (their counts added up, for labels), ``False`` one result for
            each, as an array.
        batch_size
            Cells decoded at once.
        seed
            Seed of these draws; ``None`` takes ``isd.settings.seed``.
        return_numpy
            Return an array rather than a DataFrame.
        progress
            Progress bar.

        Returns
        -------
        ``(n_labels or n_cells, n_isoforms)``, ``float32``, indexed by labels (or names of cells) and names of isoforms; with
        ``return_mean=False`` an array of shape ``(n_samples, n_labels or n_cells, n_isoforms)``. Isoforms of a gene are
        together, in the order of ``genes``, or in the model's order of features where that is ``None``. Usage of a gene
        with one isoform is 1.

        Raises
        ------
        ValueError
            If the model knows no genes, a gene or label is unknown or has no cells, or the result would
            take more than 2 GB.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata, gene_key="gene_id")
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.train(max_steps=5, progress=False)
        >>> usage = vae.get_isoform_usage()
        >>> usage.index.tolist(), usage.shape[1]
        (['0', '1'], 60)
        >>> gene = vae.gene_names[0]
        >>> one = vae.get_isoform_usage(labels=None, genes=[gene])
        >>> len(one), bool(abs(one.sum(axis=1) - 1).max() < 1e-5)
        (80, True)
        """
        self._check_if_trained(warn=False, message="the VAE is not trained yet; call vae.train() first.")
        sums = self._gene_sums()
        chosen = self._check_genes(genes)
        _check_samples(n_samples)
        adata = self._validate_anndata(adata)
        rows, back = sorted_rows(indices, adata.n_obs)
        gene_of = self.gene_of
        assert gene_of is not None
        if genes is None:
            columns = np.arange(len(gene_of))
        else:
            columns = np.concatenate([np.flatnonzero(gene_of == gene) for gene in chosen])
        group, names = self._groups(adata, rows, labels)
        n_rows = len(rows) if group is None else len(names)
        kept = 1 if return_mean else n_samples
        if kept * n_rows * len(columns) * (4 if group is None else 8) > DENSE_LIMIT:
            raise ValueError("the result would take more than 2 GB; give genes, labels or fewer indices.")
        values = np.zeros((kept, n_rows, len(columns)), dtype=np.float32 if group is None else np.float64)
        # usage is a ratio: isoforms of the chosen genes over all isoforms of these
        totals = sums[:, np.unique(gene_of[columns])]
        back_to_gene = np.searchsorted(np.unique(gene_of[columns]), gene_of[columns])
        for part, k, px, _ in self._decoded(adata, rows, n_samples, batch_size, seed, progress):
            expected = _means(px, self.module.likelihood)
            k = 0 if return_mean else k
            if group is None:
                gene_totals = np.maximum(expected @ totals, 1e-30)
                values[k, part] += (
                    expected[:, columns] / gene_totals[:, back_to_gene] / (n_samples if return_mean else 1)
                )
            else:
                inside = group[part] >= 0
                members = sparse.csr_matrix(
                    (np.ones(inside.sum()), (group[part][inside], np.flatnonzero(inside))),
                    shape=(n_rows, len(expected)),
                )
                values[k] += members @ expected[:, columns]
        if group is None:
            values = values[:, back]
            names = adata.obs_names[rows[back]]
        else:
            inner = sparse.csr_matrix(
                (np.ones(len(columns)), (np.arange(len(columns)), back_to_gene)),
                shape=(len(columns), totals.shape[1]),
            )
            for result in values:
                result /= np.maximum(result @ inner, 1e-300)[:, back_to_gene]
            values = values.astype(np.float32)
        if not return_mean:
            return values
        return values[0] if return_numpy else pd.DataFrame(values[0], index=names, columns=self.feature_names[columns])

    def _groups(
        self,
        adata: AnnData,
        rows: np.ndarray,
        labels: Any,
    ) -> tuple[np.ndarray | None, pd.Index]:
        """Row of the result for each cell, -1 for none, and the names of these rows."""
        if labels is None:
            return None, pd.Index([])
        codes = self.label_codes(adata)[rows]
        every = list(self.labels)
        if isinstance(labels, str):
            if labels != "all":
                raise ValueError(f"labels must be 'all', a list of labels, or None for single cells; got {labels!r}.")
            wanted = [code for code in range(len(every)) if (codes == code).any()]
        else:
            unknown = [label for label in labels if label not in every]
            if unknown:
                raise ValueError(f"labels {unknown} are not the model's, which are {every}.")
            wanted = [every.index(label) for label in labels]
            empty = [every[code] for code in wanted if not (codes == code).any()]
            if empty:
                raise ValueError(f"labels {empty} have no cells among those given.")
        if not wanted:
            raise ValueError("no cell has a label; give labels=None for single cells.")
        row_of = np.full(len(every) + 1, -1)
        row_of[wanted] = np.arange(len(wanted))
        return row_of[codes], pd.Index([every[code] for code in wanted], name=self.labels_key)


def _adding(codes: np.ndarray, n: int) -> sparse.csr_matrix:
    """Matrix of shape ``(len(codes), n)`` that adds up what has the same code."""
    ones = np.ones(len(codes), dtype=np.float32)
    return sparse.csr_matrix((ones, (np.arange(len(codes)), codes)), shape=(len(codes), n))


def _check_samples(n_samples: int) -> None:
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}.")


def _means(px: Any, likelihood: str) -> np.ndarray:
    """Expected counts, up to a factor for each cell."""
    mean = torch.expm1(px.mean.clamp_min(0.0)) if likelihood == "normal" else px.mean
    return mean.cpu().numpy()
