"""Test the engine on a CUDA device: frames equal the CPU's, memory plans, and real out-of-memory errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.engine import generate
from kinema.engine import image_to_video as engine
from kinema.errors import InsufficientMemory
from kinema.media.image import InputImage, open_image
from kinema.media.video import Video
from kinema.models.loading import VideoPipeline, load
from kinema.models.memory_plan import COMPONENTS, PLANS, MemoryPlan, plans
from kinema.steps import Step, drive
from kinema.values import VideoRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SMALL = {"seed": 7, "width": 64, "height": 64, "num_frames": 4, "num_inference_steps": 3, "decode_chunk_size": 4}


@pytest.fixture(scope="module")
def image() -> InputImage:
    y, x = np.mgrid[:256, :256] / 10
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    return open_image(Image.fromarray((pixels * 100 + 128).astype("uint8")))


@pytest.fixture
def exact() -> Iterator[None]:
    """Disable TF32 in cuDNN convolutions; it is torch's default for float32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def cuda(folder: Path, dtype: str = "float32") -> VideoPipeline:
    return load(folder, device="cuda", dtype=dtype)


def video_of(pipeline: VideoPipeline, image: InputImage, **settings: object) -> Video:
    return drive(generate(pipeline, image, VideoRequest.checked(**SMALL | settings)))


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Return the largest absolute difference of two videos in levels (0 to 255)."""
    assert np.ptp(theirs) > 20, "a constant video can't reveal a difference"
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


# Comparison with the CPU


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("settings", [{}, {"max_guidance_scale": 1.0}, {"width": 88, "height": 72, "num_frames": 9}])
def test_seed_gives_same_video_on_cuda_and_cpu(tiny_svd: Path, image: InputImage, settings: dict[str, object]) -> None:
    on_cpu = video_of(load(tiny_svd, device="cpu", dtype="float32"), image, **settings)
    on_cuda = video_of(cuda(tiny_svd), image, **settings)
    assert largest_difference(on_cuda.frames, on_cpu.frames) <= 1
    assert on_cuda.recipe.device.startswith("cuda (")


@pytest.mark.usefixtures("exact")
def test_four_levels_give_same_video_on_cuda_and_cpu(tiny_svd_4_levels: Path, image: InputImage) -> None:
    on_cpu = video_of(load(tiny_svd_4_levels, device="cpu", dtype="float32"), image)
    assert largest_difference(video_of(cuda(tiny_svd_4_levels), image).frames, on_cpu.frames) <= 1


@pytest.mark.parametrize(("dtype", "levels"), [("float16", 1), ("bfloat16", 3)])  # measured on a CPU: 0.1 and 1.0
def test_half_precision_gives_similar_video(tiny_svd: Path, image: InputImage, dtype: str, levels: int) -> None:
    expected = video_of(cuda(tiny_svd), image).frames.astype(float)
    video = video_of(cuda(tiny_svd, dtype), image)
    assert video.recipe.dtype == dtype
    assert video.recipe.events == ()
    assert np.ptp(video.frames) > 20
    assert np.abs(video.frames - expected).mean() < levels


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_same_seed_same_bytes_on_cuda(tiny_svd: Path, image: InputImage, dtype: str) -> None:
    pipeline = cuda(tiny_svd, dtype)
    assert video_of(pipeline, image).frames.tobytes() == video_of(pipeline, image).frames.tobytes()


# Memory plans


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_memory_plan_gives_the_same_frames(
    tiny_svd: Path, image: InputImage, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = cuda(tiny_svd, dtype)
    resident = video_of(pipeline, image).frames
    split = []
    for name in (*plans(guided=True, fast=dtype == "float16")[1:], "resident"):
        monkeypatch.setattr(engine, "plan_for", lambda *_, name=name: MemoryPlan(name, 4))
        split.append(video_of(pipeline, image).frames)
    assert largest_difference(split.pop(), resident) == 0
    *ours, _ = split
    assert all(largest_difference(frames, ours[0]) == 0 for frames in ours)
    # Half a batch sums in a different order, and sequential offload uses diffusers' forward.
    assert all(largest_difference(frames, resident) <= (1 if dtype == "float32" else 3) for frames in split)


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
@pytest.mark.parametrize("name", PLANS)
def test_cancel_frees_device_memory(
    tiny_svd: Path, image: InputImage, name: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan(name, 2))
    pipeline = cuda(tiny_svd, "float16" if name == "streamed" else "float32")
    video_of(pipeline, image)
    before = torch.cuda.memory_allocated()
    iterator = generate(pipeline, image, VideoRequest.checked(**SMALL))
    for step in iterator:
        assert isinstance(step, Step)
        if step.stage == stage:
            break
    del step
    iterator.close()
    assert torch.cuda.memory_allocated() <= before
    device_type = "cuda" if name.startswith("resident") else "cpu"
    assert {p.device.type for component in COMPONENTS for p in getattr(pipeline, component).parameters()} == {
        device_type
    }


# Out of memory


@contextmanager
def memory_limit(limit: int) -> Iterator[None]:
    """Limit torch to `limit` bytes of the device within the context."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def peaks(pipeline: VideoPipeline, image: InputImage, **settings: object) -> dict[str, tuple[int, int]]:
    """Return for each stage the peak of torch's allocated and reserved bytes."""
    result: dict[str, tuple[int, int]] = {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for step in generate(pipeline, image, VideoRequest.checked(**SMALL | settings)):
        allocated, reserved = result.get(step.stage, (0, 0))
        peak = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        result[step.stage] = max(allocated, peak[0]), max(reserved, peak[1])
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return result


LARGE = {"width": 256, "height": 256, "num_frames": 16, "num_inference_steps": 1}


def test_out_of_memory_reduces_decode_chunk(tiny_svd: Path, image: InputImage) -> None:
    pipeline = cuda(tiny_svd)
    full, _ = peaks(pipeline, image, **LARGE, decode_chunk_size=16)["decode"]
    quarter = max(reserved for _, reserved in peaks(pipeline, image, **LARGE, decode_chunk_size=4).values())
    assert quarter < 0.7 * full
    with memory_limit((full + quarter) // 2):
        video = video_of(pipeline, image, **LARGE, decode_chunk_size=16)
    assert video.frames.shape == (16, 256, 256, 3)
    assert video.recipe.events
    assert all(event.startswith("memory ran out while decoding") for event in video.recipe.events)


LONG = {"width": 128, "height": 128, "num_frames": 96, "num_inference_steps": 2, "decode_chunk_size": 2}


def test_out_of_memory_while_denoising_uses_next_plan(tiny_svd: Path, image: InputImage) -> None:
    pipeline = cuda(tiny_svd)
    expected = video_of(pipeline, image, **LONG).frames
    stages = peaks(pipeline, image, **LONG)
    (allocated, reserved), others = stages["denoise"], max(stages["encode"][1], stages["decode"][1])
    # Extra weights on the device during denoising; the other stages still fit.
    ballast = allocated - others
    assert reserved < allocated + ballast
    pipeline.vae.register_parameter(
        "ballast", torch.nn.Parameter(torch.zeros(ballast // 4, device="cuda"), requires_grad=False)
    )
    with memory_limit((reserved + allocated + ballast) // 2):
        video = video_of(pipeline, image, **LONG)
    assert video.recipe.events == ("memory ran out at denoising step 1: continued with resident_split",)
    assert video.recipe.memory_plan == "resident_split"
    assert np.abs(video.frames.astype(float) - expected).mean() < 2


def test_out_of_memory_in_every_plan_fails_and_frees_memory(tiny_svd: Path, image: InputImage) -> None:
    pipeline = cuda(tiny_svd)
    enough = max(allocated for allocated, _ in peaks(pipeline, image, **LARGE, decode_chunk_size=1).values())
    before = torch.cuda.memory_allocated()
    with memory_limit(enough // 3), pytest.raises(InsufficientMemory, match="memory ran out while") as raised:
        video_of(pipeline, image, **LARGE, decode_chunk_size=1)
    assert raised.value is not None
    # The stored error may reference conditions and latents, which are small, but no activations.
    assert torch.cuda.memory_allocated() - before < enough // 10
    assert video_of(pipeline, image).frames.shape == (4, 64, 64, 3)
