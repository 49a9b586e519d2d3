"""Inputs and tolerances for tests that compare kernels with plain torch."""

from pathlib import Path

import torch

from kinema.engine.fast.weights import GroupNorm, LayerNorm
from kinema.models.loading import VideoPipeline, load

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.float16
# Tolerances of the relative error. Rounding to float16.
ROUNDING = 1e-3
# Long float8 sums in tensor cores, whose accumulators have few bits.
FP8_SUMS = 4e-3
# Winograd transforms in float16.
WINOGRAD = 2e-3
# Some float8 values are rounded differently; the interpreter always rounds towards 0.
FP8_ROUNDING = 0.01 if CUDA else 0.12


def noise(*shape: int, dtype: torch.dtype = HALF) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def norms(channels: int) -> tuple[GroupNorm, LayerNorm]:
    weight, bias = noise(channels), noise(channels, 1)[:, 0]
    return GroupNorm(32, weight, bias, 1e-5), LayerNorm(weight, bias, 1e-5)


def randomised(folder: Path) -> VideoPipeline:
    """Randomise norms, biases and mix factors: the initial values 1, 0 and 0.5 can hide errors."""
    pipeline = load(folder, device="cpu", dtype="float32", engine="reference")
    for part in (pipeline.unet, pipeline.vae):
        for parameter in part.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return pipeline
