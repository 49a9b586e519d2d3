"""Estimate how long a video takes on this machine, without generating one."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kinema.benchmark.flops import matrix_rate
from kinema.models.devices import has_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# FLOP/s of (denoising, decoding), as `kinema.benchmark.flops` counts, relative to those of `block_rate` on a CPU and of
# one large matmul on a GPU. From the records in bench/results.
CPU_16_BIT = 2.48, 3.02  # pocket-block-rate.json
CPU_32_BIT = 2.05, 2.55  # the same
GPU_FAST = 0.72, 0.59  # svd-xt-h100-diffusers.json
GPU_REFERENCE = 0.31, 0.092  # its baseline

FRAMES, CHANNELS, HEIGHT, WIDTH, HEADS = 14, 96, 20, 36, 3  # the second level of the pocket model's UNet


def machine_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s that `expected_seconds` needs, measured in less than a second.

    Raises:
        torch.OutOfMemoryError: there is no memory for a matmul.
    """
    return block_rate(dtype) if device.type == "cpu" else matrix_rate(device, dtype, limit=0.5)


def expected_seconds(
    tflop: Mapping[str, float], steps: int, rate: float, device: torch.device, dtype: torch.dtype
) -> float | None:
    """Return the expected seconds of a video with a loaded model, or None on a device that was never measured.

    Args:
        tflop: TFLOP of one denoising `step` and of the `decode` of all frames.
        steps: Denoising steps.
        rate: The device's `machine_rate` with the dtype.
        device: Where the video would be generated.
        dtype: The dtype of the networks.
    """
    if device.type == "cpu":
        denoise, decode = CPU_16_BIT if dtype.itemsize == 2 else CPU_32_BIT
    elif device.type == "cuda":
        denoise, decode = GPU_FAST if has_kernels(device, dtype) else GPU_REFERENCE
    else:
        return None
    return 1e12 / rate * (tflop["step"] * steps / denoise + tflop["decode"] / decode)


@torch.inference_mode()
def block_rate(dtype: torch.dtype, seconds: float = 0.4, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the median FLOP/s, in `seconds`, of a convolution, attention and a feed-forward on the CPU.

    Unlike a large matmul, which AMX makes many times as fast, it is limited by memory and vector units as a network is.
    """
    generator = torch.Generator().manual_seed(0)
    pixels, wide = HEIGHT * WIDTH, 4 * CHANNELS
    shapes = (CHANNELS, CHANNELS, 3, 3), (wide, CHANNELS), (wide, CHANNELS), (CHANNELS, wide)
    convolution, projections, up, down = (
        (0.05 * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes
    )
    x = torch.randn(FRAMES, CHANNELS, HEIGHT, WIDTH, generator=generator).to(dtype)
    x, convolution = (each.to(memory_format=torch.channels_last) for each in (x, convolution))
    times: list[float] = []
    while len(times) < 4 or sum(times) < seconds:
        started = clock()
        hidden_states = x + F.conv2d(F.silu(F.group_norm(x, 32)), convolution, padding=1)
        tokens = hidden_states.flatten(2).transpose(1, 2)
        parts = F.linear(F.layer_norm(tokens, (CHANNELS,)), projections).chunk(4, dim=2)
        query, key, value = (part.reshape(FRAMES, pixels, HEADS, -1).transpose(1, 2) for part in parts[:3])
        tokens = tokens + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens + F.linear(F.gelu(F.linear(F.layer_norm(tokens, (CHANNELS,)), up)), down)
        times.append(clock() - started)
    weights = sum(each.numel() for each in (convolution, projections, up, down))
    flop = 2 * FRAMES * pixels * weights + 4 * FRAMES * pixels**2 * CHANNELS
    return flop / statistics.median(times[1:])
