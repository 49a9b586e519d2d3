"""Recognition of out-of-memory errors of all device types, and their translation."""

from __future__ import annotations

import torch

from kinema.errors import InsufficientMemory

_MESSAGES = (
    "out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory", "Invalid buffer size",
    "ALLOC_FAILED",
)  # fmt: skip
SMALLER = "use a smaller width, height or num_frames"  # a remedy


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def insufficient(error: BaseException, doing: str, remedy: str) -> InsufficientMemory:
    """Return the InsufficientMemory to raise instead of an out-of-memory error.

    The traceback of `error` is deleted: it references every tensor of the failed work, and a notebook keeps the last
    error.
    """
    error.__traceback__ = None
    return InsufficientMemory(f"memory ran out while {doing}; {remedy}, or free memory on the device")
