"""The benchmark's task and result, and the time measurement of stages."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kinema.values import VideoRequest

if TYPE_CHECKING:
    import numpy as np

    from kinema.media.image import InputImage
    from kinema.media.video_writer import Frames
    from kinema.recipe import Recipe
    from kinema.values import Engine, Precision

GIB = 2**30


@dataclass(frozen=True, eq=False)
class BenchmarkTask:
    """The task of both sides."""

    model: str
    folder: Path
    """The model's folder."""
    half: bool
    """Whether the half-precision weights are read."""
    device: str
    dtype: str
    engine: Engine | None
    precision: Precision
    gpus: int
    """Number of GPUs that generate a video together, on Kinema's side."""
    image: InputImage


@dataclass(frozen=True, eq=False)
class TimedRun:
    """One video: seconds by stage (`encode`, `denoise`, `decode`), frames and latents; Kinema's has a recipe."""

    seconds: dict[str, float]
    frames: Frames
    latents: np.ndarray[Any, np.dtype[np.float32]]
    """After the last step, scaled: [1, num_frames, channels, h/f, w/f]."""
    recipe: Recipe | None = None


Make = Callable[[VideoRequest], TimedRun]


class Stopwatch:
    """Measures the seconds of each stage; synchronizes a GPU only at the end of a stage."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        synchronize(device)
        self._last = time.perf_counter()

    def end_stage(self, stage: str) -> None:
        """Add the time since the previous stage ended (at first: since construction) to this stage."""
        synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_rss() -> int:
    """Return the peak memory of this process in bytes; getrusage would include the parent's before the fork."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def cuda_peaks(device: torch.device) -> dict[str, int]:
    """Return torch's peak bytes on a CUDA device since the last reset; empty for other devices."""
    if device.type != "cuda":
        return {}
    return {"allocated": torch.cuda.max_memory_allocated(device), "reserved": torch.cuda.max_memory_reserved(device)}
