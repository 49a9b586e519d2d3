"""Compare the fast forward with diffusers' own for every supported shape, batch and dtype."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.engine import generate
from kinema.engine.fast import FastDecoder, FastUNet, blocks_gpu, onednn
from kinema.engine.fast.fp8 import FP8_DTYPE
from kinema.engine.fast.ops import conv, norm
from kinema.engine.fast.ops.linear import linear, linear_add, linear_gelu, linear_multiply
from kinema.engine.fast.prefetch import Prefetched
from kinema.engine.fast.tuning import tuned
from kinema.engine.fast.weights import Linear, PackedWeight, ResBlock
from kinema.errors import InvalidRequest
from kinema.media.image import open_image
from kinema.models import loading
from kinema.models.catalog import POCKET_FOLDER
from kinema.models.loading import VideoPipeline, load
from kinema.models.memory_plan import MemoryPlan
from kinema.models.offload import place
from kinema.settings import Settings
from kinema.steps import drive
from kinema.values import VideoRequest
from tiny import PLAIN_TOP, UP_ALONE, make_tiny_svd

# Relative error in float64. A norm over few pixels divides by a small variance, which amplifies rounding errors.
EXACT = 1e-9

SLOW = pytest.mark.slow  # some cases of tests that have very many
SHAPES = {
    "two levels": {},
    "four levels": {"levels": 4, "latent_channels": 8},
    "two layers": {"layers": 2, "seed": 3},
    "first level without attention": PLAIN_TOP,
    "first level with attention in the up blocks only": {**UP_ALONE, "vae_levels": 2},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    folder = make_tiny_svd(tmp_path_factory.mktemp("fast") / "svd", **request.param)
    return randomised(load(folder, device="cpu", dtype="float32", engine="reference"))


def randomised(pipeline: VideoPipeline) -> VideoPipeline:
    """Randomise norms, biases and mix factors: the initial values 1, 0 and 0.5 can hide errors."""
    generator = torch.Generator().manual_seed(5)
    for part in (pipeline.unet, pipeline.vae):
        for parameter in part.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return pipeline


def conditions(pipeline: VideoPipeline, *, videos: int, frames: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    channels, dtype = pipeline.latent_channels, pipeline.unet.dtype
    return {
        "sample": noise(videos, frames, channels, *size).to(dtype),
        "embedding": noise(videos, 1, pipeline.unet.config.cross_attention_dim).to(dtype),
        "time_ids": torch.tensor([[6.0, 127.0, 0.02]]).repeat(videos, 1),
        "image_latents": noise(videos, channels, *size).to(dtype),
    }


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def as_guided(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prepend the unconditional half, as the engine does; both halves share the sample."""
    zeros = {name: torch.zeros_like(inputs[name]) for name in ("embedding", "image_latents")}
    both = {name: torch.cat([zeros[name], inputs[name]]) for name in zeros}
    return inputs | both | {"time_ids": inputs["time_ids"].repeat(2, 1)}


TIME = torch.tensor(0.7)
CPU = torch.device("cpu")


@pytest.fixture
def gpu_blocks() -> Iterator[None]:
    """Run the order of work for GPUs on the CPU."""
    with tuned(gpu_blocks=True):
        yield


@torch.no_grad()
def reference(unet: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    frames = inputs["sample"].shape[1]
    image_latents = inputs["image_latents"][:, None].expand(-1, frames, -1, -1, -1)
    sample = inputs["sample"].repeat(len(image_latents) // len(inputs["sample"]), 1, 1, 1, 1)
    sample = torch.cat([sample, image_latents], 2)
    return unet(sample, TIME, inputs["embedding"], inputs["time_ids"], return_dict=False)[0]


def fast(unet: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    network, sample = FastUNet(unet), inputs["sample"]
    constants = network.constants(inputs["embedding"], inputs["time_ids"], inputs["image_latents"], sample.shape[1])
    return network(sample, TIME, constants)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.fixture(scope="module")
def exact(pipeline: VideoPipeline) -> VideoPipeline:
    """Return the pipeline in float64, where an error can't be mistaken for rounding."""
    return replace(pipeline, unet=deepcopy(pipeline.unet).double(), vae=deepcopy(pipeline.vae).double())


@pytest.mark.parametrize("size", [(9, 11), *(pytest.param(size, marks=SLOW) for size in ((16, 8), (1, 16), (10, 2)))])
@pytest.mark.parametrize("frames", [1, pytest.param(2, marks=SLOW), 7])
@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
def test_unet_equals_diffusers_in_float64(
    exact: VideoPipeline, size: tuple[int, int], frames: int, guided: bool
) -> None:
    inputs = conditions(exact, videos=1, frames=frames, size=size)
    inputs = as_guided(inputs) if guided else inputs
    assert relative_error(fast(exact.unet, inputs), reference(exact.unet, inputs)) <= EXACT


@pytest.mark.parametrize(
    ("frames", "size"),
    [
        pytest.param(25, (16, 16), marks=SLOW),
        (3, (17, 19)),
        pytest.param(2, (40, 32), marks=SLOW),
        (1, (20, 36)),
    ],
)
def test_unet_equals_diffusers_in_float32(pipeline: VideoPipeline, frames: int, size: tuple[int, int]) -> None:
    inputs = as_guided(conditions(pipeline, videos=1, frames=frames, size=size))
    assert relative_error(fast(pipeline.unet, inputs), reference(pipeline.unet, inputs)) <= 1e-5


def test_spatial_attention_is_equal_with_and_without_amx(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At this size one level has a number of pixels that both implementations support.
    inputs = conditions(pipeline, videos=1, frames=1, size=(48, 48))
    outputs = []
    for amx in (True, False):
        monkeypatch.setattr(onednn, "_has_amx", lambda amx=amx: amx)
        outputs.append(fast(pipeline.unet, inputs))
    assert relative_error(*outputs) <= 1e-5


def test_unet_batch_with_different_time_ids_equals_diffusers(exact: VideoPipeline) -> None:
    inputs = conditions(exact, videos=2, frames=3, size=(8, 8))
    inputs["time_ids"][1] = torch.tensor([29.0, 5.0, 0.5])
    assert relative_error(fast(exact.unet, inputs), reference(exact.unet, inputs)) <= EXACT


def test_guided_unet_batch_equals_diffusers(exact: VideoPipeline) -> None:
    inputs = as_guided(conditions(exact, videos=2, frames=3, size=(8, 8)))
    assert relative_error(fast(exact.unet, inputs), reference(exact.unet, inputs)) <= EXACT


def test_constants_are_reusable_across_steps(pipeline: VideoPipeline) -> None:
    inputs = conditions(pipeline, videos=1, frames=3, size=(8, 8))
    network = FastUNet(pipeline.unet)
    constants = network.constants(inputs["embedding"], inputs["time_ids"], inputs["image_latents"], 3)
    network(inputs["sample"] * 3, torch.tensor(1.5), constants)
    assert torch.equal(network(inputs["sample"], TIME, constants), fast(pipeline.unet, inputs))


def test_inputs_and_weights_are_unchanged(pipeline: VideoPipeline) -> None:
    inputs = conditions(pipeline, videos=1, frames=3, size=(8, 8))
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    weights = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    fast(pipeline.unet, inputs)
    assert all(torch.equal(inputs[name], tensor) for name, tensor in before.items())
    after = pipeline.unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    latents = noise(3, pipeline.latent_channels, 4, 6)
    original = latents.clone()
    FastDecoder(pipeline.vae)(latents)
    assert torch.equal(latents, original)


@pytest.mark.parametrize("size", [(8, 8), (3, 5), (1, 4)])
@pytest.mark.parametrize("frames", [1, pytest.param(2, marks=SLOW), 7])
@torch.no_grad()
def test_decoder_equals_diffusers_in_float64(exact: VideoPipeline, size: tuple[int, int], frames: int) -> None:
    latents = noise(frames, exact.latent_channels, *size).double()
    theirs = exact.vae.decode(latents, num_frames=frames).sample
    assert relative_error(FastDecoder(exact.vae)(latents), theirs) <= EXACT


@torch.no_grad()
def test_decoder_equals_diffusers_in_float32(pipeline: VideoPipeline) -> None:
    latents = noise(5, pipeline.latent_channels, 9, 8)
    theirs = pipeline.vae.decode(latents, num_frames=5).sample
    assert relative_error(FastDecoder(pipeline.vae)(latents), theirs) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=SLOW)])
@torch.no_grad()
def test_half_precision_error_is_within_1_2_times_diffusers(exact: VideoPipeline, dtype: torch.dtype) -> None:
    inputs = as_guided(conditions(exact, videos=1, frames=4, size=(16, 12)))
    latents = noise(4, exact.latent_channels, 4, 6)
    expected, expected_frames = reference(exact.unet, inputs), exact.vae.decode(latents.double(), num_frames=4).sample
    halves = {name: tensor.to(dtype) for name, tensor in inputs.items()} | {"time_ids": inputs["time_ids"]}
    unet, vae = deepcopy(exact.unet).to(dtype), deepcopy(exact.vae).to(dtype)
    ours, theirs = (relative_error(run(unet, halves), expected) for run in (fast, reference))
    assert ours <= 1.2 * theirs
    latents = latents.to(dtype)
    theirs = relative_error(vae.decode(latents, num_frames=4).sample, expected_frames)
    assert relative_error(FastDecoder(vae)(latents), expected_frames) <= 1.2 * theirs


@pytest.mark.parametrize("size", [pytest.param((16, 8), marks=SLOW), (9, 11), pytest.param((1, 16), marks=SLOW)])
@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
@pytest.mark.usefixtures("gpu_blocks")
@torch.no_grad()
def test_gpu_implementation_equals_diffusers_on_cpu(
    exact: VideoPipeline, size: tuple[int, int], videos: int, guided: bool
) -> None:
    inputs = conditions(exact, videos=videos, frames=3, size=size)
    inputs["time_ids"][-1] = torch.tensor([29.0, 5.0, 0.5])
    inputs = as_guided(inputs) if guided else inputs
    latents = inputs["image_latents"].repeat(2, 1, 1, 1)[:, :, :3, :5]
    theirs = exact.vae.decode(latents, num_frames=len(latents)).sample
    with tuned(chunk_elements=2**14):  # small enough for several chunks
        assert relative_error(fast(exact.unet, inputs), reference(exact.unet, inputs)) <= EXACT
        assert relative_error(FastDecoder(exact.vae)(latents), theirs) <= EXACT


@pytest.mark.usefixtures("gpu_blocks")
@torch.no_grad()
def test_gpu_implementation_computes_channel_sums_of_each_tensor_once(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = []

    def recording(x: torch.Tensor) -> torch.Tensor:
        summed.append(x)  # keep a reference, so that no memory is reused
        return norm.reference_channel_sums(x)

    for module in (norm, conv, blocks_gpu):
        monkeypatch.setattr(module, "channel_sums", recording)
    fast(pipeline.unet, as_guided(conditions(pipeline, videos=1, frames=3, size=(16, 8))))
    assert len({(x.data_ptr(), x.shape) for x in summed}) == len(summed)


@pytest.mark.usefixtures("gpu_blocks")
@pytest.mark.parametrize("fp8", [False, True])
@torch.no_grad()
def test_streamed_unet_equals_resident_unet(pipeline: VideoPipeline, *, fp8: bool) -> None:
    inputs = as_guided(conditions(pipeline, videos=1, frames=3, size=(16, 8)))
    networks = [FastUNet(pipeline.unet, fp8=fp8, stream_to=place) for place in (None, CPU)]
    stages = networks[1].stages
    assert isinstance(stages, Prefetched)
    assert sum(map(len, stages.buffers)) < sum(map(len, stages.pinned))
    first = inputs["sample"]
    for sample in (first, first + 1):
        outputs = []
        for network in networks:
            constants = network.constants(inputs["embedding"], inputs["time_ids"], inputs["image_latents"], 3)
            outputs.append(network(sample, TIME, constants))
        assert torch.equal(*outputs)


def test_streamed_views_of_one_tensor_share_storage() -> None:
    weight = torch.randn(3, 5)
    stages = Prefetched(
        [(Linear(weight.t(), torch.ones(3)), PackedWeight(weight)), (Linear(weight, weight[0]), None)], CPU
    )
    assert len(stages.pinned[0]) == 2 * 256
    for _ in range(2):
        iterator = iter(stages)
        layer, packed = next(iterator)
        assert torch.equal(layer.weight, weight.t())
        assert torch.equal(packed.weight, weight)
        assert layer.weight.data_ptr() == packed.weight.data_ptr()
        layer, absent = next(iterator)
        assert torch.equal(layer.weight, weight)
        assert absent is None


def test_fp8_does_not_convert_winograd_convolutions(pipeline: VideoPipeline) -> None:
    block = deepcopy(pipeline.unet.down_blocks[-1].resnets[0]).half()
    channels = block.spatial_res_block.conv2.weight.shape[0]
    with tuned(winograd_channels=channels):
        spatial = ResBlock.of(block.spatial_res_block, fp8=True)
        temporal = ResBlock.of(block.temporal_res_block, fp8=True)
    assert spatial.packed is not None
    assert temporal.packed is not None
    assert spatial.packed[1].weight.data_ptr() == spatial.conv2.weight.data_ptr()
    assert {packed.weight.dtype for packed in temporal.packed} == {FP8_DTYPE}
    with tuned(winograd_channels=channels + 1):
        packed_convs = ResBlock.of(block.spatial_res_block, fp8=True).packed
    assert packed_convs is not None
    assert {packed.weight.dtype for packed in packed_convs} == {FP8_DTYPE}


@pytest.mark.parametrize("size", [pytest.param((16, 8), marks=SLOW), (9, 11)])
@pytest.mark.usefixtures("gpu_blocks")
@torch.no_grad()
def test_fp8_unet_is_close_to_diffusers(exact: VideoPipeline, size: tuple[int, int]) -> None:
    """A mantissa of 3 bits gives a random error of up to 6% per element; the errors average out in sums."""
    inputs = as_guided(conditions(exact, videos=1, frames=3, size=size))
    network = FastUNet(exact.unet, fp8=True)
    constants = network.constants(inputs["embedding"], inputs["time_ids"], inputs["image_latents"], 3)
    error = relative_error(network(inputs["sample"], TIME, constants), reference(exact.unet, inputs))
    assert 1e-4 < error < 0.1


@pytest.mark.slow
@torch.no_grad()
def test_pocket_equals_diffusers() -> None:
    pocket = load(POCKET_FOLDER, device="cpu", dtype="float32", engine="reference")
    inputs = as_guided(conditions(pocket, videos=1, frames=3, size=(20, 36)))
    assert relative_error(fast(pocket.unet, inputs), reference(pocket.unet, inputs)) <= 1e-5
    theirs = pocket.vae.decode(inputs["sample"][0], num_frames=3).sample
    assert (FastDecoder(pocket.vae)(inputs["sample"][0]) - theirs).abs().max() <= 1 / 255


def test_weights_in_usable_layout_are_not_copied(tiny_svd: Path) -> None:
    unet = load(tiny_svd, device="cpu", dtype="float32").unet
    network = FastUNet(unet)
    layer = network.stages[0].transformer.layers[0]
    wide = unet.down_blocks[0].attentions[0].transformer_blocks[0].ff.net[0].proj.weight
    assert layer.feed_forward.value.weight.data_ptr() == wide.data_ptr()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert layer.attention.qkv.data_ptr() == attention.to_q.weight.data_ptr()
    convolution = unet.down_blocks[0].resnets[0].spatial_res_block.conv1
    assert network.stages[0].block.spatial.conv1.weight.data_ptr() == convolution.weight.data_ptr()


def test_recipe_has_engine(tiny_svd: Path) -> None:
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=4, num_inference_steps=2)
    videos = {}
    for engine in ("fast", "reference"):
        videos[engine] = drive(generate(load(tiny_svd, device="cpu", dtype="float32", engine=engine), image, request))
        assert videos[engine].recipe.engine == engine
    difference = videos["fast"].frames.astype(int) - videos["reference"].frames
    assert abs(difference).max() <= 1


def test_out_of_memory_in_fast_decoder_halves_decode_chunk(tiny_svd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(tiny_svd, device="cpu", dtype="float32", engine="fast")
    decode = FastDecoder.__call__

    def limited(decoder: FastDecoder, latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return decode(decoder, latents)

    monkeypatch.setattr(FastDecoder, "__call__", limited)
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=4, num_inference_steps=1)
    video = drive(generate(pipeline, open_image(Image.effect_noise((64, 64), 90).convert("RGB")), request))
    assert video.recipe.events == ("memory ran out while decoding 4 frames together: continued with 2",)


def test_nan_frames_of_fast_decoder_are_decoded_again_in_float32(
    tiny_svd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = FastDecoder.__call__

    def broken(self: FastDecoder, latents: torch.Tensor) -> torch.Tensor:
        frames = decode(self, latents)
        return frames.fill_(float("nan")) if latents.dtype == torch.bfloat16 else frames

    monkeypatch.setattr(FastDecoder, "__call__", broken)
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    pipeline = load(tiny_svd, device="cpu", dtype="bfloat16", engine="fast")
    video = drive(
        generate(pipeline, image, VideoRequest.checked(width=64, height=64, num_frames=2, num_inference_steps=1))
    )
    assert video.recipe.events == (
        "the decoder's output has NaN or infinity in torch.bfloat16: repeated decoding in float32",
    )
    assert video.recipe.engine == "fast"
    assert {weight.dtype for weight in pipeline.vae.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fast_engine_is_default_on_cpu(tiny_svd: Path, dtype: str) -> None:
    assert load(tiny_svd, device="cpu", dtype=dtype).engine == "fast"


def test_unknown_engine_is_rejected(tiny_svd: Path) -> None:
    with pytest.raises(InvalidRequest, match="engine 'quick' is not supported; use fast or reference"):
        load(tiny_svd, device="cpu", engine="quick")


def test_fp8_without_hardware_or_kernels_is_rejected(tiny_svd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(device="cpu", precision="fp8")
    with pytest.raises(InvalidRequest, match=r"'fp8' needs an NVIDIA Hopper GPU .*, not cpu; use precision 'full'"):
        load(tiny_svd, settings=settings)
    with pytest.raises(InvalidRequest, match="'fp8' needs the fast engine, not 'reference'"):
        load(tiny_svd, engine="reference", settings=settings)
    monkeypatch.setattr(loading, "is_hopper", lambda _: True)
    with pytest.raises(InvalidRequest, match="Triton and dtype float16 or bfloat16; dtype is float32"):
        load(tiny_svd, dtype="float32", settings=settings)


@pytest.mark.usefixtures("gpu_blocks")
@torch.no_grad()
def test_recipe_has_precision_and_next_video_reuses_cached_unet(tiny_svd: Path) -> None:
    pipeline = replace(load(tiny_svd, device="cpu", dtype="float32"), precision="fp8", cached_networks={})
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=2, num_inference_steps=2)
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    video = drive(generate(pipeline, image, request))
    assert video.recipe.precision == "fp8"
    cached = pipeline.cached_networks["resident"]
    again = drive(generate(pipeline, image, request))
    assert pipeline.cached_networks["resident"] is cached
    assert (video.frames == again.frames).all()
    with place(pipeline, MemoryPlan("model_offload", 2)):  # offload must clear the cache
        assert not pipeline.cached_networks
    pipeline.cached_networks["resident"] = cached
    pipeline.release()
    assert not pipeline.cached_networks


def test_sequential_offload_uses_reference_engine(tiny_svd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=4, num_inference_steps=2)
    monkeypatch.setattr("kinema.engine.image_to_video.plan_for", lambda *_: MemoryPlan("sequential_offload", 4))
    videos = []
    for engine in ("fast", "reference"):
        pipeline = load(tiny_svd, device="cpu", dtype="bfloat16", engine=engine)
        videos.append(drive(generate(pipeline, image, request)))
        assert videos[-1].recipe.engine == "reference"
    assert np.array_equal(videos[0].frames, videos[1].frames)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frames_are_equal_with_networks_of_diffusers(tiny_svd_4_levels: Path, dtype: str) -> None:
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=4, num_inference_steps=2)
    own, reference = (
        load(tiny_svd_4_levels, device="cpu", dtype=dtype, engine=engine) for engine in ("fast", "reference")
    )
    videos = [drive(generate(each, image, request)) for each in (own, replace(reference, engine="fast"))]
    assert np.array_equal(videos[0].frames, videos[1].frames)


def test_decoding_in_several_bands_equals_one_band(tiny_svd: Path) -> None:
    vae = load(tiny_svd, device="cpu", dtype="float32").vae
    latents = noise(5, 4, 7, 9)
    expected = FastDecoder(vae)(latents)
    with tuned(band_elements=1000):  # by default only large frames need several
        assert relative_error(FastDecoder(vae)(latents), expected) <= 1e-5


def test_onednn_linear_layers_equal_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(torch.randn(24, 40).t(), torch.randn(24))
    x, other = torch.randn(50, 40), torch.randn(50, 24)

    def outputs() -> list[torch.Tensor]:
        return [
            linear(x, layer),
            linear_gelu(x, layer),
            linear_multiply(x, layer, other.clone()),
            linear_add(other.clone(), x, layer),
        ]

    if not onednn.supports(x):
        pytest.skip("oneDNN is not available")
    by_onednn = outputs()
    monkeypatch.setattr(onednn, "supports", lambda _: False)
    for ours, theirs in zip(by_onednn, outputs(), strict=True):
        torch.testing.assert_close(ours, theirs)
