"""Compare the Hopper kernels with plain torch, and the fast forward on a CUDA device with diffusers."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from kernel_inputs import CUDA, DEVICE, FP8_ROUNDING, FP8_SUMS, HALF, ROUNDING, error, noise, randomised
from PIL import Image

from kinema.engine import generate
from kinema.engine.fast import FastDecoder, FastUNet
from kinema.engine.fast.cuda_graph import GraphedCallable
from kinema.engine.fast.fp8 import FP8_DTYPE, FP8_SCALE
from kinema.engine.fast.hardware import capabilities
from kinema.engine.fast.ops import attention, conv, geglu
from kinema.engine.fast.tuning import NEVER, tuned
from kinema.engine.fast.weights import PackedWeight
from kinema.media.image import open_image
from kinema.models.loading import VideoPipeline, load
from kinema.steps import drive
from kinema.values import VideoRequest
from tiny import PLAIN_TOP, UP_ALONE, make_tiny_svd

pytestmark = pytest.mark.gpu
on_cuda = pytest.mark.skipif(not CUDA, reason="no CUDA device")
on_hopper = pytest.mark.skipif(not CUDA or torch.cuda.get_device_capability() != (9, 0), reason="no NVIDIA Hopper GPU")


@on_hopper
def test_all_kernels_run_on_hopper() -> None:
    found = capabilities(torch.zeros(1, device=DEVICE).device)
    assert found.reason == ""
    assert (found.triton, found.gluon, found.sm90, found.fp8) == (True, True, True, True)


@on_hopper
@pytest.mark.parametrize("inner", [128, 352], ids=["full blocks", "partial block"])
@pytest.mark.parametrize("depth", [320, 344, 640], ids=["few K blocks", "partial K block", "many K blocks"])
def test_weight_stationary_gated_linear_equals_plain_torch(depth: int, inner: int) -> None:
    from kinema.engine.fast.kernels import hopper_geglu

    x, weight, bias = noise(70_001, depth), noise(2 * inner, depth) * depth**-0.5, noise(2 * inner)
    assert hopper_geglu.fits(x, weight)
    assert not hopper_geglu.fits(x[:1000], weight)
    true = geglu.reference_geglu_linear(x.double(), PackedWeight(weight.double(), bias.double()))
    out = torch.full((len(x), inner), torch.nan, device=DEVICE, dtype=HALF)
    assert error(hopper_geglu.geglu_linear(x, weight, bias, None, out, 1.0), true) <= ROUNDING


@on_hopper
@pytest.mark.parametrize("depth", [640, 1280], ids=["few K blocks", "many K blocks"])
def test_weight_stationary_gated_linear_in_fp8_equals_plain_torch(depth: int) -> None:
    from kinema.engine.fast.kernels import hopper_geglu

    x, inner = noise(70_001, depth), 352
    quantized, layer = (
        (x * FP8_SCALE).to(FP8_DTYPE),
        PackedWeight.quantized(noise(2 * inner, depth) * depth**-0.5, noise(704)),
    )
    assert layer.bias is not None
    assert hopper_geglu.fits(quantized, layer.weight)
    out = quantized.new_empty(len(x), inner)
    ours = hopper_geglu.geglu_linear(quantized, layer.weight, layer.bias, layer.scale, out, 2.0)
    assert error(ours, geglu.reference_geglu_linear(quantized, layer, 2.0)) <= FP8_ROUNDING


@on_hopper
@pytest.mark.parametrize("pixels", [1024, 1100], ids=["full blocks of keys", "partial block of keys"])
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
def test_frame_attention_is_as_accurate_as_library(pixels: int, dtype: torch.dtype) -> None:
    frames, heads, depth = 3, 5, attention.HOPPER_HEAD_CHANNELS
    q, k, v = noise(frames, pixels, 3, heads, depth, dtype=dtype).movedim(2, 0).transpose(2, 3)
    attended = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    true = attended.transpose(1, 2).reshape(frames, pixels, heads * depth)
    ours = error(attention.spatial_attention(q, k, v), true)
    with tuned(hopper_attention_pixels=NEVER):  # the library's attention
        assert ours <= 1.1 * error(attention.spatial_attention(q, k, v), true)


@on_hopper
@pytest.mark.parametrize(
    ("height", "width", "channels", "out_channels"),
    [(36, 64, 320, 320), (40, 70, 80, 128), (72, 128, 128, 640), (9, 16, 96, 192), (18, 30, 64, 40)],
    ids=["full tiles", "partial tiles", "many columns", "small image", "few columns"],
)
@pytest.mark.parametrize("fp8", [False, True], ids=["half precision", "fp8"])
def test_convolution_with_channel_sums_equals_plain_torch(
    height: int, width: int, channels: int, out_channels: int, *, fp8: bool
) -> None:
    from kinema.engine.fast.kernels import hopper_conv

    images = 5
    x, weight = noise(images, height, width, channels), noise(out_channels, 9 * channels) * (9 * channels) ** -0.5
    layer = PackedWeight.quantized(weight) if fp8 else PackedWeight(weight)
    x = (x * FP8_SCALE).to(FP8_DTYPE) if fp8 else x
    exact = PackedWeight(layer.weight.float(), scale=layer.scale)
    residual, bias = noise(images, height, width, out_channels), noise(out_channels, dtype=torch.float32)
    for residuals in ({}, {"residual": residual, "bias": bias}):
        out = torch.full_like(residual, torch.nan)
        sums = hopper_conv.conv(x, layer.weight, layer.scale, residuals.get("residual"), residuals.get("bias"), out)
        true, true_sums = conv.reference_conv3x3(x.float(), exact, torch.float32, **residuals)
        assert error(out, true) <= (FP8_SUMS if fp8 else ROUNDING)
        assert error(sums.sum(1), true_sums.sum(1)) <= (FP8_SUMS if fp8 else ROUNDING)
    hopper_conv.conv(x, layer.weight, layer.scale, residual, bias, residual)
    assert torch.equal(residual, out)


@on_hopper
@pytest.mark.parametrize(("videos", "frames", "pixels"), [(2, 25, 576), (1, 14, 1000), (2, 4, 70)])
@pytest.mark.parametrize("channels", [320, 384])
@pytest.mark.parametrize("fp8", [False, True], ids=["half precision", "fp8"])
def test_temporal_convolution_with_many_channels_equals_plain_torch(
    videos: int, frames: int, pixels: int, channels: int, *, fp8: bool
) -> None:
    x, weight = noise(videos * frames, pixels, channels), noise(channels, 3 * channels) * (3 * channels) ** -0.5
    layer = PackedWeight.quantized(weight) if fp8 else PackedWeight(weight)
    x = (x * FP8_SCALE).to(FP8_DTYPE) if fp8 else x
    exact = PackedWeight(layer.weight.float(), scale=layer.scale)
    wide = noise(videos * frames, pixels + 16, channels)
    residual, bias = wide[:, 8:-8], noise(channels, dtype=torch.float32)  # a non-contiguous band
    for residuals in ({}, {"residual": residual, "bias": bias}):
        out = torch.full_like(wide, torch.nan)[:, 8:-8]
        videos_x = x.view(videos, frames, pixels, channels)
        assert conv.choose_conv("temporal_conv", [videos_x], layer.weight, residual=bool(residuals)) == "hopper"
        _, sums = conv.temporal_conv(x, layer, frames, HALF, **residuals, out=out)
        true, true_sums = conv.reference_temporal_conv(x.float(), exact, frames, torch.float32, **residuals)
        assert error(out, true) <= (FP8_SUMS if fp8 else ROUNDING)
        assert error(sums.sum(1), true_sums.sum(1)) <= (FP8_SUMS if fp8 else ROUNDING)


@on_cuda
def test_attention_with_512_channels_equals_plain_torch() -> None:
    q, k, v = (noise(3, 1, 130, 512 + i)[..., :512] for i in range(3))
    true = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert error(attention.spatial_attention(q, k, v), true[:, 0]) <= ROUNDING


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
    graphed = GraphedCallable(lambda x, y: (x @ weight).relu() + y)
    for i in range(4):
        x, y = noise(4, 8 + i)[:, :8], noise(4, 8, i + 1)[..., i]
        assert torch.equal(graphed(x, y), (x @ weight).relu() + y)


@on_cuda
def test_fast_engine_gives_same_video_as_reference_engine(tiny_svd: Path) -> None:
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=4, num_inference_steps=4)
    videos = {}
    for engine in ("fast", "reference"):
        videos[engine] = drive(generate(load(tiny_svd, device="cuda", dtype="float32", engine=engine), image, request))
        assert videos[engine].recipe.engine == engine
    assert abs(videos["fast"].frames.astype(int) - videos["reference"].frames).max() <= 2
