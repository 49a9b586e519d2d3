"""Devices: availability, default dtype, supported kernels and free memory."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.errors import InsufficientMemory, InvalidRequest
from kinema.models.cpu_allocator import trim
from kinema.models.memory_plan import GIB

if TYPE_CHECKING:
    import torch


def available_devices() -> list[str]:
    """Return the devices of this machine, fastest first: `cuda`, `cuda:0`, …, `mps`, `cpu`."""
    import torch

    devices = []
    if torch.cuda.is_available():
        devices += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def pick_device(wanted: str | None = None) -> torch.device:
    """Return the requested device; None or "auto" selects the fastest one.

    Raises:
        InvalidRequest: if the device is not available; lists the devices that are.
    """
    import torch

    available = available_devices()
    if wanted in (None, "auto"):
        return torch.device(available[0])
    if wanted not in available:
        raise InvalidRequest(f"device {wanted!r} is not available; use auto, {', '.join(available)}", "device")
    return torch.device(wanted)


def pick_dtype(wanted: str | None, device: torch.device) -> torch.dtype:
    """Return the requested dtype; "auto" or None: float16 on GPUs, bfloat16 on CPUs that support it, else float32.

    Raises:
        InvalidRequest: if it is not float16, bfloat16 or float32.
    """
    import torch

    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if wanted in (None, "auto"):
        if device.type != "cpu":
            return torch.float16
        return torch.bfloat16 if has_native_bf16() else torch.float32
    if wanted not in dtypes:
        raise InvalidRequest(f"dtype {wanted!r} is not supported; use auto, {', '.join(dtypes)}", "dtype")
    return dtypes[wanted]


def has_native_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware (AMX, AVX-512 BF16 or Arm BF16)."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" in capabilities or "bf16" in capabilities:
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    try:  # an older torch
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) is not None


def cpu_instructions() -> str:
    """Return the instruction sets that torch uses on this CPU, such as "AVX512, amx_bf16"."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    low_precision = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if capabilities.get(name)]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *low_precision])


@cache
def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether Kinema's Triton kernels run: a 16-bit dtype, an NVIDIA GPU since Ampere, and Triton installed."""
    import torch

    if device.type != "cuda" or dtype.itemsize != 2 or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def is_hopper(device: torch.device) -> bool:
    """Return whether the device is an NVIDIA Hopper GPU, for which the matmul tiles were tuned."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be allocated on a device, including memory that torch has reserved but does not use."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    import psutil

    return min(int(psutil.virtual_memory().available), _container_memory(), _address_space())


def check_host_memory(name: str, elements: int, dtype: torch.dtype, alternative: str) -> None:
    """Check that a model's weights fit in host memory; `alternative` is the last remedy in the message.

    Raises:
        InsufficientMemory: they do not fit.
    """
    import torch

    needed, free = elements * dtype.itemsize, free_memory(torch.device("cpu"))
    if free >= needed:
        return
    remedies = ["close other programs", f"use {alternative}"]
    if dtype == torch.float32:
        remedies.insert(1, "use --dtype float16 or bfloat16 instead of float32")
    raise InsufficientMemory(
        f"the weights of {name} need {needed / GIB:.1f} GiB of host memory, but only {free / GIB:.1f} GiB is free; "
        f"{', '.join(remedies[:-1])}{',' if len(remedies) > 2 else ''} or {remedies[-1]}"
    )


def _container_memory() -> int:
    """Return the bytes left under a Linux container's memory limit; 2⁶² if there is no limit."""
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((group / limit).read_text()) - int((group / used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 2**62


def _address_space() -> int:
    """Return the bytes left under this process's own limit (`ulimit -v`); 2⁶² if there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 2**62
    import psutil

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return 2**62 if limit == resource.RLIM_INFINITY else limit - int(psutil.Process().memory_info().vms)


def release_cache(device: torch.device) -> None:
    """Release the memory that torch's or glibc's allocator caches for a device."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        trim()


def check_process(name: str, process: int) -> None:
    """Check that this process, not its parent before `os.fork`, loaded a pipeline.

    Raises:
        InvalidRequest: another process did.
    """
    if os.getpid() != process:
        raise InvalidRequest(
            f"{name} was loaded by process {process}, and this process ({os.getpid()}) is a fork of it, in which torch "
            "would hang; load the model in the process that uses it, for example with multiprocessing's start method "
            "'spawn'",
            "model",
        )
