"""The memory of the stages after decoding: live tensors are counted again, and what does not fit is refused."""

import weakref

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kinema
from kinema.engine import to_latents
from kinema.engine.upscaling import LAYERS, CompactUpscaler
from kinema.errors import InsufficientMemory
from kinema.media.image import open_image
from kinema.models import finishing_memory
from kinema.models.finishing_memory import frames_bytes, network_bytes
from kinema.models.frame_interpolator import FrameInterpolator
from kinema.models.memory_plan import GIB, WORKSPACE
from kinema.values import VideoRequest

META = torch.device("meta")


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that exist at once, and the peak."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.storages = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            if (key := storage._cdata) not in self.storages:
                self.storages.add(key)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.remove, key, storage.nbytes())
        return result

    def remove(self, key, count):
        self.storages.discard(key)
        self.bytes -= count


def request(**parameters):
    return VideoRequest(model="pocket", seed=1, **{"width": 1024, "height": 576, "num_frames": 25} | parameters)


def to_bytes(frames):
    return frames.clamp(0, 1).mul(255).round().to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_interpolation_needs_the_counted_memory(dtype):
    network, frames = FrameInterpolator().to(META, dtype), torch.empty(3, 3, 576, 1024, device=META)
    with torch.no_grad(), LiveTensors() as counter:
        to_bytes(network(frames, frames, torch.empty(3, device=META)))
    assert network_bytes(request(interpolate=4), dtype) == pytest.approx(WORKSPACE * counter.peak, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("width", "height"), [(288, 160), (1024, 576), (2048, 1152)])
def test_upscaling_needs_at_most_the_counted_memory(dtype, width, height):
    tensors = []
    for i, (inputs, outputs) in enumerate(LAYERS):
        tensors += [torch.empty(outputs, inputs, 3, 3), torch.empty(outputs)]
        tensors += [torch.empty(outputs)] * (i + 1 < len(LAYERS))
    upscaler = CompactUpscaler(tensors, META)
    upscaler.dtype, upscaler.tensors = dtype, [tensor.to(dtype) for tensor in upscaler.tensors]
    with torch.no_grad(), LiveTensors() as counter:
        to_bytes(upscaler.upscale(torch.empty(1, 3, height, width, device=META))[0])
    planned = network_bytes(request(width=width, height=height, upscale=2), dtype) / WORKSPACE
    assert counter.peak <= planned <= 1.2 * counter.peak


def test_frames_of_every_stage_count():
    pixels = 1024 * 576 * 3
    assert frames_bytes(request()) == 25 * pixels
    assert frames_bytes(request(interpolate=2)) == (25 + 49) * pixels
    assert frames_bytes(request(interpolate=2, upscale=2)) == (25 + 49 + 4 * 49) * pixels
    # 5 new frames after 20, of which the last is finished again; then all are joined
    assert frames_bytes(request(interpolate=2, upscale=2), 20) == (6 + 11 + 4 * 11 + 4 * 49) * pixels


def test_upscaled_video_that_does_not_fit_is_refused_before_any_work(tiny_svd, monkeypatch):
    pipeline, image = kinema.load(tiny_svd, device="cpu", dtype="float32"), open_image(Image.new("RGB", (64, 64)))
    monkeypatch.setattr(finishing_memory, "free_memory", lambda _: GIB // 2)
    monkeypatch.setattr("kinema.engine.image_to_video.upscaler_file", lambda: None)
    large = request(width=256, height=256, upscale=2, interpolate=4, num_frames=128)
    with pytest.raises(
        InsufficientMemory,
        match=r"^509 frames of 512×512 \(interpolate 4, upscale 2\) need at least 0\.7 GiB of host memory, but only "
        r"0\.5 GiB is free; use upscale 1, interpolate 1, fewer num_frames or a smaller width and height$",
    ):
        next(to_latents(pipeline, image, large))
