"""Tools: generate, interpolate, tune guidance, choose between models, encode, embed."""

from isd.tl._compare import ModelChoice, compare_models
from isd.tl._embed import embed
from isd.tl._encode import encode
from isd.tl._generate import generate
from isd.tl._interpolate import interpolate
from isd.tl._tune import GuidanceChoice, tune_guidance

__all__ = [
    "GuidanceChoice",
    "ModelChoice",
    "compare_models",
    "embed",
    "encode",
    "generate",
    "interpolate",
    "tune_guidance",
]
