"""The network of :class:`isd.model.Classifier`: labels of noised latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor
from torch.nn import functional as F

from isd.diffusion import Schedule
from isd.module._latent_diffusion import CODES, LatentScaler, draw_latents
from isd.nn import NoiseClassifier


class ClassifierModule(BaseModuleClass):
    """Time-conditional classifier that shares schedule and scaler with a diffusion model.

    Parameters
    ----------
    n_latent
        Width of the VAE's latent.
    n_labels
        Number of labels.
    schedule
        Forward process of the diffusion model.
    model_library, standardize, library_quantiles
        As in the diffusion model.
    hidden, dropout
        Shape of the network.
    start_guide_time
        Trained on times below this (1 is all; the published classifier has 0.5).

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath
    >>> from isd.module import ClassifierModule
    >>> module = ClassifierModule(4, 3, schedule=StraightPath(), hidden=(16, 16))  # 4 latents and log library size
    >>> module.log_prob(torch.zeros(5, 5), torch.full((5,), 0.5), torch.zeros(5)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        n_latent: int,
        n_labels: int,
        *,
        schedule: Schedule,
        model_library: bool = True,
        standardize: bool = True,
        library_quantiles: int = 0,
        hidden: Sequence[int] = (512, 512, 256),
        dropout: float = 0.1,
        start_guide_time: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < start_guide_time <= 1:
            raise ValueError(f"start_guide_time must lie in (0, 1], got {start_guide_time}.")
        self.n_labels = n_labels
        self.schedule = schedule
        self.model_library = model_library
        self.start_guide_time = start_guide_time
        n_quantiles = library_quantiles if model_library else 0
        self.scaler = LatentScaler(n_latent + int(model_library), enabled=standardize, n_quantiles=n_quantiles)
        self.network = NoiseClassifier(n_latent + int(model_library), n_labels, hidden=hidden, dropout=dropout)

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: Any) -> dict[str, Any]:
        return {"latents": draw_latents(tensors, with_library=self.model_library)}

    @auto_move_data
    def inference(self, latents: Tensor) -> dict[str, Tensor]:
        """Standardise latents and noise them at random times; a tenth stays clean for prediction."""
        x0 = self.scaler(latents)
        t = torch.rand(x0.shape[0], device=x0.device) * self.start_guide_time
        t = torch.where(torch.rand_like(t) < 0.1, torch.zeros_like(t), t)
        return {"x_t": self.schedule.add_noise(x0, torch.randn_like(x0), t), "t": t}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        return {"x_t": inference_outputs["x_t"], "t": inference_outputs["t"]}

    @auto_move_data
    def generative(self, x_t: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Class logits of noised latents."""
        return {"logits": self.network(x_t, t)}

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any], generative_outputs: dict[str, Any]
    ) -> LossOutput:
        """Cross-entropy over labelled cells."""
        labels = tensors[CODES][:, 0].long()
        labelled = labels < self.n_labels
        logits = generative_outputs["logits"]
        per_cell = F.cross_entropy(logits, labels.clamp_max(self.n_labels - 1), reduction="none") * labelled
        accuracy = ((logits.argmax(1) == labels) & labelled).sum() / labelled.sum().clamp_min(1)
        return LossOutput(
            loss=per_cell.sum() / labelled.sum().clamp_min(1),
            reconstruction_loss=per_cell,
            extra_metrics={"accuracy": accuracy.detach()},
            n_obs_minibatch=per_cell.shape[0],
        )

    def log_prob(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """log p(label given x_t, t), shape ``(n,)``; differentiable in ``x_t``, which is standardised."""
        return F.log_softmax(self.network(x_t, t), dim=1).gather(1, labels[:, None].long()).squeeze(1)
