"""Networks in pure torch: they know neither AnnData nor scvi."""

from isd.nn._autoencoder import MLP, CountDecoder, CountEncoder, LowRankLinear
from isd.nn._clumps import ClumpTerms, clump_terms
from isd.nn._conditions import Conditions, one_hot_conditions
from isd.nn._denoiser import AdaLNDenoiser, MLPUNet
from isd.nn._gamma_ratio import gamma_ratio
from isd.nn._gene_decoder import GeneDecoder
from isd.nn._likelihood import Factors, log_likelihood
from isd.nn._noise_classifier import NoiseClassifier
from isd.nn._segments import Segments
from isd.nn._sparse import CountLinear, SparseBatch
from isd.nn._time import timestep_embedding
from isd.nn._usage import (
    IsoformCounts,
    dirichlet_multinomial_log_likelihood,
    isoform_counts,
    multinomial_log_likelihood,
    pair_log_softmax,
)
from isd.nn._usage_likelihood import Columns, usage_log_likelihood
from isd.nn._usage_predictor import UsagePredictor

__all__ = [
    "MLP",
    "AdaLNDenoiser",
    "ClumpTerms",
    "Columns",
    "Conditions",
    "CountDecoder",
    "CountEncoder",
    "CountLinear",
    "Factors",
    "GeneDecoder",
    "IsoformCounts",
    "LowRankLinear",
    "MLPUNet",
    "NoiseClassifier",
    "Segments",
    "SparseBatch",
    "UsagePredictor",
    "clump_terms",
    "dirichlet_multinomial_log_likelihood",
    "gamma_ratio",
    "isoform_counts",
    "log_likelihood",
    "multinomial_log_likelihood",
    "one_hot_conditions",
    "pair_log_softmax",
    "timestep_embedding",
    "usage_log_likelihood",
]
