"""Frames between frames: the request, the stage after decoding, and the network in the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.engine.interpolation import Interpolation
from kinema.models.catalog import request_for
from kinema.models.frame_interpolator import WEIGHTS_FILE
from kinema.steps import Step
from kinema.values import VideoRequest

CPU = torch.device("cpu")
SIZE = {"width": 64, "height": 64, "num_frames": 3, "num_inference_steps": 1}
ROCKET = "examples/rocket.jpg"


@pytest.fixture(scope="module")
def pipeline(tiny_svd) -> kinema.VideoPipeline:
    return kinema.load(tiny_svd, device="cpu", dtype="float32")


def between(frames: np.ndarray, factor: int, *, loop: bool = False) -> np.ndarray:
    return np.concatenate(list(Interpolation(factor, CPU, loop=loop).run(iter([frames[:2], frames[2:]]))))


def moved(pixels: int) -> np.ndarray:
    """Return a part of a photograph that moves to the left."""
    with Image.open(ROCKET) as image:
        small = np.asarray(image.convert("RGB").resize((240, 160), Image.Resampling.LANCZOS))
    return small[32:128, 40 + pixels : 168 + pixels]


def test_frames_of_the_model_stay_and_others_come_between(pipeline) -> None:
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    plain = kinema.generate(image, model=pipeline, seed=1, **SIZE)
    *events, smooth = kinema.stream(image, model=pipeline, seed=1, interpolate=2, **SIZE)
    assert smooth.frames.shape == (5, 64, 64, 3)
    np.testing.assert_array_equal(smooth.frames[::2], plain.frames)
    assert (plain.fps, smooth.fps) == (7, 14)
    assert smooth.recipe.request.interpolate == 2
    steps = [event for event in events if isinstance(event, Step) and event.stage == "interpolate"]
    assert [(step.step, step.total) for step in steps] == [(1, 5), (3, 5), (5, 5)]
    again = kinema.generate(image, model=pipeline, seed=1, interpolate=2, **SIZE)
    np.testing.assert_array_equal(again.frames, smooth.frames)


def test_extended_video_has_frames_between_at_its_seam_as_well(pipeline) -> None:
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    video = kinema.generate(image, model=pipeline, seed=1, interpolate=2, **SIZE)
    longer = kinema.extend(video, num_frames=2, image=image, model=pipeline)
    assert len(longer.frames) == 5 + 2 * 2
    np.testing.assert_array_equal(longer.frames[:5], video.frames)
    assert longer.fps == 14


def test_loop_has_frames_between_the_last_and_the_first_as_well() -> None:
    grey = np.array([0, 60, 120], np.uint8)
    frames = np.broadcast_to(grey[:, None, None, None], (3, 32, 32, 3)).copy()
    assert Interpolation(4, CPU).count(3) == len(between(frames, 4)) == 9
    looped = between(frames, 4, loop=True)
    assert Interpolation(4, CPU, loop=True).count(3) == len(looped) == 12
    means = looped[8:].mean((1, 2, 3))
    assert means[0] == 120
    assert (np.diff(means) < 0).all()


def test_pixels_that_do_not_change_are_copied() -> None:
    frame = moved(0)[:64, :64]
    made = between(np.stack([frame] * 2), 2)[1]
    assert np.abs(made.astype(int) - frame).mean() < 0.5


def test_frame_between_two_of_a_moving_photograph_is_much_closer_than_a_blend() -> None:
    first, middle, last = (moved(pixels).astype(np.uint8) for pixels in (0, 4, 8))
    made = between(np.stack([first, last]), 2)[1]
    errors = [np.square(frame[8:-8, 16:-16].astype(float) - middle[8:-8, 16:-16]).mean() for frame in (
        made, (first.astype(float) + last) / 2,
    )]  # fmt: skip
    assert errors[0] < errors[1] / 4  # 6 dB


def test_weights_in_the_package_are_small() -> None:
    assert WEIGHTS_FILE.stat().st_size <= 2 * 2**20


@pytest.mark.parametrize(
    ("parameters", "frames", "rate"),
    [
        ({"interpolate": 2}, 27, 14),
        ({"interpolate": 4, "loop": True}, 56, 28),
        ({"interpolate": "4", "playback_fps": 24}, 53, 24),
        ({}, 14, 7),
    ],
)
def test_number_and_rate_of_frames_in_the_file(parameters, frames, rate) -> None:
    request = VideoRequest(num_frames=14, **parameters)
    assert (request.output_frames, request.frame_rate) == (frames, rate)
    assert request.duration == pytest.approx(frames / rate)


def test_seconds_count_the_frames_of_the_file_at_its_rate() -> None:
    frames = [
        request_for(model="pocket", seconds=2, **parameters).num_frames
        for parameters in ({}, {"interpolate": 4}, {"playback_fps": 24}, {"interpolate": 4, "playback_fps": 24})
    ]
    assert frames == [14, 14, 48, 12]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"interpolate": 3}, "interpolate 3 is not available; use 1, 2 or 4"),
        ({"interpolate": 8}, "interpolate 8 is out of range: 1 to 4"),
        ({"interpolate": 2, "num_frames": 1}, "and num_frames is 1; use num_frames 2 or more"),
    ],
)
def test_invalid_interpolation_is_rejected_with_a_remedy(parameters, text) -> None:
    with pytest.raises(kinema.InvalidRequest, match=text):
        request_for(model="pocket", **parameters)
