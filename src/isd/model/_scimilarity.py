"""A VAE that starts from the published weights of SCimilarity."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from isd._constants import GENE_NAME
from isd.model._base import IsdModel
from isd.model._mudata import isoforms_of
from isd.model._scimilarity_files import Network, Published, read_scimilarity
from isd.model._statistics import feature_share
from isd.module._minibatch import to_dense
from isd.module._summed_vae import ENCODER_ROWS, EncoderRows, SummedVAEModule
from isd.pp._anndata import some

_LOG = logging.getLogger("isd")

#: Most training cells that the decoder's output layer is calibrated on.
_CALIBRATED_ON = 2048
#: Limits of the log inverse dispersion that is estimated there.
_LOG_THETA = (-3.0, 5.0)


def fine_tuning(n_train: int) -> dict[str, Any]:
    """Training of such a model where nothing else is said: slow, and short, since few cells are soon learnt by heart.

    Parameters
    ----------
    n_train
        Number of training cells.

    Examples
    --------
    >>> [fine_tuning(n)["max_steps"] for n in (300, 5000, 10**6)]
    [300, 781, 10000]
    """
    return {
        "lr": 1e-4,
        "weight_decay": 0.01,
        "batch_size": 128,
        "max_steps": min(max(300, 20 * n_train // 128), 10_000),
    }


class FromSCimilarity(IsdModel):
    """What :class:`isd.model.VAE` has of SCimilarity."""

    scimilarity_coverage_: dict[str, Any] | None = None
    #: defaults of the training of a model whose weights come from elsewhere
    fine_tuning_: dict[str, Any] | None = None

    @property
    def scimilarity_coverage(self) -> dict[str, Any] | None:
        """How far published genes and those of the data agree; ``None`` for a model that is not :meth:`from_scimilarity`.

        ``n_genes_published``, ``n_genes_shared``, ``n_features``, ``n_features_matched`` and ``share_of_counts`` (of the training
        cells, in features that are matched).
        """
        return self.scimilarity_coverage_

    @classmethod
    def from_scimilarity(
        cls,
        path: str | Path,
        adata: AnnData,
        *,
        gene_key: str = GENE_NAME,
        encoder_rows: EncoderRows = "isoform",
        l2_normalize: bool = False,
        likelihood: Literal["nb", "zinb", "poisson"] = "nb",
        min_genes: int = 5000,
        seed: int | None = None,
        **module_kwargs: Any,
    ) -> Self:
        r"""Start from SCimilarity's published autoencoder: its embedding of genes, for data that tell isoforms apart.

        The published encoder reads log1p of gene counts that are scaled to 10,000. Logarithms do not add, so isoforms are
        summed to their gene before: the latent of a cell is what the published encoder gives for the cell's gene counts (to
        1e-5), whatever isoforms they are spread over. Genes that the data lack count as zero, and isoforms of genes that
        were not published count in nothing, neither in the sum that counts are scaled by. The model is ready to encode, and
        is meant to be trained on before it generates (:meth:`VAE.train`, whose defaults for it are a learning rate of 1e-4, 300 steps
        or 20 epochs if these are more, and to stop early).

        Parameters
        ----------
        path
            Folder with ``encoder.ckpt``, ``decoder.ckpt`` and ``gene_order.tsv``, as
            :func:`isd.datasets.fetch_scimilarity` downloads it. Nothing in it is executed.
        adata
            Data registered with :meth:`setup_anndata`. Covariates that are registered start without influence.
        gene_key
            Column of ``var`` with the symbol of each transcript's gene. Genes of one symbol are one gene.
        encoder_rows
            What the encoder's first layer has a row for. ``"isoform"``: each isoform, starting from the weights of its gene, so
            that training can tell isoforms apart; a gene's logarithm is divided over its isoforms by their usage, so that
            the latent starts as the published one. ``"gene"``: each shared gene, which stays blind to isoforms.
        l2_normalize
            ``False``: the latent is the plain output of the encoder's last layer. ``True``: of length one, as in SCimilarity's own
            use. The decoder goes by the direction alone in either case, as the published one has learnt it.
        likelihood
            Of the counts.
        min_genes
            Fewer shared genes are an error: an embedding of so few genes is not the published one.
        seed
            Seed of the weights that are new (covariates, dispersion, labels); ``None`` takes ``isd.settings.seed``.
        **module_kwargs
            Further arguments of :class:`VAE` (``dispersion``, ``dropout``, ``label_weight``, ``deterministic``, ...). Its shape is
            that of the published network, with point latents and without library size among the encoder's inputs.

        Returns
        -------
        A VAE that encodes and decodes. ``scimilarity_coverage`` says how many genes are shared.

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        KeyError
            If ``gene_key`` is not in ``var``.
        TypeError
            If arguments ask for another shape than the published one.
        ValueError
            If a checkpoint holds anything but tensors or does not fit, fewer than ``min_genes`` genes are shared, or
            ``adata`` was not set up.

        Notes
        -----
        The published decoder says log-normalised values :math:`\hat y_g` of genes; counts need shares of isoforms that add up to
        one. The model takes

        .. math::

            \log \rho_t = \log \bar\rho_t + \hat y_{g(t)} - \bar y_{g(t)} + \mathrm{const},

        with :math:`\bar\rho_t` the isoform's share in all counts of the training cells, and :math:`\bar y_g` the mean output over
        them: the output row of an isoform starts as its gene's, and the bias from the data. Isoforms of genes that were not published
        start from their pooled share alone. Taking :math:`\mathrm{expm1}(\hat y_g)` for the share of a gene, the inverse of what the
        published decoder was fitted to, is nearer to the counts before any training and further from them after a short one
        (docs/notes/scimilarity.md). Dispersions start by moments around these means.

        References
        ----------
        Heimberg et al., A cell atlas foundation model for scalable search of similar human cells (2024).

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE.from_scimilarity("annotation_model_v1", adata)  # doctest: +SKIP
        >>> vae.train()  # doctest: +SKIP
        """
        adata = isoforms_of(adata)
        if encoder_rows not in ENCODER_ROWS:
            raise ValueError(f"encoder_rows {encoder_rows!r} is unknown; choose one of {ENCODER_ROWS}.")
        fixed = sorted(_FIXED & module_kwargs.keys())
        if fixed:
            raise TypeError(
                f"{', '.join(fixed)}: the shape of the model is that of the published network; leave these out."
            )
        if gene_key not in adata.var:
            raise KeyError(
                f"gene_key {gene_key!r} is not in adata.var, which has {list(map(str, adata.var.columns))}; genes are "
                "matched by symbol. isd.pp.annotate_genes writes them."
            )
        published = read_scimilarity(path)
        group_of, gene_of, n_groups = match_symbols(adata.var[gene_key], published.genes)
        n_shared = len(gene_of)
        if n_shared < min_genes:
            raise ValueError(
                f"{n_shared} of the {len(published.genes)} published genes ({some(published.genes, 3)}) are among the symbols "
                f"of adata.var[{gene_key!r}] ({some(pd.unique(adata.var[gene_key]), 3)}); at least {min_genes} are needed for the "
                "embedding to mean what was published. Check species and column, or give min_genes= to go on."
            )
        widths = published.encoder.shape
        model = cls(
            adata,
            n_hidden=widths[1],
            n_latent=widths[-1],
            n_layers=len(widths) - 2,
            likelihood=likelihood,
            seed=seed,
            gene_decoder=False,
            summed_genes={"n_genes": n_shared, "n_groups": n_groups, "encoder_rows": encoder_rows},
            **{**_SHAPE, "l2_normalize": l2_normalize, **module_kwargs},
        )
        model._take_published(published, group_of, gene_of)
        coverage = model.scimilarity_coverage_
        assert coverage is not None
        _LOG.info(
            "SCimilarity: %d of %d published genes are in the data; %d of %d transcripts belong to them, with %.1f%% of the "
            "training cells' counts.",
            n_shared, len(published.genes), coverage["n_features_matched"], adata.n_vars, 100 * coverage["share_of_counts"],
        )  # fmt: skip
        return model

    @torch.no_grad()
    def _take_published(self, published: Published, group_of: np.ndarray, gene_of: np.ndarray) -> None:
        """Put published weights in place, and what only the data can say."""
        module = self.module
        assert isinstance(module, SummedVAEModule)
        module.group_of.copy_(torch.from_numpy(group_of))
        known = torch.from_numpy(group_of < len(gene_of))
        published_of = torch.from_numpy(gene_of[group_of[known.numpy()]])
        table = published.encoder.blocks[0].linear["weight"].t()
        first: Any = _first_layer(module.encoder.body)
        if module.encoder_rows == "gene":
            first.weight.copy_(table[torch.from_numpy(gene_of)])
        else:
            first.weight.zero_()
            first.weight[known] = table[published_of]
        first.bias.copy_(published.encoder.blocks[0].linear["bias"])
        if first.covariates is not None:
            first.covariates.zero_()
        _copy_blocks(published.encoder, module.encoder.body)
        _copy(module.encoder.mean, published.encoder.last)

        n_latent = published.decoder.shape[0]
        decoder = module.decoder
        entry: Any = _first_layer(decoder.body)
        entry.weight.zero_()  # columns of covariates follow those of the latent
        entry.weight[:, :n_latent] = published.decoder.blocks[0].linear["weight"]
        entry.bias.copy_(published.decoder.blocks[0].linear["bias"])
        _copy_blocks(published.decoder, decoder.body)

        counts = self.get_from_registry(self.adata, REGISTRY_KEYS.X_KEY)
        train, validation, test = self._split()
        share = feature_share(counts, train)
        self._set_statistics(train)
        if decoder.shift is not None:
            self._start_shifts(train)
        self._remember_rows(train, validation, test)
        self._set_templates(train)
        self.is_trained_ = True
        self.history_: dict[str, pd.DataFrame] = {}
        self.fine_tuning_ = fine_tuning(len(train))
        some_rows = np.sort(np.random.default_rng(0).choice(train, min(len(train), _CALIBRATED_ON), replace=False))
        self._start_means(published.decoder.last, known, published_of, share, some_rows)
        if module.likelihood != "poisson":
            self._start_dispersion(some_rows)
        self.scimilarity_coverage_ = {
            "n_genes_published": len(published.genes),
            "n_genes_shared": len(gene_of),
            "n_features": int(known.numel()),
            "n_features_matched": int(known.sum()),
            "share_of_counts": float(share[known.numpy()].sum() / max(share.sum(), 1e-30)),
        }

    def _hidden(self, rows: np.ndarray) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Batches of cells: what is read of them, their latents, and the decoder's last hidden layer."""
        module = self.module
        for tensors in self._make_data_loader(adata=self.adata, indices=rows, batch_size=256):
            inputs = module._get_inference_input(tensors)
            z = module.inference(**inputs)["qzm"]
            covariates = module.covariates(inputs["log_library"], inputs["codes"], inputs["continuous"])
            h = module.decoder.body(torch.cat([nn.functional.normalize(z, dim=-1), covariates], dim=1))
            yield {**inputs, "x": tensors[REGISTRY_KEYS.X_KEY]}, z, h

    def _start_means(
        self, last: dict[str, Tensor], known: Tensor, published_of: Tensor, share: np.ndarray, rows: np.ndarray
    ) -> None:
        """Start the output layer: rows of genes for isoforms, and a bias that gives the pooled shares at the mean cell."""
        output = self.module.decoder.mean
        hidden = torch.zeros(output.in_features, dtype=torch.float64)
        for _, _, h in self._hidden(rows):
            hidden += h.sum(0, dtype=torch.float64) / len(rows)
        pooled = torch.as_tensor(np.log(np.maximum(share, 0.1 * share[share > 0].min())), dtype=torch.float32)
        output.weight.zero_()
        output.weight[known] = last["weight"][published_of]
        output.bias.copy_(pooled - pooled.mean() - output.weight @ hidden.float())

    def _start_dispersion(self, rows: np.ndarray) -> None:
        """Start the dispersions by moments around the means; features with few counts take that of all together."""
        module = self.module
        excess = torch.zeros(module.n_input, dtype=torch.float64)
        square = torch.zeros(module.n_input, dtype=torch.float64)
        for inputs, z, _ in self._hidden(rows):
            px = module.generative(z, inputs["log_library"], inputs["codes"], inputs["continuous"])["px"]
            mean = px.mu.double()
            square += mean.square().sum(0)
            excess += ((to_dense(inputs["x"]) - mean).square() - mean).sum(0)
        weight = square.median()
        inverse = (excess + weight * (excess.sum() / square.sum()).clamp_min(0.0)) / (square + weight)
        low, high = _LOG_THETA
        module.log_theta.copy_(-inverse.clamp(np.exp(-high), np.exp(-low)).log().float())


#: Arguments of :class:`isd.model.VAE` that the published network decides.
_FIXED = {
    "n_hidden",
    "n_latent",
    "n_layers",
    "norm",
    "activation",
    "output_rank",
    "shrinkage",
    "gene_decoder",
    "preset",
}
#: Shape of the published autoencoder, and a likelihood of counts.
_SHAPE: dict[str, Any] = {
    "norm": "batch",
    "activation": "prelu",
    "dropout": 0.0,
    "deterministic": True,
    "use_library": False,
    "output_rank": 0,
    "shrinkage": 0.0,
}


def match_symbols(symbols: pd.Series, published: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Number the genes of the data, those that were published first.

    Parameters
    ----------
    symbols
        Symbol of each transcript's gene; missing and empty ones are none, and such a transcript a gene of its own.
    published
        Published symbols. One that is there twice is known by its first place.

    Returns
    -------
    Gene of each transcript, shape ``(n_vars,)``; place among the published ones of each gene that was published, shape
    ``(n_shared,)``; number of genes.

    Examples
    --------
    >>> group_of, gene_of, n_groups = match_symbols(pd.Series(["B", "X", None, "A", "B"]), ["A", "B", "C"])
    >>> group_of.tolist(), gene_of.tolist(), n_groups
    ([1, 2, 3, 0, 1], [0, 1], 4)
    """
    place = {symbol: i for i, symbol in reversed(list(enumerate(published)))}
    column = pd.Series(np.asarray(symbols, dtype=object))
    missing = (column.isna() | (column.astype(str).str.strip() == "")).to_numpy()
    names = column.astype(str).str.strip()
    found = names.map(place).where(~missing)
    gene_of = np.unique(found.dropna().to_numpy(dtype=np.int64))
    known = found.notna().to_numpy()
    group_of = np.empty(len(names), dtype=np.int64)
    group_of[known] = np.searchsorted(gene_of, found[known].to_numpy(dtype=np.int64))
    keys = [
        (True, str(i)) if none else (False, name) for i, (name, none) in enumerate(zip(names, missing, strict=True))
    ]
    rest = pd.factorize(pd.Series([key for key, k in zip(keys, known, strict=True) if not k], dtype=object))
    group_of[~known] = len(gene_of) + rest[0]
    return group_of, gene_of, len(gene_of) + len(rest[1])


def _copy(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        getattr(layer, name).copy_(value)


def _copy_blocks(network: Network, body: nn.Sequential) -> None:
    """Copy all of the blocks but the first linear layer, whose columns are matched."""
    for i, (block, ours) in enumerate(zip(network.blocks, body, strict=True)):
        linear, norm, activation = list(ours.children())[:3]
        if i:
            _copy(linear, block.linear)
        _copy(norm, block.norm)
        _copy(activation, block.activation)


def _first_layer(body: nn.Sequential) -> nn.Module:
    return next(next(body.children()).children())
