"""Painting on a CUDA device: the CPU's still, every memory plan, memory that runs out, and memory given back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import kinema
from kinema.engine import paint
from kinema.engine import text_to_image as engine
from kinema.errors import InsufficientMemory
from kinema.media.still import Still
from kinema.models.painters import Painter, load_painter
from kinema.models.placement import Plan
from kinema.values import Step, VideoRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SMALL = {"prompt": "a red balloon", "seed": 7, "width": 64, "height": 64, "image_num_inference_steps": 3}
LARGE = {"width": 512, "height": 512, "image_num_inference_steps": 1}


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions in float32 that is float32, where torch's own default is TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def cuda(folder: Path, dtype: str = "float32") -> Painter:
    return load_painter(folder, device="cuda", dtype=dtype)


def still_of(painter: Painter, **settings: object) -> Still:
    *_, still = paint(painter, VideoRequest.checked(**SMALL | settings))
    assert isinstance(still, Still)
    return still


def farthest(ours: Still, theirs: Still) -> int:
    a, b = (np.asarray(still.image).astype(int) for still in (ours, theirs))
    assert np.ptp(b) > 20, "a flat picture would show nothing"
    return int(np.abs(a - b).max())


def at_home(painter: Painter) -> bool:
    return {p.device.type for network in painter.networks.values() for p in network.parameters()} == {"cpu"}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("settings", [{}, {"image_guidance_scale": 1.0}, {"width": 88, "height": 72}])
def test_a_seed_means_the_same_still_on_every_device(tiny_sd: Path, settings: dict[str, object]) -> None:
    on_cpu = still_of(load_painter(tiny_sd, device="cpu", dtype="float32"), **settings)
    assert farthest(still_of(cuda(tiny_sd), **settings), on_cpu) <= 1


@pytest.mark.parametrize(("dtype", "levels"), [("float16", 1), ("bfloat16", 4)])
def test_half_precision_gives_nearly_the_same_still(tiny_sd: Path, dtype: str, levels: float) -> None:
    whole = np.asarray(still_of(cuda(tiny_sd)).image).astype(float)
    still = still_of(cuda(tiny_sd, dtype))
    assert np.abs(np.asarray(still.image) - whole).mean() < levels
    assert still.painting is not None
    assert still.painting.events == ()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_memory_plan_gives_the_same_still_and_the_device_back(
    tiny_sd: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = cuda(tiny_sd, dtype)
    resident = still_of(painter)
    before = torch.cuda.memory_allocated()
    for name in ("model_offload", "sequential_offload", "resident"):
        monkeypatch.setattr(engine, "plan_for", lambda *_, name=name: Plan(name, 1))
        assert farthest(still_of(painter), resident) == 0, name
        assert at_home(painter)
        assert torch.cuda.memory_allocated() <= before


@pytest.mark.parametrize("name", ["resident", "model_offload", "sequential_offload"])
def test_stopping_gives_the_device_back(tiny_sd: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "plan_for", lambda *_: Plan(name, 1))
    painter = cuda(tiny_sd)
    still_of(painter)
    before = torch.cuda.memory_allocated()
    iterator = paint(painter, VideoRequest.checked(**SMALL))
    step = next(iterator)
    assert isinstance(step, Step)
    assert torch.cuda.memory_allocated() > before
    del step
    iterator.close()
    assert torch.cuda.memory_allocated() <= before
    assert at_home(painter)


def test_the_painters_memory_is_given_back_before_the_video_half(tiny_sd: Path, tiny_svd: Path) -> None:
    models = kinema.load(tiny_svd, device="cuda", dtype="float32")
    settings = {"num_frames": 2, "num_inference_steps": 1}
    kinema.generate(model=models, image_model=tiny_sd, **SMALL | settings)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    weights = sum(path.stat().st_size for path in tiny_sd.rglob("*.safetensors"))
    painting, after = 0, None
    for step in kinema.stream(model=models, image_model=tiny_sd, **SMALL | settings):
        if isinstance(step, Step) and step.stage == "paint":
            painting = max(painting, torch.cuda.memory_allocated() - before)
        elif isinstance(step, Step) and after is None:
            after = torch.cuda.memory_allocated() - before
    assert painting >= weights * 0.9
    assert after is not None
    assert after < weights / 2


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


def peak(painter: Painter, **settings: object) -> int:
    """The most bytes that torch takes for one still."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    still_of(painter, **settings)
    return torch.cuda.max_memory_reserved()


def test_painting_goes_on_in_the_next_plan_when_memory_runs_out(tiny_sd: Path) -> None:
    painter = cuda(tiny_sd)
    undisturbed = still_of(painter, **LARGE)
    needed = peak(painter, **LARGE)
    # Weights of the text encoder's, which only the resident plan has on the device while the others work.
    ballast = torch.nn.Parameter(torch.zeros(2 * needed // 4), requires_grad=False)
    painter.networks["text_encoder"].register_parameter("ballast", ballast)
    with limited(int(2.5 * needed)):
        still = still_of(painter, **LARGE)
    assert still.painting is not None
    assert still.painting.events == ("memory ran out while painting: painted again with model_offload",)
    assert still.painting.memory_plan == "model_offload"
    assert farthest(still, undisturbed) <= 8  # in TF32
    assert at_home(painter)


def test_memory_that_runs_out_for_good_is_said_and_given_back(tiny_sd: Path) -> None:
    painter = cuda(tiny_sd)
    needed = peak(painter, **LARGE)
    before = torch.cuda.memory_allocated()
    with limited(needed // 4), pytest.raises(InsufficientMemory, match="memory ran out while painting") as raised:
        still_of(painter, **LARGE)
    assert raised.value is not None
    assert torch.cuda.memory_allocated() - before < needed // 10
    assert at_home(painter)
    assert still_of(painter).image.size == (64, 64)
