"""A group of two real GPUs that divide a video's frames; the tests of groups on a CPU are in test_gpu_group.py."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from kinema.engine import generate
from kinema.errors import DeviceLost
from kinema.media.image import InputImage, open_image
from kinema.models.loading import VideoPipeline, load
from kinema.settings import read_settings
from kinema.steps import drive
from kinema.values import VideoRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]
TIMEOUT = 20  # seconds


def loaded(model: Path, gpus: int = 2) -> VideoPipeline:
    settings = read_settings(device="cuda", dtype="float16", gpus_per_video=str(gpus), step_timeout=str(TIMEOUT))
    return load(model, settings=settings)


@pytest.fixture
def pair(tiny_svd: Path) -> Iterator[VideoPipeline]:
    pipeline = loaded(tiny_svd)
    yield pipeline
    pipeline.release()


def image(rotation: int = 0) -> InputImage:
    mandelbrot = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB")
    return open_image(mandelbrot.rotate(rotation))


def request_of(pipeline: VideoPipeline, num_frames: int = 5) -> VideoRequest:
    """Return a request without guidance, so that the GPUs divide the frames."""
    small = {
        "seed": 7,
        "width": 64,
        "height": 64,
        "num_inference_steps": 5,
        "max_guidance_scale": 1.0,
        "decode_chunk_size": 1,
    }
    return VideoRequest(model=pipeline.name, num_frames=num_frames, **small)


def frames(
    pipeline: VideoPipeline, first: InputImage, last: InputImage | None = None, num_frames: int = 5
) -> np.ndarray:
    return drive(generate(pipeline, first, request_of(pipeline, num_frames), last)).frames


def test_every_video_that_replays_a_graph_has_the_frames_of_one_gpu(tiny_svd: Path, pair: VideoPipeline) -> None:
    alone = loaded(tiny_svd, gpus=1)
    for first, last, count in [(0, None, 5), (90, None, 5), (0, 180, 5), (0, None, 4), (0, None, 5)]:
        ends = image(first), None if last is None else image(last)
        ours = frames(pair, *ends, count)
        theirs = frames(alone, *ends, count)
        assert np.ptp(theirs) > 20, "a constant video can't reveal a difference"
        assert np.abs(ours.astype(int) - theirs).max() <= 2
        assert np.array_equal(frames(pair, *ends, count), ours)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_loss_of_a_process_during_a_replayed_step_is_device_lost(pair: VideoPipeline, number: signal.Signals) -> None:
    frames(pair, image())
    process = psutil.Process(pair.peers[0].pid)
    events = generate(pair, image(), request_of(pair))
    for _ in range(4):
        next(events)
    os.kill(process.pid, number)
    began = time.monotonic()
    with pytest.raises(DeviceLost):
        drive(events)
    assert time.monotonic() - began < TIMEOUT + 10
    assert not process.is_running()
    assert torch.ones(2, device="cuda").sum().item() == 2, "the leader's GPU can still be used"


def test_process_that_does_not_release_its_pipeline_ends(tiny_svd: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_gpu_group_cuda import *\n"
        f"pipeline = loaded(Path({str(tiny_svd)!r}))\n"
        "print(len(frames(pipeline, image())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT + 100, check=True
    )
    assert done.stdout.split() == ["5"]
