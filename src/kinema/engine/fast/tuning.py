"""Every threshold and tile of the fast engine in one table, each with the record in bench/results that measured it.

Benchmarks and tests switch variants by value:

    with tuned(winograd_channels=NEVER):
        network(sample, time, constants)

The shapes of the tiles of `hopper_conv` and `hopper_geglu` are part of the kernels' structure and stand at the top of
their modules.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

# A threshold that no tensor reaches.
NEVER = 2**30

# Rows, columns and depth of the tile of one program, its warps, its pipeline stages, and the number of persistent
# programs per multiprocessor (0: one program per tile).
Tile = tuple[int, int, int, int, int, int]

# The operations with kernels, for `Tuning.plain`.
OPERATIONS = frozenset(
    {
        "channel_sums",
        "add",
        "group_norm_scales",
        "apply_group_norm",
        "layer_norm",
        "add_layer_norm",
        "mix_layer_norm",
        "geglu_linear",
        "linear",
        "conv3x3",
        "norm_silu_conv3x3",
        "temporal_conv",
        "temporal_attention",
        "spatial_attention",
        "softmax",
    }
)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Values that choose between equal computations; the defaults are the fastest measured on an H100."""

    # What runs.
    plain: frozenset[str] = frozenset()
    """Operations that run in plain torch although there is a kernel; of OPERATIONS."""
    interpreted: bool = False
    """Whether Triton kernels also run on CPU tensors, in Triton's interpreter (TRITON_INTERPRET=1)."""
    gpu_blocks: bool = False
    """Whether the order of work for GPUs (`blocks_gpu`) also runs on other devices."""
    matmul_kernels: bool = True
    """Whether kernels with matmuls run on Hopper, for which their tiles were measured; false: libraries only."""
    transposed_upsample: bool = True
    """Whether upsampling and its convolution are one transposed convolution (svd-xt-forward-h100.json, variants)."""

    # Convolutions.
    winograd_channels: int = 640
    """Channels, in and out, from which Winograd's 3×3 convolution is faster (winograd-h100.json)."""
    winograd_pixels: int = 4096
    """Pixels from which transforming the weights on every call is worth it; storing the transformed weights would take
    more memory than the network itself (winograd-h100.json)."""
    winograd_block: tuple[int, int, int, int] = (4, 8, 64, 16)
    """Winograd tiles per step of the input and of the output transform, channels, and tiles per channel sum
    (winograd-h100.json)."""
    hopper_conv_width: int = 40
    """Row width from which the Hopper 3×3 convolution is faster than cuDNN's (convolutions-h100.json)."""
    hopper_temporal_channels: int = 0
    """Channels from which it is faster along time than the Triton kernel (convolutions-h100.json)."""
    hopper_temporal_residual_channels: int = 320
    """The same if a residual is added: with that many, the matmul takes long enough to hide the addition."""
    temporal_conv_tiles: Mapping[str, Tile] = field(
        default_factory=lambda: {
            "fp8": (128, 128, 128, 4, 3, 0),
            "few channels": (128, 128, 64, 4, 3, 0),
            "many pixels": (256, 128, 64, 8, 4, 0),
            "few pixels": (128, 256, 64, 8, 3, 0),
        }
    )
    """By itemsize, channels (few in the decoder) and pixels of a frame (triton-products-h100.json)."""
    partial_sums: int = 64
    """Partial channel sums of a frame up to which the norm adds them up itself."""

    # GEMMs.
    gemm_tiles: Mapping[int, Tile] = field(
        default_factory=lambda: {2: (128, 256, 64, 8, 3, 1), 1: (128, 128, 128, 4, 3, 2)}
    )
    """By itemsize (triton-products-h100.json; svd-xt-forward-h100.json, variants and fp8)."""
    geglu_block: tuple[int, int] = (8, 256)
    """Rows and columns of a program of the separate GEGLU, on GPUs before Hopper."""
    hopper_geglu_steps: int = 5
    """Steps of 128 bytes in a row from which the weight-stationary GEGLU is faster (hopper-kernels-h100.json)."""
    hopper_geglu_utilization: float = 0.85
    """Fraction of the multiprocessors that it must be able to use (hopper-kernels-h100.json)."""

    # Attention.
    hopper_attention_pixels: int = 1024
    """Pixels of a frame from which the Hopper kernel, for heads of 64, beats cuDNN (hopper-kernels-h100.json)."""
    hopper_attention_tile: tuple[int, int, int] = (64, 128, 3)
    """Pixels per consumer, keys per step, and buffers for these (hopper-kernels-h100.json)."""
    attention_backends: tuple[SDPBackend, ...] = (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    )
    """torch's backends for attention within frames, fastest first; empty: torch's own order (svd-xt-forward-h100.json,
    micro and variants)."""
    fused_head_channels: int = 256
    """Widest head for which a library is fast; the scores of wider ones are stored, one frame at a time."""
    temporal_attention_frames: int = 64
    """Most frames whose attention fits in the registers of one program."""

    # Norms and sums. Columns of a block: 64 16-bit values are a cache line.
    channel_sums_block: tuple[int, int] = (32, 64)
    """Rows and columns of a step of a program."""
    channel_sums_max_chunks: int = 512
    """Most chunks into which the channel sums of a frame are divided."""
    group_norm_block: tuple[int, int] = (64, 64)
    """Rows and columns of a program."""
    layer_norm_block: tuple[int, int, int] = (4096, 4, 4)
    """Elements per iteration of a program, its iterations, and its warps."""

    # Memory of a GPU.
    chunk_elements: int = 2**28
    """Elements per chunk of a large video: half a gigabyte in half precision."""
    band_multiple: int = 256
    """Pixels of a kernel's largest tile; a band of pixels is a multiple of it where possible."""
    concurrent_compilations: int = 16
    """Kernels that are compiled at the same time."""

    # CPU.
    feed_forward_rows: int = 4096
    """Pixels per chunk of a feed-forward, so that its wide hidden layer stays in the cache."""
    small_norm_pixels: int = 1024
    """With fewer pixels and channels last, torch's group norm works group by group, three channels at a time."""
    band_elements: int = 2**21
    """Elements per band of the temporal layers: 8 MiB in float32."""
    onednn_attention_pixels: range = range(512, 2049)
    """Pixels of a frame for which attention by oneDNN can be faster than torch's: a head's scores fit the cache."""

    def temporal_conv_tile(self, channels: int, pixels: int, itemsize: int) -> Tile:
        """Return the tile of a temporal convolution."""
        if itemsize == 1:
            return self.temporal_conv_tiles["fp8"]
        if channels <= 256:
            return self.temporal_conv_tiles["few channels"]
        return self.temporal_conv_tiles["many pixels" if pixels >= 2048 else "few pixels"]


_tuning: ContextVar[Tuning] = ContextVar("tuning", default=Tuning())  # noqa: B039 - frozen


def tuning() -> Tuning:
    """Return the values in use."""
    return _tuning.get()


@contextmanager
def tuned(**values: Any) -> Iterator[None]:
    """Change values of `Tuning` within the context, in this thread."""
    token = _tuning.set(replace(tuning(), **values))
    try:
        yield
    finally:
        _tuning.reset(token)


def use_winograd(weight: Tensor, channels: int) -> bool:
    """Return whether a 3×3 convolution may be computed by Winograd's algorithm.

    Only in float16: the sums of the transform are too coarse in bfloat16.

    Args:
        weight: [out, 9 · channels].
        channels: Of the input.
    """
    out, depth = weight.shape
    few = min(out, channels) < tuning().winograd_channels
    return weight.dtype == torch.float16 and depth == 9 * channels and not few
