"""Launch kernels, or compile several at once without launching them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton

from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    from collections.abc import Iterator

# Whether kernels are only compiled, not launched.
_compiling = ContextVar("compiling", default=False)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch a kernel on the current stream, or only compile it within `compiled_together`."""
    if _compiling.get():
        kernel.warmup(*args, grid=grid, **options)
    else:
        kernel[grid](*args, **options)


@contextmanager
def compiled_together() -> Iterator[None]:
    """Within the context, launch no kernel; on exit, compile all that would have been launched, several at a time.

    Their outputs are not written. Without this, each kernel is compiled at its first launch, one after the other. A
    kernel that fails to compile raises its error at its launch.
    """
    workers = tuning().concurrent_compilations
    with ThreadPoolExecutor(workers) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        token = _compiling.set(True)
        try:
            yield
        finally:
            _compiling.reset(token)


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of a GPU's multiprocessors; in the interpreter, a small number."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
