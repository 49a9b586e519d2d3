"""Compare each kernel of Kinema with plain torch, and measure single kernels at SVD-XT's shapes:

    python bench/single_kernels.py --out bench/results/h100
    TRITON_INTERPRET=1 python bench/single_kernels.py --out /tmp/tiny --tiny --device cpu --interpreted --sections check

Sections run in order; a failed section does not stop the others, and none starts after --seconds. single_kernels.json
is written after each section.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import forward as parts
from common import Bench, Work, run
from kinema.engine.fast.fp8 import FP8_DTYPE, FP8_SCALE
from kinema.engine.fast.layout import as_images, as_rows, as_strip
from kinema.engine.fast.ops import conv, norm
from kinema.engine.fast.ops.attention import reference_temporal_attention, spatial_attention, temporal_attention
from kinema.engine.fast.ops.geglu import geglu_linear
from kinema.engine.fast.ops.linear import packed_linear, reference_packed_linear
from kinema.engine.fast.tuning import tuned
from kinema.engine.fast.weights import GroupNorm, LayerNorm, PackedWeight


def ceilings(bench: Bench) -> dict[str, Any]:
    size, wide = (256, 2**16) if bench.args.tiny else (8192, 2**30)
    a, b = (torch.randn(size, size, device=bench.device, dtype=bench.dtype) for _ in range(2))
    c = torch.randn(wide, device=bench.device, dtype=bench.dtype)
    d = torch.empty_like(c)
    matmul, copy = bench.ms(lambda: a @ b, 10, 3), bench.ms(lambda: d.copy_(c), 10, 3)
    return {"product_tflops": round(2 * size**3 / matmul / 1e9, 1), "copy_tbs": round(4 * wide / copy / 1e9, 3)}


def check(bench: Bench) -> dict[str, Any]:
    """Return the error of each kernel relative to plain torch."""
    frames, pixels, channels = (6, 33, 320) if bench.args.tiny else (50, 576, 640)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=bench.device, dtype=bench.dtype)

    x, y, bias = new(frames, pixels, channels), new(frames, pixels, channels), new(channels).float()
    layer = LayerNorm(new(channels), new(channels), 1e-5)
    groups = GroupNorm(32, new(channels), new(channels), 1e-5)
    table, shift = new(frames, channels).float(), new(2, channels)
    weight = new(8 * channels, channels) * channels**-0.5
    packed, quantized_weight = (
        PackedWeight(weight, new(8 * channels)),
        PackedWeight.quantized(weight, new(8 * channels)),
    )
    span_scales = norm.group_norm_scales(norm.channel_sums(x), groups, pixels, span=frames // 2, frame_bias=shift)
    frame_scales = norm.group_norm_scales(norm.channel_sums(x), groups, pixels)
    high = 12 if pixels == 576 else 3
    images = x.view(frames, high, -1, channels)
    qkv, rows = new(2, frames // 2, pixels, 3, 5, 64), as_rows(x)
    quantized = (rows * FP8_SCALE).to(FP8_DTYPE)
    conv_weight = PackedWeight(new(channels, 9 * channels) * (9 * channels) ** -0.5)
    temporal_weight = PackedWeight(new(channels, 3 * channels) * channels**-0.5)

    def summed(result: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        out, sums = result
        return torch.cat([out.float().flatten(), sums.sum(1).flatten() / pixels])

    def added() -> torch.Tensor:
        out = torch.empty_like(x)
        return summed((out, norm.add(x, y, bias, out)))

    def with_residual(work: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        into = as_rows(y).clone()
        return torch.cat([work(rows, into, layer, table, *arguments), into])

    wide = new(2, 1, pixels, 512)
    checks: dict[str, Callable[[], torch.Tensor]] = {
        "channel_sums": lambda: norm.channel_sums(x).sum(1),
        "add": added,
        "group_norm_scales": lambda: torch.cat(
            norm.group_norm_scales(norm.channel_sums(x), groups, pixels, span=frames // 2, frame_bias=shift)
        ),
        "apply_group_norm": lambda: norm.apply_group_norm(
            x, span_scales, span=frames // 2, silu=True, out=torch.empty_like(x)
        ),
        "layer_norm": lambda: norm.layer_norm(rows, layer, table),
        "add_layer_norm": lambda: with_residual(norm.add_layer_norm),
        "mix_layer_norm": lambda: with_residual(norm.mix_layer_norm, table, 0.3),
        "geglu_linear": lambda: geglu_linear(rows, packed),
        "linear": lambda: packed_linear(quantized, quantized_weight, bench.dtype),
        "conv3x3": lambda: summed(conv.conv3x3(images, conv_weight, bench.dtype)),
        "norm_silu_conv3x3": lambda: summed(conv.norm_silu_conv3x3([images], frame_scales, conv_weight, bench.dtype)),
        "temporal_conv": lambda: conv.temporal_conv(x, temporal_weight, frames // 2, bench.dtype)[0],
        "temporal_attention": lambda: temporal_attention(qkv),
        "spatial_attention": lambda: spatial_attention(*qkv[:, 0].permute(2, 0, 3, 1, 4)),
        "softmax": lambda: spatial_attention(wide, wide, wide),
    }
    result: dict[str, Any] = {}
    for name, work in checks.items():

        def one(name: str = name, work: Callable[[], torch.Tensor] = work) -> dict[str, Any]:
            began = time.perf_counter()
            ours = work()
            seconds = round(time.perf_counter() - began, 2)
            with tuned(plain=frozenset({name})):
                error = parts.relative_error(ours, work())
            return {"error": error, "seconds": seconds, "as_expected": error < 0.01}

        bench.guarded(name, one, result)
    return result


def micro(bench: Bench) -> dict[str, Any]:
    """Measure single kernels on the shapes of a guided step: ms, and TB/s of the minimum traffic or TFLOP/s."""
    result: dict[str, Any] = {}
    for label, (width, height, channels, heads) in levels(bench).items():
        if bench.seconds() > bench.args.seconds:
            break
        bench.guarded(label, lambda c=channels, w=width, h=height, n=heads: level(bench, w, h, c, n), result)
    return result


def levels(bench: Bench) -> dict[str, tuple[int, int, int, int]]:
    if bench.args.tiny:
        return {"level 0": (8, 8, 32, 1)}
    return {"level 0": (128, 72, 320, 5), "level 1": (64, 36, 640, 10), "level 2": (32, 18, 1280, 20)}


def level(bench: Bench, width: int, height: int, channels: int, heads: int) -> dict[str, Any]:
    frames, pixels = bench.frames, width * height
    rows = 2 * frames * pixels
    unit = rows * channels * 2  # bytes of the hidden states

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=bench.device, dtype=bench.dtype)

    x = new(2, frames, height, width, channels)
    flat, by_frame = as_rows(x), x.view(2 * frames, pixels, channels)
    other, table = torch.randn_like(x), torch.randn(2 * frames, channels, device=bench.device)
    weights = LayerNorm(new(channels), new(channels), 1e-5)
    groups = GroupNorm(32, new(channels), new(channels), 1e-5)
    sums, into = norm.channel_sums(by_frame), torch.empty_like(by_frame)
    packed = PackedWeight(new(8 * channels, channels) * channels**-0.5, new(8 * channels))
    qkv = new(2, frames, pixels, 3, heads, channels // heads)
    projection, added_to = reference_packed_linear(flat, packed, bench.dtype), as_rows(other)
    scales = [norm.group_norm_scales(sums, groups, pixels, span=span) for span in (1, frames)]
    conv_weight = new(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    temporal_weight = new(channels, channels, 3, 1).contiguous(memory_format=torch.channels_last)
    packed_temporal = PackedWeight(temporal_weight.permute(0, 2, 3, 1).flatten(1))

    def within(backend: SDPBackend) -> torch.Tensor:
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    added_weight, flop = new(channels, 4 * channels), 2 * rows * channels**2
    works: dict[str, tuple[Work, float, float]] = {
        "temporal attention": (lambda: temporal_attention(qkv), 4 * unit, 0),
        "temporal attention by torch": (lambda: reference_temporal_attention(qkv), 4 * unit, 0),
        "layer norm": (lambda: norm.layer_norm(flat, weights, table), 2 * unit, 0),
        "layer norm by torch": (lambda: F.layer_norm(flat, (channels,), weights.weight, weights.bias), 2 * unit, 0),
        "add layer norm": (lambda: norm.add_layer_norm(flat, into.view_as(flat), weights, table), 4 * unit, 0),
        "mix layer norm": (
            lambda: norm.mix_layer_norm(flat, into.view_as(flat), weights, table, table, 0.5),
            4 * unit,
            0,
        ),
        "channel sums": (lambda: norm.channel_sums(by_frame), unit, 0),
        "add": (lambda: norm.add(by_frame, other.view_as(by_frame), table[0], into), 3 * unit, 0),
        "group norm after sums": (
            lambda: norm.apply_group_norm(by_frame, scales[0], silu=True, out=into),
            2 * unit,
            0,
        ),
        "group norm of frames after sums": (
            lambda: norm.apply_group_norm(by_frame, scales[1], span=frames, silu=True, out=into),
            2 * unit,
            0,
        ),
        "group norm and SiLU by torch": (
            lambda: F.silu(F.group_norm(as_images(x), 32, groups.weight, groups.bias)),
            2 * unit,
            0,
        ),
        "fused gate GEMM": (lambda: geglu_linear(flat, packed), 0, 8 * flop),
        "gate GEMM without gate": (lambda: reference_packed_linear(flat, packed, bench.dtype), 0, 8 * flop),
        "QKV GEMM": (lambda: flat @ packed.weight[: 3 * channels].t(), 0, 3 * flop),
        "convolution": (lambda: F.conv2d(as_images(x), conv_weight, None, 1, 1), 0, 9 * flop),
        "temporal convolution": (lambda: F.conv2d(as_strip(x), temporal_weight, None, 1, (1, 0)), 0, 3 * flop),
        "temporal convolution with channel sums": (
            lambda: conv.temporal_conv(by_frame, packed_temporal, frames, bench.dtype),
            0,
            3 * flop,
        ),
        "attention, default": (
            lambda: spatial_attention(*qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)),
            0,
            4 * 2 * frames * pixels**2 * channels,
        ),
        "attention, cuDNN": (lambda: within(SDPBackend.CUDNN_ATTENTION), 0, 4 * 2 * frames * pixels**2 * channels),
        "attention, flash": (lambda: within(SDPBackend.FLASH_ATTENTION), 0, 4 * 2 * frames * pixels**2 * channels),
        "GEMM with residual": (
            lambda: added_to.addmm_(projection[:, : 4 * channels], added_weight.t()),
            0,
            4 * flop,
        ),
    }
    result: dict[str, Any] = {}
    for name, (work, moved, counted) in works.items():
        try:
            taken = bench.ms(work, 5, 2)
        except Exception as error:  # noqa: BLE001 an error must not stop the other kernels
            result[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        rate = f"{moved / taken / 1e9:.2f} TB/s" if moved else f"{counted / taken / 1e9:.0f} TFLOP/s"
        result[name] = f"{taken:.3f} ms, {rate}"
    return result


if __name__ == "__main__":
    run("single_kernels", __doc__, {"ceilings": ceilings, "check": check, "micro": micro}, groups=("check", "micro"))
