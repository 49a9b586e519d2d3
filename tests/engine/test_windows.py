"""Videos longer than the model makes at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.engine import samplers, to_latents
from kinema.engine.sampling import Window, windows
from kinema.media.image import open_image
from kinema.models.catalog import request_for
from kinema.steps import drive
from kinema.values import VideoRequest
from tiny import make_tiny_svd

SIZE = {"width": 64, "height": 64, "num_inference_steps": 2, "max_guidance_scale": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_svd(tmp_path_factory.mktemp("weights") / "short", frames_at_once=4)


@pytest.fixture(scope="module")
def pipeline(folder) -> kinema.VideoPipeline:
    return kinema.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image():
    return open_image(Image.radial_gradient("L").resize((64, 64)).convert("RGB"))


@pytest.mark.parametrize(
    ("num_frames", "at_once", "expected"),
    [
        (3, 14, [Window(0, 3, 0)]),
        (14, 14, [Window(0, 14, 0)]),
        (15, 14, [Window(0, 14, 0), Window(1, 14, 13)]),
        (25, 14, [Window(0, 14, 0), Window(11, 14, 3)]),
        (50, 25, [Window(0, 25, 0), Window(19, 25, 6), Window(25, 25, 19)]),
        (3, 2, [Window(0, 2, 0), Window(1, 2, 1)]),
    ],
)
def test_windows_overlap_and_end_with_the_video(num_frames, at_once, expected) -> None:
    assert windows(num_frames, at_once) == tuple(expected)


def test_known_frames_are_given_the_noise_of_the_level_and_stay() -> None:
    inputs = []

    def predict(latents, sigma):
        inputs.append((latents - sigma * noise)[:, :2])
        return torch.full_like(latents, 7.0)

    noise = torch.randn(1, 5, 4, 8, 8)
    known = samplers.Known(torch.ones(1, 2, 4, 8, 8), noise[:, :2])
    step = samplers.continuing(samplers.from_first(predict), known)
    _, clean = step(torch.zeros_like(noise), torch.tensor(10.0), torch.tensor(5.0))
    torch.testing.assert_close(inputs[0], known.latents, atol=1e-5, rtol=0)
    assert clean[:, :2].eq(1).all()
    assert clean[:, 2:].eq(7).all()


def test_long_video_begins_with_the_frames_of_a_short_one_and_goes_on(pipeline, image) -> None:
    steps = []
    short = drive(to_latents(pipeline, image, VideoRequest(model=pipeline.name, seed=1, num_frames=4, **SIZE)))
    request = VideoRequest(model=pipeline.name, seed=1, num_frames=9, **SIZE)
    long = drive(to_latents(pipeline, image, request), lambda step: steps.append((step.stage, step.step, step.total)))
    assert long.latents.shape == (1, 9, *short.latents.shape[2:])
    assert torch.equal(long.latents[:, :4], short.latents)
    assert [entry for entry in steps if entry[0] == "denoise"] == [("denoise", i, 6) for i in range(1, 7)]
    again = drive(to_latents(pipeline, image, request))
    assert torch.equal(again.latents, long.latents)


def test_decoded_long_video_has_all_frames(pipeline, image) -> None:
    video = kinema.generate(image.rgb, model=pipeline, seconds=1, fps=6, seed=2, **SIZE)
    assert video.frames.shape == (6, 64, 64, 3)
    assert not np.array_equal(video.frames[4], video.frames[5])


def test_loop_and_last_image_are_limited_to_the_frames_of_one_window(pipeline, folder, image) -> None:
    with pytest.raises(kinema.InvalidRequest, match=r"5 is too many for a loop: .* makes 4 frames at once"):
        request_for(model=str(folder), num_frames=5, loop=True)
    with pytest.raises(kinema.InvalidRequest, match="5 is too many for a video with a last image"):
        kinema.generate(image.rgb, last_image=image.rgb, model=pipeline, num_frames=5, **SIZE)


@pytest.mark.parametrize(
    ("parameters", "frames"),
    [({"seconds": 2}, 14), ({"seconds": "2", "fps": 10}, 20), ({"seconds": 2, "fps": 10, "playback_fps": 5}, 10)],
)
def test_seconds_are_those_of_playback(parameters, frames) -> None:
    assert request_for(model="pocket", **parameters).num_frames == frames


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"seconds": 2, "num_frames": 7}, "seconds 2 and num_frames are both set"),
        ({"seconds": 100}, "seconds 100 is out of range; at 7 frames per second, use 0.14 to 18.3 seconds"),
        ({"seconds": "long"}, "seconds 'long' is not a number"),
    ],
)
def test_invalid_seconds_are_rejected(parameters, message) -> None:
    with pytest.raises(kinema.InvalidRequest, match=message):
        request_for(model="pocket", **parameters)
