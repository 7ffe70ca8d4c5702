"""What a VAE knows of genes: usage of isoforms from gene counts, fitted beside it and saved with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS

from isd._constants import GENE_ID
from isd._hash import fingerprint
from isd.metrics import GeneMap
from isd.model._mudata import measured_genes
from isd.model._usage import UsageSettings, fit_usage, gene_scores, make_predictor, usage_settings
from isd.model._usage_draw import GeneTotals, gene_totals
from isd.nn import pair_log_softmax

if TYPE_CHECKING:
    from anndata import AnnData

    from isd.nn import UsagePredictor

_PREFIX = "gene_encoder."
_LOG = logging.getLogger("isd")


class GeneEncoder:
    """Usage of isoforms from the counts of genes; held by a :class:`VAE` as :attr:`VAE.gene_encoder`.

    Parameters
    ----------
    predictor
        The fitted network.
    genes
        Gene of each feature.
    labels
        Labels in the order of their codes.
    settings
        How it was fitted.
    history
        ``"step"``, ``"train"`` and ``"validation"``: log-likelihood of isoforms given genes, nats a cell.
    """

    def __init__(
        self,
        predictor: UsagePredictor,
        genes: GeneMap,
        labels: np.ndarray,
        settings: UsageSettings,
        history: dict[str, list[float]],
    ) -> None:
        self.predictor, self.genes, self.labels = predictor.eval(), genes, labels
        self.settings, self.history = settings, history

    @property
    def inferable(self) -> np.ndarray:
        """Genes of which training cells expressed more than one isoform, shape ``(n_genes,)``."""
        return self.predictor.inferable.cpu().numpy()

    @property
    def uses_labels(self) -> bool:
        """Whether the label of a cell, where it is known, adds to what its genes say."""
        return self.predictor.label_bias is not None

    @property
    def fingerprint(self) -> str:
        """Digest of all weights."""
        state = self.predictor.state_dict()
        return fingerprint(*[part for name in sorted(state) for part in (name, state[name].detach().cpu().numpy())])

    def scores(self, gene_counts: sparse.csr_matrix, present: np.ndarray | None = None) -> torch.Tensor:
        """Principal components of cells.

        Parameters
        ----------
        gene_counts
            Counts of the model's genes, csr of shape ``(n, n_genes)``.
        present
            Genes that were measured, booleans of shape ``(n_genes,)``; others are taken to be at their mean. ``None``: all.

        Returns
        -------
        Shape ``(n, n_components)``.
        """
        share = 1.0
        if present is not None:
            # the rest of a cell's counts would have gone to genes that were not measured
            mean = np.expm1(self.predictor.gene_mean.cpu().numpy().astype(np.float64))
            share = float(mean[present].sum() / max(mean.sum(), 1e-12))
        return gene_scores(self.predictor, gene_counts, present, share=max(share, 1e-3))

    @torch.no_grad()
    def usage(
        self, scores: torch.Tensor, gene_counts: sparse.csr_matrix, labels: np.ndarray | None = None
    ) -> tuple[GeneTotals, np.ndarray, np.ndarray]:
        """Usage of all isoforms of the genes that cells express, where a gene has several.

        Parameters
        ----------
        scores
            As :meth:`scores` gives them.
        gene_counts
            Counts of the model's genes, csr of shape ``(n, n_genes)``.
        labels
            Codes of labels, ``len(labels)`` for cells without one.

        Returns
        -------
        Pairs of cells and genes with their isoforms, the usage of each of these, and the concentration of each pair.
        """
        totals = gene_totals(gene_counts, self.genes)
        counts = totals.as_isoform_counts(self.predictor.axes.device)
        codes = None
        if labels is not None and self.uses_labels:
            codes = torch.as_tensor(labels, device=scores.device)
        logits = self.predictor.entry_logits(self.predictor.hidden(scores), counts, codes)
        usage = pair_log_softmax(counts, logits).exp().double().cpu().numpy()
        usage /= np.add.reduceat(usage, totals.start)[totals.pair] if len(usage) else 1.0
        concentration = self.predictor.log_concentration.exp().cpu().numpy().astype(np.float64)
        return totals, usage, concentration[totals.gene]

    def to_device(self, device: torch.device | str) -> None:
        """Move the network."""
        self.predictor.to(device)

    # -- files -------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a saved model keeps, by name."""
        state = {_PREFIX + name: value for name, value in self.predictor.state_dict().items()}
        return {**state, _PREFIX + "gene_of": torch.as_tensor(self.genes.gene_of)}

    def meta(self) -> dict[str, Any]:
        """What else a saved model keeps."""
        return {
            "settings": asdict(self.settings),
            "genes": list(map(str, self.genes.genes)),
            "labels": self.labels,
            "history": self.history,
        }

    @classmethod
    def from_saved(cls, meta: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> GeneEncoder:
        """Inverse of :meth:`tensors` and :meth:`meta`."""
        state = {name[len(_PREFIX) :]: value for name, value in tensors.items() if name.startswith(_PREFIX)}
        genes = GeneMap(np.asarray(meta["genes"], dtype=object), state.pop("gene_of").numpy())
        settings = UsageSettings(**meta["settings"])
        labels = np.asarray(meta["labels"], dtype=object)
        predictor = make_predictor(genes, settings, len(labels))
        predictor.load_state_dict(state)
        return cls(predictor, genes, labels, settings, dict(meta["history"]))


class GeneEncoderMixin:
    """Part of :class:`VAE` that has to do with genes."""

    _gene_encoder: GeneEncoder | None = None

    @property
    def gene_encoder(self) -> GeneEncoder | None:
        """What tells isoforms from genes, or ``None`` before it is fitted."""
        return self._gene_encoder

    @property
    def gene_column(self: Any) -> str:
        """Column of ``var`` that says which gene a transcript belongs to: the one registered, else ``"gene_id"``."""
        return self.setup_args.get("gene_key") or GENE_ID

    def gene_map(self: Any) -> GeneMap:
        """Gene of each feature.

        Raises
        ------
        KeyError
            If the data that the model was set up with do not say.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.gene_map().gene_of.shape
        (50,)
        """
        table: pd.DataFrame = self.feature_table
        if self.gene_column not in table and self.gene_of is not None:
            return GeneMap(np.asarray(self.gene_names, dtype=object), self.gene_of)
        if self.gene_column not in table:
            raise KeyError(
                f"the model's features have no column {self.gene_column!r} that says which gene they belong to; they have "
                f"{list(table.columns)}. Run isd.pp.annotate_genes(adata, ...) before setup_anndata."
            )
        return GeneMap.from_ids(table[self.gene_column])

    def fit_gene_encoder(
        self: Any,
        *,
        max_steps: int | None = None,
        with_labels: bool = False,
        settings: UsageSettings | Sequence[UsageSettings] | None = None,
        seed: int | None = None,
        progress: bool | None = None,
    ) -> None:
        """Fit what tells the usage of isoforms from the counts of genes, on the training cells.

        It takes seconds for some thousand transcripts, and the longer the more isoforms cells express: with 180,000
        transcripts of 60,000 genes, seconds a step on two busy cores.

        :meth:`train` does this where a gene map was registered, and :func:`isd.tl.infer_isoforms` at first use otherwise.
        Test cells of ``obs["isd_split"]`` are not read; validation cells choose when to stop. Where the cells' genes were
        measured besides (:meth:`setup_mudata`), it is these counts that tell.

        Parameters
        ----------
        max_steps
            Most steps of the optimiser, fewer than the settings have.
        with_labels
            Whether labels, where :func:`isd.tl.infer_isoforms` is given them, add to what genes say.
        settings
            How (:class:`isd.model.UsageSettings`); of several, what validation cells like best is kept. By default after
            the number of training cells.
        seed
            Seed; ``None`` takes ``isd.settings.seed``.
        progress
            Progress bar.

        Raises
        ------
        KeyError
            If the features have no gene map.
        ValueError
            If no data are attached, or no gene has several isoforms.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.train(max_steps=5, progress=False)
        >>> vae.fit_gene_encoder(max_steps=5, progress=False)
        >>> int(vae.gene_encoder.inferable.sum())
        11
        """
        genes = self.gene_map()
        if not (genes.n_isoforms > 1).any():
            raise ValueError(
                f"no gene in var[{self.gene_column!r}] has more than one transcript among the model's {len(genes.gene_of)} "
                "features: there are no isoforms to tell apart."
            )
        adata: AnnData = self._validate_anndata()
        train, validation, _ = self._split()
        if with_labels:
            several = usage_settings(len(train)) if settings is None else settings
            several = [several] if isinstance(several, UsageSettings) else several
            settings = [replace(one, with_labels=True) for one in several]
        predictor, settings, history = fit_usage(
            self.get_from_registry(adata, REGISTRY_KEYS.X_KEY),
            genes,
            train,
            validation,
            gene_counts=measured_genes(adata, genes.genes.size),
            labels=self.label_codes(adata),
            n_labels=len(self.labels),
            settings=settings,
            max_steps=max_steps,
            seed=seed,
            device=self.module.device,
            progress=progress,
        )
        self._gene_encoder = GeneEncoder(predictor, genes, self.labels, settings, history)

    def require_gene_encoder(self: Any, *, progress: bool | None = None) -> GeneEncoder:
        """The gene encoder, fitted now where it is not there yet.

        Raises
        ------
        ValueError
            If it is not there and no data are attached.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.train(max_steps=2, progress=False)
        >>> encoder = vae.require_gene_encoder(progress=False)
        >>> encoder is vae.gene_encoder
        True
        """
        if self._gene_encoder is None:
            if self._adata is None:
                raise ValueError(
                    "this VAE has no gene encoder, and no data to fit one. Train it with a gene map (gene_key='gene_id' in "
                    "setup_anndata, --gene-key on the command line), or load it with its data, call "
                    "vae.fit_gene_encoder() and save it again."
                )
            _LOG.warning(
                "This VAE has no gene encoder yet: fitting one to its training cells. It stays with the VAE and "
                "is saved with it; vae.train(gene_encoder=True) fits it at once."
            )
            self.fit_gene_encoder(progress=progress)
        assert self._gene_encoder is not None
        return self._gene_encoder

    # -- files -------------------------------------------------------------------------------------------------

    def _extra_tensors(self) -> dict[str, torch.Tensor]:
        return {} if self._gene_encoder is None else self._gene_encoder.tensors()

    def _extra_meta(self) -> dict[str, Any]:
        return {} if self._gene_encoder is None else {"gene_encoder": self._gene_encoder.meta()}

    def _restore_extra(self: Any, meta: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        if "gene_encoder" in meta:
            self._gene_encoder = GeneEncoder.from_saved(meta["gene_encoder"], tensors)
