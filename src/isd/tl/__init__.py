"""Tools: generate, interpolate, tune guidance, encode, embed."""

from isd.tl._embed import embed
from isd.tl._encode import encode
from isd.tl._generate import generate
from isd.tl._interpolate import interpolate

__all__ = ["embed", "encode", "generate", "interpolate"]
