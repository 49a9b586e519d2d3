"""What is made, by whom, and how the time of each of its stages is taken."""

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
    from kinema.values import Engine, Precision, Recipe

GIB = 2**30


@dataclass(frozen=True, eq=False)
class BenchmarkTask:
    """What both sides are given."""

    model: str
    folder: Path
    """Where the model's files lie."""
    half: bool
    """Whether those in half precision are read."""
    device: str
    dtype: str
    engine: Engine | None
    precision: Precision
    image: InputImage


@dataclass(frozen=True, eq=False)
class TimedRun:
    """One video: seconds by stage (`encode`, `denoise`, `decode`), and what it is. Ours has a recipe."""

    seconds: dict[str, float]
    frames: Frames
    latents: np.ndarray[Any, np.dtype[np.float32]]
    """After the last step, scaled: [1, num_frames, channels, h/f, w/f]."""
    recipe: Recipe | None = None


Make = Callable[[VideoRequest], TimedRun]


class Stopwatch:
    """Seconds of each stage. A GPU's work is waited for where a stage ends, and nowhere else."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        synchronize(device)
        self._last = time.perf_counter()

    def ended(self, stage: str) -> None:
        """What was done since the last stage ended belongs to this one."""
        synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_rss() -> int:
    """The most memory that this process ever had, in bytes; not what it was forked from, which getrusage counts too."""
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
    """The most bytes on a CUDA device since the last reset, as torch counts them; nothing on others."""
    if device.type != "cuda":
        return {}
    return {"allocated": torch.cuda.max_memory_allocated(device), "reserved": torch.cuda.max_memory_reserved(device)}
