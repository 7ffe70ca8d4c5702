"""Stable fingerprints of names and arrays (the same in every process, unlike :func:`hash`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def hash_names(names: Iterable[str]) -> np.ndarray:
    """64-bit hash of each name: enough to ask later whether a row was seen, without keeping the names.

    Parameters
    ----------
    names
        Strings, such as ``adata.obs_names``.

    Returns
    -------
    Array of ``uint64``, in the order given.
    """
    digests = b"".join(hashlib.blake2b(str(n).encode(), digest_size=8).digest() for n in names)
    return np.frombuffer(digests, dtype="<u8").copy()


def fingerprint(*parts: bytes | str | np.ndarray) -> str:
    """Hex digest (16 characters) of bytes, strings and arrays, in order."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            h.update(str(part.dtype).encode() + str(part.shape).encode())
            h.update(np.ascontiguousarray(part).tobytes())
        else:
            h.update(part.encode() if isinstance(part, str) else part)
        h.update(b"\x00")
    return h.hexdigest()
