"""The diffusion network of :class:`isd.model.LatentDiffusion`, over standardised latents and log library size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn

from isd.diffusion import PARAMETRIZATIONS, Parametrization, Schedule, training_target
from isd.nn import AdaLNDenoiser, MLPUNet

#: Keys of the batches that latent models are trained on.
LATENT_MEAN, LATENT_STD, LOG_LIBRARY, CODES = "latent_mean", "latent_std", "log_library", "codes"
TimeSampling = Literal["logit_normal", "uniform"]


class LatentScaler(nn.Module):
    """Put latents (and log library size) on zero mean and unit variance, with statistics of the training rows.

    Log library sizes are first given their normal scores, by quantiles of the training rows. Cells of real data passed
    a filter, and few of them have many times the median's counts: a denoiser, which errs by a smooth function, softens such edges.

    Parameters
    ----------
    n_input
        Width of the vectors.
    enabled
        ``False`` leaves vectors as they are (published configuration).
    n_quantiles
        Quantiles of the last coordinate, the log library size, between which normal scores are interpolated; 0 leaves it
        on its own scale.

    Examples
    --------
    >>> import torch
    >>> from isd.module import LatentScaler
    >>> scaler = LatentScaler(1)
    >>> scaler.fit(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
    >>> scaler(torch.tensor([[4.0]])), scaler.inverse(torch.tensor([[1.0]]))
    (tensor([[2.]]), tensor([[3.]]))
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    quantiles: Tensor
    scores: Tensor

    def __init__(self, n_input: int, *, enabled: bool = True, n_quantiles: int = 0) -> None:
        super().__init__()
        if n_quantiles < 0 or n_quantiles == 1:
            raise ValueError(f"n_quantiles must be 0, or 2 at least; got {n_quantiles}.")
        self.enabled = enabled
        self.n_quantiles = n_quantiles if enabled else 0
        self.register_buffer("mean", torch.zeros(n_input))
        self.register_buffer("std", torch.ones(n_input))
        self.register_buffer("low", torch.full((n_input,), -torch.inf))
        self.register_buffer("high", torch.full((n_input,), torch.inf))
        if self.n_quantiles:
            levels = (torch.arange(self.n_quantiles, dtype=torch.float64) + 0.5) / self.n_quantiles
            self.register_buffer("scores", torch.special.ndtri(levels).float(), persistent=False)
            self.register_buffer("quantiles", self.scores.clone())

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor, *, margin: float = 0.1) -> None:
        """Fit to posteriors: their aggregate has variance ``var(mean) + mean(std^2)``.

        Parameters
        ----------
        mean, std
            Posterior means and standard deviations of the training rows, shape ``(n, n_input)``.
        margin
            Vectors are later kept within the range of the training rows widened by this share of it; library sizes with
            normal scores, which know how far they reach, within the range itself.
        """
        mean, std = mean.to(self.mean.device), std.to(self.mean.device)
        draws_low, draws_high = (mean - 3 * std).amin(0), (mean + 3 * std).amax(0)
        span = margin * (draws_high - draws_low)
        if self.n_quantiles:
            span[-1] = 0.0
            self._fit_quantiles(mean[:, -1])
        self.low.copy_(draws_low - span)
        self.high.copy_(draws_high + span)
        if self.enabled:
            mean = self.with_scores(mean)
            self.mean.copy_(mean.mean(0))
            variance = mean.var(0, unbiased=False) + std.square().mean(0)
            # a constant coordinate (one library size for all, say) stays where it is
            self.std.copy_(torch.where(variance > 1e-8, variance.sqrt(), torch.ones_like(variance)))

    def _fit_quantiles(self, library: Tensor) -> None:
        # on the CPU: not every accelerator knows double precision
        values, scores = library.cpu().double().sort().values, self.scores.cpu().double()
        # the k-th of n values stands at the level (k + 1/2) / n, as the scores do at theirs
        place = (torch.special.ndtr(scores) * len(values) - 0.5).clamp(0, len(values) - 1)
        below = place.floor().long()
        above = (below + 1).clamp_max(len(values) - 1)
        quantiles = torch.lerp(values[below], values[above], place - below)
        # equal quantiles, of equal library sizes, have no inverse: a slope that no count would show
        least = 1e-3 * max(float(values.std(unbiased=False)), 1e-2)
        self.quantiles.copy_(quantiles + least * scores)

    def with_scores(self, x: Tensor) -> Tensor:
        """Normal scores in place of log library sizes, where there are such scores."""
        return self._exchange(x, self.quantiles, self.scores) if self.n_quantiles else x

    def without_scores(self, x: Tensor) -> Tensor:
        """Log library sizes in place of their normal scores: undoes :meth:`with_scores`."""
        return self._exchange(x, self.scores, self.quantiles) if self.n_quantiles else x

    @staticmethod
    def _exchange(x: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
        """The last coordinate by linear interpolation between these pairs, and beyond them along the outermost two."""
        value = x[..., -1].contiguous()
        upper = torch.searchsorted(given, value).clamp(1, len(given) - 1)
        lower = upper - 1
        slope = (wanted[upper] - wanted[lower]) / (given[upper] - given[lower])
        return torch.cat([x[..., :-1], (wanted[lower] + (value - given[lower]) * slope)[..., None]], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Standardise."""
        return (self.with_scores(x) - self.mean) / self.std

    def inverse(self, x: Tensor, *, clip: bool = True) -> Tensor:
        """Undo the standardisation; ``clip`` keeps the result within the range seen in training (where enabled)."""
        x = self.without_scores(x * self.std + self.mean)
        return torch.maximum(torch.minimum(x, self.high), self.low) if clip and self.enabled else x


def draw_latents(tensors: dict[str, Tensor], *, with_library: bool) -> Tensor:
    """A fresh draw from the posterior of each row, with the log library size appended where it is modelled."""
    mean, std = tensors[LATENT_MEAN], tensors[LATENT_STD]
    z = mean + std * torch.randn_like(mean)
    return torch.cat([z, tensors[LOG_LIBRARY]], dim=1) if with_library else z


class LatentDiffusionModule(BaseModuleClass):
    """Conditional denoiser over latents, with the schedule and parametrisation that it is trained for.

    Parameters
    ----------
    n_latent
        Width of the VAE's latent.
    n_categories
        Number of labels, then of batches, then of each categorical covariate.
    schedule
        Forward process.
    parametrization
        What the network predicts.
    network
        ``"adaln"`` (default) or ``"mlp_unet"`` (published).
    n_hidden, n_blocks, dropout
        Shape of the AdaLN network.
    hidden
        Widths of the MLP U-Net.
    label_dropout
        Probability with which conditions are hidden in training.
    model_library, standardize
        Whether the log library size is generated too, and whether vectors are standardised.
    library_quantiles
        Quantiles of the training rows by which log library sizes have normal scores (:class:`LatentScaler`); 0 for none.
    time_sampling
        Distribution of training times: ``"logit_normal"`` or ``"uniform"``.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath
    >>> from isd.module import LatentDiffusionModule
    >>> module = LatentDiffusionModule(4, [3, 1], schedule=StraightPath(), n_hidden=8, n_blocks=1)
    >>> noised = module.inference(torch.zeros(6, 5))  # latents and log library size
    >>> module.generative(noised["x_t"], noised["t"], torch.zeros(6, 2, dtype=torch.long))["prediction"].shape
    torch.Size([6, 5])
    """

    def __init__(
        self,
        n_latent: int,
        n_categories: Sequence[int],
        *,
        schedule: Schedule,
        parametrization: Parametrization = "velocity",
        network: Literal["adaln", "mlp_unet"] = "adaln",
        n_hidden: int = 128,
        n_blocks: int = 2,
        dropout: float = 0.0,
        hidden: Sequence[int] = (512, 512, 256, 128),
        label_dropout: float = 0.1,
        model_library: bool = True,
        standardize: bool = True,
        library_quantiles: int = 0,
        time_sampling: TimeSampling = "logit_normal",
    ) -> None:
        super().__init__()
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(f"parametrization {parametrization!r} is unknown; choose one of {PARAMETRIZATIONS}.")
        if time_sampling not in ("logit_normal", "uniform"):
            raise ValueError(f"time_sampling {time_sampling!r} is unknown; choose 'logit_normal' or 'uniform'.")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout must lie in [0, 1], got {label_dropout}.")
        if n_hidden < 2 or n_hidden % 2 or n_blocks < 1:
            raise ValueError(f"n_hidden must be even and n_blocks at least 1, got {n_hidden} and {n_blocks}.")
        self.n_latent = n_latent
        self.n_categories = tuple(int(n) for n in n_categories)
        self.schedule = schedule
        self.parametrization: Parametrization = parametrization
        self.label_dropout = label_dropout
        self.model_library = model_library
        self.time_sampling = time_sampling
        self.n_input = n_latent + int(model_library)
        self.scaler = LatentScaler(
            self.n_input, enabled=standardize, n_quantiles=library_quantiles if model_library else 0
        )
        self.network: nn.Module
        if network == "adaln":
            self.network = AdaLNDenoiser(
                self.n_input, self.n_categories, n_hidden=n_hidden, n_blocks=n_blocks, dropout=dropout
            )
        elif network == "mlp_unet":
            self.network = MLPUNet(self.n_input, self.n_categories, hidden=hidden)
        else:
            raise ValueError(f"network {network!r} is unknown; choose 'adaln' or 'mlp_unet'.")

    @property
    def conditional(self) -> bool:
        """Whether the network sees labels at all; the published one does not."""
        return bool(getattr(self.network, "use_conditions", True))

    def sample_times(self, n: int, device: torch.device | str) -> Tensor:
        """Times at which the network is trained, in (0, 1)."""
        if self.time_sampling == "logit_normal":
            # Esser et al., Scaling rectified flow transformers (2024), section 3.1
            return torch.sigmoid(torch.randn(n, device=device))
        n_timesteps = getattr(self.schedule, "n_timesteps", None)
        if n_timesteps is None:
            return torch.rand(n, device=device)
        return (torch.randint(n_timesteps, (n,), device=device) + 1).float() / n_timesteps

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: Any) -> dict[str, Any]:
        return {"latents": draw_latents(tensors, with_library=self.model_library)}

    @auto_move_data
    def inference(self, latents: Tensor) -> dict[str, Tensor]:
        """Standardise latents and noise them at random times."""
        x0 = self.scaler(latents)
        eps = torch.randn_like(x0)
        t = self.sample_times(x0.shape[0], x0.device)
        return {"x0": x0, "eps": eps, "t": t, "x_t": self.schedule.add_noise(x0, eps, t)}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        codes = tensors[CODES]
        if self.training:
            codes = self.network.conditions.drop(codes, self.label_dropout)  # type: ignore[operator, union-attr]
        return {"x_t": inference_outputs["x_t"], "t": inference_outputs["t"], "codes": codes}

    @auto_move_data
    def generative(self, x_t: Tensor, t: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Predict from noised latents."""
        return {"prediction": self.network(x_t, t, codes)}

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any], generative_outputs: dict[str, Any]
    ) -> LossOutput:
        """Mean squared error of the prediction."""
        target = training_target(
            self.parametrization,
            self.schedule,
            inference_outputs["x0"],
            inference_outputs["eps"],
            inference_outputs["t"],
        )
        per_cell = (generative_outputs["prediction"] - target).square().mean(dim=1)
        return LossOutput(loss=per_cell.mean(), reconstruction_loss=per_cell, n_obs_minibatch=per_cell.shape[0])
