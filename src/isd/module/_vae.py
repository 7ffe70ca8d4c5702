"""The probabilistic network of :class:`isd.model.VAE`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from isd._constants import TARGET_SUM
from isd.module._clumped_counts import ClumpedNegativeBinomial
from isd.module._count_draws import CountDraws
from isd.module._count_loss import _FACTORS, _ROWS, LOG_THETA_RANGE, CountLoss
from isd.module._minibatch import is_sparse, sparse_batch, to_dense
from isd.nn import (
    CountDecoder,
    CountEncoder,
    LowRankLinear,
    SparseBatch,
    one_hot_conditions,
)

Likelihood = Literal["nb", "zinb", "poisson", "normal"]
LIKELIHOODS: tuple[str, ...] = ("nb", "zinb", "poisson", "normal")
#: log of the inverse dispersion where no cells have told another: nearly Poisson
LOG_THETA_INIT = 5.0
#: log of the mean excess of a clump where no cells have told another
LOG_CLUMP_INIT = float(np.log(0.1))
#: Density of the counts above which a dense first layer is faster (see docs/notes/models.md).
DENSE_ABOVE = 0.3
#: Logit of an output that gets no counts, and is no infinity.
NO_SHARE = -60.0


class VAEModule(CountLoss, CountDraws):
    r"""Variational autoencoder of counts.

    .. math::

        z &\sim \mathcal{N}(0, I) \\
        \rho &= \mathrm{softmax}(f(z, \log \ell, s)) \\
        x_j &\sim \mathrm{NB}(\ell \rho_j, \theta_j(z))

    with library size :math:`\ell` (observed), covariates :math:`s` and an inverse dispersion
    :math:`\theta_j(z) = \exp(t_j + g_j(z, \log \ell, s))` per feature and cell. With ``clumps`` it is clumps that are counted
    so: each has :math:`1 + r_j` counts on average, a geometric number (:class:`isd.module.ClumpedNegativeBinomial`).

    Parameters
    ----------
    n_input
        Number of features.
    n_batch, n_cats_per_cov, n_continuous_cov
        Covariates that encoder and decoder see.
    n_hidden, n_layers, n_latent, dropout, norm, activation
        Shape of the networks.
    likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, or ``"normal"`` (mean squared error on log-normalised values).
    dispersion
        ``"cell"`` (per feature and cell) or ``"feature"``.
    clumps
        Whether counts come in clumps; only for ``likelihood="nb"``, and left aside for others.
    output_rank, dispersion_rank
        Rank of the output layers for the mean, and for dispersion and zero inflation; 0 for full layers.
    shrinkage, dispersion_shrinkage
        Precision of the prior on the logits of each feature, and on what a cell's dispersion adds to that of the
        feature (for low-rank layers; see :class:`isd.nn.CountDecoder`). Without the second, a cell can say of a
        feature that it is mostly absent and at times huge, which is learnt sooner than the label's true mean.
    n_labels, label_weight
        Number of labels, and weight of the log-likelihood of a cell's label given its latent: a latent drawn from
        the posterior then still tells the label where counts are few. 0 for none.
    deterministic, l2_normalize
        Point latents on the unit sphere, as in the published autoencoder.
    use_library
        Whether encoder and decoder see the log library size.
    use_size_factor
        Whether a size factor stands for the library size. The total of a cell then scatters around it, as that of a
        training cell does; otherwise the total of a drawn cell is its library size.

    Attributes
    ----------
    sparse_input
        Whether the first layer reads sparse minibatches as they are (``True``) or made dense (``False``). ``None`` goes
        by the density of each minibatch, and leaves dense ones dense. The results are the same.

    Examples
    --------
    >>> import torch
    >>> from isd.module import VAEModule
    >>> module = VAEModule(5, n_hidden=8, n_latent=2).eval()
    >>> z, log_library = torch.zeros(3, 2), torch.full((3, 1), 4.0)
    >>> px = module.generative(z, log_library, torch.zeros(3, 2, dtype=torch.long), None)["px"]
    >>> px.mean.sum(1).log().detach().numpy().round(3).tolist()  # the library size
    [4.0, 4.0, 4.0]
    """

    sparse_input: bool | None = None
    #: whether dense minibatches too have their likelihood by what is not zero
    likelihood_of_stored = False

    def __init__(
        self,
        n_input: int,
        *,
        n_batch: int = 1,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        n_hidden: int = 256,
        n_layers: int = 2,
        n_latent: int = 32,
        dropout: float = 0.0,
        norm: Literal["layer", "batch", "none"] = "layer",
        activation: Literal["silu", "prelu", "relu", "gelu"] = "silu",
        likelihood: Likelihood = "nb",
        dispersion: Literal["cell", "feature"] = "cell",
        clumps: bool = False,
        output_rank: int = 0,
        dispersion_rank: int = 0,
        shrinkage: float = 0.0,
        dispersion_shrinkage: float = 0.0,
        n_labels: int = 1,
        label_weight: float = 0.0,
        deterministic: bool = False,
        l2_normalize: bool = False,
        use_library: bool = True,
        use_size_factor: bool = False,
        covariate_shift: bool = False,
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood {likelihood!r} is unknown; choose one of {LIKELIHOODS}.")
        if dispersion not in ("cell", "feature"):
            raise ValueError(f"dispersion {dispersion!r} is unknown; choose 'cell' or 'feature'.")
        for name, rank in (("output_rank", output_rank), ("dispersion_rank", dispersion_rank)):
            if rank < 0:
                raise ValueError(f"{name} must be a rank, or 0 for a full layer; got {rank}.")
        for name, weight in (
            ("shrinkage", shrinkage),
            ("dispersion_shrinkage", dispersion_shrinkage),
            ("label_weight", label_weight),
        ):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} must be a finite number that is not negative; got {weight}.")
        self.n_input = n_input
        self.n_latent = n_latent
        self.likelihood = likelihood
        self.deterministic = deterministic
        self.use_library = use_library
        self.use_size_factor = use_size_factor
        self.n_categories = (n_batch, *n_cats_per_cov)
        self.n_continuous_cov = n_continuous_cov
        n_covariates = int(use_library) + sum(n for n in self.n_categories if n > 1) + n_continuous_cov
        shape: dict[str, Any] = {
            "n_hidden": n_hidden,
            "n_layers": n_layers,
            "norm": norm,
            "activation": activation,
            "dropout": dropout,
        }
        self.encoder = CountEncoder(
            self._n_encoded(n_input),
            n_covariates,
            n_latent=n_latent,
            deterministic=deterministic,
            l2_normalize=l2_normalize,
            **shape,
        )
        heads = []
        if likelihood in ("nb", "zinb") and dispersion == "cell":
            heads.append("dispersion")
        if likelihood == "zinb":
            heads.append("dropout")
        shape |= {"output_rank": output_rank, "head_rank": dispersion_rank}
        shape |= {"shrinkage": shrinkage, "head_shrinkage": dispersion_shrinkage}
        if covariate_shift:
            first = int(use_library)
            shape["shift_columns"] = slice(first, n_covariates - n_continuous_cov)
        self.decoder = self._make_decoder(n_latent, n_covariates, heads=heads, **shape)
        self.label_weight = label_weight
        self.label_head = nn.Linear(n_latent, n_labels) if n_labels > 1 and label_weight > 0 else None
        if likelihood in ("nb", "zinb"):
            self.log_theta = nn.Parameter(torch.full((self.n_dispersions,), LOG_THETA_INIT))
        self.log_clump = None
        if clumps and likelihood == "nb":
            self.log_clump = nn.Parameter(torch.full((self.n_dispersions,), LOG_CLUMP_INIT))
        # statistics of the training rows: the library size enters the networks standardised
        self.register_buffer("library_mean", torch.tensor(0.0))
        self.register_buffer("library_std", torch.tensor(1.0))
        # priors count once for all training cells
        self.register_buffer("n_train", torch.tensor(1.0))
        # outputs that these cells were not measured for: they take no part in the likelihood (see isd.model._union)
        self.register_buffer("unmeasured", None, persistent=False)
        # counts per unit of the size factor: factors of any scale then mean library sizes
        self.register_buffer("size_factor_scale", torch.tensor(1.0))

    def _n_encoded(self, n_input: int) -> int:
        """Number of columns that the encoder reads."""
        return n_input

    def _make_decoder(self, n_latent: int, n_covariates: int, **shape: Any) -> CountDecoder:
        return CountDecoder(n_latent, n_covariates, self.n_input, **shape)

    def train(self, mode: bool = True) -> Self:
        """Training mode; statistics of batches that pass a frozen layer do not change it."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm1d) and not layer.weight.requires_grad:
                layer.eval()
        return self

    @property
    def n_dispersions(self) -> int:
        """Number of log dispersions: one for each feature."""
        return self.n_input

    # -- inputs ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_training_statistics(
        self, log_library: np.ndarray, feature_share: np.ndarray, n_counts: float = np.inf
    ) -> None:
        """Standardisation of the library size, and the output layer's bias from the pooled expression.

        Parameters
        ----------
        log_library
            Log library size of the training rows.
        feature_share
            Share of each feature in all counts of the training rows, shape ``(n_vars,)``.
        n_counts
            Number of these counts; a decoder with genes weighs the usage that they show by it.
        """
        self.n_train.fill_(float(len(log_library)))
        self.library_mean.fill_(float(np.mean(log_library)))
        self.library_std.fill_(max(float(np.std(log_library)), 1e-2))
        if self.likelihood != "normal":
            # a feature never seen starts well below the rarest seen one and not at minus infinity
            seen = feature_share[feature_share > 0]
            floor = 0.1 * float(seen.min()) if seen.size else 1.0
            bias = np.log(np.maximum(feature_share, floor))
            self.decoder.mean.bias.copy_(torch.as_tensor(bias - bias.mean(), dtype=torch.float32))

    @torch.no_grad()
    def set_loadings(self, loadings: np.ndarray) -> None:
        """Start the output layer from loadings of shape ``(k, n_vars)``, such as principal axes; the rest stays."""
        if not isinstance(self.decoder.mean, LowRankLinear):
            raise ValueError(
                "the output layer is a full one and has no loadings; make the module with output_rank above 0."
            )
        ours = self.decoder.mean.loadings
        k = min(len(ours), len(loadings))
        ours[:k] = torch.as_tensor(loadings[:k], dtype=torch.float32, device=ours.device)

    @torch.no_grad()
    def set_dispersions(self, inverse: np.ndarray, clump: float = 0.0) -> None:
        """Start the inverse dispersions from these, shape ``(n_dispersions,)``, and all clumps from one mean excess."""
        if self.log_clump is not None and clump > 0:
            self.log_clump.fill_(float(np.log(clump)))
        self.log_theta.copy_(torch.as_tensor(np.log(inverse), dtype=torch.float32).clamp(*LOG_THETA_RANGE))

    @torch.no_grad()
    def set_shifts(self, shifts: np.ndarray) -> None:
        """Start the shifts of the mean's logits from these, shape ``(n_shifts, n_outputs)``."""
        if self.decoder.shift is None:
            raise ValueError("the decoder has no shifts; make the module with covariate_shift=True and covariates.")
        self.decoder.shift.copy_(torch.as_tensor(shifts, dtype=torch.float32))

    def covariates(self, log_library: Tensor, codes: Tensor, continuous: Tensor | None) -> Tensor:
        """Covariate columns for encoder and decoder, shape ``(n, n_covariates)``."""
        parts = []
        if self.use_library:
            parts.append((log_library - self.library_mean) / self.library_std)
        if any(n > 1 for n in self.n_categories):
            parts.append(one_hot_conditions(codes, self.n_categories))
        if self.n_continuous_cov and continuous is not None:
            parts.append(continuous)
        if not parts:
            return log_library.new_zeros(log_library.shape[0], 0)
        return torch.cat(parts, dim=1)

    @staticmethod
    def codes_from(tensors: dict[str, Tensor]) -> Tensor:
        """Batch and categorical covariates as one matrix of codes."""
        codes = tensors[REGISTRY_KEYS.BATCH_KEY]
        extra = tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
        return codes if extra is None else torch.cat([codes, extra], dim=1)

    def log_library(self, x: Tensor, size_factor: Tensor | None = None) -> Tensor:
        """Log of the scaled size factor where one is registered, else of the total counts; shape ``(n, 1)``."""
        if size_factor is not None:
            return torch.log(size_factor * self.size_factor_scale)
        total = sparse_batch(x, by_column=False).sums()[:, None] if is_sparse(x) else x.sum(dim=1, keepdim=True)
        return torch.log(total.clamp_min(1.0))

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: Any) -> dict[str, Any]:
        x = tensors[REGISTRY_KEYS.X_KEY]
        return {
            "x": x,
            "log_library": self.log_library(x, tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)),
            "codes": self.codes_from(tensors),
            "continuous": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
        }

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        return {
            "z": inference_outputs[MODULE_KEYS.Z_KEY],
            "log_library": inference_outputs[MODULE_KEYS.LIBRARY_KEY],
            "codes": self.codes_from(tensors),
            "continuous": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            # a loss follows: with sparse counts it needs no distribution over all features
            "fused": _ROWS in inference_outputs and self.likelihood != "zinb",
            "measured_only": self.unmeasured is not None,
        }

    # -- the three verbs of a scvi module ----------------------------------------------------------------------

    @auto_move_data
    def inference(
        self, x: Tensor, log_library: Tensor, codes: Tensor, continuous: Tensor | None = None, n_samples: int = 1
    ) -> dict[str, Any]:
        """Approximate posterior of the latent, and a draw from it."""
        rows = None
        if is_sparse(x) or self.training or self.sparse_input or self.likelihood_of_stored:
            rows = sparse_batch(x, by_column=torch.is_grad_enabled())
        mean, std = self.encoder(self._encoder_input(x, rows), self.covariates(log_library, codes, continuous))
        shape = mean.shape if n_samples == 1 else (n_samples, *mean.shape)
        z = mean.expand(shape)
        if not self.deterministic:
            z = z + std * torch.randn(shape, device=mean.device)
        out = {
            MODULE_KEYS.Z_KEY: z,
            MODULE_KEYS.QZM_KEY: mean,
            # scvi makes a normal distribution of it, which a variance of zero (point latents) is not
            MODULE_KEYS.QZV_KEY: std.square().clamp_min(1e-12),
            MODULE_KEYS.LIBRARY_KEY: log_library,
        }
        if rows is not None:
            out[_ROWS] = rows
        return out

    def _encoder_input(self, x: Tensor, rows: SparseBatch | None) -> Tensor | SparseBatch:
        """Log-normalised counts, sparse where that is faster."""
        if rows is not None and self._read_sparse(x, rows):
            return rows.log_normalized(TARGET_SUM)
        return self.log_normalize(to_dense(x))

    def _read_sparse(self, x: Tensor, rows: SparseBatch) -> bool:
        """Whether the first layer reads a minibatch as it is stored."""
        if self.sparse_input is not None:
            return self.sparse_input
        # a GPU multiplies dense matrices faster than it gathers rows
        return is_sparse(x) and x.device.type == "cpu" and rows.density <= DENSE_ABOVE

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        log_library: Tensor,
        codes: Tensor,
        continuous: Tensor | None = None,
        fused: bool = False,
        measured_only: bool = False,
    ) -> dict[str, Any]:
        """Distribution of the counts given the latent (of log-normalised values for ``"normal"``).

        In training also ``"penalty"``, the decoder's negative log prior. ``fused`` gives the decoder's last layers in
        place of the distribution, for :meth:`loss` alone. ``measured_only`` leaves outputs that were not measured without
        a share of the counts.
        """
        covariates = self.covariates(log_library, codes, continuous)
        if fused:
            factors, penalty = self.decoder.factors(z, covariates)
            if measured_only:
                bias = factors["mean"].bias.masked_fill(self.unmeasured, NO_SHARE)  # type: ignore[arg-type]
                factors["mean"] = factors["mean"]._replace(bias=bias)
            return {_FACTORS: factors} if penalty is None else {_FACTORS: factors, "penalty": penalty}
        out = self.decoder(z, covariates)
        if measured_only:
            out["mean"] = out["mean"].masked_fill(self.unmeasured, NO_SHARE)
        generated: dict[str, Any] = {MODULE_KEYS.PX_KEY: self._distribution(out, log_library)}
        if "penalty" in out:
            generated["penalty"] = out["penalty"]
        return generated

    def _distribution(self, out: dict[str, Tensor], log_library: Tensor) -> Distribution:
        if self.likelihood == "normal":
            return Normal(out["mean"], torch.ones_like(out["mean"]), validate_args=False)
        share = torch.softmax(out["mean"], dim=-1)
        mean = share * log_library.exp()
        if self.likelihood == "poisson":
            return Poisson(rate=mean, scale=share, validate_args=False)
        if self.likelihood == "nb":
            return self._negative_binomial(mean, share, out.get("dispersion"))
        return ZeroInflatedNegativeBinomial(
            mu=mean,
            theta=self._theta(out.get("dispersion")),
            zi_logits=out["dropout"] - 3.0,
            scale=share,
            validate_args=False,
        )

    def _theta(self, head: Tensor | None) -> Tensor:
        log_theta = self.log_theta if head is None else self.log_theta + head
        return log_theta.clamp(*LOG_THETA_RANGE).exp()

    def _negative_binomial(self, mean: Tensor, share: Tensor, head: Tensor | None) -> Distribution:
        theta = self._theta(head)
        if self.log_clump is not None:
            return ClumpedNegativeBinomial(mean, theta, self.log_clump.exp(), scale=share)
        return NegativeBinomial(mu=mean, theta=theta, scale=share, validate_args=False)
