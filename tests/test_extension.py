"""`kinema.extend`: going on from the end of a video."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.engine import samplers
from kinema.engine.image_to_video import to_latents
from kinema.media.source_video import open_source_video
from kinema.media.watermark import embed
from kinema.models.windows import extended_windows, windows
from kinema.recipe import FileEncoding
from kinema.steps import drive
from tiny import make_tiny_svd

SIZE = {"width": 64, "height": 64, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> kinema.VideoPipeline:
    folder = make_tiny_svd(tmp_path_factory.mktemp("weights") / "short", frames_at_once=4)
    return kinema.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image():
    return Image.radial_gradient("L").resize((64, 64)).convert("RGB")


@pytest.fixture(scope="module")
def video(pipeline, image):
    return kinema.generate(image, model=pipeline, seed=1, **SIZE)


def to_latents_of(pipeline, image, request, source=None, steps=None):
    """Return the latents that are decoded; append the steps."""
    events = to_latents(pipeline, kinema.open_image(image), request, source=source)
    return drive(events, [].append if steps is None else steps.append).latents


def bounds(found):
    return [(window.start, window.end, window.is_reversed) for window in found]


def test_windows_of_a_video_that_was_not_extended_are_the_usual_ones():
    assert extended_windows((54,), 14) == windows(54, 14)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((14, 30), [(0, 14, False), (10, 24, True), (23, 37, False)]),  # a complete window: it returns
        ((24, 28), [(0, 14, False), (7, 21, True), (20, 34, False)]),  # the last window goes on
        ((10, 12), [(0, 14, False)]),
        ((21, 28), [(0, 14, False), (7, 21, True), (20, 34, False)]),  # at the image: it leaves again
        ((14, 24, 30), [(0, 14, False), (10, 24, True), (23, 37, False)]),
    ],
)
def test_windows_of_an_extended_video_go_on_from_its_end(lengths, expected):
    assert bounds(extended_windows(lengths, 14)) == expected


def test_known_frames_are_held_at_every_noise_level_and_correct_their_neighbours():
    known = torch.full((1, 2, 1, 1, 1), 5.0)
    step = samplers.from_first(samplers.holding(lambda latents, _: torch.zeros_like(latents), known, reach=1))
    noise = torch.ones(1, 5, 1, 1, 1)
    latents = 10 * noise
    latents[:, :2] += known
    for sigma, following in ((10.0, 2.0), (2.0, 0.1), (0.1, 0.0)):
        latents, clean = step(latents, torch.tensor(sigma), torch.tensor(following))
        torch.testing.assert_close(latents[:, :2], known + following)
        corrected = 2.5 if sigma > samplers.LEAST_CORRECTED else 0.0
        assert clean.flatten().tolist() == [5.0, 5.0, corrected, 0.0, 0.0]


def test_extended_video_begins_with_the_decoded_frames_of_its_file(pipeline, image, video, tmp_path):
    file = video.save(tmp_path / "short.mp4")
    longer = kinema.extend(file, num_frames=5, image=image, model=pipeline)
    decoded, fps = kinema.read_frames(file)
    assert (len(longer.frames), longer.fps) == (9, fps)
    np.testing.assert_array_equal(longer.frames[:4], decoded)
    request = longer.recipe.request
    assert (request.num_frames, request.seed, request.num_inference_steps) == (9, 1, 2)
    assert longer.recipe.extension is not None
    assert longer.recipe.extension.lengths == (4,)
    assert longer.recipe.extension.frames_sha256 == open_source_video(file).sha256
    again = kinema.extend(file, num_frames=5, image=image, model=pipeline)
    np.testing.assert_array_equal(again.frames, longer.frames)


def test_model_whose_encoder_leaves_channels_out_denoises_the_video_again(tmp_path, image):
    folder = make_tiny_svd(tmp_path / "positions", frames_at_once=4, latent_channels=8, encoded_channels=5)
    pipeline = kinema.load(folder, device="cpu", dtype="float32")
    video = kinema.generate(image, model=pipeline, seed=1, **SIZE)
    latents = to_latents_of(pipeline, image, video.recipe.request)
    for added, count in ((1, 2), (1, 3), (3, 1)):  # the second extension is in the window of the first
        source = open_source_video(video)
        longer = kinema.extend(video, num_frames=added, image=image, model=pipeline)
        steps = []
        request = longer.recipe.request
        held = to_latents_of(pipeline, image, request, source, steps)
        assert held.shape[1] == count + added
        torch.testing.assert_close(held[:, :count], latents[:, -count:])
        counts = [(step.stage, step.step, step.total) for step in steps]
        total = 2 + 2 * len(source.lengths)
        denoising = [("denoise", i, total) for i in range(1, total + 1)]
        assert counts == [("encode", 1, 2), ("encode", 2, 2), *denoising]
        video, latents = longer, held


def test_extended_video_can_be_extended_and_takes_its_first_frame_without_image(pipeline, image, video):
    longer = kinema.extend(video, num_frames=2, image=image, model=pipeline)
    with pytest.warns(kinema.KinemaWarning, match="first frame of the video"):
        longest = kinema.extend(longer, seconds=3 / 7, model=pipeline)
    np.testing.assert_array_equal(longest.frames[:6], longer.frames)
    assert longest.recipe.extension is not None
    assert (len(longest.frames), longest.recipe.extension.lengths) == (9, (4, 6))
    assert longest.recipe.image_sha256 == kinema.open_image(video.frames[0]).sha256


def test_watermark_of_the_file_goes_on_and_its_frames_are_not_watermarked_again(pipeline, image, video, tmp_path):
    file = video.save(tmp_path / "watermarked", watermark=True)
    payload = kinema.read_recipe(file).encoding.watermark
    assert payload is not None
    longer = kinema.extend(file, num_frames=2, image=image, model=pipeline)
    longest = kinema.extend(longer, num_frames=3, image=image, model=pipeline)
    for extended, watermark in ((longer, True), (longer, False), (longest, True)):
        path = extended.save(tmp_path / f"{len(extended.frames)}-{watermark}", watermark=watermark)
        saved, _ = kinema.read_frames(path)
        np.testing.assert_array_equal(saved[:4], kinema.read_frames(file)[0])
        np.testing.assert_array_equal(saved[4:], embed(extended.frames[4:], int(payload, 16)))
        assert kinema.read_recipe(path).encoding == FileEncoding(watermark=payload, watermarked_before=4)


def test_video_that_is_extended_from_one_without_watermark_is_watermarked_as_a_whole(pipeline, image, video, tmp_path):
    longer = kinema.extend(video.save(tmp_path / "plain"), num_frames=2, image=image, model=pipeline)
    assert kinema.read_recipe(longer.save(tmp_path / "unwatermarked")).encoding == FileEncoding()
    path = longer.save(tmp_path / "watermarked", watermark=True)
    encoding = kinema.read_recipe(path).encoding
    assert encoding.watermark is not None
    assert encoding.watermarked_before == 0
    saved, _ = kinema.read_frames(path)
    np.testing.assert_array_equal(saved, embed(longer.frames, int(encoding.watermark, 16)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "seconds and num_frames are both missing"),
        ({"seconds": 1, "num_frames": 3}, "both set"),
        ({"num_frames": 125}, "can't have 125 more, as 128 is the maximum; use at most 124"),
        ({"num_frames": 0}, "num_frames 0 is out of range"),
        ({"seconds": "long"}, "not a number"),
        ({"seconds": 60}, r"seconds 60 is out of range; at 7 frames per second, use 0.14 to 17.7 seconds \(124 frames"),
    ],
)
def test_length_that_is_not_possible_is_an_error(pipeline, video, arguments, message):
    with pytest.raises(kinema.InvalidRequest, match=message):
        kinema.extend(video, model=pipeline, **arguments)


def test_video_without_an_end_or_recipe_and_other_images_and_models_are_errors(pipeline, image, video, tmp_path):
    loop = kinema.generate(image, model=pipeline, seed=1, loop=True, num_frames=3, **SIZE)
    with pytest.raises(kinema.InvalidRequest, match="is a loop"):
        kinema.extend(loop, num_frames=2, model=pipeline)
    ends = kinema.generate(image, last_image=image, model=pipeline, seed=1, num_frames=3, **SIZE)
    with pytest.raises(kinema.InvalidRequest, match="ends at a last image"):
        kinema.extend(ends, num_frames=2, model=pipeline)
    with pytest.raises(kinema.InvalidRequest, match="forward and backward"):
        kinema.extend(video.save(tmp_path / "both.mp4", boomerang=True), num_frames=2, model=pipeline)
    with pytest.raises(kinema.RecipeError, match="the image differs"):
        kinema.extend(video, num_frames=2, image=image.rotate(90), model=pipeline)
    other = video.recipe.model.model_copy(update={"weights_sha256": "0" * 64})
    of_other = kinema.Video(video.frames, video.fps, video.recipe.model_copy(update={"model": other}))
    with pytest.raises(kinema.RecipeError, match="made by another model"):
        kinema.extend(of_other, num_frames=2, image=image, model=pipeline)
    identity = video.recipe.model.model_copy(update={"name": "pocket", "revision": None})
    of_pocket = kinema.Video(video.frames, video.fps, video.recipe.model_copy(update={"model": identity}))
    with pytest.raises(kinema.RecipeError, match="made by another model, pocket, not svd-xt"):
        kinema.extend(of_pocket, num_frames=2, image=image, model="svd-xt")
    with pytest.raises(kinema.RecipeError, match="loaded from a folder named short"):
        kinema.extend(video, num_frames=2, image=image)
    cut = kinema.Video(video.frames[:3], video.fps, video.recipe)
    with pytest.raises(kinema.RecipeError, match="has 3 frames, but its recipe says 4"):
        kinema.extend(cut, num_frames=2, image=image, model=pipeline)
    with pytest.raises(kinema.VideoError, match="not found"):
        kinema.extend(tmp_path / "missing.mp4", num_frames=2)
