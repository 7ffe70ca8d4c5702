"""Networks in pure torch: they know neither AnnData nor scvi."""

from isd.nn._autoencoder import MLP, CountDecoder, CountEncoder, LowRankLinear
from isd.nn._conditions import Conditions, one_hot_conditions
from isd.nn._denoiser import AdaLNDenoiser, MLPUNet
from isd.nn._likelihood import Factors, gamma_ratio, log_likelihood
from isd.nn._noise_classifier import NoiseClassifier
from isd.nn._sparse import CountLinear, SparseBatch
from isd.nn._time import timestep_embedding

__all__ = [
    "MLP",
    "AdaLNDenoiser",
    "Conditions",
    "CountDecoder",
    "CountEncoder",
    "CountLinear",
    "Factors",
    "LowRankLinear",
    "MLPUNet",
    "NoiseClassifier",
    "SparseBatch",
    "gamma_ratio",
    "log_likelihood",
    "one_hot_conditions",
    "timestep_embedding",
]
