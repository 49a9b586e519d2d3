"""The tutorial helpers: videos are generated, saved, reported and returned."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema import tutorial
from kinema.errors import InvalidImage, InvalidRequest, VideoError
from kinema.media.video_writer import probe, read_recipe
from kinema.tutorial import Lesson, motion_by_seed

ROCKET = Path(__file__).parents[1] / "examples" / "rocket.jpg"


@pytest.fixture(scope="module")
def lesson(tiny_svd: Path, tiny_sd: Path) -> Lesson:
    small = {"width": 64, "height": 64, "num_inference_steps": 1}
    return tutorial.load(tiny_svd, image_model=tiny_sd, device="cpu", dtype="float32", **small)


def test_image_gives_saved_video_of_ten_frames(
    lesson: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = lesson.generate_video(ROCKET, tmp_path / "rocket.mp4")
    info = probe(tmp_path / "rocket.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (10, 64, 64, 7)
    assert read_recipe(tmp_path / "rocket.mp4") == video.recipe
    assert video.seed == 42
    assert capsys.readouterr().out.split("\r")[-1].split() == ["seed", "42"]


def test_seed_minus_one_is_random_and_printed(
    lesson: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = [lesson.generate_video(ROCKET, tmp_path / "rocket.mp4", seed=-1).seed for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "seed" in line] == [
        str(seed) for seed in seeds
    ]


def test_same_seed_gives_the_same_video(lesson: Lesson, tmp_path: Path) -> None:
    videos = [lesson.generate_video(ROCKET, tmp_path / "rocket.mp4", seed=5) for _ in range(2)]
    assert np.array_equal(videos[0].frames, videos[1].frames)


def test_model_defaults_and_arguments_override_tutorial_parameters(lesson: Lesson) -> None:
    base = replace(lesson, parameters={"width": 64, "height": 64})
    assert base.make(ROCKET, seed=1).recipe.request.num_inference_steps == 10
    pipeline = replace(lesson.pipeline, defaults={"num_inference_steps": 3, "num_frames": 2})
    request = replace(base, pipeline=pipeline).make(ROCKET, seed=1).recipe.request
    assert (request.num_inference_steps, request.num_frames, request.decode_chunk_size) == (3, 2, 2)
    assert lesson.make(ROCKET, seed=1, num_inference_steps=2).recipe.request.num_inference_steps == 2


def test_size_follows_the_image(lesson: Lesson) -> None:
    pipeline = replace(lesson.pipeline, defaults={"width": 96, "height": 64, "num_frames": 2, "num_inference_steps": 1})
    plain = replace(lesson, pipeline=pipeline, parameters={})
    assert plain.make(Image.new("RGB", (72, 128)), seed=1).frames.shape == (2, 96, 64, 3)
    assert plain.make(ROCKET, seed=1, size="64x72").frames.shape == (2, 72, 64, 3)


@pytest.mark.parametrize("seed", [-2, 2**53])
def test_seed_out_of_range_is_rejected(lesson: Lesson, tmp_path: Path, seed: int) -> None:
    with pytest.raises(InvalidRequest, match=f"seed {seed} is out of range"):
        lesson.generate_video(ROCKET, tmp_path / "rocket.mp4", seed=seed)
    assert not list(tmp_path.iterdir())


def test_unsupported_extension_is_rejected_before_work(
    lesson: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(VideoError, match=r"unsupported extension \.avi"):
        lesson.generate_video(ROCKET, tmp_path / "rocket.avi")
    assert capsys.readouterr().out == ""


def test_helpers_have_the_tutorial_signatures() -> None:
    arguments = {
        name: {key: argument.default for key, argument in inspect.signature(function).parameters.items()}
        for name, function in vars(tutorial).items()
        if name in {"generate_video", "generate_text2video"}
    }
    required = inspect.Parameter.empty
    assert arguments == {
        "generate_video": {"image_url": required, "video_file": required, "seed": 42, "parameters": required},
        "generate_text2video": {
            "prompt": required,
            "video_file": required,
            "seed": -1,
            "guidance_scale": None,
            "parameters": required,
        },
    }


def test_module_helper_uses_model_of_settings(tiny_svd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    with pytest.raises(InvalidImage, match=r"file .*nowhere\.png not found"):
        tutorial.generate_video(str(tmp_path / "nowhere.png"), tmp_path / "nowhere.mp4")


# From a prompt


@pytest.fixture(scope="module")
def prompt_lesson(lesson: Lesson) -> Lesson:
    return replace(lesson, parameters={**lesson.parameters, "image_num_inference_steps": 2})


def test_prompt_gives_image_and_saved_video_of_twelve_frames(
    prompt_lesson: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # other tests may have imported it
    video = prompt_lesson.generate_text2video("a red balloon", tmp_path / "balloon.mp4", seed=3)
    assert video.image is not None
    assert video.image.size == (64, 64)
    assert probe(tmp_path / "balloon.mp4").frames == 12
    assert capsys.readouterr().out.split("\r")[-1].split() == ["seed", "3"]


def test_image_and_seed_reproduce_the_video(prompt_lesson: Lesson, tmp_path: Path) -> None:
    video = prompt_lesson.generate_text2video("a red balloon", tmp_path / "balloon.mp4")
    assert video.image is not None
    again = prompt_lesson.make(video.image, seed=video.seed, num_frames=12)
    assert np.array_equal(again.frames, video.frames)


def test_recipe_of_prompt_reproduces_the_video(prompt_lesson: Lesson, tmp_path: Path) -> None:
    video = prompt_lesson.generate_text2video("a blue boat", tmp_path / "boat.mp4", seed=9)
    recipe = read_recipe(tmp_path / "boat.mp4")
    again = prompt_lesson.make(**recipe.request.model_dump(exclude={"model", "image_model"}))
    assert np.array_equal(again.frames, video.frames)


def test_guidance_scale_applies_to_image_and_others_to_video(prompt_lesson: Lesson, tmp_path: Path) -> None:
    parameters = {"guidance_scale": 5.5, "num_frames": 3, "num_inference_steps": 2}
    request = prompt_lesson.generate_text2video(
        "a blue boat", tmp_path / "boat.mp4", 2**32, **parameters
    ).recipe.request
    assert (request.image_guidance_scale, request.max_guidance_scale) == (5.5, 3.0)
    assert (request.num_frames, request.num_inference_steps, request.seed) == (3, 2, 2**32)


def test_unknown_prompt_words_are_printed(
    prompt_lesson: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt_lesson.generate_text2video("a red zebra", tmp_path / "zebra.mp4", seed=3)
    assert "note: tiny-sd does not know 'zebra'" in capsys.readouterr().out


def test_blank_prompt_is_rejected(prompt_lesson: Lesson, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        prompt_lesson.generate_text2video(" ", tmp_path / "nothing.mp4")
    assert not list(tmp_path.iterdir())


# Sheet


def test_sheet_has_row_per_motion_and_column_per_seed(lesson: Lesson) -> None:
    video = lesson.make(ROCKET, seed=1, num_frames=2)
    videos = []
    for motion, seed, level in [(200, 8, 40), (20, 8, 30), (200, 3, 20), (20, 3, 10)]:
        request = video.recipe.request.changed(motion_bucket_id=motion, seed=seed)
        frames = np.stack([np.zeros((64, 64, 3)), np.full((64, 64, 3), level)]).astype(np.uint8)
        videos.append(replace(video, frames=frames, recipe=video.recipe.model_copy(update={"request": request})))
    sheet = np.asarray(motion_by_seed(videos))
    assert sheet.shape == (128, 256, 3)
    corners = sheet[63::64, 63::64, 0]  # the last pixel of each frame, away from the labels
    assert corners.tolist() == [[10, 40, 30, 120], [20, 80, 40, 160]]


def test_sheet_of_no_videos_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="no videos to compare"):
        motion_by_seed([])
