"""What users hold: models in the manner of scvi-tools."""

from isd.model._card import model_card
from isd.model._classifier import Classifier
from isd.model._files import read_info
from isd.model._latent_diffusion import LatentDiffusion
from isd.model._usage import UsageSettings
from isd.model._vae import VAE

__all__ = ["VAE", "Classifier", "LatentDiffusion", "UsageSettings", "model_card", "read_info"]
