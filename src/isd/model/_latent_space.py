"""The latents of a VAE as the data of a model: what they are for given cells, their scale, and plain densities of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from anndata import AnnData

from isd._constants import SPLIT_KEY
from isd.model._base import IsdModel
from isd.model._latent_densities import LatentDensity, fit_gaussians, fit_mixtures, gaussian_density, latent_draws
from isd.model._vae import VAE


class LatentSpace(IsdModel):
    """A model of the latents of a :class:`VAE`, before it is said which."""

    _vae: VAE | None

    @property
    def vae(self) -> VAE:
        """The VAE that the model stands on: held beside it, saved beside it."""
        assert self._vae is not None
        return self._vae

    def latent_tensors(self, adata: AnnData | None = None, *, progress: bool | None = None) -> dict[str, torch.Tensor]:
        """What the latent model is trained on: posterior of each cell, log library size, codes of its conditions.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        progress
            Progress bar.

        Returns
        -------
        ``latent_mean`` and ``latent_std`` of shape ``(n_obs, n_latent)``, ``log_library`` of shape ``(n_obs, 1)`` and
        ``codes`` of shape ``(n_obs, 2 + n_cat_covs)``: label, batch, covariates.
        """
        adata = self._validate_anndata(adata)
        mean, std = self.vae.encode_distribution(adata, progress=progress)
        codes = self.vae._codes(adata)
        codes[:, 0] = self.label_codes(adata)  # the VAE may know other labels than we do
        return {
            "latent_mean": torch.from_numpy(mean),
            "latent_std": torch.from_numpy(std),
            "log_library": torch.from_numpy(self.vae._log_library(adata).astype(np.float32))[:, None],
            "codes": torch.from_numpy(codes),
        }

    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the attached data to train on: those of the split in ``obs``, else those that the VAE has seen."""
        adata = self.adata
        rows = None if SPLIT_KEY in adata.obs else self.vae.rows_of(adata)
        return self._split() if rows is None else rows

    def _widen_range(self, tensors: dict[str, torch.Tensor], rows: np.ndarray) -> None:
        """Let the reference's range take in these cells; its mean and spread stay, the weights are about them.

        Depth is no axis of the latent space: its scale is that of these cells, also where the reference was bulk.
        """
        scaler, n = self.module.scaler, self.vae.module.n_latent
        kept = {name: value.clone() for name, value in scaler.state_dict().items()}
        self._fit_scaler(tensors, rows)
        with torch.no_grad():
            scaler.low[:n], scaler.high[:n] = (
                torch.minimum(kept["low"][:n], scaler.low[:n]),
                torch.maximum(kept["high"][:n], scaler.high[:n]),
            )
            scaler.mean[:n], scaler.std[:n] = kept["mean"][:n], kept["std"][:n]

    def _fit_scaler(self, tensors: dict[str, torch.Tensor], rows: np.ndarray) -> None:
        index = torch.as_tensor(rows)
        mean, std = tensors["latent_mean"][index], tensors["latent_std"][index]
        if self.module.model_library:
            library = tensors["log_library"][index]
            mean = torch.cat([mean, library], dim=1)
            std = torch.cat([std, torch.zeros_like(library)], dim=1)
        self.module.scaler.fit(mean, std)

    def _fit_gaussians(self, tensors: dict[str, torch.Tensor], rows: np.ndarray, seed: int) -> None:
        """Keep a Gaussian per label of the training rows' latents and log library size (unlabelled cells are one)."""
        points, codes = self._density_points(tensors, rows, seed)
        self.gaussian_mean_, self.gaussian_covariance_ = fit_gaussians(points, codes, len(self.labels) + 1)
        self._mixtures: LatentDensity | None = None

    def _density_points(
        self, tensors: dict[str, torch.Tensor], rows: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        mean, std, library = (tensors[k].numpy()[rows] for k in ("latent_mean", "latent_std", "log_library"))
        points = torch.from_numpy(latent_draws(mean, std, library, seed)).to(self.module.device, torch.float32)
        # library sizes as the diffusion has them
        points = self.module.scaler.with_scores(points)
        return points.cpu().numpy().astype(np.float64), tensors["codes"].numpy()[rows, 0]

    def latent_density(self, kind: Literal["gaussian", "mixture"]) -> LatentDensity:
        """Density of the training cells' latents and log library size (of its normal score, where the diffusion has that), per label.

        Parameters
        ----------
        kind
            ``"gaussian"`` is fitted when the model is trained and saved with it; ``"mixture"`` when it is first asked
            for, from the training cells of the attached data; the fit is the same every time.

        Raises
        ------
        ValueError
            If the model is not trained, was saved before there were Gaussians, or the mixture is asked for where the
            training cells are not attached.
        """
        if not self.is_trained:
            raise ValueError("the model is not trained yet; call model.train() first.")
        rows = None if self._adata is None else self.rows_of(self._adata)
        if getattr(self, "gaussian_mean_", None) is None:
            if rows is None:
                raise ValueError(
                    "the model was saved before isd kept a Gaussian per label: load it with its training cells "
                    "(LatentDiffusion.load(folder, adata)) to have one fitted, or train it again."
                )
            self._fit_gaussians(self.latent_tensors(progress=False), rows[0], 0)
        if kind == "gaussian":
            return gaussian_density(self.gaussian_mean_, self.gaussian_covariance_)
        cached = getattr(self, "_mixtures", None)
        if cached is None:
            if rows is None:
                raise ValueError(
                    "a mixture per label is fitted to the training cells, and the model has "
                    f"{'no data' if self._adata is None else 'other data'} attached: load it with them "
                    '(LatentDiffusion.load(folder, adata)), or take latents="gaussian", which is saved with the model.'
                )
            # one seed for all: whatever is generated first, the same mixture comes out
            points, codes = self._density_points(self.latent_tensors(progress=False), rows[0], 0)
            cached = fit_mixtures(points, codes, self.gaussian_mean_, self.gaussian_covariance_, seed=0)
            self._mixtures = cached
        return cached
