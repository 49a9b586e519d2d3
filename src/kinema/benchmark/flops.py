"""FLOP counts of a video without running it, and the machine's matmul rate."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema.benchmark.stopwatch import synchronize
from kinema.models.memory_plan import Shape
from kinema.models.model_files import CLASSES, check_configs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kinema.values import VideoRequest

META = torch.device("meta")  # tensors without data


def counted(folder: Path, request: VideoRequest) -> dict[str, int]:
    """Return the FLOPs of one denoising `step` and of the `decode` of all frames in diffusers' networks.

    The networks run on the meta device, so the count does not depend on the device. There attention is two matmuls,
    while torch's counter does not know some devices' attention kernels.

    Args:
        folder: The model's folder.
        request: If its `decode_chunk_size` is None, all frames are decoded together.
    """
    configs = check_configs(folder)
    unet, vae = (_on_meta(component, configs[component]) for component in ("unet", "vae"))
    batch, frames = 2 if request.guided else 1, request.num_frames
    factor = Shape.of(configs["unet"], configs["vae"]).vae_factor
    size = request.height // factor, request.width // factor
    sample = torch.empty(batch, frames, unet.config.in_channels, *size, device=META)
    embedding = torch.empty(batch, 1, unet.config.cross_attention_dim, device=META)
    time_step, ids = torch.empty((), device=META), torch.empty(batch, 3, device=META)
    chunk_size = request.decode_chunk_size or frames
    latents = torch.empty(frames, vae.config.latent_channels, *size, device=META)
    chunks = [latents[start : start + chunk_size] for start in range(0, frames, chunk_size)]
    return {
        "step": _flop(lambda: unet(sample, time_step, embedding, ids, return_dict=False)),
        "decode": _flop(lambda: [vae.decode(chunk, num_frames=len(chunk)) for chunk in chunks]),
    }


def _on_meta(component: Any, config: dict[str, Any]) -> Any:
    import diffusers

    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    with META:
        network = getattr(diffusers, CLASSES[component]).from_config(settings)
    return torch.nn.Module.to(network, device=META).eval()


@torch.no_grad()
def _flop(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def matrix_rate(device: torch.device, dtype: torch.dtype, rounds: int = 3, limit: float = math.inf) -> float:
    """Return the FLOP/s of a large matmul: the best of `rounds`, or of fewer after `limit` seconds; one warm-up."""
    size, matmuls = (2048, 1) if device.type == "cpu" else (8192, 10)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2))
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) <= rounds and sum(seconds) < limit):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(matmuls):
            a @ b
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 * matmuls / min(seconds[1:])
