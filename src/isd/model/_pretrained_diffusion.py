"""Latent diffusion models that start from a trained one, where their latents mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from isd.model._mudata import isoforms_of
from isd.model._pretrained import is_in_part
from isd.model._transfer import covariate_names, feature_map, match_classes, transferred_state

if TYPE_CHECKING:
    from anndata import AnnData

    from isd.model._latent_diffusion import LatentDiffusion
    from isd.model._vae import VAE

_EMBEDDING = "network.conditions.embeddings."


def why_other_latents(vae: VAE, reference: VAE) -> str | None:
    """Why the latents of a VAE do not mean what those of another do; ``None`` where they do.

    They do where the two are one (equal fingerprints), or where the hidden layers of encoder and decoder and the scale of the
    library size are still those that :meth:`VAE.from_pretrained` copied.

    Parameters
    ----------
    vae, reference
        Trained models.
    """
    if vae.fingerprint == reference.fingerprint:
        return None
    if vae.pretrained_ is None:
        return "the vae was trained apart from the reference's, so its latent axes have nothing in common with them"
    if vae.pretrained_["reference"] != reference.fingerprint:
        return "the vae started from another model than the reference's VAE as it is now"
    state = vae.module.state_dict()
    copied = transferred_state(vae, reference, feature_map(vae, reference), labels=False)
    names = [name for name in copied if is_in_part(name, "trunk") or name in ("library_mean", "library_std")]
    # how far cells of one latent differ in usage is fitted to the cells at hand, and leaves latents as they are
    names = [name for name in names if name != "decoder.mean_log_concentration"]
    # axes that were added to the output layer leave the latents as they are
    rank = reference.module.output_rank
    kept = {name: slice(rank) if rank and name.startswith("decoder.mean.scores") else ... for name in names}
    moved = [name for name in names if not torch.equal(copied[name][kept[name]], state[name].cpu()[kept[name]])]
    if moved:
        shown = f"{len(moved)} of {len(names)} tensors, {moved[0]} among them"
        return (
            f"hidden layers or the scale of depth have moved away from the reference's since they were copied ({shown})"
        )
    return None


class PretrainedDiffusionMixin:
    """What :class:`LatentDiffusion` can do with a trained model of other cells."""

    #: what :meth:`from_pretrained` did; ``None`` for a model that started from nothing
    pretrained_: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(
        cls,
        reference: LatentDiffusion | str | Path,
        adata: AnnData,
        *,
        vae: VAE | None = None,
        seed: int | None = None,
    ) -> Self:
        """A diffusion model that starts from the denoiser of one trained on other cells.

        Weights of a denoiser are about the axes of one latent space. They are moved only where the VAE's axes are still the
        reference's: the VAE is the reference's own, or started from it and kept its hidden layers
        (``VAE.from_pretrained(reference, adata, freeze="trunk")``). Otherwise this refuses and says why.

        Parameters
        ----------
        reference
            A trained :class:`LatentDiffusion`, or its folder. Not changed.
        adata
            Cells registered with :meth:`setup_anndata`.
        vae
            Trained VAE of ``adata``'s features. ``None`` takes the reference's own, whose features ``adata`` must then have.
        seed
            Seed; ``None`` takes ``isd.settings.seed``.

        Returns
        -------
        A model to be trained; latents are standardised by the reference's statistics, depth by those of these cells. Classes of labels, batches and
        covariates start from those of the same name, new ones from "not given".

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        TypeError
            If the reference is no latent diffusion model.
        ValueError
            If the latents of the VAE do not mean what the reference's do, or a model is not trained.

        Examples
        --------
        >>> import isd
        >>> atlas = isd.datasets.simulated(n_obs=120, n_vars=60, n_labels=3)
        >>> isd.model.LatentDiffusion.setup_anndata(atlas)
        >>> reference = isd.model.LatentDiffusion(atlas)
        >>> reference.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
        >>> mine = atlas[:60, 10:].copy()
        >>> isd.model.VAE.setup_anndata(mine)
        >>> vae = isd.model.VAE.from_pretrained(reference, mine, freeze="trunk")
        >>> vae.train(max_steps=5, progress=False)
        >>> isd.model.LatentDiffusion.setup_anndata(mine)
        >>> model = isd.model.LatentDiffusion.from_pretrained(reference, mine, vae=vae)
        >>> model.train(max_steps=5, progress=False)
        """
        adata = isoforms_of(adata)
        if isinstance(reference, str | Path):
            reference = cls.load(reference, False, "cpu")  # type: ignore[attr-defined]
        if not isinstance(reference, cls):
            raise TypeError(
                f"reference must be an isd.model.{cls.__name__} or its folder, got {type(reference).__name__}."
            )
        known: Any = reference
        if not known.is_trained:
            raise ValueError("the reference is not trained yet; call reference.train() first.")
        vae = known.vae if vae is None else vae
        if not vae.is_trained:
            raise ValueError("the vae is not trained yet; call vae.train() first.")
        reason = why_other_latents(vae, known.vae)
        if reason is not None:
            raise ValueError(
                f"{reason}: weights of a denoiser would mean nothing there. Keep the latent space with "
                'vae = isd.model.VAE.from_pretrained(reference, adata, freeze="trunk"), or train a LatentDiffusion(adata, vae=vae) '
                "from the start, which takes minutes."
            )
        # one VAE for two data sets: the reference's stays with its own cells
        model: Any = cls(adata, vae, preset=known.preset, seed=seed, **known.module_params)  # type: ignore[call-arg]
        model.module.load_state_dict(_denoiser_state(model, known))
        model.pretrained_ = {"reference": known.fingerprint, "vae": vae.fingerprint}
        return model


def _denoiser_state(model: LatentDiffusion, reference: LatentDiffusion) -> dict[str, torch.Tensor]:
    """The reference's weights, with embeddings of the model's own classes."""
    ours, theirs = model.module.state_dict(), reference.module.state_dict()
    state = {name: value.detach().cpu().clone() for name, value in theirs.items() if not name.startswith(_EMBEDDING)}
    known = {key: (k, names) for k, (key, names) in enumerate(covariate_names(reference))}
    for k, (key, names) in enumerate(covariate_names(model)):
        name = f"{_EMBEDDING}{k}.weight"
        if key not in known:
            state[name] = torch.zeros_like(ours[name])  # says nothing yet
            continue
        position, classes = known[key]
        table = theirs[f"{_EMBEDDING}{position}.weight"]
        # the last row is that of a condition that is not given, and stands for classes that the reference does not know
        unknown = np.zeros(len(classes) + 1)
        unknown[-1] = 1.0
        rows = match_classes([*names, "\0"], [*classes, "\0"], unknown)
        state[name] = rows(table)
    return state
