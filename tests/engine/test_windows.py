"""Videos longer than the model makes at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.engine import samplers, to_latents
from kinema.media.image import open_image
from kinema.models.catalog import request_for
from kinema.models.windows import Window, windows
from kinema.models.workload import video_workload
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
        (3, 14, [(0, 3, False)]),
        (14, 14, [(0, 14, False)]),
        (15, 14, [(0, 14, False), (7, 21, True)]),
        (50, 25, [(0, 25, False), (13, 38, True), (37, 62, False)]),
        (51, 25, [(0, 25, False), (13, 38, True), (37, 62, False), (50, 75, True)]),
        (28, 14, [(0, 14, False), (7, 21, True), (20, 34, False)]),
        (29, 14, [(0, 14, False), (7, 21, True), (20, 34, False), (27, 41, True)]),
        (4, 2, [(0, 2, False), (1, 3, True), (2, 4, False)]),
    ],
)
def test_windows_leave_the_image_and_return_and_no_video_ends_far_from_it(num_frames, at_once, expected) -> None:
    found = windows(num_frames, at_once)
    assert [(window.start, window.end, window.is_reversed) for window in found] == expected


@pytest.mark.parametrize("at_once", [1, 2, 3, 14, 25])
def test_weights_of_windows_add_up_to_one_in_each_frame(at_once) -> None:
    found = windows(3 * at_once + 5, at_once)
    clean = samplers.in_windows(lambda latents, _: torch.ones_like(latents), found)
    torch.testing.assert_close(
        clean(torch.zeros(1, found[-1].end, 2, 3, 3), torch.tensor(1.0)).min(), torch.tensor(1.0)
    )


def test_window_that_returns_is_predicted_backward_in_time() -> None:
    def predict(latents, _):
        count = torch.arange(1.0, latents.shape[1] + 1).view(1, -1, 1, 1, 1)  # frames since the image
        return count.expand_as(latents)

    found = Window(0, 4, 0), Window(3, 7, 1), Window(6, 10, 2)
    clean = samplers.in_windows(predict, found)(torch.zeros(1, 10, 1, 1, 1), torch.tensor(1.0))
    assert clean.flatten().tolist() == [1, 2, 3, 4, 3, 2, 1, 2, 3, 4]


def test_windows_share_only_the_frames_in_the_middle_of_their_overlap() -> None:
    found = windows(21, 14)  # both have frames 7 to 13
    values = iter((0.0, 1.0))
    clean = samplers.in_windows(lambda latents, _: torch.full_like(latents, next(values)), found)
    second = clean(torch.zeros(1, 21, 1, 1, 1), torch.tensor(1.0)).flatten()
    torch.testing.assert_close(second, torch.tensor([0.0] * 9 + [0.0923, 0.5, 0.9077] + [1.0] * 9), atol=1e-4, rtol=0)


@pytest.mark.parametrize("at_once", [1, 2, 3, 14, 25])
def test_each_window_has_the_noise_of_the_first_with_the_sign_of_its_way_from_the_image(at_once) -> None:
    found = windows(4 * at_once + 5, at_once)
    drawn = torch.arange(1.0, at_once + 1).view(1, -1, 1, 1, 1).expand(-1, -1, 2, 3, 3)
    noise = samplers.window_noise(drawn, found)
    assert noise.shape[1] == found[-1].end
    assert torch.equal(noise[:, :at_once], drawn), "a short video of the same seed has this noise"
    assert (noise == noise[..., :1, :1, :1]).all(), "frames stay whole"
    for window in found:
        part = noise[0, window.start : window.end, 0, 0, 0]
        assert sorted(part.abs().tolist()) == list(range(1, at_once + 1))
    signs = [1] * at_once
    for before, window in pairwise(found):
        signs += [-1 if window.number % 4 > 1 else 1] * (window.end - before.end)
    assert noise[0, :, 0, 0, 0].sign().tolist() == signs, "there and back on one side, then on the other"


def test_window_that_returns_has_the_noise_of_the_way_out_in_reverse() -> None:
    drawn = torch.arange(1.0, 5).view(1, -1, 1, 1, 1)
    found = Window(0, 4, 0), Window(2, 6, 1), Window(5, 9, 2), Window(7, 11, 3)
    assert samplers.window_noise(drawn, found).flatten().tolist() == [1, 2, 3, 4, 2, 1, -2, -4, -3, -2, -1]
    extended = Window(0, 4, 1), Window(3, 7, 2)  # the first has frames of the earlier video
    assert samplers.window_noise(drawn, extended).flatten().tolist() == [4, 3, 2, 1, -2, -3, -4]


def test_long_video_has_all_frames_and_the_steps_of_a_short_one(pipeline, image) -> None:
    steps = []
    request = VideoRequest(model=pipeline.name, seed=1, num_frames=8, **SIZE)
    long = drive(to_latents(pipeline, image, request), lambda step: steps.append((step.stage, step.step, step.total)))
    assert long.latents.shape[1] == 8
    assert [entry for entry in steps if entry[0] == "denoise"] == [("denoise", 1, 2), ("denoise", 2, 2)]
    assert torch.equal(drive(to_latents(pipeline, image, request)).latents, long.latents)
    shorter = request.changed(num_frames=7)
    assert torch.equal(drive(to_latents(pipeline, image, shorter)).latents, long.latents[:, :7])


@pytest.mark.parametrize(
    ("parameters", "last_image", "predicted"),
    [
        ({"num_frames": 4}, False, 4),
        ({"num_frames": 8}, False, 12),  # 0 to 4, 2 to 6, 5 to 9
        ({"num_frames": 9}, False, 16),  # and 7 to 11
        ({"num_frames": 4}, True, 8),
        ({"num_frames": 4, "loop": True}, False, 10),
    ],
)
def test_work_counts_the_frames_that_the_unet_predicts(folder, image, parameters, last_image, predicted) -> None:
    pipeline = kinema.load(folder, device="cpu", dtype="float32", engine="reference")
    request = VideoRequest(model=str(folder), **SIZE, **parameters)
    counts = []
    networks = pipeline.unet.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
    drive(to_latents(pipeline, image, request, image if last_image else None))
    networks.remove()
    assert sum(counts) / 2 == predicted  # in 2 steps
    assert video_workload(request, has_last_image=last_image).denoise == 64 * 64 * predicted * 2 / 1e6


def test_decoded_long_video_has_all_frames(pipeline, image) -> None:
    video = kinema.generate(image.rgb, model=pipeline, seconds=1, fps=6, seed=2, **SIZE)
    assert video.frames.shape == (6, 64, 64, 3)
    assert not np.array_equal(video.frames[4], video.frames[5])


def test_loop_and_last_image_are_limited_to_the_frames_of_one_window(pipeline, folder, image) -> None:
    with pytest.raises(
        kinema.InvalidRequest, match=r"5 frames are too many for a loop; use at most 4, which .* makes at once"
    ):
        request_for(model=str(folder), num_frames=5, loop=True)
    with pytest.raises(kinema.InvalidRequest, match="5 frames are too many for a video with a last image"):
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
