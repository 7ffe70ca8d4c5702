"""scvi modules: the probabilistic networks behind :mod:`isd.model`."""

from isd.module._classifier import ClassifierModule
from isd.module._clumped_counts import ClumpedNegativeBinomial
from isd.module._gene_counts import GeneIsoformCounts
from isd.module._gene_vae import GeneVAEModule
from isd.module._latent_diffusion import LatentDiffusionModule, LatentScaler
from isd.module._summed_vae import SummedVAEModule
from isd.module._vae import VAEModule

__all__ = [
    "ClassifierModule",
    "ClumpedNegativeBinomial",
    "GeneIsoformCounts",
    "GeneVAEModule",
    "LatentDiffusionModule",
    "LatentScaler",
    "SummedVAEModule",
    "VAEModule",
]
