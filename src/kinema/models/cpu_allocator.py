"""Configuration of glibc's allocator for large CPU tensors."""

from __future__ import annotations

import contextlib
import ctypes

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_pages() -> None:
    """Keep the memory of freed CPU tensors in this process, for reuse by later tensors.

    By default glibc returns every large block to the system, and the system zeroes the pages of the next tensor. That
    takes nearly half of the decoding time. Without glibc, nothing changes. `release_cache` returns the memory.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def trim() -> None:
    """Return freed memory to the system."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
