"""Memory that a loop frees and asks for again, kept by the process meanwhile."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST = 2**31 - 1

_lock = threading.Lock()
_depth = 0


def _allocator() -> tuple[Callable[[int, int], int], Callable[[int], int]] | None:
    """``mallopt`` and ``malloc_trim`` of glibc; ``None`` on other systems, or where the user has set them."""
    if not sys.platform.startswith("linux"):
        return None
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        library = ctypes.CDLL(None)
        return library.mallopt, library.malloc_trim
    except (AttributeError, OSError):  # another C library, such as musl
        return None


@contextmanager
def kept_pages() -> Iterator[None]:
    """Within the block, memory that is freed stays with the process; after it, it goes back to the system.

    A training step over 180,000 features frees and allocates some 400 MB. glibc hands such blocks back to the system at
    once, and the system clears each page of the next ones anew: a third of the step's time. Blocks may be nested and may
    run in several threads; the last one to end gives the memory back. Nothing happens where the C library is another
    one, or where the environment has settings of its own (``MALLOC_...``, ``GLIBC_TUNABLES``).

    Examples
    --------
    >>> from isd._memory import kept_pages
    >>> with kept_pages():
    ...     pass  # many steps
    """
    global _depth
    allocator = _allocator()
    if allocator is None:
        yield
        return
    mallopt, malloc_trim = allocator
    with _lock:
        _depth += 1
        if _depth == 1:
            mallopt(_MMAP_MAX, 0)
            mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                # 65,536 is glibc's own; thresholds are where it takes them by itself after large blocks were freed
                mallopt(_MMAP_MAX, 65_536)
                mallopt(_MMAP_THRESHOLD, 32 << 20)
                mallopt(_TRIM_THRESHOLD, 64 << 20)
                malloc_trim(0)
