"""`kinema.generate` and `stream` with a prompt: both models in one call, errors before loading, warnings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.errors import InvalidRequest, ModelError, NotAnImagePipeline
from kinema.models.image_pipeline import ImagePipeline
from kinema.models.loading import VideoPipeline
from kinema.steps import Step
from tiny import make_tiny_svd

PROMPT = "a red balloon over a snowy mountain"
PARAMETERS = {"seed": 7, "width": 64, "height": 64, "num_inference_steps": 1, "image_num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipeline(tiny_svd: Path) -> VideoPipeline:
    return kinema.load(tiny_svd, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image_pipeline(tiny_sd: Path) -> ImagePipeline:
    return kinema.load_image_pipeline(tiny_sd, device="cpu", dtype="float32")


def test_prompt_gives_video_with_image_and_recipe(pipeline: VideoPipeline, image_pipeline: ImagePipeline) -> None:
    video = kinema.generate(prompt=PROMPT, model=pipeline, image_model=image_pipeline, **PARAMETERS)
    assert video.frames.shape == (4, 64, 64, 3)
    assert video.image is not None
    assert (video.image.mode, video.image.size) == ("RGB", (64, 64))
    request, image_generation = video.recipe.request, video.recipe.image_generation
    assert (request.prompt, request.image_model, request.scheduler) == (PROMPT, "tiny-sd", "euler")
    assert (request.image_guidance_scale, request.image_num_inference_steps) == (7.5, 2)
    assert image_generation is not None
    assert image_generation.model == image_pipeline.identity


def test_saved_image_with_same_seed_gives_the_same_video(
    pipeline: VideoPipeline, image_pipeline: ImagePipeline, tmp_path: Path
) -> None:
    video = kinema.generate(prompt=PROMPT, model=pipeline, image_model=image_pipeline, **PARAMETERS)
    assert video.image is not None
    video.image.save(tmp_path / "image.png")
    parameters = {name: value for name, value in PARAMETERS.items() if not name.startswith("image_")}
    again = kinema.generate(tmp_path / "image.png", model=pipeline, **parameters)
    assert np.array_equal(again.frames, video.frames)
    assert again.recipe.image_sha256 == video.recipe.image_sha256
    assert again.recipe.image_generation is None
    assert again.image is not None
    assert np.array_equal(np.asarray(again.image), np.asarray(video.image))


def test_every_type_of_models_gives_the_same_video(
    pipeline: VideoPipeline, image_pipeline: ImagePipeline, tiny_svd: Path, tiny_sd: Path
) -> None:
    options = {"device": "cpu", "dtype": "float32"}
    videos = [
        kinema.generate(prompt=PROMPT, model=pipeline, image_model=image_pipeline, **PARAMETERS),
        kinema.generate(prompt=PROMPT, model=pipeline, image_model=str(tiny_sd), **PARAMETERS),
        kinema.generate(prompt=PROMPT, model=tiny_svd, image_model=image_pipeline, **options, **PARAMETERS),
        kinema.generate(prompt=PROMPT, model=tiny_svd, image_model=tiny_sd, **options, **PARAMETERS),
    ]
    assert all(np.array_equal(video.frames, videos[0].frames) for video in videos)
    assert all(video.recipe == videos[0].recipe for video in videos)


def test_seed_applies_to_both_models(pipeline: VideoPipeline, image_pipeline: ImagePipeline) -> None:
    videos = [kinema.generate(prompt=PROMPT, model=pipeline, image_model=image_pipeline, **PARAMETERS | {"seed": None})]
    videos += [
        kinema.generate(prompt=PROMPT, model=pipeline, image_model=image_pipeline, **PARAMETERS | {"seed": seed})
        for seed in (videos[0].seed, videos[0].seed ^ 1)
    ]
    assert np.array_equal(videos[0].frames, videos[1].frames)
    assert videos[1].recipe.image_sha256 != videos[2].recipe.image_sha256


def test_stream_yields_steps_of_both_models(pipeline: VideoPipeline, image_pipeline: ImagePipeline) -> None:
    *steps, video = kinema.stream(prompt=PROMPT, model=pipeline, image_model=image_pipeline, **PARAMETERS)
    stages = [step.stage for step in steps if isinstance(step, Step)]
    assert stages == ["text_to_image", "text_to_image", "encode", "encode", "denoise", "decode"]
    assert isinstance(video, kinema.Video)


def test_recipe_survives_saving(pipeline: VideoPipeline, image_pipeline: ImagePipeline, tmp_path: Path) -> None:
    video = kinema.generate(prompt=PROMPT, model=pipeline, image_model=image_pipeline, **PARAMETERS)
    assert kinema.read_recipe(video.save(tmp_path / "video.mp4")) == video.recipe


def test_passed_image_model_stays_loaded_and_named_one_is_unloaded(
    pipeline: VideoPipeline, image_pipeline: ImagePipeline, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    release = ImagePipeline.release
    monkeypatch.setattr(ImagePipeline, "release", lambda self: released.append(self.name) or release(self))
    for _ in range(2):
        kinema.generate(prompt=PROMPT, model=pipeline, image_model=image_pipeline, **PARAMETERS)
    assert released == []
    for step in kinema.stream(prompt=PROMPT, model=pipeline, image_model=tiny_sd, **PARAMETERS):
        if isinstance(step, Step) and step.stage != "text_to_image":
            assert released == ["tiny-sd"]
    iterator = kinema.stream(prompt=PROMPT, model=pipeline, image_model=tiny_sd, **PARAMETERS)
    next(iterator)
    iterator.close()
    assert released == ["tiny-sd"] * 2


def test_load_image_pipeline_uses_device_and_dtype(tiny_sd: Path) -> None:
    image_pipeline = kinema.load_image_pipeline(tiny_sd, device="cpu", dtype="bfloat16")
    assert (image_pipeline.device, image_pipeline.dtype) == (torch.device("cpu"), torch.bfloat16)


# Errors


@pytest.mark.parametrize(
    ("parameters", "param", "message"),
    [
        ({"image": "rocket.png", "prompt": PROMPT}, "prompt", "remove the prompt to use .* or remove the image to"),
        ({}, "image", "neither an image nor a prompt was passed"),
        ({"prompt": " "}, "prompt", "prompt is empty"),
        ({"prompt": PROMPT, "scheduler": "heun"}, "scheduler", "scheduler 'heun' is invalid"),
        ({"image": "rocket.png", "negative_prompt": "fog"}, "negative_prompt", "remove it or add a prompt"),
        ({"image": "rocket.png", "image_model": "sd-2.1-base"}, "image_model", "remove it or add a prompt"),
    ],
)
def test_contradictory_parameters_are_rejected_immediately(
    parameters: dict[str, str], param: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=message) as error:
        kinema.stream(**parameters, model=tmp_path)
    assert error.value.param == param


def test_invalid_image_model_is_rejected_on_iteration(pipeline: VideoPipeline, tiny_svd: Path, tmp_path: Path) -> None:
    steps = kinema.stream(prompt=PROMPT, model=pipeline, image_model=tiny_svd, **PARAMETERS)
    with pytest.raises(NotAnImagePipeline, match="tiny-svd generates videos, not images"):
        next(steps)
    with pytest.raises(ModelError):
        kinema.generate(prompt=PROMPT, model=pipeline, image_model=tmp_path, **PARAMETERS)


def test_default_image_model_depends_on_device_and_size(tiny_svd: Path) -> None:
    """No iteration, so no model is loaded."""
    with pytest.warns(kinema.KinemaWarning, match="pocket-t2i was trained on 288×160, not 64×64"):
        kinema.stream(prompt=PROMPT, model=tiny_svd, device="cpu", **PARAMETERS)


# Warnings


@pytest.mark.parametrize("call", [kinema.generate, lambda *args, **options: [*kinema.stream(*args, **options)]])
def test_unknown_prompt_word_warning_points_at_calling_file(
    pipeline: VideoPipeline, image_pipeline: ImagePipeline, call: object
) -> None:
    with pytest.warns(kinema.KinemaWarning, match="tiny-sd does not know 'zebra'") as recorded:
        call(prompt="a zebra", model=pipeline, image_model=image_pipeline, **PARAMETERS)
    assert {warning.filename for warning in recorded} == {__file__}


def test_unknown_prompt_words_are_warned_of_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema.models.loading.load", None)
    monkeypatch.setattr("kinema.models.image_pipeline.load_image_pipeline", None)
    with pytest.warns(kinema.KinemaWarning, match="pocket-t2i does not know 'old', 'Paris'"):
        kinema.stream(prompt="an old boat in Paris", model="pocket", device="cpu")


def test_loaded_models_are_used_together(tmp_path: Path, image_pipeline: ImagePipeline) -> None:
    other = kinema.load(make_tiny_svd(tmp_path / "tiny-svd", seed=5, num_frames=2), device="cpu", dtype="float32")
    video = kinema.generate(prompt=PROMPT, model=other, image_model=image_pipeline, **PARAMETERS)
    assert len(video.frames) == 2
    assert isinstance(video.image, Image.Image)
