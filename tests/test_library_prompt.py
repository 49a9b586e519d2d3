"""A prompt in place of a still: both halves in one call, and everything refused before anything is loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.errors import InvalidRequest, NotAPainter, WeightsError
from kinema.models.loading import Models
from kinema.models.painters import Painter
from kinema.values import Step
from tiny import make_tiny_svd

PROMPT = "a red balloon over a snowy mountain"
SETTINGS = {"seed": 7, "width": 64, "height": 64, "num_inference_steps": 1, "image_num_inference_steps": 2}


@pytest.fixture(scope="module")
def loaded(tiny_svd: Path) -> Models:
    return kinema.load(tiny_svd, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def painter(tiny_sd: Path) -> Painter:
    return kinema.load_painter(tiny_sd, device="cpu", dtype="float32")


def test_a_prompt_becomes_a_clip_with_its_still_and_recipe(loaded: Models, painter: Painter) -> None:
    clip = kinema.generate(prompt=PROMPT, model=loaded, image_model=painter, **SETTINGS)
    assert clip.frames.shape == (4, 64, 64, 3)
    assert clip.still is not None
    assert (clip.still.mode, clip.still.size) == ("RGB", (64, 64))
    request, painting = clip.recipe.request, clip.recipe.painting
    assert (request.prompt, request.image_model, request.scheduler) == (PROMPT, "tiny-sd", "euler")
    assert (request.image_guidance_scale, request.image_num_inference_steps) == (7.5, 2)
    assert painting is not None
    assert painting.painter == painter.identity


def test_the_kept_still_with_the_same_seed_gives_the_same_video(
    loaded: Models, painter: Painter, tmp_path: Path
) -> None:
    clip = kinema.generate(prompt=PROMPT, model=loaded, image_model=painter, **SETTINGS)
    assert clip.still is not None
    clip.still.save(tmp_path / "still.png")
    video = {name: value for name, value in SETTINGS.items() if not name.startswith("image_")}
    again = kinema.generate(tmp_path / "still.png", model=loaded, **video)
    assert np.array_equal(again.frames, clip.frames)
    assert again.recipe.still_sha256 == clip.recipe.still_sha256
    assert again.recipe.painting is None
    assert again.still is not None
    assert np.array_equal(np.asarray(again.still), np.asarray(clip.still))


def test_models_and_painters_in_any_form_give_the_same_clip(
    loaded: Models, painter: Painter, tiny_svd: Path, tiny_sd: Path
) -> None:
    here = {"device": "cpu", "dtype": "float32"}
    clips = [
        kinema.generate(prompt=PROMPT, model=loaded, image_model=painter, **SETTINGS),
        kinema.generate(prompt=PROMPT, model=loaded, image_model=str(tiny_sd), **SETTINGS),
        kinema.generate(prompt=PROMPT, model=tiny_svd, image_model=painter, **here, **SETTINGS),
        kinema.generate(prompt=PROMPT, model=tiny_svd, image_model=tiny_sd, **here, **SETTINGS),
    ]
    assert all(np.array_equal(clip.frames, clips[0].frames) for clip in clips)
    assert all(clip.recipe == clips[0].recipe for clip in clips)


def test_one_seed_drives_both_halves(loaded: Models, painter: Painter) -> None:
    clips = [kinema.generate(prompt=PROMPT, model=loaded, image_model=painter, **SETTINGS | {"seed": None})]
    clips += [
        kinema.generate(prompt=PROMPT, model=loaded, image_model=painter, **SETTINGS | {"seed": seed})
        for seed in (clips[0].seed, clips[0].seed ^ 1)
    ]
    assert np.array_equal(clips[0].frames, clips[1].frames)
    assert clips[1].recipe.still_sha256 != clips[2].recipe.still_sha256


def test_stream_yields_both_halves_in_turn(loaded: Models, painter: Painter) -> None:
    *steps, clip = kinema.stream(prompt=PROMPT, model=loaded, image_model=painter, **SETTINGS)
    stages = [step.stage for step in steps if isinstance(step, Step)]
    assert stages == ["paint", "paint", "encode", "encode", "denoise", "decode"]
    assert isinstance(clip, kinema.Clip)


def test_a_recipe_survives_its_file(loaded: Models, painter: Painter, tmp_path: Path) -> None:
    clip = kinema.generate(prompt=PROMPT, model=loaded, image_model=painter, **SETTINGS)
    assert kinema.read_recipe(clip.save(tmp_path / "clip.mp4")) == clip.recipe


def test_a_painter_that_was_given_paints_again_and_one_that_was_loaded_is_dropped(
    loaded: Models, painter: Painter, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    whole = Painter.release
    monkeypatch.setattr(Painter, "release", lambda self: released.append(self.name) or whole(self))
    for _ in range(2):
        kinema.generate(prompt=PROMPT, model=loaded, image_model=painter, **SETTINGS)
    assert released == []
    for step in kinema.stream(prompt=PROMPT, model=loaded, image_model=tiny_sd, **SETTINGS):
        if isinstance(step, Step) and step.stage != "paint":
            assert released == ["tiny-sd"]
    iterator = kinema.stream(prompt=PROMPT, model=loaded, image_model=tiny_sd, **SETTINGS)
    next(iterator)
    iterator.close()
    assert released == ["tiny-sd"] * 2


def test_load_painter_takes_device_and_dtype(tiny_sd: Path) -> None:
    painter = kinema.load_painter(tiny_sd, device="cpu", dtype="bfloat16")
    assert (painter.device, painter.dtype) == (torch.device("cpu"), torch.bfloat16)


# Refusals


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"still": "rocket.png", "prompt": PROMPT}, "prompt", "drop the prompt to make .* or drop the still to"),
        ({}, "still", "neither a still nor a prompt is given"),
        ({"prompt": " "}, "prompt", "prompt ' ' is empty"),
        ({"prompt": PROMPT, "scheduler": "heun"}, "scheduler", "scheduler 'heun' is not usable"),
        ({"still": "rocket.png", "negative_prompt": "fog"}, "negative_prompt", "drop it, or give a prompt"),
        ({"still": "rocket.png", "image_model": "sd-2.1-base"}, "image_model", "drop it, or give a prompt"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(
    given: dict[str, str], param: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        kinema.stream(**given, model=tmp_path)
    assert refused.value.param == param


def test_what_is_no_painter_is_refused_when_the_work_begins(loaded: Models, tiny_svd: Path, tmp_path: Path) -> None:
    steps = kinema.stream(prompt=PROMPT, model=loaded, image_model=tiny_svd, **SETTINGS)
    with pytest.raises(NotAPainter, match="tiny-svd makes videos from stills"):
        next(steps)
    with pytest.raises(WeightsError):
        kinema.generate(prompt=PROMPT, model=loaded, image_model=tmp_path, **SETTINGS)


def test_painters_that_none_names_follow_the_device_and_the_size(tiny_svd: Path) -> None:
    """The steps are not begun, so nothing is loaded."""
    with pytest.warns(kinema.KinemaWarning, match="64×64 is not the 288×160 that pocket-painter was trained on"):
        kinema.stream(prompt=PROMPT, model=tiny_svd, device="cpu", **SETTINGS)


# Warnings


@pytest.mark.parametrize("call", [kinema.generate, lambda *args, **named: [*kinema.stream(*args, **named)]])
def test_what_the_painter_does_not_read_is_warned_of_at_the_line_that_called(
    loaded: Models, painter: Painter, call: object
) -> None:
    with pytest.warns(kinema.KinemaWarning, match="tiny-sd can't draw 'zebra'") as warned:
        call(prompt="a zebra", model=loaded, image_model=painter, **SETTINGS)
    assert {warning.filename for warning in warned} == {__file__}


def test_words_that_draw_nothing_are_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema.models.loading.load", None)
    monkeypatch.setattr("kinema.models.painters.load_painter", None)
    with pytest.warns(kinema.KinemaWarning, match="pocket-painter can't draw 'old', 'Paris'"):
        kinema.stream(prompt="an old boat in Paris", model="pocket", device="cpu")


def test_another_videos_model_of_the_same_name_keeps_the_prompt(tmp_path: Path, painter: Painter) -> None:
    other = kinema.load(make_tiny_svd(tmp_path / "tiny-svd", seed=5, num_frames=2), device="cpu", dtype="float32")
    clip = kinema.generate(prompt=PROMPT, model=other, image_model=painter, **SETTINGS)
    assert len(clip.frames) == 2
    assert isinstance(clip.still, Image.Image)
