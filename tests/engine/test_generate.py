"""Test the generator: order of steps, determinism, cancellation and error handling."""

import gc
import hashlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.engine import generate
from kinema.engine import image_to_video as engine
from kinema.errors import GenerationFailed, InsufficientMemory
from kinema.media.image import InputImage, open_image
from kinema.media.video import Video
from kinema.models.loading import VideoPipeline, load
from kinema.models.memory_plan import COMPONENTS, PLANS, MemoryPlan
from kinema.recipe import Recipe
from kinema.steps import Event, Restart, Step, drive
from kinema.values import VideoRequest

SMALL = {"seed": 7, "width": 64, "height": 64, "num_frames": 4, "num_inference_steps": 2, "decode_chunk_size": 4}
LEAK = "NaN or infinity in torch.bfloat16"


def waves(width: int = 64, height: int = 64) -> Image.Image:
    y, x = np.mgrid[:height, :width] / 10
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    return Image.fromarray((pixels * 100 + 128).astype("uint8"))


@pytest.fixture(scope="module")
def image() -> InputImage:
    return open_image(waves())


@pytest.fixture(scope="module")
def shared(tiny_svd: Path) -> VideoPipeline:
    """Return a pipeline that no test modifies."""
    return load(tiny_svd, device="cpu", dtype="float32")


@pytest.fixture
def pipeline(tiny_svd: Path) -> VideoPipeline:
    """Return a pipeline that one test may modify; only the reference engine calls modules with hooks."""
    return load(tiny_svd, device="cpu", dtype="float32", engine="reference")


@pytest.fixture
def half(tiny_svd: Path) -> VideoPipeline:
    """Return a pipeline in bfloat16 that one test may modify."""
    return load(tiny_svd, device="cpu", dtype="bfloat16", engine="reference")


def request_of(**settings: object) -> VideoRequest:
    return VideoRequest.checked(**SMALL | settings)


def video_of(pipeline: VideoPipeline, image: InputImage, **settings: object) -> Video:
    return drive(generate(pipeline, image, request_of(**settings)))


def steps_and_video(pipeline: VideoPipeline, image: InputImage, **settings: object) -> tuple[list[Step], Video]:
    steps: list[Step] = []
    return steps, drive(generate(pipeline, image, request_of(**settings)), steps.append)


def hooks(pipeline: VideoPipeline) -> list[object]:
    """Return all hooks of a pipeline's modules; a loaded pipeline has none."""
    modules = [module for component in COMPONENTS for module in getattr(pipeline, component).modules()]
    return [
        hook
        for module in modules
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), vars(module).get("_hf_hook"))
        if hook is not None
    ]


# Order of steps


@pytest.mark.parametrize(
    ("settings", "decoded"),
    [
        pytest.param({"num_frames": 5, "decode_chunk_size": 2, "num_inference_steps": 3}, [2, 4, 5], id="three chunks"),
        pytest.param({"num_frames": 1, "num_inference_steps": 1}, [1], id="one frame, one step"),
    ],
)
def test_steps_are_in_order_with_totals(
    shared: VideoPipeline, image: InputImage, settings: dict[str, int], decoded: list[int]
) -> None:
    steps, video = steps_and_video(shared, image, **settings)
    rounds, frames = settings["num_inference_steps"], settings["num_frames"]
    assert [(step.stage, step.step, step.total) for step in steps] == [
        ("encode", 1, 2),
        ("encode", 2, 2),
        *(("denoise", i + 1, rounds) for i in range(rounds)),
        *(("decode", done, frames) for done in decoded),
    ]
    assert video.frames.shape == (frames, 64, 64, 3)


def test_denoise_steps_have_changing_latents(shared: VideoPipeline, image: InputImage) -> None:
    steps, _ = steps_and_video(shared, image, num_inference_steps=3)
    latents = [step.latents for step in steps if step.stage == "denoise"]
    assert [tensor.shape for tensor in latents] == [(1, 4, 4, 8, 8)] * 3
    assert all(not torch.equal(a, b) for a, b in pairwise(latents))
    assert all(step.latents is None for step in steps if step.stage != "denoise")
    clean = [step.clean for step in steps if step.stage == "denoise"]
    assert torch.allclose(clean[-1], latents[-1], atol=1e-5)  # the last step ends without noise
    assert all(estimate.std() < noisy.std() for estimate, noisy in zip(clean[:-1], latents[:-1], strict=True))


def test_frames_of_decode_steps_form_video(shared: VideoPipeline, image: InputImage) -> None:
    steps, video = steps_and_video(shared, image, num_frames=5, decode_chunk_size=2)
    pieces = [step for step in steps if step.stage == "decode"]
    assert [step.step for step in pieces] == [2, 4, 5]
    assert np.array_equal(np.concatenate([step.frames for step in pieces]), video.frames)
    assert video.frames.dtype == np.uint8
    assert all(step.frames is None for step in steps if step.stage != "decode")


def test_video_has_requested_frame_rate(shared: VideoPipeline, image: InputImage) -> None:
    assert video_of(shared, image, fps=9, num_inference_steps=1).fps == 9
    assert video_of(shared, image, fps=9, playback_fps=24, num_inference_steps=1).fps == 24


def test_image_of_other_size_is_resized(shared: VideoPipeline) -> None:
    wide = open_image(waves(200, 90))
    fits = [video_of(shared, wide, width=88, height=72, fit=fit).frames for fit in ("crop", "pad", "stretch")]
    assert {frames.shape for frames in fits} == {(4, 72, 88, 3)}
    assert not np.array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[1], fits[2])


# Determinism


def test_same_seed_same_bytes(shared: VideoPipeline, image: InputImage) -> None:
    assert video_of(shared, image).frames.tobytes() == video_of(shared, image).frames.tobytes()


def test_same_seed_same_bytes_in_another_process(shared: VideoPipeline, image: InputImage, tiny_svd: Path) -> None:
    script = """
import hashlib, json, sys
from PIL import Image
from kinema.engine import generate
from kinema.media.image import open_image
from kinema.models.loading import load
from kinema.steps import drive
from kinema.values import VideoRequest
folder, settings, size, pixels = json.load(sys.stdin)
image = open_image(Image.frombytes("RGB", size, bytes.fromhex(pixels)))
video = drive(generate(load(folder, device="cpu", dtype="float32"), image, VideoRequest(**settings)))
print(hashlib.sha256(video.frames.tobytes()).hexdigest())
print(video.recipe.model_dump_json())
"""
    stdin = json.dumps([str(tiny_svd), SMALL | {"model": str(tiny_svd)}, image.rgb.size, image.rgb.tobytes().hex()])
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", script]
    theirs = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, env=environment)
    ours = video_of(shared, image, model=str(tiny_svd))
    assert theirs.stdout.splitlines() == [
        hashlib.sha256(ours.frames.tobytes()).hexdigest(),
        ours.recipe.model_dump_json(),
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"motion_bucket_id": 40},
        {"fps": 12},
        {"noise_aug_strength": 0.5},
        {"max_guidance_scale": 5.0},
        {"num_inference_steps": 3},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_seed_or_parameter_gives_other_video(
    shared: VideoPipeline, image: InputImage, other: dict[str, float]
) -> None:
    assert not np.array_equal(video_of(shared, image).frames, video_of(shared, image, **other).frames)


def test_other_image_gives_other_video(shared: VideoPipeline, image: InputImage) -> None:
    turned = open_image(image.rgb.transpose(Image.Transpose.ROTATE_90))
    assert not np.array_equal(video_of(shared, image).frames, video_of(shared, turned).frames)


def test_global_torch_generator_is_unchanged(shared: VideoPipeline, image: InputImage) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = video_of(shared, image).frames
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert np.array_equal(video_of(shared, image).frames, first)


def test_default_device_and_dtype_have_no_effect(shared: VideoPipeline, image: InputImage) -> None:
    plain = video_of(shared, image).frames
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert np.array_equal(video_of(shared, image).frames, plain)
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_memory_plan_gives_the_same_frames(
    pipeline: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = video_of(pipeline, image).frames
    split = []
    for name in PLANS[1:]:
        monkeypatch.setattr(engine, "plan_for", lambda *_, name=name: MemoryPlan(name, 4))
        video = video_of(pipeline, image)
        split.append(video.frames)
        assert video.recipe.memory_plan == name
        assert not hooks(pipeline)
    assert all(np.array_equal(frames, split[0]) for frames in split)
    assert largest_difference(split[0], resident) <= 1  # half a batch sums in a different order


# Inputs of the UNet


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Return the largest absolute difference of two videos in levels (0 to 255)."""
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


def batches(pipeline: VideoPipeline, image: InputImage, **settings: object) -> list[int]:
    """Return the batch size of every call of the UNet."""
    sizes: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    video_of(pipeline, image, **settings)
    hook.remove()
    return sizes


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ({}, 2),
        ({"max_guidance_scale": 1.0}, 1),
        ({"num_frames": 1}, 1),
        ({"min_guidance_scale": 1.5, "max_guidance_scale": 1.0}, 2),
    ],
)
def test_unguided_request_has_no_unconditional_pass(
    pipeline: VideoPipeline, image: InputImage, settings: dict[str, float], batch: int
) -> None:
    assert batches(pipeline, image, **settings) == [batch, batch]


def test_split_plan_runs_unet_once_per_condition(
    pipeline: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan("resident_split", 4))
    assert batches(pipeline, image) == [1, 1, 1, 1]
    assert batches(pipeline, image, max_guidance_scale=1.0) == [1, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unet_inputs_are_exact(tiny_svd: Path, image: InputImage, dtype: str) -> None:
    pipeline = load(tiny_svd, device="cpu", dtype=dtype, engine="reference")
    time_ids: list[list[float]] = []

    def record(_: object, __: object, named: dict[str, torch.Tensor]) -> None:
        time_ids.append(named["added_time_ids"][0].tolist())

    pipeline.unet.register_forward_pre_hook(record, with_kwargs=True)
    request = request_of(fps=120, motion_bucket_id=1023, noise_aug_strength=0.5)
    stopped_after(generate(pipeline, image, request), "denoise")
    assert time_ids == [[119, 1023, 0.5]]


# Cancellation


def stopped_after(iterator: Iterator[Event], stage: str) -> weakref.ref[torch.Tensor] | None:
    """Iterate to the first step of a stage; return a weak reference to the last latents."""
    latents = None
    for step in iterator:
        assert isinstance(step, Step)
        if step.latents is not None:
            latents = weakref.ref(step.latents)
        if step.stage == stage:
            break
    return latents


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        *(("denoise", name) for name in PLANS),
        ("decode", PLANS[0]),
        *(pytest.param("decode", name, marks=pytest.mark.slow) for name in PLANS[1:]),
        *(pytest.param("encode", name, marks=pytest.mark.slow) for name in PLANS),
    ],
)
def test_cancel_frees_memory(
    pipeline: VideoPipeline, image: InputImage, stage: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan(name, 2))
    before = {
        component: [(p.device, p.dtype) for p in getattr(pipeline, component).parameters()] for component in COMPONENTS
    }
    gc.collect()
    gc.disable()  # memory must be freed without the garbage collector
    try:
        iterator = generate(pipeline, image, request_of())
        latents = stopped_after(iterator, stage)
        assert (latents is None) == (stage == "encode")
        assert latents is None or latents() is not None
        iterator.close()
        assert latents is None or latents() is None
        assert all(
            [(p.device, p.dtype) for p in getattr(pipeline, component).parameters()] == before[component]
            for component in COMPONENTS
        )
        assert not hooks(pipeline)
    finally:
        gc.enable()


def test_cancel_during_repeated_decoding_restores_dtype(half: VideoPipeline, image: InputImage) -> None:
    break_the_decoder(half, "nan", only=torch.bfloat16)
    iterator = generate(half, image, request_of())
    restart = next(event for event in iterator if isinstance(event, Restart))
    assert next(iterator).stage == restart.stage == "decode"
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}
    iterator.close()
    assert {p.dtype for p in half.vae.parameters()} == {torch.bfloat16}


def test_latents_are_freed_when_video_is_returned(pipeline: VideoPipeline, image: InputImage) -> None:
    iterator = generate(pipeline, image, request_of())
    latents = stopped_after(iterator, "denoise")
    latents = stopped_after(iterator, "decode")
    assert latents is not None
    with pytest.raises(StopIteration) as end:
        next(iterator)
    assert isinstance(end.value.value, Video)
    gc.collect()
    assert latents() is None


def test_pipeline_generates_same_video_after_cancel(pipeline: VideoPipeline, image: InputImage) -> None:
    expected = video_of(pipeline, image).frames
    stopped_after(generate(pipeline, image, request_of()), "denoise")
    assert np.array_equal(video_of(pipeline, image).frames, expected)


def test_gradient_mode_of_caller_is_unchanged(pipeline: VideoPipeline, image: InputImage) -> None:
    pipeline.unet.requires_grad_()
    with torch.enable_grad():
        for step in generate(pipeline, image, request_of()):
            assert torch.is_grad_enabled()
            if isinstance(step, Step) and step.latents is not None:
                assert not step.latents.requires_grad
    with torch.inference_mode():
        assert isinstance(video_of(pipeline, image), Video)


def test_no_work_before_first_next(pipeline: VideoPipeline, image: InputImage) -> None:
    calls: list[object] = []
    pipeline.image_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    iterator = generate(pipeline, image, request_of())
    assert not calls
    next(iterator)
    assert calls


# Invalid frames


def break_the_decoder(pipeline: VideoPipeline, value: str, *, only: torch.dtype | None = None, after: int = 0) -> None:
    """Make the VAE's decoder return NaN, infinity or black frames after its first `after` calls.

    The replacement does not call the decoder, which is slow in bfloat16 on CPUs without native support.
    """
    decoder, calls = pipeline.vae.decoder, 0
    original = decoder.forward

    def broken(latents: torch.Tensor, *args: object, **named: object) -> torch.Tensor:
        nonlocal calls
        if only is not None and latents.dtype != only:
            return original(latents, *args, **named)
        calls += 1
        n, _, height, width = latents.shape
        ramp = torch.linspace(-1, 1, 8 * width, dtype=latents.dtype)
        frames = ramp.expand(n, 3, 8 * height, -1).clone()
        if calls > after and value == "black":
            frames.fill_(-1)
        elif calls > after:
            frames[-1, 0, -1, -1] = float(value)
        return frames

    decoder.forward = broken


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_nan_frames_are_decoded_again_in_float32(half: VideoPipeline, image: InputImage, value: str) -> None:
    break_the_decoder(half, value, only=torch.bfloat16)
    restarts: list[Restart] = []
    video = drive(generate(half, image, request_of()), on_restart=restarts.append)
    assert video.recipe.events == (f"the decoder's output has {LEAK}: repeated decoding in float32",)
    assert restarts == [Restart("decode", video.recipe.events[0])]
    assert video.recipe.dtype == "bfloat16"
    assert video.frames.shape == (4, 64, 64, 3)
    assert {p.dtype for p in half.vae.parameters()} == {torch.bfloat16}


def test_repeated_decoding_restarts_at_first_frame(half: VideoPipeline, image: InputImage) -> None:
    break_the_decoder(half, "nan", only=torch.bfloat16, after=1)
    events: list[Event] = []
    video = drive(generate(half, image, request_of(decode_chunk_size=2)), events.append, events.append)
    pieces = [event for event in events if event.stage == "decode"]
    assert [getattr(event, "step", "restart") for event in pieces] == [2, "restart", 2, 4]
    assert np.array_equal(np.concatenate([step.frames for step in pieces[2:]]), video.frames)


def test_repeated_decoding_equals_float32(half: VideoPipeline, image: InputImage) -> None:
    break_the_decoder(half, "nan", only=torch.bfloat16)
    steps, video = steps_and_video(half, image)
    latents = [step.latents for step in steps if step.stage == "denoise"][-1]
    with torch.no_grad():
        vae = half.vae.float()
        decoded = vae.decode(latents[0] / vae.config.scaling_factor, num_frames=4).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(video.frames, expected.astype("uint8"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_nan_frames_in_float32_fail(tiny_svd: Path, image: InputImage, dtype: str) -> None:
    pipeline = load(tiny_svd, device="cpu", dtype=dtype, engine="reference")
    break_the_decoder(pipeline, "nan")
    with pytest.raises(GenerationFailed, match=r"NaN or infinity in torch\.float32.*[Cc]heck the weights"):
        video_of(pipeline, image)


def test_nan_latents_fail_before_decoding(pipeline: VideoPipeline, image: InputImage) -> None:
    pipeline.unet.conv_out.bias.data[0] = torch.nan
    stages = []
    with pytest.raises(GenerationFailed, match=r"the UNet's output has NaN or infinity in torch.float32; use dtype"):
        stages.extend(step.stage for step in generate(pipeline, image, request_of()))
    assert "decode" not in stages


def flatten(pipeline: VideoPipeline, colour: tuple[float, float, float]) -> None:
    """Set weights that decode all latents to one colour."""
    last = pipeline.vae.decoder.time_conv_out
    last.weight.data.zero_()
    last.bias.data.copy_(torch.tensor(colour))


@pytest.mark.parametrize("colour", [(-1, -1, -1), (0, 0, 0), (0.5, -0.25, 1)], ids=["black", "grey", "orange"])
def test_constant_video_fails(pipeline: VideoPipeline, image: InputImage, colour: tuple[float, float, float]) -> None:
    flatten(pipeline, colour)
    with pytest.raises(GenerationFailed, match="one constant colour"):
        video_of(pipeline, image)


def test_constant_video_is_decoded_again_in_float32(half: VideoPipeline, image: InputImage) -> None:
    break_the_decoder(half, "black", only=torch.bfloat16)
    video = video_of(half, image)
    assert video.recipe.events == (
        "the decoder's output is one constant colour in torch.bfloat16: repeated decoding in float32",
    )
    assert np.ptp(video.frames) > 0


def test_constant_image_may_give_constant_video(pipeline: VideoPipeline) -> None:
    flatten(pipeline, (0.5, -0.25, 1))
    video = video_of(pipeline, open_image(Image.new("RGB", (64, 64), (191, 96, 255))))
    assert video.frames[0, 0, 0].tolist() == [191, 96, 255]
    assert (video.frames == video.frames[0, 0, 0]).all()


def test_padded_constant_image_is_not_constant(pipeline: VideoPipeline) -> None:
    flatten(pipeline, (0, 0, 0))
    with pytest.raises(GenerationFailed):
        video_of(pipeline, open_image(Image.new("RGB", (64, 40), "white")), fit="pad")


# Out of memory, simulated on the CPU


class Elsewhere(str):
    """The CPU under another device type, so that the engine can offload components from it."""

    __slots__ = ()
    type = "elsewhere"


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def run_out(module: torch.nn.Module, when: Callable[[torch.Tensor], bool]) -> None:
    """Make a module run out of memory if `when` is true for its input."""

    def refuse(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if when(inputs[0]):
            raise out_of_memory()

    module.register_forward_pre_hook(refuse)


def test_out_of_memory_halves_decode_chunk(pipeline: VideoPipeline, image: InputImage) -> None:
    halves = video_of(pipeline, image, num_frames=6, decode_chunk_size=3).frames
    run_out(pipeline.vae.decoder, lambda latents: len(latents) > 3)
    steps, video = steps_and_video(pipeline, image, num_frames=6, decode_chunk_size=6)
    assert video.recipe.events == ("memory ran out while decoding 6 frames together: continued with 3",)
    assert np.array_equal(video.frames, halves)
    assert [step.step for step in steps if step.stage == "decode"] == [3, 6]


def test_decode_chunk_is_halved_repeatedly_without_restart(pipeline: VideoPipeline, image: InputImage) -> None:
    calls = 0

    def later(latents: torch.Tensor) -> bool:  # memory runs out after the first chunk
        nonlocal calls
        calls += 1
        return calls > 1 and len(latents) > 1

    run_out(pipeline.vae.decoder, later)
    steps, video = steps_and_video(pipeline, image, num_frames=7, decode_chunk_size=4)
    pieces = [step for step in steps if step.stage == "decode"]
    assert [(step.step, len(step.frames)) for step in pieces] == [(4, 4), (5, 1), (6, 1), (7, 1)]
    assert np.array_equal(np.concatenate([step.frames for step in pieces]), video.frames)
    assert video.recipe.events == ("memory ran out while decoding 3 frames together: continued with 1",)


def test_out_of_memory_on_single_frame_fails(pipeline: VideoPipeline, image: InputImage) -> None:
    run_out(pipeline.vae.decoder, lambda _: True)
    with pytest.raises(InsufficientMemory, match="while decoding a single frame; use a smaller width and height"):
        video_of(pipeline, image)
    assert {p.device.type for p in pipeline.vae.parameters()} == {"cpu"}


@pytest.mark.parametrize("component", ["image_encoder", "vae.encoder", "unet"])
def test_out_of_memory_on_cpu_raises_insufficient_memory(
    pipeline: VideoPipeline, image: InputImage, component: str
) -> None:
    calls: list[int] = []
    run_out(submodule(pipeline, component), lambda _: calls.append(1) is None)
    with pytest.raises(InsufficientMemory, match=r"memory ran out while .*; use a smaller width, height or num_frames"):
        video_of(pipeline, image)
    assert len(calls) == 1  # no retry: components can't be offloaded from the CPU


def submodule(pipeline: VideoPipeline, path: str) -> torch.nn.Module:
    component, _, rest = path.partition(".")
    module: torch.nn.Module = getattr(pipeline, component)
    return module.get_submodule(rest)


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ...",
        "MPS backend out of memory (MPS allocated: 17.93 GB, other allocations: 64.00 KB, max allowed: 18.13 GB).",
        "Invalid buffer size: 22.50 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ],
)
def test_out_of_memory_messages_of_all_backends_are_recognised(
    pipeline: VideoPipeline, image: InputImage, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError(message)

    pipeline.unet.register_forward_pre_hook(refuse)
    with pytest.raises(InsufficientMemory, match="while denoising"):
        video_of(pipeline, image)


def test_real_cpu_out_of_memory_is_recognised(pipeline: VideoPipeline, image: InputImage) -> None:
    pipeline.unet.register_forward_pre_hook(lambda *_: torch.empty(2**60))
    with pytest.raises(InsufficientMemory, match="while denoising"):
        video_of(pipeline, image)


@pytest.mark.parametrize("component", ["image_encoder", "unet", "vae.decoder"])
def test_other_error_is_not_translated(pipeline: VideoPipeline, image: InputImage, component: str) -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    def fail(*_: object) -> None:
        raise error

    submodule(pipeline, component).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as raised:
        video_of(pipeline, image)
    assert raised.value is error
    assert error.__cause__ is None
    assert len(hooks(pipeline)) == 1


@pytest.mark.parametrize("component", ["unet.mid_block", "vae.decoder.mid_block"])
def test_stored_error_references_no_tensors(pipeline: VideoPipeline, image: InputImage, component: str) -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []

    def refuse(_: object, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        tensors.append(weakref.ref((*inputs, *named.values())[0]))
        raise out_of_memory()

    submodule(pipeline, component).register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(InsufficientMemory) as raised:
        video_of(pipeline, image)
    gc.collect()
    assert raised.value is not None
    assert tensors
    assert all(tensor() is None for tensor in tensors)


def test_out_of_memory_repeats_step_with_next_plan(pipeline: VideoPipeline, image: InputImage) -> None:
    expected = video_of(pipeline, image, num_inference_steps=4).frames
    calls = 0

    def third(_: torch.Tensor) -> bool:
        nonlocal calls
        calls += 1
        return calls == 3

    run_out(pipeline.unet, third)
    pipeline = replace(pipeline, device=Elsewhere("cpu"))
    steps, video = steps_and_video(pipeline, image, num_inference_steps=4)
    assert largest_difference(video.frames, expected) <= 1
    assert video.recipe.events == ("memory ran out at denoising step 3: continued with resident_split",)
    assert video.recipe.memory_plan == "resident_split"
    assert [step.step for step in steps if step.stage == "denoise"] == [1, 2, 3, 4]


def test_out_of_memory_in_a_later_window_repeats_its_step(pipeline: VideoPipeline, image: InputImage) -> None:
    pipeline = replace(pipeline, frames_at_once=2)
    short = {"num_inference_steps": 3, "num_frames": 3, "max_guidance_scale": 1.0}
    expected = video_of(pipeline, image, **short).frames
    calls: list[int] = []
    run_out(pipeline.unet, lambda _: calls.append(1) is None and len(calls) == 4)  # two windows
    video = video_of(replace(pipeline, device=Elsewhere("cpu")), image, **short)
    assert largest_difference(video.frames, expected) <= 1
    assert video.recipe.events == ("memory ran out at denoising step 2: continued with model_offload",)


def test_denoising_uses_leaner_plans_until_one_fits(pipeline: VideoPipeline, image: InputImage) -> None:
    expected = video_of(pipeline, image, num_inference_steps=4).frames
    calls: list[int] = []
    run_out(pipeline.unet, lambda _: calls.append(1) is None and len(calls) in (3, 4))
    pipeline = replace(pipeline, device=Elsewhere("cpu"))
    video = video_of(pipeline, image, num_inference_steps=4)
    assert largest_difference(video.frames, expected) <= 1
    assert video.recipe.events == (
        "memory ran out at denoising step 3: continued with resident_split",
        "memory ran out at denoising step 3: continued with model_offload",
    )
    assert video.recipe.memory_plan == "model_offload"


# An unguided batch is not split, and streaming needs Triton kernels.
@pytest.mark.parametrize(("guidance", "plans"), [(3.0, 4), (1.0, 3)])
def test_denoising_fails_after_last_plan(
    pipeline: VideoPipeline, image: InputImage, guidance: float, plans: int
) -> None:
    calls: list[int] = []
    run_out(pipeline.unet, lambda _: calls.append(1) is None)
    pipeline = replace(pipeline, device=Elsewhere("cpu"))
    with pytest.raises(InsufficientMemory, match="while denoising"):
        video_of(pipeline, image, max_guidance_scale=guidance)
    assert len(calls) == plans
    assert len(hooks(pipeline)) == 1


def test_out_of_memory_in_leanest_plan_fails(
    pipeline: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan("sequential_offload", 4))
    run_out(pipeline.unet, lambda _: True)
    pipeline = replace(pipeline, device=Elsewhere("cpu"))
    with pytest.raises(InsufficientMemory, match="while denoising"):
        video_of(pipeline, image)
    assert len(hooks(pipeline)) == 1


def test_impossible_size_fails_before_work(
    shared: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(width=2048, height=2048, num_frames=128, decode_chunk_size=128)
    monkeypatch.setattr("kinema.models.devices.free_memory", lambda _: 2**30)
    with pytest.raises(InsufficientMemory, match=r"25 frames of 2048×2048 need at least .* GiB is free"):
        next(generate(shared, image, request))


# The recipe


def test_recipe_has_parameters_and_environment(shared: VideoPipeline, image: InputImage, tiny_svd: Path) -> None:
    recipe = video_of(shared, image, model=str(tiny_svd)).recipe
    assert recipe.request == request_of(model="tiny-svd")
    assert recipe.model == shared.identity
    assert recipe.image_sha256 == image.sha256
    assert (recipe.device, recipe.dtype, recipe.memory_plan) == ("cpu", "float32", "resident")
    assert recipe.threads == torch.get_num_threads()
    assert recipe.decode_chunk_size == 4
    assert recipe.events == ()
    assert recipe.versions["torch"] == torch.__version__
    assert set(recipe.versions) == {"torch", "diffusers", "transformers", "accelerate"}


def test_recipe_has_no_private_path(shared: VideoPipeline, image: InputImage, tiny_svd: Path) -> None:
    written = video_of(shared, image, model=str(tiny_svd)).recipe.model_dump_json()
    assert "tiny-svd" in written
    assert str(tiny_svd.parent) not in written
    assert tiny_svd.parent.name not in written
    assert str(Path.home()) not in written


def test_recipe_json_round_trip(shared: VideoPipeline, image: InputImage) -> None:
    recipe = video_of(shared, image).recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_recipe_differs_for_other_weights(shared: VideoPipeline, tiny_svd_4_levels: Path) -> None:
    other = load(tiny_svd_4_levels, device="cpu", dtype="float32").identity
    assert len(shared.identity.weights_sha256) == 64
    assert other.weights_sha256 != shared.identity.weights_sha256


def test_recipe_has_random_seed(shared: VideoPipeline, image: InputImage) -> None:
    video = video_of(shared, image, seed=None)
    assert np.array_equal(video.frames, video_of(shared, image, seed=video.seed).frames)
