"""Compare Kinema's kernels with plain torch, and the fast forward on a CUDA device with diffusers.

Without a GPU, the kernels can run in Triton's interpreter: set TRITON_INTERPRET=1.
"""

import os
from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

from kinema.engine import generate
from kinema.engine.fast import FastDecoder, FastUNet, fp8, fused, gpu, tuning
from kinema.engine.fast.graphs import Replayed
from kinema.engine.fast.layers import GroupNorm, LayerNorm, Product, ResBlock
from kinema.media.image import open_image
from kinema.models.loading import VideoPipeline, load
from kinema.steps import drive
from kinema.values import VideoRequest
from tiny import PLAIN_TOP, UP_ALONE, make_tiny_svd

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.float16
pytestmark = pytest.mark.gpu
kernels_run = pytest.mark.skipif(
    not find_spec("triton") or not (CUDA or INTERPRETED), reason="no CUDA device with Triton"
)
on_cuda = pytest.mark.skipif(not CUDA, reason="no CUDA device")
on_hopper = pytest.mark.skipif(
    not CUDA
    or torch.cuda.get_device_capability() != (9, 0)
    or not import_module("kinema.engine.fast.kernels").HAS_GLUON,
    reason="no NVIDIA Hopper GPU, or an unsupported version of Triton's Gluon",
)
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


# (frames, pixels, channels): full blocks of rows, partial ones, and channels that are not a power of two.
SHAPES = [(4, 70, 96), (2, 600, 64), (6, 33, 320)]


@kernels_run
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("span", [1, 2])
@pytest.mark.parametrize("plus", [None, 1, 2], ids=["no bias", "one bias", "one bias per span"])
def test_group_norm_equals_plain_torch(shape: tuple[int, int, int], span: int, plus: int | None) -> None:
    from kinema.engine.fast import kernels

    frames, pixels, channels = shape
    x, (norm, _) = noise(*shape) + 1, norms(channels)
    bias = None if plus is None else noise(1 if plus == 1 else frames // span, channels)
    sums = kernels.channel_sums(x)
    scales = kernels.affine(sums, norm.groups, norm.weight, norm.bias, norm.eps, span, pixels, bias)
    true_scales = fused.plain_affine(fused.plain_channel_sums(x), norm, pixels, span=span, plus=bias)
    assert error(torch.cat(scales), torch.cat(true_scales)) <= ROUNDING
    for silu in (False, True):
        true = fused.plain_normalised(x, true_scales, span=span, silu=silu, out=torch.empty_like(x))
        out = torch.full_like(x, torch.nan)
        assert error(kernels.normalised(x, *scales, span, out, 1.0, silu=silu), true) <= ROUNDING
        band, part = x[:, 5:20], out.fill_(torch.nan)[:, 5:20]
        assert error(kernels.normalised(band, *scales, span, part, 1.0, silu=silu), true[:, 5:20]) <= ROUNDING
        half = torch.full_like(x.repeat(1, 1, 2), torch.nan)
        half_scales = [each.repeat(1, 2)[:, channels:] for each in scales]
        assert error(kernels.normalised(x, *half_scales, span, half[..., channels:], 1.0, silu=silu), true) <= ROUNDING
    quantized = torch.empty_like(x, dtype=fp8.FP8_DTYPE)
    true = fused.plain_normalised(x, true_scales, span=span, out=quantized.clone())
    assert error(kernels.normalised(x, *scales, span, quantized, fp8.FP8_SCALE, silu=False), true) <= FP8_ROUNDING


@kernels_run
@pytest.mark.parametrize("shape", SHAPES)
def test_channel_sums_and_add_equal_plain_torch(shape: tuple[int, int, int]) -> None:
    from kinema.engine.fast import kernels

    x, y, bias = noise(*shape), noise(*shape) + 1, noise(shape[-1], dtype=torch.float32)
    assert error(kernels.channel_sums(x).sum(1), fused.plain_channel_sums(x).sum(1)) <= 1e-5
    out, true = torch.full_like(x, torch.nan), torch.empty_like(x)
    sums, true_sums = kernels.add(x, y, bias, out), fused.plain_add(x, y, bias, true)
    assert error(out, true) <= ROUNDING
    assert error(sums.sum(1), true_sums.sum(1)) <= ROUNDING
    band = slice(5, 20)
    part = torch.full_like(x, torch.nan)[:, band]
    kernels.add(x[:, band], y[:, band], bias, part)
    assert torch.equal(part, out[:, band])
    kernels.add(x, y, bias, x)
    assert torch.equal(x, out)


@kernels_run
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norms_equal_plain_torch(shape: tuple[int, int, int]) -> None:
    from kinema.engine.fast import kernels

    frames, _, channels = shape
    x, y = noise(*shape).flatten(0, 1), (noise(*shape) + 1).flatten(0, 1)
    _, norm = norms(channels)
    plus, blend = noise(frames, channels, dtype=torch.float32), noise(frames, channels, 1, dtype=torch.float32)[..., 0]
    parts = (norm.weight, norm.bias, norm.eps)
    assert error(kernels.layer_norm(x, *parts), fused.plain_layer_norm(x, norm)) <= ROUNDING
    assert error(kernels.layer_norm(x, *parts, plus), fused.plain_layer_norm(x, norm, plus)) <= ROUNDING
    ours, true = y.clone(), y.clone()
    out = kernels.layer_norm(x, *parts, plus, add_to=ours)
    assert error(out, fused.plain_add_layer_norm(x, true, norm, plus)) <= ROUNDING
    assert error(ours, true) <= ROUNDING
    ours, true = y.clone(), y.clone()
    out = kernels.layer_norm(x, *parts, plus, mix_into=ours, blend=blend, share=0.3)
    assert error(out, fused.plain_mix_layer_norm(x, true, norm, plus, blend, 0.3)) <= ROUNDING
    assert error(ours, true) <= ROUNDING
    quantized = kernels.layer_norm(x, *parts, plus, spread=fp8.FP8_SCALE)
    assert error(quantized, fused.plain_layer_norm(x, norm, plus, bare=True)) <= FP8_ROUNDING


TILE = (32, 64, 32, 4, 2)


@kernels_run
@pytest.mark.parametrize("persistent", [0, 1], ids=["one tile per program", "several tiles per program"])
@pytest.mark.parametrize(("rows", "depth", "inner"), [(70, 96, 384), (33, 64, 96)])
def test_linear_kernels_equal_plain_torch(rows: int, depth: int, inner: int, persistent: int) -> None:
    from kinema.engine.fast import kernels

    tile = (*TILE, persistent)
    x, weight, bias = noise(rows, depth), noise(2 * inner, depth) * depth**-0.5, noise(2 * inner)
    true = fused.plain_gated(x.double(), Product(weight.double(), bias.double()))
    assert error(kernels.geglu(torch.nn.functional.linear(x, weight, bias)), true) <= ROUNDING
    out = x.new_empty(rows, inner)
    assert error(kernels.product(x, weight, bias, None, out, gated=True, tile=tile), true) <= ROUNDING

    quantized = (x * fp8.FP8_SCALE).to(fp8.FP8_DTYPE)
    layer = Product.in_bytes(weight, bias)
    operands = layer.weight, layer.bias, layer.scale
    out = x.new_empty(rows, inner, dtype=fp8.FP8_DTYPE)
    ours = kernels.product(quantized, *operands, out, gated=True, factor=2.0, tile=tile)
    assert error(ours, fused.plain_gated(quantized, layer, 2.0)) <= FP8_ROUNDING
    true = fused.plain_product(quantized, layer, HALF)
    out = torch.full_like(true, torch.nan)
    assert error(kernels.product(quantized, *operands, out, tile=tile), true) <= ROUNDING
    plain = noise(rows, 2 * inner)
    ours, true = plain.clone(), fused.add_product(plain.float(), quantized, Product(layer.weight, scale=layer.scale))
    assert (
        error(kernels.product(quantized, layer.weight, None, layer.scale, ours, add=True, tile=tile), true) <= ROUNDING
    )


@kernels_run
def test_gelu_equals_erf_formula() -> None:
    from kinema.engine.fast import kernels

    gates = torch.linspace(-30, 30, 16_384, device=DEVICE)
    out = kernels.geglu(fused.in_turn(torch.ones_like(gates), gates)[None])[0]
    assert (out - torch.nn.functional.gelu(gates.double())).abs().max() <= 4e-6


@on_hopper
@pytest.mark.parametrize("inner", [128, 352], ids=["full blocks", "partial block"])
@pytest.mark.parametrize("depth", [320, 344, 640], ids=["few K blocks", "partial K block", "many K blocks"])
def test_weight_stationary_gated_linear_equals_plain_torch(depth: int, inner: int) -> None:
    from kinema.engine.fast import kernels, stationary

    processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    x, weight, bias = noise(70_001, depth), noise(2 * inner, depth) * depth**-0.5, noise(2 * inner)
    assert stationary.fits(x, weight, processors)
    assert not stationary.fits(x[:1000], weight, processors)
    true = fused.plain_gated(x.double(), Product(weight.double(), bias.double()))
    out = torch.full((len(x), inner), torch.nan, device=DEVICE, dtype=HALF)
    assert error(kernels.gated(x, weight, bias, None, out, 1.0), true) <= ROUNDING


@on_hopper
@pytest.mark.parametrize("depth", [640, 1280], ids=["few K blocks", "many K blocks"])
def test_weight_stationary_gated_linear_in_fp8_equals_plain_torch(depth: int) -> None:
    from kinema.engine.fast import kernels, stationary

    x, inner = noise(70_001, depth), 352
    quantized, layer = (
        (x * fp8.FP8_SCALE).to(fp8.FP8_DTYPE),
        Product.in_bytes(noise(2 * inner, depth) * depth**-0.5, noise(704)),
    )
    assert layer.bias is not None
    assert stationary.fits(quantized, layer.weight, torch.cuda.get_device_properties(DEVICE).multi_processor_count)
    ours = kernels.gated(quantized, layer.weight, layer.bias, layer.scale, quantized.new_empty(len(x), inner), 2.0)
    assert error(ours, fused.plain_gated(quantized, layer, 2.0)) <= FP8_ROUNDING


@on_hopper
@pytest.mark.parametrize("pixels", [1024, 1100], ids=["full blocks of keys", "partial block of keys"])
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
def test_frame_attention_is_as_accurate_as_library(pixels: int, dtype: torch.dtype) -> None:
    frames, heads, depth = 3, 5, fused.HEAD
    q, k, v = noise(frames, pixels, 3, heads, depth, dtype=dtype).movedim(2, 0).transpose(2, 3)
    attended = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    true = attended.transpose(1, 2).reshape(frames, pixels, heads * depth)
    ours = error(fused.frame_attention(q, k, v), true)
    with mock.patch.object(fused, "MANY_PIXELS", pixels + 1):  # use the library's attention
        assert ours <= 1.1 * error(fused.frame_attention(q, k, v), true)


@on_hopper
@pytest.mark.parametrize(
    ("high", "width", "channels", "out_channels"),
    [(36, 64, 320, 320), (40, 70, 80, 128), (72, 128, 128, 640), (9, 16, 96, 192), (18, 30, 64, 40)],
    ids=["full tiles", "partial tiles", "many columns", "small image", "few columns"],
)
@pytest.mark.parametrize("in_bytes", [False, True], ids=["half precision", "fp8"])
def test_convolution_with_channel_sums_equals_plain_torch(
    high: int, width: int, channels: int, out_channels: int, *, in_bytes: bool
) -> None:
    from kinema.engine.fast import kernels

    images = 5
    x, weight = noise(images, high, width, channels), noise(out_channels, 9 * channels) * (9 * channels) ** -0.5
    layer = Product.in_bytes(weight) if in_bytes else Product(weight)
    x = (x * fp8.FP8_SCALE).to(fp8.FP8_DTYPE) if in_bytes else x
    exact = Product(layer.weight.float(), scale=layer.scale)
    residual, bias = noise(images, high, width, out_channels), noise(out_channels, dtype=torch.float32)
    for adding in ({}, {"kept": residual, "bias": bias}):
        out = torch.full_like(residual, torch.nan)
        sums = kernels.convolved(x, layer.weight, layer.scale, adding.get("kept"), adding.get("bias"), out)
        true, true_sums = fused.plain_convolved(x.float(), exact, torch.float32, **adding)
        assert error(out, true) <= (FP8_SUMS if in_bytes else ROUNDING)
        assert error(sums.sum(1), true_sums.sum(1)) <= (FP8_SUMS if in_bytes else ROUNDING)
    kernels.convolved(x, layer.weight, layer.scale, residual, bias, residual)
    assert torch.equal(residual, out)


@kernels_run
@pytest.mark.parametrize(
    ("high", "width", "channels", "out_channels"),
    [(16, 32, [64], 128), (9, 16, [80, 64], 96), (5, 7, [64, 40], 70)],
    ids=["full Winograd tiles", "partial Winograd tiles", "partial GEMM tiles"],
)
def test_winograd_convolution_equals_plain_torch(high: int, width: int, channels: list[int], out_channels: int) -> None:
    from kinema.engine.fast import kernels

    depth = sum(channels)
    parts, scales = (
        [noise(3, high, width, each) for each in channels],
        (noise(3, depth).float(), noise(3, depth, 1)[..., 0].float()),
    )
    weight = noise(out_channels, 9 * depth) * (9 * depth) ** -0.5
    normalised = fused.plain_normalised(
        torch.cat(parts, -1).double().flatten(1, 2), scales, silu=True, out=noise(3, high * width, depth).double()
    )
    residual, bias = noise(3, high, width, out_channels), noise(out_channels, dtype=torch.float32)
    for adding in ({}, {"kept": residual, "bias": bias}):
        out = torch.full_like(residual, torch.nan)
        sums = kernels.activated_convolved(parts, scales, weight, adding.get("kept"), adding.get("bias"), out)
        true, true_sums = fused.plain_convolved(
            normalised.view(3, high, width, depth), Product(weight.double()), torch.float64, **adding
        )
        assert error(out, true) <= WINOGRAD
        assert error(sums.sum(1), true_sums.sum(1)) <= WINOGRAD
    kernels.activated_convolved(parts, scales, weight, residual, bias, residual)
    assert torch.equal(residual, out)


@kernels_run
@pytest.mark.parametrize("level", [0, 2], ids=["without shortcut", "with shortcut"])
def test_spatial_block_with_winograd_equals_plain_torch(
    pipeline: VideoPipeline, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the block, with and without a skip connection, with plain torch."""
    from kinema.engine.fast import winograd

    block = ResBlock.of(deepcopy(pipeline.unet.down_blocks[level].resnets[0].spatial_res_block).to(DEVICE, HALF))
    channels = block.conv1.weight.shape[1]
    x, skip = noise(2, 3, 5, 13, channels - 8), noise(2, 3, 5, 13, 8)
    arguments = {"skip": (skip, None), "before": noise(channels - 8), "shift": noise(2, len(block.bias))}
    if block.shortcut is None:
        x, arguments = noise(2, 3, 5, 13, channels), {}
    monkeypatch.setattr(fused, "multiplies", lambda _: False)
    monkeypatch.setattr(fused, "has_kernels", lambda _: False)
    true, true_sums = gpu.spatial(block, x, **arguments)
    monkeypatch.setattr(fused, "has_kernels", lambda _: True)
    monkeypatch.setattr(fused, "multiplies", lambda _: True)
    monkeypatch.setattr(tuning, "WINOGRAD_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MANY_PIXELS", 1)
    with mock.patch.object(winograd, "convolved", wraps=winograd.convolved) as convolved:
        out, sums = gpu.spatial(block, x, **arguments)
    assert convolved.call_count == 2
    assert error(out, true) <= ROUNDING
    assert error(sums.sum(1), true_sums.sum(1)) <= ROUNDING
    same, _ = gpu.spatial(block, x, **arguments, out=x if block.shortcut is None else None)
    assert torch.equal(same, out)


@kernels_run
def test_winograd_convolution_of_large_values_does_not_overflow() -> None:
    from kinema.engine.fast import kernels

    x, weight = torch.full((1, 6, 6, 16), 6e4, dtype=HALF, device=DEVICE), noise(16, 9 * 16) * 1e-2
    signs = torch.tensor(
        [0.0, -1, -1, 1, 1, 0], device=DEVICE
    )  # with this mask a transform adds a whole line of pixels
    x *= (signs[:, None] * signs > 0)[None, ..., None]
    scales = torch.ones(1, 16, device=DEVICE), torch.zeros(1, 16, device=DEVICE)
    true, _ = fused.plain_convolved(x.double(), Product(weight.double()), torch.float64)
    out = torch.full_like(x, torch.nan)
    kernels.activated_convolved([x], scales, weight, None, None, out)
    assert error(out, true) <= WINOGRAD


@kernels_run
def test_winograd_is_used_for_large_float16_convolutions_only() -> None:
    from kinema.engine.fast import kernels

    def suits(*shape: int, columns: int = 640, dtype: torch.dtype = HALF) -> bool:
        x = torch.empty(shape, dtype=dtype, device=DEVICE)
        return kernels.activated_convolves([x, x], x.new_empty(columns, 9 * 2 * shape[-1]))

    assert suits(50, 18, 32, 320)
    assert not suits(50, 18, 32, 320, dtype=torch.bfloat16)
    assert not suits(50, 18, 32, 320, columns=320)
    assert not suits(50, 18, 32, 160)
    assert not suits(2, 18, 32, 320)


@on_hopper
@pytest.mark.parametrize(("videos", "frames", "pixels"), [(2, 25, 576), (1, 14, 1000), (2, 4, 70)])
@pytest.mark.parametrize("channels", [320, 384])
@pytest.mark.parametrize("in_bytes", [False, True], ids=["half precision", "fp8"])
def test_temporal_convolution_with_many_channels_equals_plain_torch(
    videos: int, frames: int, pixels: int, channels: int, *, in_bytes: bool
) -> None:
    from kinema.engine.fast import kernels

    x, weight = noise(videos * frames, pixels, channels), noise(channels, 3 * channels) * (3 * channels) ** -0.5
    layer = Product.in_bytes(weight) if in_bytes else Product(weight)
    x = (x * fp8.FP8_SCALE).to(fp8.FP8_DTYPE) if in_bytes else x
    exact = Product(layer.weight.float(), scale=layer.scale)
    wide = noise(videos * frames, pixels + 16, channels)
    residual, bias = wide[:, 8:-8], noise(channels, dtype=torch.float32)  # a non-contiguous band
    for adding in ({}, {"kept": residual, "bias": bias}):
        out = torch.full_like(wide, torch.nan)[:, 8:-8]
        sums = kernels.along_time(x, layer.weight, layer.scale, frames, adding.get("kept"), adding.get("bias"), out)
        true, true_sums = fused.plain_along_time(x.float(), exact, frames, torch.float32, **adding)
        assert error(out, true) <= (FP8_SUMS if in_bytes else ROUNDING)
        assert error(sums.sum(1), true_sums.sum(1)) <= (FP8_SUMS if in_bytes else ROUNDING)


@kernels_run
@pytest.mark.parametrize(("videos", "frames"), [(1, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize(("pixels", "channels", "out_channels"), [(70, 96, 80), (33, 32, 64)])
@pytest.mark.parametrize("in_bytes", [False, True], ids=["half precision", "fp8"])
def test_temporal_convolution_equals_plain_torch(
    videos: int, frames: int, pixels: int, channels: int, out_channels: int, *, in_bytes: bool
) -> None:
    from kinema.engine.fast import kernels

    x, weight = noise(videos * frames, pixels, channels), noise(out_channels, 3 * channels) * channels**-0.5
    layer = Product.in_bytes(weight) if in_bytes else Product(weight)
    x = (x * fp8.FP8_SCALE).to(fp8.FP8_DTYPE) if in_bytes else x
    exact = Product(layer.weight.float(), scale=layer.scale)
    wide = noise(videos * frames, pixels + 9, out_channels)
    residual, bias = wide[:, 5:-4], noise(out_channels, dtype=torch.float32)  # a non-contiguous band

    def ours(out: torch.Tensor, **adding: torch.Tensor) -> torch.Tensor:
        operands = layer.weight, layer.scale, frames, adding.get("kept"), adding.get("bias"), out
        return kernels.along_time(x, *operands, tile=(*TILE, 0))

    for adding in ({}, {"kept": residual, "bias": bias}):
        out = torch.full_like(wide, torch.nan)[:, 5:-4]
        sums = ours(out, **adding)
        true, true_sums = fused.plain_along_time(x.float(), exact, frames, torch.float32, **adding)
        assert error(out, true) <= ROUNDING
        assert error(sums.sum(1), true_sums.sum(1)) <= ROUNDING
    ours(residual, kept=residual, bias=bias)
    assert torch.equal(residual, out)


@kernels_run
@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("in_bytes", [False, True], ids=["half precision", "fp8"])
def test_temporal_block_in_bands_equals_plain_torch(
    pipeline: VideoPipeline, videos: int, monkeypatch: pytest.MonkeyPatch, *, in_bytes: bool
) -> None:
    """Compare a temporal block that runs in several bands with plain torch."""
    module = deepcopy(pipeline.unet.down_blocks[0].resnets[0].temporal_res_block).to(DEVICE, HALF)
    block = ResBlock.of(module, in_bytes=in_bytes)
    x = noise(videos, 3, 5, 13, block.conv1.weight.shape[1])
    monkeypatch.setattr(fused, "multiplies", lambda _: False)
    monkeypatch.setattr(fused, "has_kernels", lambda _: False)
    true, true_sums = gpu.temporal(block, x)
    monkeypatch.setattr(fused, "has_kernels", lambda _: True)
    monkeypatch.setattr(fused, "multiplies", lambda _: True)
    monkeypatch.setattr(gpu, "PIECE", x.numel() // 4)
    out, sums = gpu.temporal(block, x, out=x)
    assert out is x
    assert error(out, true) <= (FP8_ROUNDING if in_bytes else ROUNDING)
    assert error(sums.sum(1), true_sums.sum(1)) <= (FP8_ROUNDING if in_bytes else ROUNDING)


@kernels_run
@pytest.mark.parametrize("frames", [1, 14, 25])
@pytest.mark.parametrize("depth", [16, 64])
def test_time_attention_equals_plain_torch(frames: int, depth: int) -> None:
    from kinema.engine.fast import kernels

    qkv = noise(2, frames, 6, 3, 3, depth)
    assert error(kernels.time_attention(qkv), fused.plain_time_attention(qkv.double())) <= ROUNDING


@kernels_run
def test_compiled_together_compiles_without_launch() -> None:
    from kinema.engine.fast import kernels

    x, y, bias = noise(4, 70, 96), noise(4, 70, 96) + 1, noise(96, dtype=torch.float32)
    out = torch.full_like(x, torch.nan)
    with kernels.compiled_together():
        kernels.add(x, y, bias, out)
        kernels.channel_sums(x)
    assert out.isnan().all()
    if CUDA:
        compiled = [len(caches[0]) for caches in kernels._sums.device_caches.values()]
    kernels.add(x, y, bias, out)
    kernels.channel_sums(x)
    assert error(out, x + y + bias) <= ROUNDING
    if CUDA:
        assert [len(caches[0]) for caches in kernels._sums.device_caches.values()] == compiled


@kernels_run
@pytest.mark.parametrize("cols", [130, 256])
def test_softmax_equals_plain_torch(cols: int) -> None:
    from kinema.engine.fast import kernels

    scores = noise(70, cols, dtype=torch.float32) * 9
    out = torch.full_like(scores, torch.nan, dtype=HALF)
    assert (
        error(kernels.softmax(scores, 0.3, out), fused.plain_softmax(scores.double(), 0.3, torch.float64)) <= ROUNDING
    )


@on_cuda
def test_attention_with_512_channels_equals_plain_torch() -> None:
    q, k, v = (noise(3, 1, 130, 512 + i)[..., :512] for i in range(3))
    true = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert error(fused.frame_attention(q, k, v), true[:, 0]) <= ROUNDING


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return randomised(make_tiny_svd(tmp_path_factory.mktemp("fast") / "svd", levels=4, layers=2))


@pytest.fixture(
    scope="module",
    params=[PLAIN_TOP, UP_ALONE],
    ids=["first level without attention", "first level with attention in the up blocks only"],
)
def pocket_like(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return randomised(make_tiny_svd(tmp_path_factory.mktemp("fast") / "svd", **request.param))


def randomised(folder: Path) -> VideoPipeline:
    pipeline = load(folder, device="cpu", dtype="float32", engine="reference")
    for part in (pipeline.unet, pipeline.vae):
        for parameter in part.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return pipeline


@pytest.fixture
def exact() -> Iterator[None]:
    """Disable TF32 in cuDNN convolutions; it is torch's default for float32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@on_cuda
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(16, 12), (9, 11)])
@torch.no_grad()
def test_unet_and_decoder_error_is_within_1_2_times_diffusers(
    pipeline: VideoPipeline, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    assert_error_within_diffusers(pipeline, dtype, size)


@on_cuda
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_pocket_like_unet_and_decoder_error_is_within_1_2_times_diffusers(
    pocket_like: VideoPipeline, dtype: torch.dtype
) -> None:
    assert_error_within_diffusers(pocket_like, dtype, (16, 12))


def assert_error_within_diffusers(pipeline: VideoPipeline, dtype: torch.dtype, size: tuple[int, int]) -> None:
    channels = pipeline.latent_channels
    sample, image_latents, embedding = noise(1, 5, channels, *size), noise(2, channels, *size), noise(2, 1, 16)
    ids, time = torch.tensor([[6.0, 127.0, 0.02]], device=DEVICE).repeat(2, 1), torch.tensor(0.7, device=DEVICE)
    inputs = torch.cat([sample.expand(2, -1, -1, -1, -1), image_latents[:, None].expand(-1, 5, -1, -1, -1)], 2)
    exact, exact_vae = (deepcopy(part).to(DEVICE, torch.float64) for part in (pipeline.unet, pipeline.vae))
    expected = exact(inputs.double(), time, embedding.double(), ids, return_dict=False)[0]
    expected_frames = exact_vae.decode(sample[0].double(), num_frames=5).sample
    unet, vae = (deepcopy(part).to(DEVICE, dtype) for part in (pipeline.unet, pipeline.vae))
    theirs = unet(inputs.to(dtype), time, embedding.to(dtype), ids, return_dict=False)[0]
    network = FastUNet(unet)
    constants = network.constants(embedding.to(dtype), ids, image_latents.to(dtype), 5)
    ours = network(sample.to(dtype), time, constants)
    assert error(ours, expected) <= 1.2 * error(theirs, expected) + 1e-6
    theirs = vae.decode(sample[0].to(dtype), num_frames=5).sample
    assert error(FastDecoder(vae)(sample[0].to(dtype)), expected_frames) <= 1.2 * error(theirs, expected_frames) + 1e-6


@on_cuda
def test_replayed_graph_equals_eager_call() -> None:
    weight = noise(8, 8)
    replayed = Replayed(lambda x, y: (x @ weight).relu() + y)
    for i in range(4):
        x, y = noise(4, 8 + i)[:, :8], noise(4, 8, i + 1)[..., i]
        assert torch.equal(replayed(x, y), (x @ weight).relu() + y)


@on_cuda
def test_fast_engine_gives_same_video_as_reference_engine(tiny_svd: Path) -> None:
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=4, num_inference_steps=4)
    videos = {}
    for engine in ("fast", "reference"):
        videos[engine] = drive(generate(load(tiny_svd, device="cuda", dtype="float32", engine=engine), image, request))
        assert videos[engine].recipe.engine == engine
    assert abs(videos["fast"].frames.astype(int) - videos["reference"].frames).max() <= 2
