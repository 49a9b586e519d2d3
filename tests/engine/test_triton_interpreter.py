"""Compare the Triton kernels with plain torch: in Triton's interpreter, or on a CUDA device if there is one."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest import mock

import pytest
import torch
from kernel_inputs import CUDA, DEVICE, FP8_ROUNDING, HALF, ROUNDING, WINOGRAD, error, noise, norms, randomised

from kinema.engine.fast import blocks_gpu
from kinema.engine.fast.fp8 import FP8_DTYPE, FP8_SCALE
from kinema.engine.fast.ops import attention, conv, geglu, linear, norm
from kinema.engine.fast.ops.conv import choose_conv
from kinema.engine.fast.tuning import OPERATIONS, tuned
from kinema.engine.fast.weights import PackedWeight, ResBlock, interleaved
from kinema.models.loading import VideoPipeline
from tiny import make_tiny_svd

launch, triton_gemm, triton_norm, triton_softmax, triton_temporal, winograd = (
    pytest.importorskip(f"kinema.engine.fast.kernels.{name}", reason="Triton is not installed")
    for name in ("launch", "triton_gemm", "triton_norm", "triton_softmax", "triton_temporal", "winograd")
)
# NumPy, which computes in the interpreter, warns of exponentials that overflow to infinity, as they should.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

# (frames, pixels, channels): a partial block of rows and of columns, and channels that are not a power of two.
SHAPES = [(4, 70, 96), (2, 33, 160)]
TILE = (32, 64, 32, 4, 2)
# Kernels run on tensors of any device, and matmul kernels on any GPU.
kernels = partial(tuned, interpreted=True)
plain_torch = partial(tuned, plain=OPERATIONS)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    return randomised(make_tiny_svd(tmp_path_factory.mktemp("fast") / "svd", levels=4, layers=2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("span", "frame_bias"), [(1, None), (2, 1), (2, 2)], ids=["no bias", "one bias", "one bias per span"]
)
def test_group_norm_equals_plain_torch(shape: tuple[int, int, int], span: int, frame_bias: int | None) -> None:
    frames, pixels, channels = shape
    x, (group_norm, _) = noise(*shape) + 1, norms(channels)
    bias = None if frame_bias is None else noise(1 if frame_bias == 1 else frames // span, channels)
    sums = triton_norm.channel_sums(x)
    parts = group_norm.groups, group_norm.weight, group_norm.bias, group_norm.eps
    scales = triton_norm.group_norm_scales(sums, *parts, span, pixels, bias)
    true_scales = norm.reference_group_norm_scales(
        norm.reference_channel_sums(x), group_norm, pixels, span=span, frame_bias=bias
    )
    assert error(torch.cat(scales), torch.cat(true_scales)) <= ROUNDING
    for silu in (False, True):
        true = norm.reference_apply_group_norm(x, true_scales, span=span, silu=silu, out=torch.empty_like(x))
        out = torch.full_like(x, torch.nan)
        assert error(triton_norm.apply_group_norm(x, *scales, span, out, silu=silu), true) <= ROUNDING
        band, part = x[:, 5:20], out.fill_(torch.nan)[:, 5:20]
        assert error(triton_norm.apply_group_norm(band, *scales, span, part, silu=silu), true[:, 5:20]) <= ROUNDING
        half = torch.full_like(x.repeat(1, 1, 2), torch.nan)
        half_scales = [each.repeat(1, 2)[:, channels:] for each in scales]
        assert (
            error(triton_norm.apply_group_norm(x, *half_scales, span, half[..., channels:], silu=silu), true)
            <= ROUNDING
        )
    quantized = torch.empty_like(x, dtype=FP8_DTYPE)
    true = norm.reference_apply_group_norm(x, true_scales, span=span, out=quantized.clone())
    assert error(triton_norm.apply_group_norm(x, *scales, span, quantized, silu=False), true) <= FP8_ROUNDING


@pytest.mark.parametrize("shape", SHAPES)
def test_channel_sums_and_add_equal_plain_torch(shape: tuple[int, int, int]) -> None:
    x, y, bias = noise(*shape), noise(*shape) + 1, noise(shape[-1], dtype=torch.float32)
    assert error(triton_norm.channel_sums(x).sum(1), norm.reference_channel_sums(x).sum(1)) <= 1e-5
    out, true = torch.full_like(x, torch.nan), torch.empty_like(x)
    sums, true_sums = triton_norm.add(x, y, bias, out), norm.reference_add(x, y, bias, true)
    assert error(out, true) <= ROUNDING
    assert error(sums.sum(1), true_sums.sum(1)) <= ROUNDING
    band = slice(5, 20)
    part = torch.full_like(x, torch.nan)[:, band]
    triton_norm.add(x[:, band], y[:, band], bias, part)
    assert torch.equal(part, out[:, band])
    triton_norm.add(x, y, bias, x)
    assert torch.equal(x, out)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norms_equal_plain_torch(shape: tuple[int, int, int]) -> None:
    frames, _, channels = shape
    x, y = noise(*shape).flatten(0, 1), (noise(*shape) + 1).flatten(0, 1)
    _, weights = norms(channels)
    frame_bias = noise(frames, channels, dtype=torch.float32)
    blend_bias = noise(frames, channels, 1, dtype=torch.float32)[..., 0]
    parts = (weights.weight, weights.bias, weights.eps)
    assert error(triton_norm.layer_norm(x, *parts), norm.reference_layer_norm(x, weights)) <= ROUNDING
    assert (
        error(triton_norm.layer_norm(x, *parts, frame_bias), norm.reference_layer_norm(x, weights, frame_bias))
        <= ROUNDING
    )
    ours, true = y.clone(), y.clone()
    out = triton_norm.layer_norm(x, *parts, frame_bias, add_to=ours)
    assert error(out, norm.reference_add_layer_norm(x, true, weights, frame_bias)) <= ROUNDING
    assert error(ours, true) <= ROUNDING
    ours, true = y.clone(), y.clone()
    out = triton_norm.layer_norm(x, *parts, frame_bias, mix_into=ours, blend_bias=blend_bias, alpha=0.3)
    assert error(out, norm.reference_mix_layer_norm(x, true, weights, frame_bias, blend_bias, 0.3)) <= ROUNDING
    assert error(ours, true) <= ROUNDING
    quantized = triton_norm.layer_norm(x, *parts, frame_bias, quantize=True)
    assert error(quantized, norm.reference_layer_norm(x, weights, frame_bias, quantize=True)) <= FP8_ROUNDING


@pytest.mark.parametrize("persistent", [0, 1], ids=["one tile per program", "several tiles per program"])
@pytest.mark.parametrize(("rows", "depth", "inner"), [pytest.param(70, 96, 384, marks=pytest.mark.slow), (33, 64, 96)])
def test_linear_kernels_equal_plain_torch(rows: int, depth: int, inner: int, persistent: int) -> None:
    x, weight, bias = noise(rows, depth), noise(2 * inner, depth) * depth**-0.5, noise(2 * inner)
    true = geglu.reference_geglu_linear(x.double(), PackedWeight(weight.double(), bias.double()))
    assert error(triton_gemm.geglu(torch.nn.functional.linear(x, weight, bias)), true) <= ROUNDING
    quantized = (x * FP8_SCALE).to(FP8_DTYPE)
    layer = PackedWeight.quantized(weight, bias)
    operands = layer.weight, layer.bias, layer.scale
    with tuned(gemm_tiles=dict.fromkeys((1, 2), (*TILE, persistent))):
        out = x.new_empty(rows, inner)
        assert error(triton_gemm.matmul(x, weight, bias, None, out, geglu=True), true) <= ROUNDING
        out = x.new_empty(rows, inner, dtype=FP8_DTYPE)
        ours = triton_gemm.matmul(quantized, *operands, out, geglu=True, out_scale=2.0)
        assert error(ours, geglu.reference_geglu_linear(quantized, layer, 2.0)) <= FP8_ROUNDING
        true = linear.reference_packed_linear(quantized, layer, HALF)
        out = torch.full_like(true, torch.nan)
        assert error(triton_gemm.matmul(quantized, *operands, out), true) <= ROUNDING
        residual = noise(rows, 2 * inner)
        true = residual + linear.reference_packed_linear(
            quantized, PackedWeight(weight=layer.weight, scale=layer.scale), torch.float32
        )
        ours = triton_gemm.matmul(quantized, layer.weight, None, layer.scale, residual, add=True)
        assert error(ours, true) <= ROUNDING


def test_gelu_equals_erf_formula() -> None:
    gates = torch.linspace(-30, 30, 16_384, device=DEVICE)
    out = triton_gemm.geglu(interleaved(torch.ones_like(gates), gates)[None])[0]
    assert (out - torch.nn.functional.gelu(gates.double())).abs().max() <= 4e-6


@pytest.mark.parametrize(
    ("height", "width", "channels", "out_channels"),
    [pytest.param(4, 8, [64], 16, marks=pytest.mark.slow), (5, 3, [40, 80], 10)],
    ids=["full tiles", "partial tiles"],
)
def test_winograd_convolution_equals_plain_torch(
    height: int, width: int, channels: list[int], out_channels: int
) -> None:
    depth = sum(channels)
    parts, scales = (
        [noise(2, height, width, each) for each in channels],
        (noise(2, depth).float(), noise(2, depth, 1)[..., 0].float()),
    )
    weight = noise(out_channels, 9 * depth) * (9 * depth) ** -0.5
    normalized = norm.reference_apply_group_norm(
        torch.cat(parts, -1).double().flatten(1, 2), scales, silu=True, out=noise(2, height * width, depth).double()
    )
    residual, bias = noise(2, height, width, out_channels), noise(out_channels, dtype=torch.float32)
    for residuals in ({}, {"residual": residual, "bias": bias}):
        out = torch.full_like(residual, torch.nan)
        sums = winograd.norm_silu_conv3x3(parts, scales, weight, residuals.get("residual"), residuals.get("bias"), out)
        true, true_sums = conv.reference_conv3x3(
            normalized.view(2, height, width, depth), PackedWeight(weight.double()), torch.float64, **residuals
        )
        assert error(out, true) <= WINOGRAD
        assert error(sums.sum(1), true_sums.sum(1)) <= WINOGRAD
    winograd.norm_silu_conv3x3(parts, scales, weight, residual, bias, residual)
    assert torch.equal(residual, out)


@pytest.mark.parametrize(
    "level", [pytest.param(0, marks=pytest.mark.slow), 2], ids=["without shortcut", "with shortcut"]
)
def test_spatial_block_with_winograd_equals_plain_torch(pipeline: VideoPipeline, level: int) -> None:
    """Compare the block, with and without a skip connection, with plain torch."""
    block = ResBlock.of(deepcopy(pipeline.unet.down_blocks[level].resnets[0].spatial_res_block).to(DEVICE, HALF))
    channels = block.conv1.weight.shape[1]
    x, skip = noise(1, 1, 5, 3, channels - 8), noise(1, 1, 5, 3, 8)
    arguments = {"skip": (skip, None), "pending_bias": noise(channels - 8), "shift": noise(1, len(block.bias))}
    if block.shortcut is None:
        x, arguments = noise(1, 1, 5, 3, channels), {}
    with plain_torch():
        true, true_sums = blocks_gpu.spatial_resblock(block, x, **arguments)
    with (
        kernels(winograd_channels=1, winograd_pixels=1),
        mock.patch.object(winograd, "norm_silu_conv3x3", wraps=winograd.norm_silu_conv3x3) as convolution,
    ):
        out, sums = blocks_gpu.spatial_resblock(block, x, **arguments)
        assert convolution.call_count == 2
        assert error(out, true) <= ROUNDING
        assert error(sums.sum(1), true_sums.sum(1)) <= ROUNDING
        same, _ = blocks_gpu.spatial_resblock(block, x, **arguments, out=x if block.shortcut is None else None)
        assert torch.equal(same, out)


def test_winograd_convolution_of_large_values_does_not_overflow() -> None:
    x, weight = torch.full((1, 6, 6, 16), 6e4, dtype=HALF, device=DEVICE), noise(16, 9 * 16) * 1e-2
    signs = torch.tensor(
        [0.0, -1, -1, 1, 1, 0], device=DEVICE
    )  # with this mask a transform adds a whole line of pixels
    x *= (signs[:, None] * signs > 0)[None, ..., None]
    scales = torch.ones(1, 16, device=DEVICE), torch.zeros(1, 16, device=DEVICE)
    true, _ = conv.reference_conv3x3(x.double(), PackedWeight(weight.double()), torch.float64)
    out = torch.full_like(x, torch.nan)
    winograd.norm_silu_conv3x3([x], scales, weight, None, None, out)
    assert error(out, true) <= WINOGRAD


def test_winograd_is_used_for_large_float16_convolutions_only() -> None:
    def chosen(*shape: int, columns: int = 640, dtype: torch.dtype = HALF) -> str:
        x = torch.empty(shape, dtype=dtype, device=DEVICE)
        return choose_conv("norm_silu_conv3x3", [x, x], x.new_empty(columns, 9 * 2 * shape[-1]))

    with kernels():
        assert chosen(50, 18, 32, 320) == "winograd"
        assert chosen(50, 18, 32, 320, dtype=torch.bfloat16) == "torch"
        assert chosen(50, 18, 32, 320, columns=320) == "torch"
        assert chosen(50, 18, 32, 160) == "torch"
        assert chosen(2, 18, 32, 320) == "torch"


@pytest.mark.parametrize(("videos", "frames"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(
    ("pixels", "channels", "out_channels"), [(40, 48, 80), pytest.param(33, 32, 64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("fp8", [False, True], ids=["half precision", "fp8"])
def test_temporal_convolution_equals_plain_torch(
    videos: int, frames: int, pixels: int, channels: int, out_channels: int, *, fp8: bool
) -> None:
    x, weight = noise(videos * frames, pixels, channels), noise(out_channels, 3 * channels) * channels**-0.5
    layer = PackedWeight.quantized(weight) if fp8 else PackedWeight(weight)
    x = (x * FP8_SCALE).to(FP8_DTYPE) if fp8 else x
    exact = PackedWeight(layer.weight.float(), scale=layer.scale)
    wide = noise(videos * frames, pixels + 9, out_channels)
    residual, bias = wide[:, 5:-4], noise(out_channels, dtype=torch.float32)  # a non-contiguous band

    def ours(out: torch.Tensor, **residuals: torch.Tensor) -> torch.Tensor:
        with kernels(temporal_conv_tiles=dict.fromkeys(("fp8", "few channels"), (*TILE, 0))):
            operands = layer.weight, layer.scale, frames, residuals.get("residual"), residuals.get("bias"), out
            return triton_temporal.temporal_conv(x, *operands)

    for residuals in ({}, {"residual": residual, "bias": bias}):
        out = torch.full_like(wide, torch.nan)[:, 5:-4]
        sums = ours(out, **residuals)
        true, true_sums = conv.reference_temporal_conv(x.float(), exact, frames, torch.float32, **residuals)
        assert error(out, true) <= ROUNDING
        sums = sums.view(len(true_sums), -1, 2, out_channels)
        assert error(sums.sum(1), true_sums.sum(1)) <= ROUNDING
    ours(residual, residual=residual, bias=bias)
    assert torch.equal(residual, out)


@pytest.mark.parametrize(("videos", "fp8"), [(1, False), (2, True)], ids=["half precision", "fp8"])
def test_temporal_block_in_bands_equals_plain_torch(pipeline: VideoPipeline, videos: int, *, fp8: bool) -> None:
    """Compare a temporal block that runs in several bands with plain torch."""
    module = deepcopy(pipeline.unet.down_blocks[0].resnets[0].temporal_res_block).to(DEVICE, HALF)
    block = ResBlock.of(module, fp8=fp8)
    x = noise(videos, 3, 5, 13, block.conv1.weight.shape[1])
    with plain_torch():
        true, true_sums = blocks_gpu.temporal_resblock(block, x)
    with kernels(chunk_elements=x.numel() // 4):
        out, sums = blocks_gpu.temporal_resblock(block, x, out=x)
    assert out is x
    assert error(out, true) <= (FP8_ROUNDING if fp8 else ROUNDING)
    assert error(sums.sum(1), true_sums.sum(1)) <= (FP8_ROUNDING if fp8 else ROUNDING)


@pytest.mark.parametrize("frames", [1, 14, 25])
@pytest.mark.parametrize("depth", [16, 64])
def test_temporal_attention_equals_plain_torch(frames: int, depth: int) -> None:
    qkv = noise(2, frames, 6, 3, 3, depth)
    assert (
        error(triton_temporal.temporal_attention(qkv), attention.reference_temporal_attention(qkv.double())) <= ROUNDING
    )


def test_compiled_together_compiles_without_launch() -> None:
    x, y, bias = noise(4, 70, 96), noise(4, 70, 96) + 1, noise(96, dtype=torch.float32)
    out = torch.full_like(x, torch.nan)
    with launch.compiled_together():
        triton_norm.add(x, y, bias, out)
        triton_norm.channel_sums(x)
    assert out.isnan().all()
    if CUDA:
        compiled = [len(caches[0]) for caches in triton_norm._channel_sums.device_caches.values()]
    triton_norm.add(x, y, bias, out)
    triton_norm.channel_sums(x)
    assert error(out, x + y + bias) <= ROUNDING
    if CUDA:
        assert [len(caches[0]) for caches in triton_norm._channel_sums.device_caches.values()] == compiled


@pytest.mark.parametrize("cols", [130, 256])
def test_softmax_equals_plain_torch(cols: int) -> None:
    scores = noise(70, cols, dtype=torch.float32) * 9
    out = torch.full_like(scores, torch.nan, dtype=HALF)
    assert (
        error(
            triton_softmax.softmax(scores, 0.3, out), attention.reference_softmax(scores.double(), 0.3, torch.float64)
        )
        <= ROUNDING
    )


# A wrong mask and a wrong scale for each kernel. The masks of loads stay: without them a kernel reads foreign memory.
FAULTS: dict[str, tuple[str, str, str, Callable[[], None]]] = {
    "channel sums, mask": (
        "triton_norm",
        "value = tl.load(x + n * x_frame_stride + offsets, mask, 0.0)",
        "value = tl.load(x + n * x_frame_stride + offsets, mask, 1.0)",
        partial(test_channel_sums_and_add_equal_plain_torch, SHAPES[0]),
    ),
    "channel sums, scale": (
        "triton_norm",
        "square += value * value",
        "square += value * value * 1.01",
        partial(test_channel_sums_and_add_equal_plain_torch, SHAPES[1]),
    ),
    "group norm, mask": (
        "triton_norm",
        "total += tl.load(ptrs, mask, 0.0)",
        "total += tl.load(ptrs, mask, 1.0)",
        partial(test_group_norm_equals_plain_torch, SHAPES[1], 1, None),
    ),
    "group norm, scale": (
        "triton_norm",
        "value = value * factor[None, :] + offset[None, :]",
        "value = value * factor[None, :] * 1.01 + offset[None, :]",
        partial(test_group_norm_equals_plain_torch, SHAPES[1], 1, None),
    ),
    "fp8, scale": (
        "triton_norm",
        "tl.clamp(value * fp8_scale, -448.0, 448.0)",
        "tl.clamp(value * fp8_scale * 1.3, -448.0, 448.0)",
        partial(test_group_norm_equals_plain_torch, SHAPES[1], 1, None),
    ),
    "layer norm, mask": (
        "triton_norm",
        "tl.where(col_mask[None, :], value - mean, 0.0)",
        "value - mean",
        partial(test_layer_norms_equal_plain_torch, SHAPES[0]),
    ),
    "layer norm, scale": (
        "triton_norm",
        "mixed = alpha * value + (1 - alpha)",
        "mixed = alpha * value + (1.01 - alpha)",
        partial(test_layer_norms_equal_plain_torch, SHAPES[0]),
    ),
    "GEGLU, mask": (
        "triton_gemm",
        "mask = (row < rows)[:, None] & (col < inner)[None, :]",
        "mask = (row < rows)[:, None] & (col < inner - 1)[None, :]",
        partial(test_linear_kernels_equal_plain_torch, 33, 64, 96, 0),
    ),
    "GEMM, mask": (
        "triton_gemm",
        "acc += tl.load(bias + col, col < cols, 0.0)",
        "acc += tl.load(bias + col, col < cols - 1, 0.0)",
        partial(test_linear_kernels_equal_plain_torch, 33, 64, 96, 0),
    ),
    "GEMM, scale": (
        "triton_gemm",
        "acc *= tl.load(scale + col, col < cols, 0.0)[None, :]",
        "acc *= tl.load(scale + col, col < cols, 0.0)[None, :] * 1.01",
        partial(test_linear_kernels_equal_plain_torch, 33, 64, 96, 0),
    ),
    "GELU, scale": ("triton_gemm", "- 2.3020436763763428", "- 2.3030436763763428", test_gelu_equals_erf_formula),
    "temporal convolution, mask": (
        "triton_temporal",
        "tl.maximum(1 - frame, 0) * depth_steps",
        "tl.maximum(2 - frame, 0) * depth_steps",
        partial(test_temporal_convolution_equals_plain_torch, 2, 3, 33, 32, 64, fp8=False),
    ),
    "temporal convolution, scale": (
        "triton_temporal",
        "acc *= tl.load(scale + col, col_mask, 0.0)[None, :]",
        "acc *= tl.load(scale + col, col_mask, 0.0)[None, :] * 1.01",
        partial(test_temporal_convolution_equals_plain_torch, 2, 3, 33, 32, 64, fp8=True),
    ),
    "temporal attention, mask": (
        "triton_temporal",
        'scores = tl.where((f < frames)[None, :], scores, float("-inf"))',
        "scores = scores",
        partial(test_temporal_attention_equals_plain_torch, 14, 16),
    ),
    "temporal attention, scale": (
        "triton_temporal",
        "tl.dot(q, tl.trans(k)) * scale",
        "tl.dot(q, tl.trans(k)) * scale * 1.05",
        partial(test_temporal_attention_equals_plain_torch, 14, 16),
    ),
    "softmax, mask": (
        "triton_softmax",
        'col < cols, float("-inf")',
        "col < cols, 0.0",
        partial(test_softmax_equals_plain_torch, 130),
    ),
    "softmax, scale": (
        "triton_softmax",
        'float("-inf")) * scale',
        'float("-inf")) * scale * 1.01',
        partial(test_softmax_equals_plain_torch, 130),
    ),
    "Winograd, mask": (
        "winograd",
        "(y >= 0) & (y < height)",
        "(y >= 0) & (y < height - 1)",
        partial(test_winograd_convolution_equals_plain_torch, 4, 8, [64], 16),
    ),
    "Winograd weights, mask": (
        "winograd",
        "(row < out_channels)[:, None] & (col < channels)[None, :]",
        "(row < out_channels)[:, None] & (col < channels - 1)[None, :]",
        partial(test_winograd_convolution_equals_plain_torch, 4, 8, [64], 16),
    ),
    "Winograd, scale": (
        "winograd",
        "value /= INPUT_SCALE",
        "value /= INPUT_SCALE * 1.01",
        partial(test_winograd_convolution_equals_plain_torch, 4, 8, [64], 16),
    ),
}


# One mask and one scale in every run of the tests, the others among the slow ones.
OFTEN = ("group norm, mask", "GEMM, scale")


@pytest.mark.parametrize(
    "fault", [fault if fault in OFTEN else pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS]
)
def test_planted_fault_in_kernel_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, right, wrong, check = FAULTS[fault]
    source = Path(globals()[name].__file__).read_text("utf-8")
    assert source.count(right) == 1
    path = tmp_path / f"{name}.py"
    path.write_text(source.replace(right, wrong), "utf-8")
    spec = spec_from_file_location(f"planted_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    planted = module_from_spec(spec)
    spec.loader.exec_module(planted)
    monkeypatch.setitem(globals(), name, planted)
    with pytest.raises(AssertionError):
        check()
