"""A prompt in place of a still: both halves in one call, and everything refused before anything is loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.errors import InvalidRequest, NotAnImagePipeline, WeightsError
from kinema.models.image_pipeline import ImagePipeline
from kinema.models.loading import VideoPipeline
from kinema.values import Step
from tiny import make_tiny_svd

PROMPT = "a red balloon over a snowy mountain"
SETTINGS = {"seed": 7, "width": 64, "height": 64, "num_inference_steps": 1, "image_num_inference_steps": 2}


@pytest.fixture(scope="module")
def loaded(tiny_svd: Path) -> VideoPipeline:
    return kinema.load(tiny_svd, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image_pipeline(tiny_sd: Path) -> ImagePipeline:
    return kinema.load_image_pipeline(tiny_sd, device="cpu", dtype="float32")


def test_a_prompt_becomes_a_clip_with_its_still_and_recipe(
    loaded: VideoPipeline, image_pipeline: ImagePipeline
) -> None:
    video = kinema.generate(prompt=PROMPT, model=loaded, image_model=image_pipeline, **SETTINGS)
    assert video.frames.shape == (4, 64, 64, 3)
    assert video.image is not None
    assert (video.image.mode, video.image.size) == ("RGB", (64, 64))
    request, image_generation = video.recipe.request, video.recipe.image_generation
    assert (request.prompt, request.image_model, request.scheduler) == (PROMPT, "tiny-sd", "euler")
    assert (request.image_guidance_scale, request.image_num_inference_steps) == (7.5, 2)
    assert image_generation is not None
    assert image_generation.model == image_pipeline.identity


def test_the_kept_still_with_the_same_seed_gives_the_same_video(
    loaded: VideoPipeline, image_pipeline: ImagePipeline, tmp_path: Path
) -> None:
    video = kinema.generate(prompt=PROMPT, model=loaded, image_model=image_pipeline, **SETTINGS)
    assert video.image is not None
    video.image.save(tmp_path / "image.png")
    parameters = {name: value for name, value in SETTINGS.items() if not name.startswith("image_")}
    again = kinema.generate(tmp_path / "image.png", model=loaded, **parameters)
    assert np.array_equal(again.frames, video.frames)
    assert again.recipe.image_sha256 == video.recipe.image_sha256
    assert again.recipe.image_generation is None
    assert again.image is not None
    assert np.array_equal(np.asarray(again.image), np.asarray(video.image))


def test_models_and_painters_in_any_form_give_the_same_clip(
    loaded: VideoPipeline, image_pipeline: ImagePipeline, tiny_svd: Path, tiny_sd: Path
) -> None:
    here = {"device": "cpu", "dtype": "float32"}
    videos = [
        kinema.generate(prompt=PROMPT, model=loaded, image_model=image_pipeline, **SETTINGS),
        kinema.generate(prompt=PROMPT, model=loaded, image_model=str(tiny_sd), **SETTINGS),
        kinema.generate(prompt=PROMPT, model=tiny_svd, image_model=image_pipeline, **here, **SETTINGS),
        kinema.generate(prompt=PROMPT, model=tiny_svd, image_model=tiny_sd, **here, **SETTINGS),
    ]
    assert all(np.array_equal(video.frames, videos[0].frames) for video in videos)
    assert all(video.recipe == videos[0].recipe for video in videos)


def test_one_seed_drives_both_halves(loaded: VideoPipeline, image_pipeline: ImagePipeline) -> None:
    videos = [kinema.generate(prompt=PROMPT, model=loaded, image_model=image_pipeline, **SETTINGS | {"seed": None})]
    videos += [
        kinema.generate(prompt=PROMPT, model=loaded, image_model=image_pipeline, **SETTINGS | {"seed": seed})
        for seed in (videos[0].seed, videos[0].seed ^ 1)
    ]
    assert np.array_equal(videos[0].frames, videos[1].frames)
    assert videos[1].recipe.image_sha256 != videos[2].recipe.image_sha256


def test_stream_yields_both_halves_in_turn(loaded: VideoPipeline, image_pipeline: ImagePipeline) -> None:
    *steps, video = kinema.stream(prompt=PROMPT, model=loaded, image_model=image_pipeline, **SETTINGS)
    stages = [step.stage for step in steps if isinstance(step, Step)]
    assert stages == ["text_to_image", "text_to_image", "encode", "encode", "denoise", "decode"]
    assert isinstance(video, kinema.Video)


def test_a_recipe_survives_its_file(loaded: VideoPipeline, image_pipeline: ImagePipeline, tmp_path: Path) -> None:
    video = kinema.generate(prompt=PROMPT, model=loaded, image_model=image_pipeline, **SETTINGS)
    assert kinema.read_recipe(video.save(tmp_path / "video.mp4")) == video.recipe


def test_a_painter_that_was_given_paints_again_and_one_that_was_loaded_is_dropped(
    loaded: VideoPipeline, image_pipeline: ImagePipeline, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    whole = ImagePipeline.release
    monkeypatch.setattr(ImagePipeline, "release", lambda self: released.append(self.name) or whole(self))
    for _ in range(2):
        kinema.generate(prompt=PROMPT, model=loaded, image_model=image_pipeline, **SETTINGS)
    assert released == []
    for step in kinema.stream(prompt=PROMPT, model=loaded, image_model=tiny_sd, **SETTINGS):
        if isinstance(step, Step) and step.stage != "text_to_image":
            assert released == ["tiny-sd"]
    iterator = kinema.stream(prompt=PROMPT, model=loaded, image_model=tiny_sd, **SETTINGS)
    next(iterator)
    iterator.close()
    assert released == ["tiny-sd"] * 2


def test_load_painter_takes_device_and_dtype(tiny_sd: Path) -> None:
    image_pipeline = kinema.load_image_pipeline(tiny_sd, device="cpu", dtype="bfloat16")
    assert (image_pipeline.device, image_pipeline.dtype) == (torch.device("cpu"), torch.bfloat16)


# Refusals


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"image": "rocket.png", "prompt": PROMPT}, "prompt", "remove the prompt to use .* or remove the image to"),
        ({}, "image", "neither an image nor a prompt was passed"),
        ({"prompt": " "}, "prompt", "prompt ' ' is empty"),
        ({"prompt": PROMPT, "scheduler": "heun"}, "scheduler", "scheduler 'heun' is invalid"),
        ({"image": "rocket.png", "negative_prompt": "fog"}, "negative_prompt", "remove it or add a prompt"),
        ({"image": "rocket.png", "image_model": "sd-2.1-base"}, "image_model", "remove it or add a prompt"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(
    given: dict[str, str], param: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        kinema.stream(**given, model=tmp_path)
    assert refused.value.param == param


def test_what_is_no_painter_is_refused_when_the_work_begins(
    loaded: VideoPipeline, tiny_svd: Path, tmp_path: Path
) -> None:
    steps = kinema.stream(prompt=PROMPT, model=loaded, image_model=tiny_svd, **SETTINGS)
    with pytest.raises(NotAnImagePipeline, match="tiny-svd makes videos from stills"):
        next(steps)
    with pytest.raises(WeightsError):
        kinema.generate(prompt=PROMPT, model=loaded, image_model=tmp_path, **SETTINGS)


def test_painters_that_none_names_follow_the_device_and_the_size(tiny_svd: Path) -> None:
    """The steps are not begun, so nothing is loaded."""
    with pytest.warns(kinema.KinemaWarning, match="64×64 is not the 288×160 that pocket-t2i was trained on"):
        kinema.stream(prompt=PROMPT, model=tiny_svd, device="cpu", **SETTINGS)


# Warnings


@pytest.mark.parametrize("call", [kinema.generate, lambda *args, **named: [*kinema.stream(*args, **named)]])
def test_what_the_painter_does_not_read_is_warned_of_at_the_line_that_called(
    loaded: VideoPipeline, image_pipeline: ImagePipeline, call: object
) -> None:
    with pytest.warns(kinema.KinemaWarning, match="tiny-sd can't draw 'zebra'") as warned:
        call(prompt="a zebra", model=loaded, image_model=image_pipeline, **SETTINGS)
    assert {warning.filename for warning in warned} == {__file__}


def test_words_that_draw_nothing_are_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema.models.loading.load", None)
    monkeypatch.setattr("kinema.models.image_pipeline.load_image_pipeline", None)
    with pytest.warns(kinema.KinemaWarning, match="pocket-t2i can't draw 'old', 'Paris'"):
        kinema.stream(prompt="an old boat in Paris", model="pocket", device="cpu")


def test_another_videos_model_of_the_same_name_keeps_the_prompt(tmp_path: Path, image_pipeline: ImagePipeline) -> None:
    other = kinema.load(make_tiny_svd(tmp_path / "tiny-svd", seed=5, num_frames=2), device="cpu", dtype="float32")
    video = kinema.generate(prompt=PROMPT, model=other, image_model=image_pipeline, **SETTINGS)
    assert len(video.frames) == 2
    assert isinstance(video.image, Image.Image)
