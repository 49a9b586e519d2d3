"""Telling that memory ran out, which each backend says in its own way, and saying it in ours."""

from __future__ import annotations

import torch

from kinema.errors import InsufficientMemory

_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "Invalid buffer size", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a device's way of saying that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def insufficient(error: BaseException, doing: str, remedy: str) -> InsufficientMemory:
    """Our words for a lack of memory, to be raised in place of the error.

    Its traceback holds every tensor of the failed work, and a notebook keeps the last error, so it is dropped.
    """
    error.__traceback__ = None
    return InsufficientMemory(f"memory ran out while {doing}; {remedy}, or free memory on the device")
