"""Which device each worker of this machine gets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.settings import Settings


def devices_for(settings: Settings) -> tuple[str, ...]:
    """Return the device of each worker: that of the settings, or one per GPU or group of GPUs. Does not import torch.

    Raises:
        InvalidRequest: a group has more GPUs than the machine.
    """
    if settings.device != "auto":
        return (settings.device,) * (settings.workers or 1)
    gpus, size = count_gpus(), settings.gpus_per_video
    if size > max(gpus, 1):
        raise InvalidRequest(
            f"KINEMA_GPUS_PER_VIDEO is {size}, but this machine has {gpus} GPUs; set it to {2 if gpus > 1 else 1}",
            "gpus_per_video",
        )
    groups = gpus // size
    count = settings.workers or max(1, groups)
    return tuple(f"cuda:{size * (i % groups)}" for i in range(count)) if gpus > 1 else ("auto",) * count


def on_gpus(devices: Sequence[str]) -> bool:
    """Return whether workers with these devices run on GPUs of NVIDIA. Does not import torch."""
    return any(device.startswith("cuda") or (device == "auto" and count_gpus() > 0) for device in devices)


def count_gpus() -> int:
    """Return how many GPUs are visible to processes of this environment. Does not import torch."""
    gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return gpus if visible is None else min(gpus, len([name for name in visible.split(",") if name.strip()]))
