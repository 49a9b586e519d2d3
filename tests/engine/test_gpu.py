"""The engine on a CUDA device: the CPU's frames, every memory plan, and memory that really runs out."""

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
from kinema.models.memory_plan import PARTS, PLANS, MemoryPlan, plans
from kinema.values import Step, VideoRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SMALL = {"seed": 7, "width": 64, "height": 64, "num_frames": 4, "num_inference_steps": 3, "decode_chunk_size": 4}


@pytest.fixture(scope="module")
def image() -> InputImage:
    y, x = np.mgrid[:256, :256] / 10
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    return open_image(Image.fromarray((pixels * 100 + 128).astype("uint8")))


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions in float32 that is float32, where torch's own default is TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def cuda(folder: Path, dtype: str = "float32") -> VideoPipeline:
    return load(folder, device="cuda", dtype=dtype)


def clip_of(pipeline: VideoPipeline, image: InputImage, **settings: object) -> Video:
    *_, video = generate(pipeline, image, VideoRequest.checked(**SMALL | settings))
    assert isinstance(video, Video)
    return video


def farthest(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert np.ptp(theirs) > 20, "a flat video would show nothing"
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


# The CPU's frames


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("settings", [{}, {"max_guidance_scale": 1.0}, {"width": 88, "height": 72, "num_frames": 9}])
def test_a_seed_means_the_same_video_on_every_device(
    tiny_svd: Path, image: InputImage, settings: dict[str, object]
) -> None:
    on_cpu = clip_of(load(tiny_svd, device="cpu", dtype="float32"), image, **settings)
    on_cuda = clip_of(cuda(tiny_svd), image, **settings)
    assert farthest(on_cuda.frames, on_cpu.frames) <= 1
    assert on_cuda.recipe.device.startswith("cuda (")


@pytest.mark.usefixtures("exact")
def test_the_real_models_four_levels_agree_too(tiny_svd_4_levels: Path, image: InputImage) -> None:
    on_cpu = clip_of(load(tiny_svd_4_levels, device="cpu", dtype="float32"), image)
    assert farthest(clip_of(cuda(tiny_svd_4_levels), image).frames, on_cpu.frames) <= 1


@pytest.mark.parametrize(("dtype", "levels"), [("float16", 1), ("bfloat16", 3)])  # on a CPU it is 0.1 and 1.0
def test_half_precision_gives_nearly_the_same_video(tiny_svd: Path, image: InputImage, dtype: str, levels: int) -> None:
    whole = clip_of(cuda(tiny_svd), image).frames.astype(float)
    video = clip_of(cuda(tiny_svd, dtype), image)
    assert video.recipe.dtype == dtype
    assert video.recipe.events == ()
    assert np.ptp(video.frames) > 20
    assert np.abs(video.frames - whole).mean() < levels


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_same_seed_same_bytes_on_cuda(tiny_svd: Path, image: InputImage, dtype: str) -> None:
    pipeline = cuda(tiny_svd, dtype)
    assert clip_of(pipeline, image).frames.tobytes() == clip_of(pipeline, image).frames.tobytes()


# Memory plans


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_memory_plan_gives_the_same_frames(
    tiny_svd: Path, image: InputImage, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = cuda(tiny_svd, dtype)
    resident = clip_of(pipeline, image).frames
    split = []
    for name in (*plans(guided=True, fast=dtype == "float16")[1:], "resident"):
        monkeypatch.setattr(engine, "plan_for", lambda *_, name=name: MemoryPlan(name, 4))
        split.append(clip_of(pipeline, image).frames)
    assert farthest(split.pop(), resident) == 0
    *ours, _ = split
    assert all(farthest(frames, ours[0]) == 0 for frames in ours)
    # Half a batch is summed up in another order, and layers that come one by one go through diffusers' forward.
    assert all(farthest(frames, resident) <= (1 if dtype == "float32" else 3) for frames in split)


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
@pytest.mark.parametrize("name", PLANS)
def test_stopping_gives_the_device_back(
    tiny_svd: Path, image: InputImage, name: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan(name, 2))
    pipeline = cuda(tiny_svd, "float16" if name == "streamed" else "float32")
    clip_of(pipeline, image)
    before = torch.cuda.memory_allocated()
    iterator = generate(pipeline, image, VideoRequest.checked(**SMALL))
    for step in iterator:
        assert isinstance(step, Step)
        if step.stage == stage:
            break
    del step
    iterator.close()
    assert torch.cuda.memory_allocated() <= before
    home = "cuda" if name.startswith("resident") else "cpu"
    assert {p.device.type for part in PARTS for p in getattr(pipeline, part).parameters()} == {home}


# Memory that runs out


@contextmanager
def limited(limit: int) -> Iterator[None]:
    """No more than `limit` bytes of the device for torch, while inside."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def peaks(pipeline: VideoPipeline, image: InputImage, **settings: object) -> dict[str, tuple[int, int]]:
    """For each stage the bytes that it can't do without, and those that torch took for it."""
    seen: dict[str, tuple[int, int]] = {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for step in generate(pipeline, image, VideoRequest.checked(**SMALL | settings)):
        if isinstance(step, Step):
            least, most = seen.get(step.stage, (0, 0))
            peak = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            seen[step.stage] = max(least, peak[0]), max(most, peak[1])
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return seen


LARGE = {"width": 256, "height": 256, "num_frames": 16, "num_inference_steps": 1}


def test_decoding_goes_on_with_smaller_chunks_when_memory_runs_out(tiny_svd: Path, image: InputImage) -> None:
    pipeline = cuda(tiny_svd)
    whole, _ = peaks(pipeline, image, **LARGE, decode_chunk_size=16)["decode"]
    quarter = max(most for _, most in peaks(pipeline, image, **LARGE, decode_chunk_size=4).values())
    assert quarter < 0.7 * whole
    with limited((whole + quarter) // 2):
        video = clip_of(pipeline, image, **LARGE, decode_chunk_size=16)
    assert video.frames.shape == (16, 256, 256, 3)
    assert video.recipe.events
    assert all(event.startswith("memory ran out while decoding") for event in video.recipe.events)


LONG = {"width": 128, "height": 128, "num_frames": 96, "num_inference_steps": 2, "decode_chunk_size": 2}


def test_denoising_goes_on_in_the_next_plan_when_memory_runs_out(tiny_svd: Path, image: InputImage) -> None:
    pipeline = cuda(tiny_svd)
    undisturbed = clip_of(pipeline, image, **LONG).frames
    seen = peaks(pipeline, image, **LONG)
    (least, most), others = seen["denoise"], max(seen["encode"][1], seen["decode"][1])
    # Weights that lie on the device while denoising too, and with which the other stages fit.
    ballast = least - others
    assert most < least + ballast
    pipeline.vae.register_parameter(
        "ballast", torch.nn.Parameter(torch.zeros(ballast // 4, device="cuda"), requires_grad=False)
    )
    with limited((most + least + ballast) // 2):
        video = clip_of(pipeline, image, **LONG)
    assert video.recipe.events == ("memory ran out at denoising step 1: continued with resident_split",)
    assert video.recipe.memory_plan == "resident_split"
    assert np.abs(video.frames.astype(float) - undisturbed).mean() < 2


def test_memory_that_runs_out_for_good_is_said_and_given_back(tiny_svd: Path, image: InputImage) -> None:
    pipeline = cuda(tiny_svd)
    enough = max(least for least, _ in peaks(pipeline, image, **LARGE, decode_chunk_size=1).values())
    before = torch.cuda.memory_allocated()
    with limited(enough // 3), pytest.raises(InsufficientMemory, match="memory ran out while") as raised:
        clip_of(pipeline, image, **LARGE, decode_chunk_size=1)
    assert raised.value is not None
    # The kept error may hold conditions and latents, which are small, and nothing of the networks' work.
    assert torch.cuda.memory_allocated() - before < enough // 10
    assert clip_of(pipeline, image).frames.shape == (4, 64, 64, 3)
