"""`kinema.generate`, `stream` and `load` with an image: accepted inputs, errors before loading, warnings."""

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.errors import InvalidImage, InvalidRequest, ModelError
from kinema.models.loading import VideoPipeline
from kinema.steps import Step

# The size of the test image, so that there are no warnings about fitting.
PARAMETERS = {"seed": 7, "width": 64, "height": 64, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def image() -> Image.Image:
    y, x = np.mgrid[:64, :64] / 10
    return Image.fromarray((np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 100 + 128).astype("uint8"))


@pytest.fixture(scope="module")
def pipeline(tiny_svd: Path) -> VideoPipeline:
    return kinema.load(tiny_svd, device="cpu", dtype="float32")


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# Accepted inputs


def test_every_image_type_gives_the_same_video(
    pipeline: VideoPipeline, image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(image))
    monkeypatch.setenv("HOME", str(tmp_path))
    with path.open("rb") as file:
        images = [path, str(path), "~/image.png", path.read_bytes(), io.BytesIO(path.read_bytes()), file, image]
        images.append(np.asarray(image))
        videos = [kinema.generate(image, model=pipeline, **PARAMETERS) for image in images]
    assert videos[0].frames.shape == (4, 64, 64, 3)
    assert all(np.array_equal(video.frames, videos[0].frames) for video in videos)
    assert len({video.recipe.image_sha256 for video in videos}) == 1


def test_every_model_type_gives_the_same_video(pipeline: VideoPipeline, image: Image.Image, tiny_svd: Path) -> None:
    videos = [
        kinema.generate(image, model=pipeline, **PARAMETERS),
        kinema.generate(image, model=tiny_svd, device="cpu", dtype="float32", **PARAMETERS),
        kinema.generate(image, model=str(tiny_svd), device="cpu", dtype="float32", **PARAMETERS),
    ]
    assert all(np.array_equal(video.frames, videos[0].frames) for video in videos)
    assert all(video.recipe == videos[0].recipe for video in videos)


def test_unset_model_uses_the_settings(image: Image.Image, tiny_svd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_DTYPE", "float32")
    assert kinema.load().name == "tiny-svd"
    assert kinema.generate(image, **PARAMETERS).recipe.model.name == "tiny-svd"


def test_load_uses_device_and_dtype(tiny_svd: Path) -> None:
    pipeline = kinema.load(tiny_svd, device="cpu", dtype="bfloat16")
    assert (pipeline.device, pipeline.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.bfloat16}


def test_stream_ends_with_the_same_video_as_generate(pipeline: VideoPipeline, image: Image.Image) -> None:
    *steps, video = kinema.stream(image, model=pipeline, **PARAMETERS)
    assert [step.stage for step in steps if isinstance(step, Step)] == ["encode", "encode", "denoise", "decode"]
    assert isinstance(video, kinema.Video)
    assert np.array_equal(video.frames, kinema.generate(image, model=pipeline, **PARAMETERS).frames)


def test_loaded_model_generates_several_videos(pipeline: VideoPipeline, image: Image.Image) -> None:
    first, other, again = (
        kinema.generate(image, model=pipeline, **PARAMETERS | {"seed": seed}).frames for seed in (1, 2, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_saved_video_contains_its_recipe(pipeline: VideoPipeline, image: Image.Image, tmp_path: Path) -> None:
    video = kinema.generate(image, model=pipeline, **PARAMETERS)
    assert kinema.read_recipe(video.save(tmp_path / "video.mp4")) == video.recipe


# Parameters


def test_none_parameters_equal_unset_parameters(pipeline: VideoPipeline, image: Image.Image) -> None:
    none = dict.fromkeys(("fps", "num_frames", "playback_fps", "decode_chunk_size", "fit", "max_guidance_scale"))
    plain = kinema.generate(image, model=pipeline, **PARAMETERS)
    video = kinema.generate(image, model=pipeline, **PARAMETERS, **none)
    assert video.recipe == plain.recipe
    assert np.array_equal(video.frames, plain.frames)


def test_size_follows_the_image_unless_it_is_given(pipeline: VideoPipeline, image: Image.Image) -> None:
    own = {"width": 96, "height": 64, "num_frames": 2, "num_inference_steps": 1}
    wide = replace(pipeline, defaults=own)
    portrait, landscape = image.resize((72, 128)), image.resize((128, 72))
    assert kinema.generate(portrait, model=wide).frames.shape == (2, 96, 64, 3)
    assert kinema.generate(landscape, model=wide).frames.shape == (2, 64, 96, 3)
    assert kinema.generate(image, model=wide).frames.shape == (2, 64, 64, 3)
    assert kinema.generate(portrait, model=wide, size=(72, 64)).frames.shape == (2, 64, 72, 3)
    request = kinema.generate(portrait, model=wide, size="64x72").recipe.request
    assert (request.width, request.height) == (64, 72)


def test_model_folder_sets_default_num_frames(pipeline: VideoPipeline, image: Image.Image, tiny_svd: Path) -> None:
    options = {"device": "cpu", "dtype": "float32", **PARAMETERS}
    assert len(kinema.generate(image, model=tiny_svd, **options).frames) == 4
    assert len(kinema.generate(image, model=pipeline, **PARAMETERS).frames) == 4
    assert len(kinema.generate(image, model=pipeline, num_frames=2, **PARAMETERS).frames) == 2


def test_random_seed_reproduces_the_video(pipeline: VideoPipeline, image: Image.Image) -> None:
    video = kinema.generate(image, model=pipeline, **PARAMETERS | {"seed": None})
    again = kinema.generate(image, model=pipeline, **PARAMETERS | {"seed": video.seed})
    assert np.array_equal(video.frames, again.frames)


# Errors


@pytest.fixture
def invalid_model(tmp_path: Path) -> Path:
    """Return a folder without a model."""
    folder = tmp_path / "no-model"
    folder.mkdir()
    with pytest.raises(ModelError):
        kinema.load(folder, device="cpu")
    return folder


def test_invalid_parameter_is_rejected_before_loading(image: Image.Image, invalid_model: Path) -> None:
    with pytest.raises(InvalidRequest, match="width 1001 is not a multiple of 8"):
        kinema.generate(image, model=invalid_model, width=1001)
    with pytest.raises(InvalidRequest, match="unknown parameter 'steps'"):
        kinema.generate(image, model=invalid_model, steps=3)


def test_invalid_image_is_rejected_before_loading(invalid_model: Path, tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_text("not an image", encoding="utf-8")
    for image in (tmp_path / "image.txt", tmp_path / "missing.png", b"", 42):
        with pytest.raises(InvalidImage):
            kinema.generate(image, model=invalid_model, **PARAMETERS)


def test_stream_validates_when_called_and_loads_when_iterated(image: Image.Image, invalid_model: Path) -> None:
    with pytest.raises(InvalidRequest):
        kinema.stream(image, model=invalid_model, width=1001)
    with pytest.raises(InvalidImage):
        kinema.stream(b"", model=invalid_model, **PARAMETERS)
    steps = kinema.stream(image, model=invalid_model, **PARAMETERS)
    with pytest.raises(ModelError):
        next(steps)


def test_invalid_model_raises_weights_error(image: Image.Image, invalid_model: Path) -> None:
    with pytest.raises(ModelError):
        kinema.generate(image, model=invalid_model, **PARAMETERS)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"dtype": "float32"}, {"device": "cpu", "dtype": "float32"}])
def test_device_or_dtype_with_loaded_model_is_rejected(
    pipeline: VideoPipeline, image: Image.Image, options: dict[str, str]
) -> None:
    with pytest.raises(
        InvalidRequest, match=r"(device|dtype) '.*' cannot be changed for a loaded model; pass it to kinema\.load"
    ) as error:
        kinema.generate(image, model=pipeline, **options, **PARAMETERS)
    assert error.value.param in options


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"dtype": "int8"}])
def test_unavailable_device_or_dtype_is_rejected(tiny_svd: Path, image: Image.Image, options: dict[str, str]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InvalidRequest, match=value) as error:
        kinema.generate(image, model=tiny_svd, **options, **PARAMETERS)
    assert error.value.param == name


# Warnings


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"motion_bucket_id": 300}, "motion_bucket_id 300 is above 255"),
        ({"fps": 4}, "fps 4 is outside 5 to 30"),
        ({"fps": 31}, "fps 31 is outside 5 to 30"),
        ({"width": 128, "height": 128}, "is enlarged 2 times to 128×128"),
        ({"width": 160}, r"crop keeps only 41% of the image"),
    ],
)
@pytest.mark.filterwarnings("ignore:the image .* is enlarged:kinema.KinemaWarning")
def test_unusual_parameters_give_warnings(
    pipeline: VideoPipeline, image: Image.Image, parameters: dict[str, int], message: str
) -> None:
    with pytest.warns(kinema.KinemaWarning, match=message):
        kinema.stream(image, model=pipeline, **PARAMETERS | parameters)


@pytest.mark.parametrize("call", [kinema.generate, kinema.stream])
def test_warning_points_at_calling_file(pipeline: VideoPipeline, image: Image.Image, call: object) -> None:
    with pytest.warns(kinema.KinemaWarning) as recorded:
        call(image, model=pipeline, fps=4, **PARAMETERS)
    assert [warning.filename for warning in recorded] == [__file__]


def test_usual_parameters_give_no_warning(pipeline: VideoPipeline, image: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kinema.stream(image, model=pipeline, motion_bucket_id=255, fps=30, **PARAMETERS)


def test_image_with_warning_still_gives_a_video(pipeline: VideoPipeline, image: Image.Image) -> None:
    animated = io.BytesIO()
    image.save(animated, "WEBP", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_90)])
    with pytest.warns(kinema.KinemaWarning, match="first"):
        video = kinema.generate(animated.getvalue(), model=pipeline, **PARAMETERS)
    assert len(video.frames) == 4
