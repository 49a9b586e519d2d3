"""A group of processes, here on a CPU, generates the frames of one process; the loss of one is an error."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from kinema.engine import generate, to_latents
from kinema.engine import image_to_video as engine
from kinema.errors import DeviceLost, InsufficientMemory, InvalidRequest, ModelError
from kinema.media.image import InputImage, open_image
from kinema.models.gpu_group import Peer, devices_of
from kinema.models.loading import VideoPipeline, load
from kinema.models.memory_plan import MemoryPlan
from kinema.settings import read_settings
from kinema.steps import drive
from kinema.values import VideoRequest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="groups need Linux")
SMALL = {"seed": 7, "width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 2, "max_guidance_scale": 3.0}


@pytest.fixture(scope="module")
def image() -> InputImage:
    y, x = np.mgrid[:64, :64] / 10
    pixels = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    return open_image(Image.fromarray((pixels * 100 + 128).astype("uint8")))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loaded(model: Path, gpus: int = 2, timeout: float = 60, dtype: str = "float32") -> VideoPipeline:
    """Return a pipeline of a group of processes on the CPU."""
    settings = read_settings(device="cpu", dtype=dtype, gpus_per_video=str(gpus), step_timeout=str(timeout))
    return load(model, settings=settings)


@pytest.fixture
def pair(tiny_svd: Path) -> Iterator[VideoPipeline]:
    pipeline = loaded(tiny_svd)
    yield pipeline
    pipeline.release()


@pytest.fixture(scope="module")
def shared(tiny_svd: Path) -> Iterator[VideoPipeline]:
    """Return a pair that no test modifies."""
    pipeline = loaded(tiny_svd)
    yield pipeline
    pipeline.release()


def request_of(pipeline: VideoPipeline, **settings: object) -> VideoRequest:
    return VideoRequest(model=pipeline.name, **SMALL | settings)


def test_pair_generates_frames_of_one_process_with_split_guidance(
    tiny_svd: Path, shared: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(shared)
    ours = drive(generate(shared, image, request))
    latents = drive(to_latents(shared, image, request)).latents
    assert (ours.recipe.memory_plan, ours.recipe.gpus, ours.recipe.decode_chunk_size) == ("resident_split", 2, 3)
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan("resident_split", 3))
    alone = loaded(tiny_svd, gpus=1)
    assert torch.equal(drive(to_latents(alone, image, request)).latents, latents)
    theirs = drive(generate(alone, image, request))
    assert np.array_equal(ours.frames, theirs.frames)
    assert theirs.recipe == ours.recipe.model_copy(update={"gpus": 1})


def test_second_process_computes_half_of_guidance_and_half_of_frames(
    shared: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []
    ask = Peer.ask

    def record(peer: Peer, kind: str, *arguments: object, tensor: torch.Tensor | None = None) -> None:
        asked.append((kind, tuple(tensor.shape) if tensor is not None else ()))
        ask(peer, kind, *arguments, tensor=tensor)

    monkeypatch.setattr(Peer, "ask", record)
    drive(generate(shared, image, request_of(shared)))
    assert asked == [("step", (1, 5, 4, 8, 8))] * 2 + [("decode", (2, 4, 8, 8))]


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_pair_decodes_chunks_of_any_size_in_order(
    tiny_svd: Path, shared: VideoPipeline, image: InputImage, chunk: int
) -> None:
    settings = {"max_guidance_scale": 1.0, "decode_chunk_size": chunk}
    ours = drive(generate(shared, image, request_of(shared, **settings)))
    alone = loaded(tiny_svd, gpus=1)
    assert np.array_equal(ours.frames, drive(generate(alone, image, request_of(alone, **settings))).frames)


def test_next_video_is_correct_after_a_cancelled_one(shared: VideoPipeline, image: InputImage) -> None:
    whole = drive(generate(shared, image, request_of(shared))).frames
    for steps in (2, 3, 4):  # encode, then denoise, then decode
        events = generate(shared, image, request_of(shared, seed=1))
        for _ in range(steps):
            next(events)
        events.close()
        assert np.array_equal(drive(generate(shared, image, request_of(shared))).frames, whole)


def test_death_of_second_process_is_device_lost(pair: VideoPipeline, image: InputImage) -> None:
    events = generate(pair, image, request_of(pair))
    for _ in range(3):
        next(events)
    os.kill(pair.peers[0].pid, signal.SIGKILL)
    with pytest.raises(DeviceLost, match=r"the process for cpu ended \(killed by SIGKILL\); load the model again"):
        drive(events)
    with pytest.raises(DeviceLost, match="load the model again"):
        drive(generate(pair, image, request_of(pair)))


def test_hung_second_process_is_killed_after_step_timeout(tiny_svd: Path, image: InputImage) -> None:
    pipeline = loaded(tiny_svd, timeout=1)
    peer = psutil.Process(pipeline.peers[0].pid)
    peer.suspend()
    with pytest.raises(DeviceLost, match="did not answer within 1 seconds"):
        drive(generate(pipeline, image, request_of(pipeline)))
    assert not peer.is_running()


def test_out_of_memory_of_second_process_is_reported_as_that_of_one(pair: VideoPipeline, image: InputImage) -> None:
    whole = drive(generate(pair, image, request_of(pair, max_guidance_scale=1.0))).frames
    process = psutil.Process(pair.peers[0].pid)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 2**24, -1))  # 16 MiB more can be allocated
    request = request_of(pair, max_guidance_scale=1.0, width=512, height=512, num_frames=4)
    with pytest.raises(InsufficientMemory, match="memory ran out while decoding a single frame"):
        drive(generate(pair, image, request))
    process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, -1))
    assert np.array_equal(drive(generate(pair, image, request_of(pair, max_guidance_scale=1.0))).frames, whole)


def test_processes_end_with_the_pipeline(tiny_svd: Path) -> None:
    pipeline = loaded(tiny_svd)
    process = psutil.Process(pipeline.peers[0].pid)
    assert process.is_running()
    del pipeline
    gc.collect()
    assert not process.is_running()


def test_damaged_model_is_reported_as_by_one_process(tiny_svd: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        loaded(tmp_path / "missing")


def test_more_gpus_than_the_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = read_settings(gpus_per_video="2")
    assert devices_of(torch.device("cuda"), settings) == ["cuda", "cuda:1"]
    assert devices_of(torch.device("cuda", 0), settings) == ["cuda:0", "cuda:1"]
    for device, message in {
        "cuda:1": "gpus is 2, but the number of CUDA GPUs from cuda:1 on is 1; use gpus 1",
        "cpu": "gpus is 2, but the number of CUDA GPUs on this machine is 0; use gpus 1",
        "mps": "gpus is 2, but the number of CUDA GPUs on this machine is 0; use gpus 1",
    }.items():
        with pytest.raises(InvalidRequest) as caught:
            devices_of(torch.device(device), settings)
        assert (str(caught.value), caught.value.param) == (message, "gpus")
