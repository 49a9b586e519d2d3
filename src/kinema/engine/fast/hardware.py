"""Which kernels run on a device: found by compiling and running small ones once, not by a list of versions."""

from __future__ import annotations

import contextvars
import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F

from kinema.engine.fast.fp8 import FP8_DTYPE
from kinema.engine.fast.tuning import tuning
from kinema.models.devices import is_hopper
from kinema.partial_files import partial_path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The kernels that a device runs; `reason` says why some are off, or is empty."""

    triton: bool = False
    """Triton kernels: norms, sums, temporal layers, softmax, and on Hopper GEMMs."""
    gluon: bool = False
    """Kernels in Gluon for Hopper: convolutions, GEGLU, attention."""
    sm90: bool = False
    """An NVIDIA Hopper GPU, for which the tiles of kernels with matmuls were measured."""
    fp8: bool = False
    """GEMMs and convolutions in 8-bit floating point."""
    reason: str = ""

    def active(self) -> list[str]:
        """Return the names of the kernels that run."""
        names = {"Triton": self.triton, "Gluon for Hopper": self.gluon, "fp8": self.fp8}
        return [name for name, runs in names.items() if runs]


@cache
def capabilities(device: torch.device) -> Capabilities:
    """Return what a device runs; log one warning if kernels fail on a GPU that should run them."""
    if device.type != "cuda":
        return Capabilities(reason="kernels need an NVIDIA GPU")
    if torch.cuda.get_device_capability(device) < (8, 0):
        return Capabilities(reason="kernels need an NVIDIA GPU since Ampere (compute capability 8.0)")
    sm90 = is_hopper(device)
    if find_spec("triton") is None:
        found = Capabilities(sm90=sm90, reason="Triton is not installed")
    elif failure := _failure("triton", device):
        found = Capabilities(sm90=sm90, reason=f"Triton {version('triton')} failed: {failure}")
    elif sm90 and (failure := _failure("gluon", device)):
        found = Capabilities(triton=True, sm90=True, fp8=True, reason=f"Gluon {version('triton')} failed: {failure}")
    else:
        found = Capabilities(triton=True, gluon=sm90, sm90=sm90, fp8=sm90)
    if found.reason:
        log.warning("Fast kernels are off, so videos take longer: %s", found.reason)
    return found


def use_triton(operation: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether an operation, of `tuning.OPERATIONS`, runs as a Triton kernel: on 16-bit and fp8 tensors."""
    settings = tuning()
    if operation in settings.plain or not (dtype.itemsize == 2 or dtype == FP8_DTYPE):
        return False
    return settings.interpreted or capabilities(device).triton


def use_matmul_kernel(operation: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether an operation runs as a kernel with matmuls, which is faster than the libraries' on Hopper only."""
    settings = tuning()
    if not settings.matmul_kernels or not use_triton(operation, device, dtype):
        return False
    return settings.interpreted or capabilities(device).sm90


def _failure(probe: str, device: torch.device) -> str | None:
    """Return why a probe fails on the device, or None. A success is stored on disk, a failure is tried again."""
    stored = _cache_folder() / f"{_key(probe, device)}.json"
    if stored.exists():
        return None
    try:
        # In a context of its own, where launches are not collected for `compiled_together`.
        contextvars.Context().run({"triton": _probe_triton, "gluon": _probe_gluon}[probe], device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a compiler raises anything
        return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    with suppress(OSError):
        stored.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(stored)
        partial.write_text(json.dumps(_facts(probe, device)) + "\n", encoding="utf-8")
        partial.replace(stored)
    return None


def _cache_folder() -> Path:
    """Return the folder of successful probes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kinema" / "kernels"


def _facts(probe: str, device: torch.device) -> dict[str, str]:
    """Return what the result of a probe depends on."""
    gpu = torch.cuda.get_device_name(device)
    return {"probe": probe, "gpu": gpu, "torch": torch.__version__, "triton": version("triton")}


def _key(probe: str, device: torch.device) -> str:
    return hashlib.sha256(json.dumps(_facts(probe, device), sort_keys=True).encode()).hexdigest()[:16]


def _probe_triton(device: torch.device) -> None:
    """Compile and run a small Triton kernel, in the variant that videos need too."""
    from kinema.engine.fast.kernels.triton_norm import channel_sums

    with torch.cuda.device(device):
        x = torch.linspace(-1, 1, 2 * 64 * 64, device=device, dtype=torch.float16).view(2, 64, 64)
        expected = torch.stack([x.float().sum(1), x.float().square().sum(1)], 1)
        torch.testing.assert_close(channel_sums(x).sum(1), expected, rtol=1e-3, atol=1e-3)


def _probe_gluon(device: torch.device) -> None:
    """Compile and run the smallest Hopper kernel, in the variant that videos need too.

    It uses TMA, barriers, warp specialisation and warp-group matmuls.
    """
    from kinema.engine.fast.kernels.hopper_attention import spatial_attention

    with torch.cuda.device(device):
        values = torch.arange(128 * 3 * 5 * 64, device=device, dtype=torch.float32).sin().half()
        q, k, v = values.view(1, 128, 3, 5, 64).movedim(2, 0).transpose(2, 3)
        expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).transpose(1, 2).flatten(2)
        torch.testing.assert_close(spatial_attention(q, k, v).float(), expected, rtol=1e-2, atol=1e-2)
