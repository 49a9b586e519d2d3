"""Test image generation on a CUDA device: parity with the CPU, memory plans, out-of-memory errors and freed memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import kinema
from kinema.engine import generate_image
from kinema.engine import text_to_image as engine
from kinema.errors import InsufficientMemory
from kinema.media.image import InputImage
from kinema.models.image_pipeline import ImagePipeline, load_image_pipeline
from kinema.models.memory_plan import MemoryPlan
from kinema.steps import Step, drive
from kinema.values import VideoRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SMALL = {"prompt": "a red balloon", "seed": 7, "width": 64, "height": 64, "image_num_inference_steps": 3}
LARGE = {"width": 512, "height": 512, "image_num_inference_steps": 1}


@pytest.fixture
def exact() -> Iterator[None]:
    """Disable TF32 in cuDNN convolutions; it is torch's default for float32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def cuda(folder: Path, dtype: str = "float32") -> ImagePipeline:
    return load_image_pipeline(folder, device="cuda", dtype=dtype)


def image_of(image_pipeline: ImagePipeline, **settings: object) -> InputImage:
    return drive(generate_image(image_pipeline, VideoRequest.checked(**SMALL | settings)))


def largest_difference(ours: InputImage, theirs: InputImage) -> int:
    """Return the largest absolute difference of two images in levels (0 to 255)."""
    a, b = (np.asarray(image.rgb).astype(int) for image in (ours, theirs))
    assert np.ptp(b) > 20, "a constant image can't reveal a difference"
    return int(np.abs(a - b).max())


def is_on_cpu(image_pipeline: ImagePipeline) -> bool:
    return {p.device.type for network in image_pipeline.networks.values() for p in network.parameters()} == {"cpu"}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("settings", [{}, {"image_guidance_scale": 1.0}, {"width": 88, "height": 72}])
def test_seed_gives_same_image_on_cuda_and_cpu(tiny_sd: Path, settings: dict[str, object]) -> None:
    on_cpu = image_of(load_image_pipeline(tiny_sd, device="cpu", dtype="float32"), **settings)
    assert largest_difference(image_of(cuda(tiny_sd), **settings), on_cpu) <= 1


@pytest.mark.parametrize(("dtype", "levels"), [("float16", 1), ("bfloat16", 4)])
def test_half_precision_gives_similar_image(tiny_sd: Path, dtype: str, levels: float) -> None:
    expected = np.asarray(image_of(cuda(tiny_sd)).rgb).astype(float)
    image = image_of(cuda(tiny_sd, dtype))
    assert np.abs(np.asarray(image.rgb) - expected).mean() < levels
    assert image.image_generation is not None
    assert image.image_generation.events == ()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_memory_plan_gives_same_image_and_frees_device_memory(
    tiny_sd: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_pipeline = cuda(tiny_sd, dtype)
    resident = image_of(image_pipeline)
    before = torch.cuda.memory_allocated()
    for name in ("model_offload", "sequential_offload", "resident"):
        monkeypatch.setattr(engine, "plan_for", lambda *_, name=name: MemoryPlan(name, 1))
        assert largest_difference(image_of(image_pipeline), resident) == 0, name
        assert is_on_cpu(image_pipeline)
        assert torch.cuda.memory_allocated() <= before


@pytest.mark.parametrize("name", ["resident", "model_offload", "sequential_offload"])
def test_cancel_frees_device_memory(tiny_sd: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan(name, 1))
    image_pipeline = cuda(tiny_sd)
    image_of(image_pipeline)
    before = torch.cuda.memory_allocated()
    iterator = generate_image(image_pipeline, VideoRequest.checked(**SMALL))
    step = next(iterator)
    assert isinstance(step, Step)
    assert torch.cuda.memory_allocated() > before
    del step
    iterator.close()
    assert torch.cuda.memory_allocated() <= before
    assert is_on_cpu(image_pipeline)


def test_text_to_image_model_is_unloaded_before_video_generation(tiny_sd: Path, tiny_svd: Path) -> None:
    pipeline = kinema.load(tiny_svd, device="cuda", dtype="float32")
    settings = {"num_frames": 2, "num_inference_steps": 1}
    kinema.generate(model=pipeline, image_model=tiny_sd, **SMALL | settings)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    weights = sum(path.stat().st_size for path in tiny_sd.rglob("*.safetensors"))
    peak_generation, after = 0, None
    for step in kinema.stream(model=pipeline, image_model=tiny_sd, **SMALL | settings):
        if isinstance(step, Step) and step.stage == "text_to_image":
            peak_generation = max(peak_generation, torch.cuda.memory_allocated() - before)
        elif isinstance(step, Step) and after is None:
            after = torch.cuda.memory_allocated() - before
    assert peak_generation >= weights * 0.9
    assert after is not None
    assert after < weights / 2


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


def peak(image_pipeline: ImagePipeline, **settings: object) -> int:
    """Return the peak of torch's reserved bytes for one image."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    image_of(image_pipeline, **settings)
    return torch.cuda.max_memory_reserved()


def test_out_of_memory_uses_next_plan(tiny_sd: Path) -> None:
    image_pipeline = cuda(tiny_sd)
    expected = image_of(image_pipeline, **LARGE)
    needed = peak(image_pipeline, **LARGE)
    # Extra weights of the text encoder, which only the resident plan keeps on the device while other components run.
    ballast = torch.nn.Parameter(torch.zeros(2 * needed // 4), requires_grad=False)
    image_pipeline.networks["text_encoder"].register_parameter("ballast", ballast)
    with memory_limit(int(2.5 * needed)):
        image = image_of(image_pipeline, **LARGE)
    assert image.image_generation is not None
    assert image.image_generation.events == ("memory ran out while generating the image: repeated with model_offload",)
    assert image.image_generation.memory_plan == "model_offload"
    assert largest_difference(image, expected) <= 8  # in TF32
    assert is_on_cpu(image_pipeline)


def test_out_of_memory_in_every_plan_fails_and_frees_memory(tiny_sd: Path) -> None:
    image_pipeline = cuda(tiny_sd)
    needed = peak(image_pipeline, **LARGE)
    before = torch.cuda.memory_allocated()
    with (
        memory_limit(needed // 4),
        pytest.raises(InsufficientMemory, match="memory ran out while generating the image") as raised,
    ):
        image_of(image_pipeline, **LARGE)
    assert raised.value is not None
    assert torch.cuda.memory_allocated() - before < needed // 10
    assert is_on_cpu(image_pipeline)
    assert image_of(image_pipeline).rgb.size == (64, 64)
