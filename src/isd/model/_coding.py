"""From cells to latents and back: what a trained VAE does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix
from scvi.model.base import VAEMixin

from isd._progress import track
from isd.model._generated import COUNTS_STREAM, DENSE_LIMIT, Cells, broadcast_library, decode_counts, generated_adata
from isd.model._loading import sorted_rows
from isd.model._start import Start
from isd.settings import settings

_POSTERIOR_STREAM = 11


class Coding(Start, VAEMixin):
    """Encoding and decoding."""

    def _make_data_loader(self, *args: Any, **kwargs: Any) -> Any:
        # counts that are stored sparse reach the first layer as csr; dense ones come dense
        return super()._make_data_loader(*args, **{"load_sparse_tensor": True, **kwargs})

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        **kwargs: Any,
    ) -> float | torch.Tensor:
        """Importance-weighted estimate of the log-likelihood of cells, given their library sizes; in nats, more is better.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        indices
            Rows; all by default.
        n_mc_samples
            Draws from the posterior of each cell.
        batch_size
            Cells at once; ``None`` takes ``scvi.settings.batch_size``.
        return_mean
            Whether to return the mean over cells. scvi-tools' own is the mean over minibatches of their means, in which the cells of a
            last, small one weigh more than others.
        **kwargs
            Of :meth:`scvi.model.base.VAEMixin.get_marginal_ll`.

        Returns
        -------
        A number, or one for each cell, shape ``(n_cells,)``.

        References
        ----------
        Burda, Grosse & Salakhutdinov, Importance weighted autoencoders (2016), equation 8.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.train(max_steps=2, progress=False)
        >>> vae.get_marginal_ll(n_mc_samples=2, return_mean=False).shape
        torch.Size([60])
        """
        each = super().get_marginal_ll(adata, indices, n_mc_samples, batch_size, return_mean=False, **kwargs)
        return float(each.double().mean()) if return_mean else each

    @torch.inference_mode()
    def encode_distribution(
        self,
        adata: AnnData | None = None,
        *,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int = 512,
        progress: bool | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each cell's latent, in chunks.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        indices
            Rows to encode, in any order; all by default.
        batch_size
            Cells in a chunk.
        progress
            Progress bar.

        Returns
        -------
        Two arrays of shape ``(n_cells, n_latent)``, ``float32``.
        """
        self._check_if_trained(warn=False, message="the VAE is not trained yet; call vae.train() first.")
        adata = self._validate_anndata(adata)
        rows, back = sorted_rows(indices, adata.n_obs)
        loader = self._make_data_loader(adata=adata, indices=rows, batch_size=batch_size)
        means, stds = [], []
        for tensors in track(loader, "Encoding", total=-(-len(rows) // batch_size), progress=progress):
            out = self.module.inference(**self.module._get_inference_input(tensors))
            means.append(out["qzm"].cpu().numpy())
            stds.append(out["qzv"].sqrt().cpu().numpy())
        return np.concatenate(means)[back], np.concatenate(stds)[back]

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Latent of each cell, as in scvi-tools; rows come in the order of ``indices``, from backed data too.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        indices
            Rows to encode, in any order; all by default.
        give_mean
            Mean of the posterior, or a draw from it.
        **kwargs
            Passed to :meth:`scvi.model.base.VAEMixin.get_latent_representation`.

        Returns
        -------
        Array of shape ``(n_cells, n_latent)``, or a pair of them with ``return_dist=True``.
        """
        if indices is None or kwargs.get("dataloader") is not None:
            return super().get_latent_representation(adata, indices, give_mean, **kwargs)
        adata = self._validate_anndata(adata)
        rows, back = sorted_rows(indices, adata.n_obs)
        out = super().get_latent_representation(adata, rows, give_mean, **kwargs)
        return tuple(part[back] for part in out) if isinstance(out, tuple) else out[back]

    def _cells(
        self,
        latents: np.ndarray,
        library_size: float | np.ndarray | None,
        batch: Any,
        rng: np.random.Generator,
    ) -> Cells:
        """Complete latents by what else a cell needs: rows of the training data stand in for what is not given."""
        n = len(latents)
        rows = np.arange(len(self.template_codes_))
        if batch is not None:
            code = self._batch_code(batch)
            rows = np.flatnonzero(self.template_codes_[:, 1] == code)
            if not rows.size:
                raise ValueError(f"batch {batch!r} has no training cells; the model cannot have learnt it.")
        rows = rng.choice(rows, size=n)
        log_library = (
            self.template_log_library_[rows] if library_size is None else np.log(broadcast_library(library_size, n))
        )
        continuous = getattr(self, "template_continuous_", None)
        return Cells(
            latents=np.asarray(latents, dtype=np.float32),
            log_library=np.asarray(log_library, dtype=np.float32),
            codes=self.template_codes_[rows, 1:],
            continuous=None if continuous is None else continuous[rows],
        )

    def _batch_code(self, batch: Any) -> int:
        found = np.flatnonzero(self.batches == batch)
        if not found.size:
            raise ValueError(f"batch {batch!r} is not one of the model's batches {list(self.batches)}.")
        return int(found[0])

    def decode(
        self,
        latents: np.ndarray,
        *,
        library_size: float | np.ndarray | None = None,
        batch: Any = None,
        sample: bool = True,
        seed: int | None = None,
        batch_size: int = 256,
    ) -> csr_matrix | np.ndarray:
        """Decode latents of one's own.

        Parameters
        ----------
        latents
            Shape ``(n, n_latent)``.
        library_size
            Total counts of each cell, one value or ``n``; ``None`` draws totals of training cells.
        batch
            Batch to decode for; ``None`` takes that of the training cells drawn.
        sample
            ``True`` draws counts (csr); ``False`` gives expected counts (dense).
        seed
            Seed of the draws.
        batch_size
            Cells decoded at once where ``sample`` is off.

        Returns
        -------
        ``(n, n_vars)``: csr matrix of counts, or dense array of expected counts.

        Raises
        ------
        ValueError
            If latents have another width, or expected counts would take more than 2 GB.
        """
        self._check_if_trained(warn=False, message="the VAE is not trained yet; call vae.train() first.")
        latents = np.asarray(latents, dtype=np.float32)
        if latents.ndim != 2 or latents.shape[1] != self.module.n_latent:
            raise ValueError(f"latents must have shape (n, {self.module.n_latent}), got {latents.shape}.")
        if not len(latents):
            raise ValueError("latents has no rows; give at least one cell.")
        if not np.isfinite(latents).all():
            raise ValueError("latents hold NaN or infinite values.")
        seed = settings.seed if seed is None else seed
        cells = self._cells(latents, library_size, batch, np.random.default_rng([seed, 1]))
        if sample:
            return decode_counts(self.module, cells, key=(seed, COUNTS_STREAM))
        if latents.shape[0] * self.module.n_input * 4 > DENSE_LIMIT:
            raise ValueError("expected counts of so many cells would take more than 2 GB; decode fewer at a time.")
        parts = [
            self._expected(*cells.tensors(slice(i, i + batch_size), self.module.device))
            for i in range(0, len(latents), batch_size)
        ]
        return np.concatenate(parts)

    @torch.inference_mode()
    def _expected(self, z: torch.Tensor, log_library: torch.Tensor, codes: torch.Tensor, cont: Any) -> np.ndarray:
        px = self.module.generative(z, log_library, codes, cont)["px"]
        if self.module.likelihood == "normal":
            values = torch.expm1(px.mean.clamp_min(0.0))
            return (values * (log_library.exp() / values.sum(1, keepdim=True).clamp_min(1e-12))).cpu().numpy()
        return px.mean.cpu().numpy()

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        *,
        indices: Sequence[int] | None = None,
        feature_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1.0,
        batch_size: int = 256,
        return_numpy: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Expected expression of each cell at the mean of its posterior.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        indices
            Rows to use.
        feature_list
            Features to return; all by default.
        library_size
            Scale of the result: 1 gives shares, ``"latent"`` each cell's own total.
        batch_size
            Cells decoded at once.
        return_numpy
            Return an array rather than a DataFrame.

        Returns
        -------
        ``(n_cells, n_features)``, indexed by names of cells and features.

        Raises
        ------
        ValueError
            If a feature is unknown, or the result would take more than 2 GB.
        """
        self._check_if_trained(warn=False, message="the VAE is not trained yet; call vae.train() first.")
        adata = self._validate_anndata(adata)
        rows, back = sorted_rows(indices, adata.n_obs)
        names = self.feature_names
        columns = np.arange(len(names)) if feature_list is None else names.get_indexer(list(feature_list))
        if (columns < 0).any():
            unknown = [f for f, c in zip(feature_list or (), columns, strict=True) if c < 0]
            raise ValueError(f"{len(unknown)} features are not the model's ({', '.join(map(str, unknown[:5]))}).")
        if len(back) * len(columns) * 4 > DENSE_LIMIT:
            raise ValueError("the result would take more than 2 GB; give feature_list or fewer indices.")
        loader = self._make_data_loader(adata=adata, indices=rows, batch_size=batch_size)
        parts = []
        with torch.inference_mode():
            for tensors in loader:
                inputs = self.module._get_inference_input(tensors)
                out = self.module.inference(**inputs)
                expected = self._expected(
                    out["qzm"], inputs["log_library"].to(out["qzm"].device), inputs["codes"], inputs["continuous"]
                )
                if library_size != "latent":
                    expected *= float(library_size) / expected.sum(1, keepdims=True)
                parts.append(expected[:, columns])
        values = np.concatenate(parts)[back]
        cells = adata.obs_names[rows[back]]
        return values if return_numpy else pd.DataFrame(values, index=cells, columns=names[columns])

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
    ) -> Any:
        """Counts drawn from the posterior predictive distribution of each cell, at its own library size.

        Parameters
        ----------
        adata
            Data with the model's features; ``None`` takes the model's own.
        indices
            Rows to use.
        n_samples
            Number of draws.
        batch_size
            Cells encoded at once.
        seed
            Seed of the draws.

        Returns
        -------
        :class:`sparse.GCXS` of shape ``(n_cells, n_vars)``, or ``(n_cells, n_vars, n_samples)`` for more draws, as
        :class:`scvi.criticism.PosteriorPredictiveCheck` expects; ``.to_scipy_sparse()`` makes one draw a csr matrix.
        """
        import sparse as pydata_sparse

        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}.")
        adata = self._validate_anndata(adata)
        rows = np.arange(adata.n_obs) if indices is None else np.asarray(indices)
        if not rows.size:
            raise ValueError("indices names no cells.")
        seed = settings.seed if seed is None else seed
        mean, std = self.encode_distribution(adata, indices=rows, batch_size=batch_size or 512)
        log_library, codes = self._log_library(adata)[rows].astype(np.float32), self._codes(adata)[rows, 1:]
        continuous = self._continuous(adata)
        continuous = None if continuous is None else continuous[rows]
        draws = []
        for k in range(n_samples):
            # a stream of its own for each draw, apart from those of generation
            key = [seed, _POSTERIOR_STREAM, k]
            noise = np.random.default_rng([*key, 0]).standard_normal(mean.shape)
            cells = Cells((mean + std * noise).astype(np.float32), log_library, codes, continuous)
            counts = decode_counts(self.module, cells, key=(*key, 1))
            draws.append(pydata_sparse.GCXS.from_scipy_sparse(counts))
        return draws[0] if n_samples == 1 else pydata_sparse.stack(draws, axis=-1)

    def sample_prior(
        self,
        n_obs: int,
        *,
        library_size: float | np.ndarray | None = None,
        batch: Any = None,
        seed: int | None = None,
    ) -> AnnData:
        """Generate cells from the VAE's own prior, a standard normal: a baseline for the diffusion model.

        Parameters
        ----------
        n_obs
            Number of cells.
        library_size
            Total counts, one value or ``n_obs``; ``None`` draws totals of training cells.
        batch
            Batch to decode for.
        seed
            Seed of latents and counts.

        Returns
        -------
        AnnData of counts with the slots that :func:`isd.tl.generate` writes; labels are missing.
        """
        self._check_if_trained(warn=False, message="the VAE is not trained yet; call vae.train() first.")
        if n_obs < 1:
            raise ValueError(f"n_obs must be at least 1, got {n_obs}.")
        seed = settings.seed if seed is None else seed
        rng = np.random.default_rng([seed, 0])
        latents = rng.standard_normal((n_obs, self.module.n_latent)).astype(np.float32)
        if self.module_params.get("l2_normalize"):
            latents /= np.linalg.norm(latents, axis=1, keepdims=True)
        cells = self._cells(latents, library_size, batch, np.random.default_rng([seed, 1]))
        provenance = {"sampler": "prior", "seed": seed}
        return generated_adata(self, self, cells, label_codes=None, seed=seed, provenance=provenance)
