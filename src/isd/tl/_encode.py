"""Latents of cells, into their slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from isd._constants import OBSM_VAE
from isd.pp._anndata import to_write_on

if TYPE_CHECKING:
    from isd.model import VAE, Classifier, LatentDiffusion


#: Cells that are reordered at once where features come in another order.
_CHUNK = 4096


def encode(
    adata: AnnData,
    model: VAE | LatentDiffusion | Classifier,
    *,
    key_added: str = OBSM_VAE,
    batch_size: int = 512,
    copy: bool = False,
) -> AnnData | None:
    """Write the VAE's latent of each cell to ``adata.obsm``.

    Parameters
    ----------
    adata
        Cells with the model's features, in any order and with others among them; counts where the model reads them.
    model
        A trained VAE, or a model that stands on one.
    key_added
        Slot of ``obsm``.
    batch_size
        Cells encoded at once.
    copy
        Return a copy rather than write to ``adata``.

    Returns
    -------
    ``None``, or the copy. Writes ``obsm[key_added]``: posterior means, shape ``(n_obs, n_latent)``, ``float32``; where the
    features are the model's in its order, also the ``_scvi_*`` keys of a setup.

    Raises
    ------
    ValueError
        If the model is not trained, or ``adata`` lacks features of the model.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.VAE.setup_anndata(adata)
    >>> vae = isd.model.VAE(adata, n_latent=3, n_hidden=16)
    >>> vae.train(max_steps=5, progress=False)
    >>> isd.tl.encode(adata, vae)
    >>> adata.obsm["X_isd_vae"].shape
    (80, 3)
    """
    vae = vae_of(model)
    adata = to_write_on(adata, copy=copy)
    names = vae.feature_names
    if len(names) == adata.n_vars and bool((names == adata.var_names).all()):
        mean, _ = vae.encode_distribution(adata, batch_size=batch_size)
    else:
        missing = names.difference(adata.var_names)
        if len(missing):
            raise ValueError(
                f"adata lacks {len(missing)} of the model's {len(names)} features ({', '.join(map(str, missing[:5]))})."
            )
        columns = adata.var_names.get_indexer(names)
        parts = []
        for start in range(0, adata.n_obs, _CHUNK):
            rows = adata[start : start + _CHUNK]
            block = rows.to_memory() if rows.isbacked else rows
            parts.append(vae.encode_distribution(block[:, columns].copy(), batch_size=batch_size, progress=False)[0])
        mean = np.concatenate(parts)
    adata.obsm[key_added] = np.ascontiguousarray(mean)
    return adata if copy else None


def vae_of(model: VAE | LatentDiffusion | Classifier) -> VAE:
    """The VAE that a model is or stands on.

    Raises
    ------
    TypeError
        If it has none.
    """
    from isd.model import VAE, Classifier, LatentDiffusion

    if isinstance(model, Classifier):
        model = model.diffusion
    if isinstance(model, LatentDiffusion):
        return model.vae
    if isinstance(model, VAE):
        return model
    raise TypeError(f"model must be a VAE, LatentDiffusion or Classifier of isd.model, got {type(model).__name__}.")
