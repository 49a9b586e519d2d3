"""The fast forward gives what diffusers' own gives, for every shape, batch and arithmetic that it is used in."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from kinema.engine import generate
from kinema.engine.backends import engine_for
from kinema.engine.fast import FastDecoder, FastUNet, fp8, fused, gpu, onednn, tuning
from kinema.engine.fast.layers import Linear, Product, ResBlock
from kinema.engine.fast.streaming import Streamed
from kinema.errors import InvalidRequest
from kinema.media.image import open_image
from kinema.models import loading
from kinema.models.catalog import POCKET_FOLDER
from kinema.models.loading import VideoPipeline, load
from kinema.models.memory_plan import MemoryPlan
from kinema.models.offload import place
from kinema.settings import Settings
from kinema.values import VideoRequest
from tiny import PLAIN_TOP, UP_ALONE, make_tiny_svd

# Of float64: where a norm sees few pixels, rounding is divided by nearly nothing.
EXACT = 1e-9


SHAPES = {
    "two levels": {},
    "four levels": {"levels": 4, "latent_channels": 8},
    "two layers": {"layers": 2, "seed": 3},
    "a plain first level": PLAIN_TOP,
    "attention at the top on the way up alone": {**UP_ALONE, "vae_levels": 2},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoPipeline:
    folder = make_tiny_svd(tmp_path_factory.mktemp("fast") / "svd", **request.param)
    return roughened(load(folder, device="cpu", dtype="float32"))


def roughened(pipeline: VideoPipeline) -> VideoPipeline:
    """Norms, biases and blends away from the ones, zeros and halves in which a fresh model can hide a mistake."""
    generator = torch.Generator().manual_seed(5)
    for part in (pipeline.unet, pipeline.vae):
        for parameter in part.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return pipeline


def conditions(pipeline: VideoPipeline, *, clips: int, frames: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    channels, dtype = pipeline.latent_channels, pipeline.unet.dtype
    return {
        "sample": noise(clips, frames, channels, *size).to(dtype),
        "embedding": noise(clips, 1, pipeline.unet.config.cross_attention_dim).to(dtype),
        "time_ids": torch.tensor([[6.0, 127.0, 0.02]]).repeat(clips, 1),
        "held": noise(clips, channels, *size).to(dtype),
    }


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def as_guided(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The unconditional half first, as the engine has it; the noise is the same in both."""
    zeros = {name: torch.zeros_like(given[name]) for name in ("embedding", "held")}
    both = {name: torch.cat([zeros[name], given[name]]) for name in zeros}
    return given | both | {"time_ids": given["time_ids"].repeat(2, 1)}


TIME = torch.tensor(0.7)
CPU = torch.device("cpu")


@torch.no_grad()
def reference(unet: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    frames = given["sample"].shape[1]
    held = given["held"][:, None].expand(-1, frames, -1, -1, -1)
    sample = given["sample"].repeat(len(held) // len(given["sample"]), 1, 1, 1, 1)
    return unet(torch.cat([sample, held], 2), TIME, given["embedding"], given["time_ids"], return_dict=False)[0]


def fast(unet: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    network, sample = FastUNet(unet), given["sample"]
    constants = network.constants(given["embedding"], given["time_ids"], given["held"], sample.shape[1])
    return network(sample, TIME, constants)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.fixture(scope="module")
def exact(pipeline: VideoPipeline) -> VideoPipeline:
    """The same in float64, where a mistake can't pass for rounding, however few the pixels that a norm sees."""
    return replace(pipeline, unet=deepcopy(pipeline.unet).double(), vae=deepcopy(pipeline.vae).double())


@pytest.mark.parametrize("size", [(16, 8), (9, 11), (1, 16), (10, 2)])
@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("guided", [False, True], ids=["alone", "guided"])
def test_unet_is_that_of_diffusers(exact: VideoPipeline, size: tuple[int, int], frames: int, guided: bool) -> None:
    given = conditions(exact, clips=1, frames=frames, size=size)
    given = as_guided(given) if guided else given
    assert relative_error(fast(exact.unet, given), reference(exact.unet, given)) <= EXACT


@pytest.mark.parametrize(("frames", "size"), [(25, (16, 16)), (3, (17, 19)), (2, (40, 32)), (1, (20, 36))])
def test_unet_rounds_no_more_than_diffusers(pipeline: VideoPipeline, frames: int, size: tuple[int, int]) -> None:
    given = as_guided(conditions(pipeline, clips=1, frames=frames, size=size))
    assert relative_error(fast(pipeline.unet, given), reference(pipeline.unet, given)) <= 1e-5


def test_attention_within_frames_is_the_same_with_and_without_amx(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = conditions(
        pipeline, clips=1, frames=1, size=(48, 48)
    )  # on some level a number of pixels that both may take
    made = []
    for amx in (True, False):
        monkeypatch.setattr(onednn, "_has_amx", lambda amx=amx: amx)
        made.append(fast(pipeline.unet, given))
    assert relative_error(*made) <= 1e-5


def test_clips_of_different_settings_go_through_the_unet_together(exact: VideoPipeline) -> None:
    given = conditions(exact, clips=2, frames=3, size=(8, 8))
    given["time_ids"][1] = torch.tensor([29.0, 5.0, 0.5])
    assert relative_error(fast(exact.unet, given), reference(exact.unet, given)) <= EXACT


def test_several_clips_are_guided_together(exact: VideoPipeline) -> None:
    given = as_guided(conditions(exact, clips=2, frames=3, size=(8, 8)))
    assert relative_error(fast(exact.unet, given), reference(exact.unet, given)) <= EXACT


def test_constants_serve_every_step(pipeline: VideoPipeline) -> None:
    given = conditions(pipeline, clips=1, frames=3, size=(8, 8))
    network = FastUNet(pipeline.unet)
    constants = network.constants(given["embedding"], given["time_ids"], given["held"], 3)
    network(given["sample"] * 3, torch.tensor(1.5), constants)
    assert torch.equal(network(given["sample"], TIME, constants), fast(pipeline.unet, given))


def test_nothing_given_is_changed(pipeline: VideoPipeline) -> None:
    given = conditions(pipeline, clips=1, frames=3, size=(8, 8))
    before = {name: tensor.clone() for name, tensor in given.items()}
    weights = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    fast(pipeline.unet, given)
    assert all(torch.equal(given[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(pipeline.unet.state_dict()[name], tensor) for name, tensor in weights.items())
    latents = noise(3, pipeline.latent_channels, 4, 6)
    kept = latents.clone()
    FastDecoder(pipeline.vae)(latents)
    assert torch.equal(latents, kept)


@pytest.mark.parametrize("size", [(8, 8), (3, 5), (1, 4)])
@pytest.mark.parametrize("frames", [1, 2, 7])
@torch.no_grad()
def test_decoder_is_that_of_diffusers(exact: VideoPipeline, size: tuple[int, int], frames: int) -> None:
    latents = noise(frames, exact.latent_channels, *size).double()
    theirs = exact.vae.decode(latents, num_frames=frames).sample
    assert relative_error(FastDecoder(exact.vae)(latents), theirs) <= EXACT


@torch.no_grad()
def test_decoder_rounds_no_more_than_diffusers(pipeline: VideoPipeline) -> None:
    latents = noise(5, pipeline.latent_channels, 9, 8)
    theirs = pipeline.vae.decode(latents, num_frames=5).sample
    assert relative_error(FastDecoder(pipeline.vae)(latents), theirs) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_no_further_from_the_truth_than_diffusers(exact: VideoPipeline, dtype: torch.dtype) -> None:
    given = as_guided(conditions(exact, clips=1, frames=4, size=(16, 12)))
    latents = noise(4, exact.latent_channels, 4, 6)
    truth, true_frames = reference(exact.unet, given), exact.vae.decode(latents.double(), num_frames=4).sample
    halves = {name: tensor.to(dtype) for name, tensor in given.items()} | {"time_ids": given["time_ids"]}
    unet, vae = deepcopy(exact.unet).to(dtype), deepcopy(exact.vae).to(dtype)
    ours, theirs = (relative_error(run(unet, halves), truth) for run in (fast, reference))
    assert ours <= 1.2 * theirs
    latents = latents.to(dtype)
    theirs = relative_error(vae.decode(latents, num_frames=4).sample, true_frames)
    assert relative_error(FastDecoder(vae)(latents), true_frames) <= 1.2 * theirs


@pytest.mark.parametrize("size", [(16, 8), (9, 11), (1, 16)])
@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("guided", [False, True], ids=["alone", "guided"])
@torch.no_grad()
def test_a_gpus_order_of_work_gives_the_same(
    exact: VideoPipeline, size: tuple[int, int], clips: int, guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "suits", lambda _: True)
    monkeypatch.setattr(gpu, "PIECE", 2**14)  # so that there are several
    given = conditions(exact, clips=clips, frames=3, size=size)
    given["time_ids"][-1] = torch.tensor([29.0, 5.0, 0.5])
    given = as_guided(given) if guided else given
    assert relative_error(fast(exact.unet, given), reference(exact.unet, given)) <= EXACT
    latents = given["held"].repeat(2, 1, 1, 1)[:, :, :3, :5]
    theirs = exact.vae.decode(latents, num_frames=len(latents)).sample
    assert relative_error(FastDecoder(exact.vae)(latents), theirs) <= EXACT


@torch.no_grad()
def test_on_a_gpu_no_clip_is_summed_up_twice(pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "suits", lambda _: True)
    summed = []

    def noted(x: torch.Tensor) -> torch.Tensor:
        summed.append(x)  # kept, so that none has another's place in memory
        return fused.plain_channel_sums(x)

    monkeypatch.setattr(fused, "channel_sums", noted)
    fast(pipeline.unet, as_guided(conditions(pipeline, clips=1, frames=3, size=(16, 8))))
    assert len({(x.data_ptr(), x.shape) for x in summed}) == len(summed)


@pytest.mark.parametrize("in_bytes", [False, True])
@torch.no_grad()
def test_a_streamed_network_is_the_same_with_two_pieces_of_it_in_their_places(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch, *, in_bytes: bool
) -> None:
    monkeypatch.setattr(gpu, "suits", lambda _: True)
    given = as_guided(conditions(pipeline, clips=1, frames=3, size=(16, 8)))
    networks = [FastUNet(pipeline.unet, in_bytes=in_bytes, stream_to=place) for place in (None, CPU)]
    stages = networks[1].stages
    assert isinstance(stages, Streamed)
    assert sum(map(len, stages.places)) < sum(map(len, stages.waiting))
    first = given["sample"]
    for sample in (first, first + 1):
        made = []
        for network in networks:
            constants = network.constants(given["embedding"], given["time_ids"], given["held"], 3)
            made.append(network(sample, TIME, constants))
        assert torch.equal(*made)


def test_views_of_the_same_numbers_wait_once() -> None:
    weight = torch.randn(3, 5)
    stages = Streamed([(Linear(weight.t(), torch.ones(3)), Product(weight)), (Linear(weight, weight[0]), None)], CPU)
    assert len(stages.waiting[0]) == 2 * 256
    for _ in range(2):
        there = iter(stages)
        linear, product = next(there)
        assert torch.equal(linear.weight, weight.t())
        assert torch.equal(product.weight, weight)
        assert linear.weight.data_ptr() == product.weight.data_ptr()
        linear, nothing = next(there)
        assert torch.equal(linear.weight, weight)
        assert nothing is None


def test_fp8_leaves_as_they_are_what_takes_fewer_multiplications(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = deepcopy(pipeline.unet.down_blocks[-1].resnets[0]).half()
    channels = block.spatial_res_block.conv2.weight.shape[0]
    monkeypatch.setattr(tuning, "WINOGRAD_CHANNELS", channels)
    spatial, temporal = (
        ResBlock.of(each, in_bytes=True) for each in (block.spatial_res_block, block.temporal_res_block)
    )
    assert spatial.products is not None
    assert temporal.products is not None
    assert spatial.products[1].weight.data_ptr() == spatial.conv2.weight.data_ptr()
    assert {product.weight.dtype for product in temporal.products} == {fp8.FP8_DTYPE}
    monkeypatch.setattr(tuning, "WINOGRAD_CHANNELS", channels + 1)
    products = ResBlock.of(block.spatial_res_block, in_bytes=True).products
    assert products is not None
    assert {product.weight.dtype for product in products} == {fp8.FP8_DTYPE}


@pytest.mark.parametrize("size", [(16, 8), (9, 11)])
@torch.no_grad()
def test_numbers_of_one_byte_stay_near(
    exact: VideoPipeline, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three bits of mantissa each number is off by up to 6%, at random: far less than what they add up to."""
    monkeypatch.setattr(gpu, "suits", lambda _: True)
    given = as_guided(conditions(exact, clips=1, frames=3, size=size))
    network = FastUNet(exact.unet, in_bytes=True)
    constants = network.constants(given["embedding"], given["time_ids"], given["held"], 3)
    error = relative_error(network(given["sample"], TIME, constants), reference(exact.unet, given))
    assert 1e-4 < error < 0.1


@pytest.mark.slow
@torch.no_grad()
def test_pocket_equals_diffusers() -> None:
    pocket = load(POCKET_FOLDER, device="cpu", dtype="float32")
    given = as_guided(conditions(pocket, clips=1, frames=3, size=(20, 36)))
    assert relative_error(fast(pocket.unet, given), reference(pocket.unet, given)) <= 1e-5
    theirs = pocket.vae.decode(given["sample"][0], num_frames=3).sample
    assert (FastDecoder(pocket.vae)(given["sample"][0]) - theirs).abs().max() <= 1 / 255


def test_weights_that_fit_are_not_copied(tiny_svd: Path) -> None:
    unet = load(tiny_svd, device="cpu", dtype="float32").unet
    network = FastUNet(unet)
    layer = network.stages[0].transformer.layers[0]
    wide = unet.down_blocks[0].attentions[0].transformer_blocks[0].ff.net[0].proj.weight
    assert layer.feed_forward.value.weight.data_ptr() == wide.data_ptr()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert layer.attention.qkv.data_ptr() == attention.to_q.weight.data_ptr()
    convolution = unet.down_blocks[0].resnets[0].spatial_res_block.conv1
    assert network.stages[0].block.spatial.conv1.weight.data_ptr() == convolution.weight.data_ptr()


def test_the_recipe_says_which_engine_ran(tiny_svd: Path) -> None:
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=4, num_inference_steps=2)
    clips = {}
    for engine in ("fast", "reference"):
        *_, clips[engine] = generate(load(tiny_svd, device="cpu", dtype="float32", engine=engine), image, request)
        assert clips[engine].recipe.engine == engine
    difference = clips["fast"].frames.astype(int) - clips["reference"].frames
    assert abs(difference).max() <= 1


def test_memory_that_runs_out_in_the_fast_engine_halves_the_chunk(
    tiny_svd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(tiny_svd, device="cpu", dtype="float32", engine="fast")
    work = FastDecoder.__call__

    def scarce(decoder: FastDecoder, latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return work(decoder, latents)

    monkeypatch.setattr(FastDecoder, "__call__", scarce)
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=4, num_inference_steps=1)
    *_, clip = generate(pipeline, open_image(Image.effect_noise((64, 64), 90).convert("RGB")), request)
    assert clip.recipe.events == ("memory ran out while decoding 4 frames together: continued with 2",)


def test_the_fast_decoder_decodes_again_in_float32_what_is_no_number(
    tiny_svd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FastDecoder.__call__

    def leaking(self: FastDecoder, latents: torch.Tensor) -> torch.Tensor:
        frames = whole(self, latents)
        return frames.fill_(float("nan")) if latents.dtype == torch.bfloat16 else frames

    monkeypatch.setattr(FastDecoder, "__call__", leaking)
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    pipeline = load(tiny_svd, device="cpu", dtype="bfloat16", engine="fast")
    *_, clip = generate(pipeline, image, VideoRequest.checked(width=64, height=64, num_frames=2, num_inference_steps=1))
    assert clip.recipe.events == (
        "the decoder's output has NaN or infinity in torch.bfloat16: repeated decoding in float32",
    )
    assert clip.recipe.engine == "fast"
    assert {weight.dtype for weight in pipeline.vae.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fast_engine_is_the_default_on_a_cpu(tiny_svd: Path, dtype: str) -> None:
    assert load(tiny_svd, device="cpu", dtype=dtype).engine == "fast"


def test_an_engine_that_is_not_there_is_refused(tiny_svd: Path) -> None:
    with pytest.raises(InvalidRequest, match="engine 'quick' is not supported; use fast or reference"):
        load(tiny_svd, device="cpu", engine="quick")


def test_numbers_of_one_byte_are_refused_where_nothing_multiplies_them(
    tiny_svd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp8 = Settings(device="cpu", precision="fp8")
    with pytest.raises(InvalidRequest, match=r"'fp8' needs an NVIDIA GPU .* not cpu; use precision 'full'"):
        load(tiny_svd, settings=fp8)
    with pytest.raises(InvalidRequest, match="'fp8' needs the fast engine, not 'reference'"):
        load(tiny_svd, engine="reference", settings=fp8)
    monkeypatch.setattr(loading, "is_hopper", lambda _: True)
    with pytest.raises(InvalidRequest, match="Triton and dtype float16 or bfloat16; dtype is float32"):
        load(tiny_svd, dtype="float32", settings=fp8)


@torch.no_grad()
def test_the_recipe_tells_the_precision_and_the_next_video_finds_the_unet_laid_out(
    tiny_svd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "suits", lambda _: True)
    pipeline = replace(load(tiny_svd, device="cpu", dtype="float32"), precision="fp8", cached_networks={})
    request = VideoRequest.checked(seed=3, width=64, height=64, num_frames=2, num_inference_steps=2)
    image = open_image(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    *_, clip = generate(pipeline, image, request)
    assert clip.recipe.precision == "fp8"
    kept = pipeline.cached_networks["resident"]
    *_, again = generate(pipeline, image, request)
    assert pipeline.cached_networks["resident"] is kept
    assert (clip.frames == again.frames).all()
    with place(pipeline, MemoryPlan("model_offload", 2)):  # after which its weights would lie on the device for nothing
        assert not pipeline.cached_networks
    pipeline.cached_networks["resident"] = kept
    pipeline.release()
    assert not pipeline.cached_networks


def test_offload_by_layers_goes_through_the_reference(tiny_svd: Path) -> None:
    pipeline = load(tiny_svd, device="cpu", dtype="float32", engine="fast")
    assert engine_for(pipeline, MemoryPlan("resident", 4)) == "fast"
    assert engine_for(pipeline, MemoryPlan("sequential_offload", 4)) == "reference"


def test_a_clip_of_several_bands_is_decoded_as_one(tiny_svd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = load(tiny_svd, device="cpu", dtype="float32").vae
    latents = noise(5, 4, 7, 9)
    whole = FastDecoder(vae)(latents)
    monkeypatch.setattr("kinema.engine.fast.layers.BAND", 1000)  # else only large pictures have more than one
    assert relative_error(FastDecoder(vae)(latents), whole) <= 1e-5


def test_products_by_onednn_are_those_of_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(torch.randn(24, 40).t(), torch.randn(24))
    x, other = torch.randn(50, 40), torch.randn(50, 24)

    def products() -> list[torch.Tensor]:
        return [layer(x), layer.gelu(x), layer.times(x, other.clone()), layer.add_to(other.clone(), x)]

    if not onednn.suits(x):
        pytest.skip("torch has no oneDNN here")
    by_onednn = products()
    monkeypatch.setattr(onednn, "suits", lambda _: False)
    for one, another in zip(by_onednn, products(), strict=True):
        torch.testing.assert_close(one, another)
