"""A group of processes, here on a CPU, generates the frames of one process; the loss of one is an error."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from kinema.engine import generate, to_latents, to_video
from kinema.engine import image_to_video as engine
from kinema.engine.peer_process import portable
from kinema.errors import DeviceLost, InsufficientMemory, InvalidRequest, ModelError
from kinema.media.image import InputImage, open_image
from kinema.models.catalog import request_for
from kinema.models.gpu_group import Peer, devices_of
from kinema.models.loading import VideoPipeline, load
from kinema.models.memory_plan import MemoryPlan
from kinema.settings import read_settings
from kinema.steps import drive
from kinema.values import VideoRequest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="groups need Linux")
Asked = list[tuple[str, tuple[int, ...]]]
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


def loaded(model: Path | str, gpus: int = 2, timeout: float = 60, dtype: str = "float32") -> VideoPipeline:
    """Return a pipeline of a group of processes on the CPU."""
    settings = read_settings(device="cpu", dtype=dtype, gpus_per_video=str(gpus), step_timeout=str(timeout))
    return load(model, settings=settings)


@pytest.fixture
def pair(tiny_svd: Path) -> Iterator[VideoPipeline]:
    pipeline = loaded(tiny_svd)
    yield pipeline
    pipeline.release()


@pytest.fixture(scope="module")
def four(tiny_svd: Path) -> Iterator[VideoPipeline]:
    """Return a group of four that no test modifies."""
    pipeline = loaded(tiny_svd, gpus=4)
    yield pipeline
    pipeline.release()


@pytest.fixture(scope="module")
def shared(tiny_svd: Path) -> Iterator[VideoPipeline]:
    """Return a pair that no test modifies."""
    pipeline = loaded(tiny_svd)
    yield pipeline
    pipeline.release()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Return a list of the questions to peers: kind, and shape of the tensor."""
    asked: Asked = []
    ask = Peer.ask

    def record(peer: Peer, kind: str, *arguments: object, tensor: torch.Tensor | None = None) -> None:
        asked.append((kind, tuple(tensor.shape) if tensor is not None else ()))
        ask(peer, kind, *arguments, tensor=tensor)

    monkeypatch.setattr(Peer, "ask", record)
    return asked


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


def test_pair_generates_a_video_between_two_images(
    tiny_svd: Path, shared: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = open_image(image.rgb.transpose(Image.Transpose.ROTATE_180))
    request = request_of(shared)
    told: list[object] = []
    tell = Peer.tell
    monkeypatch.setattr(Peer, "tell", lambda peer, *message: (told.append(message[0]), tell(peer, *message)))
    ours = drive(to_latents(shared, image, request, last)).latents
    assert told == ["begin"] * 2, "the conditions of an end are sent once, not before each of its steps"
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan("resident_split", 3))
    alone = loaded(tiny_svd, gpus=1)
    assert torch.equal(drive(to_latents(alone, image, request, last)).latents, ours)
    assert not torch.equal(drive(to_latents(alone, image, request)).latents, ours)


def test_second_process_computes_half_of_guidance_and_half_of_frames(
    shared: VideoPipeline, image: InputImage, asked: Asked
) -> None:
    drive(generate(shared, image, request_of(shared)))
    assert asked == [("step", (1, 5, 4, 8, 8))] * 2 + [("decode", (2, 4, 8, 8))]


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_pair_decodes_chunks_of_any_size_in_order(
    tiny_svd: Path, shared: VideoPipeline, image: InputImage, chunk: int
) -> None:
    request = request_of(shared, decode_chunk_size=chunk)
    denoised = drive(to_latents(shared, image, request))
    ours = drive(to_video(shared, image, request, denoised))
    theirs = drive(to_video(loaded(tiny_svd, gpus=1), image, request, denoised))
    assert np.array_equal(ours.frames, theirs.frames)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({"max_guidance_scale": 1.0}, {"num_frames": 3})),
        {"num_frames": 1},
    ],
)
def test_four_processes_generate_frames_of_one_within_rounding_and_always_the_same(
    four: VideoPipeline, tiny_svd: Path, image: InputImage, settings: dict[str, object]
) -> None:
    request = request_of(four, **settings)
    ours, again = (drive(to_latents(four, image, request)).latents for _ in range(2))
    assert torch.equal(ours, again)
    theirs = drive(to_latents(loaded(tiny_svd, gpus=1), image, request)).latents
    assert (ours - theirs).norm() < 5e-5 * theirs.norm()
    assert drive(generate(four, image, request)).recipe.gpus == 4


def test_two_processes_divide_the_frames_without_guidance(
    shared: VideoPipeline, tiny_svd: Path, image: InputImage, asked: Asked
) -> None:
    request = request_of(shared, max_guidance_scale=1.0)
    ours = drive(to_latents(shared, image, request)).latents
    assert asked == [("step", (1, 2, 4, 8, 8))] * 2  # the other process has 3 of 5 frames
    theirs = drive(to_latents(loaded(tiny_svd, gpus=1), image, request)).latents
    assert (ours - theirs).norm() < 5e-5 * theirs.norm()


def test_frames_with_fewer_pixels_than_processes_are_not_divided(
    tiny_svd_4_levels: Path, image: InputImage, asked: Asked
) -> None:
    pipeline = loaded(tiny_svd_4_levels)
    request = request_of(pipeline, max_guidance_scale=1.0)
    ours = drive(to_latents(pipeline, image, request)).latents
    assert ("step", (1, 2, 8, 8, 8)) not in asked  # one pixel a frame at the lowest resolution
    pipeline.release()
    theirs = drive(to_latents(loaded(tiny_svd_4_levels, gpus=1), image, request)).latents
    assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [2, 4])
def test_group_generates_frames_of_pocket(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = open_image(Path(__file__).parents[2] / "examples" / "rocket.jpg")
    small = {"width": 96, "height": 64, "num_frames": 6, "num_inference_steps": 3, "max_guidance_scale": 1.5}
    request = request_for(model="pocket", seed=7, decode_chunk_size=2, **small)
    group = loaded("pocket", gpus)
    ours = drive(generate(group, photo, request)).frames.astype(int)
    group.release()
    monkeypatch.setattr(engine, "plan_for", lambda *_: MemoryPlan("resident_split", 2))
    theirs = drive(generate(loaded("pocket", gpus=1), photo, request)).frames
    assert abs(ours - theirs).max() <= (0 if gpus == 2 else 1)


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["frames divided", "guidance divided"])
def test_next_video_is_correct_after_a_cancelled_one(shared: VideoPipeline, image: InputImage, scale: float) -> None:
    whole = drive(generate(shared, image, request_of(shared, max_guidance_scale=scale))).frames
    for steps in (2, 3, 4):  # encode, then denoise, then decode
        events = generate(shared, image, request_of(shared, max_guidance_scale=scale, seed=1))
        for _ in range(steps):
            next(events)
        events.close()
        again = drive(generate(shared, image, request_of(shared, max_guidance_scale=scale)))
        assert np.array_equal(again.frames, whole)


def test_death_of_second_process_is_device_lost(pair: VideoPipeline, image: InputImage) -> None:
    events = generate(pair, image, request_of(pair))
    for _ in range(3):
        next(events)
    os.kill(pair.peers[0].pid, signal.SIGKILL)
    with pytest.raises(DeviceLost, match=r"the process for cpu ended \(killed by SIGKILL\); load the model again"):
        drive(events)
    with pytest.raises(DeviceLost, match="load the model again"):
        drive(generate(pair, image, request_of(pair)))


@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_death_of_a_process_that_others_wait_for_is_device_lost(tiny_svd: Path, image: InputImage, victim: int) -> None:
    pipeline = loaded(tiny_svd, gpus=4)
    processes = [psutil.Process(peer.pid) for peer in pipeline.peers]
    events = generate(pipeline, image, request_of(pipeline))
    for _ in range(3):
        next(events)
    processes[victim].kill()
    with pytest.raises(DeviceLost):
        drive(events)
    assert not any(process.is_running() for process in processes)
    with pytest.raises(DeviceLost, match="load the model again"):
        drive(generate(pipeline, image, request_of(pipeline)))


def test_error_of_a_process_that_others_wait_for_is_reported_and_ends_the_group(
    pair: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Peer.ask
    monkeypatch.setattr(Peer, "ask", lambda peer, *message, tensor: ask(peer, *message, tensor=tensor[..., :3, :]))
    process = psutil.Process(pair.peers[0].pid)
    with pytest.raises(RuntimeError, match="must match the size"):
        drive(generate(pair, image, request_of(pair, max_guidance_scale=1.0)))
    assert not process.is_running()


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "message"), [(3.0, "did not answer within 3 seconds"), (1.0, "exchange data")])
def test_hung_second_process_is_killed_after_step_timeout(
    tiny_svd: Path, image: InputImage, scale: float, message: str
) -> None:
    pipeline = loaded(tiny_svd, timeout=3)
    request = request_of(pipeline, max_guidance_scale=scale)
    drive(to_latents(pipeline, image, request))
    peer = psutil.Process(pipeline.peers[0].pid)
    peer.suspend()
    with pytest.raises(DeviceLost, match=message):
        drive(generate(pipeline, image, request))
    assert not peer.is_running()


def test_stopped_process_ends_with_a_killed_leader(tiny_svd: Path) -> None:
    code = (
        "import sys, kinema\n"
        f"pipeline = kinema.load({str(tiny_svd)!r}, device='cpu', gpus=2)\n"
        "print(pipeline.peers[0].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        peer = psutil.Process(int(leader.stdout.readline()))
        peer.suspend()
        leader.kill()
    peer.wait(timeout=10)


def test_group_outlives_a_fork_of_its_leader(tiny_svd: Path) -> None:
    code = (
        "import os, sys, kinema\n"
        "from PIL import Image\n"
        f"pipeline = kinema.load({str(tiny_svd)!r}, device='cpu', gpus=2)\n"
        "if os.fork() == 0:\n"
        "    sys.exit()\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 0\n"
        "small = {'width': 64, 'height': 64, 'num_frames': 3, 'num_inference_steps': 1, 'max_guidance_scale': 1.0}\n"
        "image = Image.new('RGB', (64, 64))\n"
        "print(len(kinema.generate(image, model=pipeline, **small).frames))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["3"]


def test_released_pipeline_says_so(tiny_svd: Path, image: InputImage) -> None:
    pipeline = loaded(tiny_svd)
    request = request_of(pipeline)
    pipeline.release()
    with pytest.raises(InvalidRequest, match="was released; load the model again"):
        drive(generate(pipeline, image, request))


def test_out_of_memory_of_second_process_halves_the_chunk(
    shared: VideoPipeline, image: InputImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(shared, decode_chunk_size=2)
    denoised = drive(to_latents(shared, image, request))
    answer, failures = Peer.answer, [MemoryError("out of memory")]  # as the process reports it

    def fail_once(peer: Peer, *arguments: object) -> object:
        result = answer(peer, *arguments)
        if failures:
            raise failures.pop()
        return result

    monkeypatch.setattr(Peer, "answer", fail_once)
    video = drive(to_video(shared, image, request, denoised))
    assert video.recipe.events == ("memory ran out while decoding 2 frames together: continued with 1",)
    assert len(video.frames) == 5
    one = drive(
        to_video(
            shared,
            image,
            request.changed(decode_chunk_size=1),
            replace(denoised, plan=replace(denoised.plan, decode_chunk_size=1)),
        )
    )
    assert np.array_equal(video.frames[2:], one.frames[2:])


def test_errors_of_peers_arrive_as_such() -> None:
    assert type(portable(torch.OutOfMemoryError("CUDA out of memory"))) is MemoryError
    assert str(portable(InsufficientMemory("too little"))) == "too little"

    class Local(Exception):
        """Can't be sent to another process."""

    assert str(portable(Local("here"))) == "Local: here"


def test_second_process_ignores_a_stop_signal_that_its_leader_handles(shared: VideoPipeline, image: InputImage) -> None:
    os.kill(shared.peers[0].pid, signal.SIGTERM)
    assert len(drive(generate(shared, image, request_of(shared))).frames) == 5


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
