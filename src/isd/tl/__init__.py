"""Tools: generate, interpolate, join parts, tune guidance, encode, embed, infer isoforms, switches, gain of transfer."""

from isd.tl._compare import ModelChoice, compare_models
from isd.tl._differential_usage import differential_usage
from isd.tl._embed import embed
from isd.tl._encode import encode
from isd.tl._generate import generate
from isd.tl._infer_isoforms import infer_isoforms
from isd.tl._interpolate import interpolate
from isd.tl._join import join_parts
from isd.tl._transfer_gain import TransferGain, transfer_gain
from isd.tl._tune import GuidanceChoice, tune_guidance

__all__ = [
    "GuidanceChoice",
    "ModelChoice",
    "TransferGain",
    "compare_models",
    "differential_usage",
    "embed",
    "encode",
    "generate",
    "infer_isoforms",
    "interpolate",
    "join_parts",
    "transfer_gain",
    "tune_guidance",
]
