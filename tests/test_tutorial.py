"""The tutorial's helpers: what is asked is made, saved, told and given back."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kinema import tutorial
from kinema.errors import InvalidImage, InvalidRequest, VideoError
from kinema.media.video_writer import probe, read_recipe
from kinema.tutorial import Lesson, motion_by_seed

ROCKET = Path(__file__).parents[1] / "examples" / "rocket.jpg"


@pytest.fixture(scope="module")
def lesson(tiny_svd: Path, tiny_sd: Path) -> Lesson:
    small = {"width": 64, "height": 64, "num_inference_steps": 1}
    return tutorial.load(tiny_svd, image_model=tiny_sd, device="cpu", dtype="float32", **small)


def test_a_picture_becomes_a_saved_video_of_ten_frames(
    lesson: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = lesson.generate_video(ROCKET, tmp_path / "rocket.mp4")
    info = probe(tmp_path / "rocket.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (10, 64, 64, 7)
    assert read_recipe(tmp_path / "rocket.mp4") == video.recipe
    assert video.seed == 42
    assert capsys.readouterr().out.split("\r")[-1].split() == ["seed", "42"]


def test_minus_one_draws_a_seed_and_tells_it(
    lesson: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = [lesson.generate_video(ROCKET, tmp_path / "rocket.mp4", seed=-1).seed for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "seed" in line] == [
        str(seed) for seed in seeds
    ]


def test_the_same_seed_gives_the_same_video(lesson: Lesson, tmp_path: Path) -> None:
    videos = [lesson.generate_video(ROCKET, tmp_path / "rocket.mp4", seed=5) for _ in range(2)]
    assert np.array_equal(videos[0].frames, videos[1].frames)


def test_the_tutorials_settings_lie_beneath_the_models_and_the_readers(lesson: Lesson) -> None:
    own = replace(lesson, settings={"width": 64, "height": 64})
    assert own.make(ROCKET, seed=1).recipe.request.num_inference_steps == 10
    pipeline = replace(lesson.pipeline, defaults={"num_inference_steps": 3, "num_frames": 2})
    request = replace(own, pipeline=pipeline).make(ROCKET, seed=1).recipe.request
    assert (request.num_inference_steps, request.num_frames, request.decode_chunk_size) == (3, 2, 2)
    assert lesson.make(ROCKET, seed=1, num_inference_steps=2).recipe.request.num_inference_steps == 2


@pytest.mark.parametrize("seed", [-2, 2**53])
def test_a_seed_out_of_range_is_refused(lesson: Lesson, tmp_path: Path, seed: int) -> None:
    with pytest.raises(InvalidRequest, match=f"seed {seed} is out of range"):
        lesson.generate_video(ROCKET, tmp_path / "rocket.mp4", seed=seed)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cant_be_written_is_refused_before_the_work(
    lesson: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(VideoError, match=r"unsupported extension \.avi"):
        lesson.generate_video(ROCKET, tmp_path / "rocket.avi")
    assert capsys.readouterr().out == ""


def test_the_helpers_have_the_tutorials_names_and_arguments() -> None:
    arguments = {
        name: {key: argument.default for key, argument in inspect.signature(function).parameters.items()}
        for name, function in vars(tutorial).items()
        if name in {"generate_video", "generate_text2video"}
    }
    required = inspect.Parameter.empty
    assert arguments == {
        "generate_video": {"image_url": required, "video_file": required, "seed": 42, "settings": required},
        "generate_text2video": {
            "prompt": required,
            "video_file": required,
            "seed": -1,
            "guidance_scale": None,
            "settings": required,
        },
    }


def test_the_plain_helper_takes_the_model_of_the_settings(
    tiny_svd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    with pytest.raises(InvalidImage, match=r"file .*nowhere\.png not found"):
        tutorial.generate_video(str(tmp_path / "nowhere.png"), tmp_path / "nowhere.mp4")


# From a sentence


@pytest.fixture(scope="module")
def image_generation(lesson: Lesson) -> Lesson:
    return replace(lesson, settings={**lesson.settings, "image_num_inference_steps": 2})


def test_a_sentence_becomes_a_still_and_a_saved_video_of_twelve_frames(
    image_generation: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = image_generation.generate_text2video("a red balloon", tmp_path / "balloon.mp4", seed=3)
    assert video.image is not None
    assert video.image.size == (64, 64)
    assert probe(tmp_path / "balloon.mp4").frames == 12
    assert capsys.readouterr().out.split("\r")[-1].split() == ["seed", "3"]


def test_the_still_and_its_seed_make_the_same_video(image_generation: Lesson, tmp_path: Path) -> None:
    drawn = image_generation.generate_text2video("a red balloon", tmp_path / "balloon.mp4")
    assert drawn.image is not None
    again = image_generation.make(drawn.image, seed=drawn.seed, num_frames=12)
    assert np.array_equal(again.frames, drawn.frames)


def test_the_recipe_of_a_sentence_makes_its_video_without_a_still(image_generation: Lesson, tmp_path: Path) -> None:
    drawn = image_generation.generate_text2video("a blue boat", tmp_path / "boat.mp4", seed=9)
    recipe = read_recipe(tmp_path / "boat.mp4")
    again = image_generation.make(**recipe.request.model_dump(exclude={"model", "image_model"}))
    assert np.array_equal(again.frames, drawn.frames)


def test_guidance_scale_is_that_of_the_image_and_the_rest_that_of_the_video(
    image_generation: Lesson, tmp_path: Path
) -> None:
    given = {"guidance_scale": 5.5, "num_frames": 3, "num_inference_steps": 2}
    request = image_generation.generate_text2video("a blue boat", tmp_path / "boat.mp4", 2**32, **given).recipe.request
    assert (request.image_guidance_scale, request.max_guidance_scale) == (5.5, 3.0)
    assert (request.num_frames, request.num_inference_steps, request.seed) == (3, 2, 2**32)


def test_words_that_the_painter_does_not_know_are_told(
    image_generation: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_generation.generate_text2video("a red zebra", tmp_path / "zebra.mp4", seed=3)
    assert "note: tiny-sd does not know 'zebra'" in capsys.readouterr().out


def test_an_empty_sentence_is_refused(image_generation: Lesson, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="prompt ' ' is empty"):
        image_generation.generate_text2video(" ", tmp_path / "nothing.mp4")
    assert not list(tmp_path.iterdir())


# The sheet


def test_the_sheet_has_a_row_for_each_motion_and_a_column_for_each_seed(lesson: Lesson) -> None:
    made = lesson.make(ROCKET, seed=1, num_frames=2)
    videos = []
    for motion, seed, level in [(200, 8, 40), (20, 8, 30), (200, 3, 20), (20, 3, 10)]:
        request = made.recipe.request.changed(motion_bucket_id=motion, seed=seed)
        frames = np.stack([np.zeros((64, 64, 3)), np.full((64, 64, 3), level)]).astype(np.uint8)
        videos.append(replace(made, frames=frames, recipe=made.recipe.model_copy(update={"request": request})))
    sheet = np.asarray(motion_by_seed(videos))
    assert sheet.shape == (128, 256, 3)
    corners = sheet[63::64, 63::64, 0]  # the last pixel of each frame, away from the labels
    assert corners.tolist() == [[10, 40, 30, 120], [20, 80, 40, 160]]


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no clips"):
        motion_by_seed([])
