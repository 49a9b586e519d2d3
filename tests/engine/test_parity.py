"""Compare frames with diffusers' pipeline for the same weights and seed: the largest difference is 1/255."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.engine import generate
from kinema.media.image import open_image
from kinema.models.catalog import POCKET_FOLDER
from kinema.models.loading import load
from kinema.steps import drive
from kinema.values import VideoRequest
from tiny import PLAIN_TOP, UP_ALONE, make_tiny_svd


def png_image(width: int, height: int) -> Image.Image:
    """Return smooth waves with slight noise, so that low and high frequencies are compared."""
    y, x = np.mgrid[:height, :width] / 40
    waves = np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(3 * y)], -1)
    grain = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    return Image.fromarray(((waves + grain + 1.3) / 2.6 * 255).clip(0, 255).astype("uint8"))


def diffusers_frames(folder: Path, image: Image.Image, request: VideoRequest) -> np.ndarray:
    """Return the frames of diffusers' pipeline: uint8 [num_frames, height, width, 3]."""
    from diffusers import StableVideoDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        names = (
            "width",
            "height",
            "num_frames",
            "num_inference_steps",
            "fps",
            "motion_bucket_id",
            "noise_aug_strength",
            "min_guidance_scale",
            "max_guidance_scale",
            "decode_chunk_size",
        )
        frames = pipeline(
            image,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
            **{name: getattr(request, name) for name in names},
        ).frames[0]
    return (frames * 255).round().astype("uint8")


def our_frames(folder: Path, image: Image.Image, request: VideoRequest) -> np.ndarray:
    pipeline = load(folder, device="cpu", dtype="float32")
    video = drive(generate(pipeline, open_image(image), request))
    return video.frames


def assert_parity(folder: Path, **settings: object) -> None:
    request = VideoRequest.checked(**{"seed": 7, "num_inference_steps": 2, "num_frames": 4} | settings)
    image = png_image(request.width, request.height)
    ours, theirs = our_frames(folder, image, request), diffusers_frames(folder, image, request)
    assert ours.shape == theirs.shape == (request.num_frames, request.height, request.width, 3)
    assert np.ptp(theirs) > 20, "a constant video can't reveal a difference"
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


SMALL = {"width": 64, "height": 64}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"width": 88, "height": 72}, id="multiples of 8 but not of 64"),
        # With its default guidance of 1 to 3, diffusers' pipeline fails on a single frame.
        pytest.param({"num_frames": 1, "max_guidance_scale": 1.0}, id="one frame"),
        pytest.param({"num_frames": 1, "min_guidance_scale": 2.0}, id="one frame, guided"),
        pytest.param({"num_frames": 25, "num_inference_steps": 1}, id="25 frames, one step", marks=pytest.mark.slow),
        pytest.param({"decode_chunk_size": 3, "num_frames": 8}, id="chunks of 3, 3 and 2"),
        pytest.param({"decode_chunk_size": 1}, id="chunks of one", marks=pytest.mark.slow),
        pytest.param({"max_guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"min_guidance_scale": 2.0, "max_guidance_scale": 7.5}, id="strong guidance"),
        pytest.param({"noise_aug_strength": 0.0}, id="no noise on the image"),
        pytest.param({"noise_aug_strength": 1.0}, id="strong noise on the image", marks=pytest.mark.slow),
        pytest.param({"fps": 1, "motion_bucket_id": 0}, id="minimum fps and motion", marks=pytest.mark.slow),
        pytest.param({"fps": 120, "motion_bucket_id": 1023}, id="maximum fps and motion"),
        pytest.param({"num_inference_steps": 12}, id="twelve steps", marks=pytest.mark.slow),
        pytest.param({"seed": 2**53 - 1}, id="largest seed"),
    ],
)
def test_frames_equal_diffusers(tiny_svd: Path, settings: dict[str, object]) -> None:
    assert_parity(tiny_svd, **SMALL | settings)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"width": 104, "height": 72, "num_frames": 3}, id="sizes not divisible by four levels"),
        pytest.param(
            {"width": 256, "height": 232, "num_frames": 2, "num_inference_steps": 1}, id="larger than CLIP's input"
        ),
        pytest.param({"num_frames": 14, "decode_chunk_size": 5}, id="14 frames in three chunks"),
    ],
)
def test_frames_equal_diffusers_with_four_levels(tiny_svd_4_levels: Path, settings: dict[str, object]) -> None:
    assert_parity(tiny_svd_4_levels, **SMALL | settings)


def test_frames_equal_diffusers_with_two_layers(tmp_path: Path) -> None:
    assert_parity(make_tiny_svd(tmp_path / "svd", layers=2, seed=3), **SMALL)


@pytest.mark.parametrize(
    "vae_levels",
    [2, 3, pytest.param(4, marks=pytest.mark.slow)],  # the other tests have a factor of 8
    ids=["factor 2", "factor 4", "factor 8"],
)
@pytest.mark.parametrize(
    "shape",
    [PLAIN_TOP, UP_ALONE],
    ids=["first level without attention", "first level with attention in the up blocks only"],
)
def test_frames_equal_diffusers_for_every_vae_factor(tmp_path: Path, shape: dict[str, object], vae_levels: int) -> None:
    folder = make_tiny_svd(tmp_path / "svd", **{**shape, "vae_levels": vae_levels})
    assert_parity(folder, width=104, height=72, num_frames=3)  # neither is divisible by four levels of the UNet


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"num_frames": 5, "decode_chunk_size": 2, "max_guidance_scale": 3.0}])
def test_pocket_frames_equal_diffusers(settings: dict[str, object]) -> None:
    pocket = {"width": 288, "height": 160, "num_frames": 4, "max_guidance_scale": 1.0}
    assert_parity(POCKET_FOLDER, **pocket | settings)
