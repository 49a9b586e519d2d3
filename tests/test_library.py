"""Kinema as a library: whatever holds a picture in, a clip out, and everything refused before anything is loaded."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.errors import InvalidImage, InvalidRequest, WeightsError
from kinema.models.loading import VideoPipeline
from kinema.values import Step

# The tiny model's still is as large as its video, so that nothing is to be warned of.
SETTINGS = {"seed": 7, "width": 64, "height": 64, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def image() -> Image.Image:
    y, x = np.mgrid[:64, :64] / 10
    return Image.fromarray((np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 100 + 128).astype("uint8"))


@pytest.fixture(scope="module")
def loaded(tiny_svd: Path) -> VideoPipeline:
    return kinema.load(tiny_svd, device="cpu", dtype="float32")


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# What is accepted


def test_a_still_in_any_form_gives_the_same_clip(loaded: VideoPipeline, image: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(image))
    images = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    videos = [kinema.generate(image, model=loaded, **SETTINGS) for image in images]
    assert videos[0].frames.shape == (4, 64, 64, 3)
    assert all(np.array_equal(video.frames, videos[0].frames) for video in videos)
    assert len({video.recipe.image_sha256 for video in videos}) == 1


def test_a_model_in_any_form_gives_the_same_clip(loaded: VideoPipeline, image: Image.Image, tiny_svd: Path) -> None:
    videos = [
        kinema.generate(image, model=loaded, **SETTINGS),
        kinema.generate(image, model=tiny_svd, device="cpu", dtype="float32", **SETTINGS),
        kinema.generate(image, model=str(tiny_svd), device="cpu", dtype="float32", **SETTINGS),
    ]
    assert all(np.array_equal(video.frames, videos[0].frames) for video in videos)
    assert all(video.recipe == videos[0].recipe for video in videos)


def test_the_model_of_the_settings_is_taken_when_none_is_named(
    image: Image.Image, tiny_svd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_DTYPE", "float32")
    assert kinema.load().name == "tiny-svd"
    assert kinema.generate(image, **SETTINGS).recipe.model.name == "tiny-svd"


def test_load_takes_device_and_dtype(tiny_svd: Path) -> None:
    pipeline = kinema.load(tiny_svd, device="cpu", dtype="bfloat16")
    assert (pipeline.device, pipeline.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.bfloat16}


def test_stream_ends_with_the_clip_that_generate_gives(loaded: VideoPipeline, image: Image.Image) -> None:
    *steps, video = kinema.stream(image, model=loaded, **SETTINGS)
    assert [step.stage for step in steps if isinstance(step, Step)] == ["encode", "encode", "denoise", "decode"]
    assert isinstance(video, kinema.Video)
    assert np.array_equal(video.frames, kinema.generate(image, model=loaded, **SETTINGS).frames)


def test_a_loaded_model_makes_several_videos(loaded: VideoPipeline, image: Image.Image) -> None:
    first, other, again = (
        kinema.generate(image, model=loaded, **SETTINGS | {"seed": seed}).frames for seed in (1, 2, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_clip_can_be_saved_and_read_again(loaded: VideoPipeline, image: Image.Image, tmp_path: Path) -> None:
    video = kinema.generate(image, model=loaded, **SETTINGS)
    assert kinema.read_recipe(video.save(tmp_path / "video.mp4")) == video.recipe


# Settings


def test_settings_that_are_none_are_as_not_given(loaded: VideoPipeline, image: Image.Image) -> None:
    none = dict.fromkeys(("fps", "num_frames", "playback_fps", "decode_chunk_size", "fit", "max_guidance_scale"))
    plain = kinema.generate(image, model=loaded, **SETTINGS)
    video = kinema.generate(image, model=loaded, **SETTINGS, **none)
    assert video.recipe == plain.recipe
    assert np.array_equal(video.frames, plain.frames)


def test_a_folders_own_number_of_frames_lies_beneath_the_settings(
    loaded: VideoPipeline, image: Image.Image, tiny_svd: Path
) -> None:
    named = {"device": "cpu", "dtype": "float32", **SETTINGS}
    assert len(kinema.generate(image, model=tiny_svd, **named).frames) == 4
    assert len(kinema.generate(image, model=loaded, **SETTINGS).frames) == 4
    assert len(kinema.generate(image, model=loaded, num_frames=2, **SETTINGS).frames) == 2


def test_a_drawn_seed_makes_the_video_again(loaded: VideoPipeline, image: Image.Image) -> None:
    video = kinema.generate(image, model=loaded, **SETTINGS | {"seed": None})
    again = kinema.generate(image, model=loaded, **SETTINGS | {"seed": video.seed})
    assert np.array_equal(video.frames, again.frames)


# Refusals, which come before anything is loaded


@pytest.fixture
def unloadable(tmp_path: Path) -> Path:
    """A folder that loading would refuse."""
    folder = tmp_path / "no-model"
    folder.mkdir()
    with pytest.raises(WeightsError):
        kinema.load(folder, device="cpu")
    return folder


def test_a_bad_setting_is_refused_before_loading(image: Image.Image, unloadable: Path) -> None:
    with pytest.raises(InvalidRequest, match="width 1001 is not a multiple of 8"):
        kinema.generate(image, model=unloadable, width=1001)
    with pytest.raises(InvalidRequest, match="no setting 'steps'"):
        kinema.generate(image, model=unloadable, steps=3)


def test_a_bad_still_is_refused_before_loading(unloadable: Path, tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_text("no picture", encoding="utf-8")
    for image in (tmp_path / "image.txt", tmp_path / "missing.png", b"", 42):
        with pytest.raises(InvalidImage):
            kinema.generate(image, model=unloadable, **SETTINGS)


def test_stream_refuses_when_it_is_called_and_loads_when_it_is_begun(image: Image.Image, unloadable: Path) -> None:
    with pytest.raises(InvalidRequest):
        kinema.stream(image, model=unloadable, width=1001)
    with pytest.raises(InvalidImage):
        kinema.stream(b"", model=unloadable, **SETTINGS)
    steps = kinema.stream(image, model=unloadable, **SETTINGS)
    with pytest.raises(WeightsError):
        next(steps)


def test_what_the_model_lacks_is_told_after_all(image: Image.Image, unloadable: Path) -> None:
    with pytest.raises(WeightsError):
        kinema.generate(image, model=unloadable, **SETTINGS)


@pytest.mark.parametrize("named", [{"device": "cpu"}, {"dtype": "float32"}, {"device": "cpu", "dtype": "float32"}])
def test_a_loaded_model_takes_no_other_device_or_dtype(
    loaded: VideoPipeline, image: Image.Image, named: dict[str, str]
) -> None:
    with pytest.raises(
        InvalidRequest, match=r"(device|dtype) '.*' can't change a loaded model; give it to kinema\.load"
    ) as refused:
        kinema.generate(image, model=loaded, **named, **SETTINGS)
    assert refused.value.param in named


@pytest.mark.parametrize("named", [{"device": "tpu"}, {"dtype": "int8"}])
def test_a_device_or_dtype_that_is_not_there_is_refused(
    tiny_svd: Path, image: Image.Image, named: dict[str, str]
) -> None:
    ((name, value),) = named.items()
    with pytest.raises(InvalidRequest, match=value) as refused:
        kinema.generate(image, model=tiny_svd, **named, **SETTINGS)
    assert refused.value.param == name


# Warnings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"motion_bucket_id": 300}, "motion_bucket_id 300 is above 255"),
        ({"fps": 4}, "fps 4 is outside 5 to 30"),
        ({"fps": 31}, "fps 31 is outside 5 to 30"),
        ({"width": 128, "height": 128}, "is enlarged 2 times to 128×128"),
        ({"width": 160}, r"crop keeps only 41% of the image"),
    ],
)
@pytest.mark.filterwarnings("ignore:the image .* is enlarged:kinema.KinemaWarning")
def test_what_may_disappoint_is_warned_of(
    loaded: VideoPipeline, image: Image.Image, settings: dict[str, int], words: str
) -> None:
    with pytest.warns(kinema.KinemaWarning, match=words):
        kinema.stream(image, model=loaded, **SETTINGS | settings)


@pytest.mark.parametrize("call", [kinema.generate, kinema.stream])
def test_a_warning_points_at_the_line_that_called(loaded: VideoPipeline, image: Image.Image, call: object) -> None:
    with pytest.warns(kinema.KinemaWarning) as warned:
        call(image, model=loaded, fps=4, **SETTINGS)
    assert [warning.filename for warning in warned] == [__file__]


def test_usual_settings_warn_of_nothing(loaded: VideoPipeline, image: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kinema.stream(image, model=loaded, motion_bucket_id=255, fps=30, **SETTINGS)


def test_a_warned_of_still_is_made_all_the_same(loaded: VideoPipeline, image: Image.Image) -> None:
    turned = io.BytesIO()
    image.save(turned, "WEBP", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_90)])
    with pytest.warns(kinema.KinemaWarning, match="first"):
        video = kinema.generate(turned.getvalue(), model=loaded, **SETTINGS)
    assert len(video.frames) == 4
