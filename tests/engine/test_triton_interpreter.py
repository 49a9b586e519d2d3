"""Compare the Triton kernels with plain torch: in Triton's interpreter, or on a CUDA device if there is one."""

from copy import deepcopy
from unittest import mock

import pytest
import torch
from kernel_inputs import CUDA, DEVICE, FP8_ROUNDING, HALF, ROUNDING, WINOGRAD, error, noise, norms, randomised

from kinema.engine.fast import fp8, fused, gpu, tuning
from kinema.engine.fast.layers import Product, ResBlock
from kinema.models.loading import VideoPipeline
from tiny import make_tiny_svd

pytest.importorskip("triton")
# NumPy, which computes in the interpreter, warns of exponentials that overflow to infinity, as they should.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

# (frames, pixels, channels): a partial block of rows and of columns, and channels that are not a power of two.
SHAPES = [(4, 70, 96), (2, 33, 160)]
TILE = (32, 64, 32, 4, 2)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return randomised(make_tiny_svd(tmp_path_factory.mktemp("fast") / "svd", levels=4, layers=2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("span", "plus"), [(1, None), (2, 1), (2, 2)], ids=["no bias", "one bias", "one bias per span"]
)
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


def test_gelu_equals_erf_formula() -> None:
    from kinema.engine.fast import kernels

    gates = torch.linspace(-30, 30, 16_384, device=DEVICE)
    out = kernels.geglu(fused.in_turn(torch.ones_like(gates), gates)[None])[0]
    assert (out - torch.nn.functional.gelu(gates.double())).abs().max() <= 4e-6


@pytest.mark.parametrize(
    ("high", "width", "channels", "out_channels"),
    [(4, 8, [64], 16), (5, 7, [40, 80], 22)],
    ids=["full tiles", "partial tiles"],
)
def test_winograd_convolution_equals_plain_torch(high: int, width: int, channels: list[int], out_channels: int) -> None:
    from kinema.engine.fast import kernels

    depth = sum(channels)
    parts, scales = (
        [noise(2, high, width, each) for each in channels],
        (noise(2, depth).float(), noise(2, depth, 1)[..., 0].float()),
    )
    weight = noise(out_channels, 9 * depth) * (9 * depth) ** -0.5
    normalised = fused.plain_normalised(
        torch.cat(parts, -1).double().flatten(1, 2), scales, silu=True, out=noise(2, high * width, depth).double()
    )
    residual, bias = noise(2, high, width, out_channels), noise(out_channels, dtype=torch.float32)
    for adding in ({}, {"kept": residual, "bias": bias}):
        out = torch.full_like(residual, torch.nan)
        sums = kernels.activated_convolved(parts, scales, weight, adding.get("kept"), adding.get("bias"), out)
        true, true_sums = fused.plain_convolved(
            normalised.view(2, high, width, depth), Product(weight.double()), torch.float64, **adding
        )
        assert error(out, true) <= WINOGRAD
        assert error(sums.sum(1), true_sums.sum(1)) <= WINOGRAD
    kernels.activated_convolved(parts, scales, weight, residual, bias, residual)
    assert torch.equal(residual, out)


@pytest.mark.parametrize("level", [0, 2], ids=["without shortcut", "with shortcut"])
def test_spatial_block_with_winograd_equals_plain_torch(
    pipeline: VideoPipeline, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the block, with and without a skip connection, with plain torch."""
    from kinema.engine.fast import winograd

    block = ResBlock.of(deepcopy(pipeline.unet.down_blocks[level].resnets[0].spatial_res_block).to(DEVICE, HALF))
    channels = block.conv1.weight.shape[1]
    x, skip = noise(1, 2, 5, 3, channels - 8), noise(1, 2, 5, 3, 8)
    arguments = {"skip": (skip, None), "before": noise(channels - 8), "shift": noise(1, len(block.bias))}
    if block.shortcut is None:
        x, arguments = noise(1, 2, 5, 3, channels), {}
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


@pytest.mark.parametrize(("videos", "frames"), [(1, 1), (2, 3)])
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


@pytest.mark.parametrize(("videos", "in_bytes"), [(1, False), (2, True)], ids=["half precision", "fp8"])
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


@pytest.mark.parametrize("frames", [1, 14, 25])
@pytest.mark.parametrize("depth", [16, 64])
def test_time_attention_equals_plain_torch(frames: int, depth: int) -> None:
    from kinema.engine.fast import kernels

    qkv = noise(2, frames, 6, 3, 3, depth)
    assert error(kernels.time_attention(qkv), fused.plain_time_attention(qkv.double())) <= ROUNDING


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


@pytest.mark.parametrize("cols", [130, 256])
def test_softmax_equals_plain_torch(cols: int) -> None:
    from kinema.engine.fast import kernels

    scores = noise(70, cols, dtype=torch.float32) * 9
    out = torch.full_like(scores, torch.nan, dtype=HALF)
    assert (
        error(kernels.softmax(scores, 0.3, out), fused.plain_softmax(scores.double(), 0.3, torch.float64)) <= ROUNDING
    )
