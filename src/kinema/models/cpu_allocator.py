"""glibc's allocator, set up for large tensors on the CPU."""

from __future__ import annotations

import contextlib
import ctypes

# glibc's names for what is tuned, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_pages() -> None:
    """Let this process keep the memory that tensors on the CPU free, for the next ones to reuse.

    glibc gives every large block back to the system at once, and the next tensor's pages are zeroed anew: nearly half
    of the time of decoding. Where there is no glibc, nothing changes. `release_cache` gives the memory back.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def trim() -> None:
    """Give freed memory back to the system."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
