"""The probabilistic network of a VAE that knows which isoforms belong to which gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from scvi.module._constants import MODULE_KEYS
from torch import Tensor
from torch.distributions import Distribution, Poisson

from isd.module._count_loss import _FACTORS, _ROWS, LOG_THETA_RANGE
from isd.module._gene_counts import GeneIsoformCounts
from isd.module._minibatch import select_columns, sum_columns, with_columns
from isd.module._usage_sampling import draw_usage
from isd.module._vae import VAEModule
from isd.nn import CountDecoder, GeneDecoder, Segments, log_likelihood, usage_log_likelihood

UsageLikelihood = Literal["dirichlet-multinomial", "nb"]
USAGE_LIKELIHOODS: tuple[str, ...] = ("dirichlet-multinomial", "nb")
#: Limits of the log concentration: usage that is all or nothing, and usage that no longer differs between cells.
LOG_CONCENTRATION_RANGE = (-6.0, 12.0)
#: Counts that each isoform is given beside its own where usage is pooled.
PSEUDOCOUNT = 0.5


class GeneVAEModule(VAEModule):
    r"""Variational autoencoder of isoform counts as gene counts and usage.

    .. math::

        n_g &\sim \mathrm{NB}(\ell \rho_g, \theta_g(z)), \qquad \rho = \mathrm{softmax}(f(z, \log \ell, s)) \\
        x_{t \in g} \mid n_g &\sim \mathrm{DirMult}(n_g, \kappa_g \pi_t), \qquad
        \pi = \mathrm{softmax}_g(\log \bar\pi + h(z, \log \ell, s))

    with the usage :math:`\bar\pi` of all training cells and a concentration :math:`\kappa_g` for each gene. Genes with
    one isoform have no usage. With ``usage_likelihood="nb"`` each isoform is negative binomial by itself around the mean
    :math:`\ell \rho_g \pi_t`.

    Parameters
    ----------
    n_input
        Number of isoforms.
    gene_of
        Gene of each, whole numbers from 0, shape ``(n_input,)``. Genes with several isoforms come before all others.
    usage_likelihood
        ``"dirichlet-multinomial"`` or ``"nb"``.
    usage_rank, usage_shrinkage
        Rank of the layer that gives logits of usage, and precision of the prior on what it adds to the pooled usage.
    concentration_rank, concentration_shrinkage
        Rank of a layer that moves log concentrations from cell to cell (0 for none), and precision of its prior.
    **kwargs
        Further arguments of :class:`VAEModule`; ``likelihood`` is that of genes, ``"nb"`` or ``"poisson"``.

    Raises
    ------
    ValueError
        If no gene has several isoforms, genes are not in that order, or a likelihood has no gene level.

    Examples
    --------
    >>> import torch
    >>> from isd.module import GeneVAEModule
    >>> module = GeneVAEModule(5, gene_of=[0, 0, 1, 1, 2], n_hidden=8, n_latent=2, usage_rank=2).eval()
    >>> z, log_library = torch.zeros(3, 2), torch.full((3, 1), 4.0)
    >>> px = module.generative(z, log_library, torch.zeros(3, 2, dtype=torch.long), None)["px"]
    >>> px.mean.shape, px.gene_mean.shape
    (torch.Size([3, 5]), torch.Size([3, 3]))
    """

    likelihood_of_stored = True
    gene_of: Tensor
    shared: Tensor

    def __init__(
        self,
        n_input: int,
        *,
        gene_of: Sequence[int] | np.ndarray,
        usage_likelihood: UsageLikelihood = "dirichlet-multinomial",
        usage_rank: int = 16,
        usage_shrinkage: float = 10.0,
        concentration_rank: int = 0,
        concentration_shrinkage: float = 10.0,
        **kwargs: Any,
    ) -> None:
        codes = np.asarray(gene_of, dtype=np.int64)
        sizes = _checked_sizes(codes, n_input)
        if kwargs.get("likelihood", "nb") not in ("nb", "poisson"):
            raise ValueError(
                f"likelihood {kwargs['likelihood']!r} has no gene level; choose 'nb' or 'poisson', or gene_decoder=False."
            )
        if usage_likelihood not in USAGE_LIKELIHOODS:
            raise ValueError(f"usage_likelihood {usage_likelihood!r} is unknown; choose one of {USAGE_LIKELIHOODS}.")
        for name, rank in (("usage_rank", usage_rank), ("concentration_rank", concentration_rank)):
            if rank < (name == "usage_rank"):
                raise ValueError(f"{name} must be at least {int(name == 'usage_rank')}; got {rank}.")
        for name, weight in (
            ("usage_shrinkage", usage_shrinkage),
            ("concentration_shrinkage", concentration_shrinkage),
        ):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} must be a finite number that is not negative; got {weight}.")
        # plain facts that building the decoder needs, before torch's constructor has run
        object.__setattr__(self, "usage_likelihood", usage_likelihood)
        object.__setattr__(self, "n_genes", int(sizes.size))
        object.__setattr__(self, "sizes", sizes[sizes > 1])
        object.__setattr__(
            self,
            "_usage_shape",
            {
                "usage_rank": usage_rank,
                "usage_shrinkage": usage_shrinkage,
                "concentration_rank": concentration_rank if usage_likelihood == "dirichlet-multinomial" else 0,
                "concentration_shrinkage": concentration_shrinkage,
            },
        )
        super().__init__(n_input, **kwargs)
        order = np.argsort(codes, kind="stable")
        self.register_buffer("gene_of", torch.from_numpy(codes.copy()))
        self.register_buffer("shared", torch.from_numpy(order[: self.n_shared].copy()), persistent=False)
        self.register_buffer("_sizes", torch.from_numpy(self.sizes.copy()), persistent=False)
        self.genes = Segments(self.gene_of)
        self.inner = Segments(torch.repeat_interleave(torch.arange(self.n_multi), self._sizes))
        self._features = order

    sizes: np.ndarray
    usage_likelihood: UsageLikelihood
    n_genes: int

    @property
    def n_multi(self) -> int:
        """Number of genes with several isoforms."""
        return len(self.sizes)

    @property
    def n_shared(self) -> int:
        """Number of isoforms of these genes."""
        return int(self.sizes.sum())

    @property
    def n_dispersions(self) -> int:
        """Number of log dispersions: one for each gene, or isoform with ``usage_likelihood="nb"``."""
        return self.n_input if self.usage_likelihood == "nb" else self.n_genes

    def _make_decoder(self, n_latent: int, n_covariates: int, **shape: Any) -> CountDecoder:
        n_heads = self.n_dispersions
        return GeneDecoder(
            n_latent,
            n_covariates,
            self.n_genes,
            torch.from_numpy(self.sizes),
            n_head_outputs=n_heads,
            **self._usage_shape,
            **shape,
        )

    @torch.no_grad()
    def set_training_statistics(
        self, log_library: np.ndarray, feature_share: np.ndarray, n_counts: float = np.inf
    ) -> None:
        """As :meth:`VAEModule.set_training_statistics`, and the usage of all training cells together.

        Parameters
        ----------
        log_library, feature_share
            As there; shares of isoforms.
        n_counts
            Number of counts of the training rows. Each isoform is given half a count beside its own, so that one that was
            never seen has a share that follows how often its gene was.
        """
        gene_of = self.gene_of.cpu().numpy()
        super().set_training_statistics(log_library, np.bincount(gene_of, feature_share, self.n_genes))
        share = feature_share[self._features[: self.n_shared]].astype(np.float64)
        counts = share * n_counts + PSEUDOCOUNT if np.isfinite(n_counts) else share + 1e-12
        inner = np.repeat(np.arange(self.n_multi), self.sizes)
        pooled = np.log(counts / np.bincount(inner, counts)[inner])
        decoder = self._gene_decoder
        decoder.log_pooled.copy_(torch.as_tensor(np.maximum(pooled, -20.0), dtype=torch.float32))

    @torch.no_grad()
    def set_usage_loadings(self, loadings: np.ndarray) -> None:
        """Start the layer of usage from axes of shape ``(k, n_vars)``, of which :class:`isd.model.VAE` takes the principal axes of usage."""
        ours = self._gene_decoder.usage.loadings
        k = min(len(ours), len(loadings))
        ours[:k] = torch.as_tensor(loadings[:k, self._features[: self.n_shared]], dtype=torch.float32).to(ours.device)

    @property
    def usage_rank(self) -> int:
        """Rank of the layer that gives logits of usage."""
        return len(self._gene_decoder.usage.loadings)

    @property
    def _gene_decoder(self) -> GeneDecoder:
        assert isinstance(self.decoder, GeneDecoder)
        return self.decoder

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        given = super()._get_generative_input(tensors, inference_outputs, **kwargs)
        # means of isoforms are products of two softmaxes: their likelihood goes through all features
        return given | {"fused": given["fused"] and self.usage_likelihood != "nb"}

    # -- likelihood --------------------------------------------------------------------------------------------

    def _distribution(self, out: dict[str, Tensor], log_library: Tensor) -> Distribution:
        share = torch.softmax(out["mean"], dim=-1)
        if self.usage_likelihood == "nb":
            usage = share.new_ones((*share.shape[:-1], self.n_input))
            usage = usage.index_copy(-1, self.shared, self.inner.softmax(out["usage"]))
            share = self.genes.expand(share) * usage
        mean = share * log_library.exp()
        gene_counts: Distribution
        if self.likelihood == "poisson":
            gene_counts = Poisson(mean, validate_args=False)
        else:
            gene_counts = self._negative_binomial(mean, share, out.get("dispersion"))
        if self.usage_likelihood == "nb":
            return gene_counts
        log_kappa: Tensor = self._gene_decoder.log_concentration
        if "concentration" in out:
            log_kappa = log_kappa + out["concentration"]
        kappa = log_kappa.clamp(*LOG_CONCENTRATION_RANGE).exp()
        return GeneIsoformCounts(gene_counts, out["usage"], kappa, self.shared, self.genes)

    def _reconstruction(
        self, x: Tensor, inference_outputs: dict[str, Any], generated: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        if _FACTORS not in generated:
            return super()._reconstruction(x, inference_outputs, generated)
        rows = with_columns(inference_outputs[_ROWS])
        factors = generated[_FACTORS]
        gene_counts = sum_columns(rows, self.gene_of, self.n_genes)
        assert gene_counts.col_ptr is not None and gene_counts.rows is not None
        assert gene_counts.values_by_column is not None
        total, each = log_likelihood(
            self.likelihood,  # type: ignore[arg-type]
            gene_counts,
            factors["mean"],
            log_library=inference_outputs[MODULE_KEYS.LIBRARY_KEY],
            log_theta=self.log_theta if self.likelihood == "nb" else None,
            log_clump=self.log_clump,
            head=factors.get("dispersion"),
            log_theta_range=LOG_THETA_RANGE,
        )
        isoforms = select_columns(rows, self.shared)
        genes = type(isoforms)(gene_counts.col_ptr[: self.n_multi + 1], gene_counts.rows, gene_counts.values_by_column)
        usage, usage_each = usage_log_likelihood(
            isoforms,
            genes,
            self._sizes,
            factors["usage"],
            self._gene_decoder.log_concentration,
            head=factors.get("concentration"),
            log_concentration_range=LOG_CONCENTRATION_RANGE,
        )
        return -(total + usage), -(each + usage_each)

    # -- drawing -----------------------------------------------------------------------------------------------

    def _streams(self, rng: np.random.Generator) -> Sequence[np.random.Generator]:
        return [rng] if self.usage_likelihood == "nb" else rng.spawn(2)

    def _draw(self, px: Any, totals: np.ndarray, *streams: np.random.Generator) -> sparse.csr_matrix:
        if not isinstance(px, GeneIsoformCounts):
            return super()._draw(px, totals, *streams)
        gene_counts = super()._draw(px.gene_counts, totals, streams[0])
        return draw_usage(
            gene_counts,
            px.logits.cpu().numpy(),
            px.concentration.double().cpu().numpy(),
            self.sizes,
            self._features,
            streams[1],
        )


def _checked_sizes(codes: np.ndarray, n_input: int) -> np.ndarray:
    """Number of isoforms of each gene."""
    if codes.shape != (n_input,) or (codes < 0).any():
        raise ValueError(f"gene_of must hold a gene for each of {n_input} isoforms; got shape {codes.shape}.")
    sizes = np.bincount(codes)
    if not (sizes > 1).any():
        raise ValueError("no gene has several isoforms, so there is no usage to learn; leave out gene_of.")
    if (np.diff((sizes > 1).astype(int)) > 0).any() or (sizes == 0).any():
        raise ValueError("gene_of must number genes with several isoforms before all others, without gaps.")
    return sizes
