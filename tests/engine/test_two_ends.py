"""Videos between two images, and loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.engine import denoising, generate, samplers, sampling, to_latents, to_video
from kinema.engine.checkpoint import Checkpoint
from kinema.engine.conditioning import Conditions
from kinema.media.image import open_image
from kinema.steps import drive
from kinema.values import VideoRequest
from tiny import make_tiny_svd

SIZE = {"width": 64, "height": 64, "num_frames": 4, "num_inference_steps": 3}


def coloured(*colour: int) -> Image.Image:
    gradient = np.linspace(0.5, 1, 64)[:, None, None] * np.array(colour)
    return Image.fromarray(np.broadcast_to(gradient, (64, 64, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def pipeline(tiny_svd) -> kinema.VideoPipeline:
    return kinema.load(tiny_svd, device="cpu", dtype="float32")


def exact(target: torch.Tensor, calls: list[float] | None = None) -> samplers.Predict:
    """Return a prediction that knows the video, and records the noise level it finds in its input."""

    def predict(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if calls is not None:
            calls.append(((latents - target).std() / sigma).item())
        return target

    return predict


def test_steps_between_two_images_keep_the_noise_level_of_each_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    video = torch.randn((1, 5, 4, 32, 32), generator=generator)
    sigmas = sampling.karras_sigmas(6, 0.05, 40.0)
    latents = video + sigmas[0] * torch.randn(video.shape, generator=generator)
    levels: list[float] = []
    step = samplers.between(exact(video, levels), exact(video.flip(1), levels), generator)
    for sigma, following in pairwise(sigmas):
        latents, clean = step(latents, sigma, following)
    assert levels == pytest.approx([1.0] * 12, abs=0.05)
    torch.testing.assert_close(clean, video)
    torch.testing.assert_close(latents, video, atol=1e-5, rtol=0)


def test_last_step_between_two_images_weights_each_frame_by_its_distance() -> None:
    first, last = torch.zeros(1, 5, 1, 1, 1), torch.ones(1, 5, 1, 1, 1)
    step = samplers.between(exact(first), exact(last), torch.Generator())
    latents, _ = step(torch.randn(1, 5, 1, 1, 1), torch.tensor(0.05), torch.tensor(0.0))
    assert latents.flatten().tolist() == pytest.approx([0, 0.15625, 0.5, 0.84375, 1], abs=1e-5)


def test_fusion_weights_each_frame_by_its_distance_to_the_images() -> None:
    first, last = torch.zeros(1, 5, 1, 1, 1), torch.ones(1, 5, 1, 1, 1)
    step = samplers.fused(exact(first), exact(last))
    _, clean = step(torch.randn(1, 5, 1, 1, 1), torch.tensor(9.0), torch.tensor(4.0))
    assert clean.flatten().tolist() == [0, 0.15625, 0.5, 0.84375, 1]  # 3t² − 2t³


def test_loop_of_latents_with_positions_is_eased_in_the_last_step_only() -> None:
    time = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1)
    away_and_back = 4 * time * (1 - time)
    step = samplers.fused(exact(away_and_back), exact(away_and_back), eases=True)
    _, clean = step(torch.randn(1, 5, 1, 1, 1), torch.tensor(9.0), torch.tensor(4.0))
    assert clean.flatten().tolist() == [0, 0.75, 1, 0.75, 0]
    eased, _ = step(torch.randn(1, 5, 1, 1, 1), torch.tensor(0.5), torch.tensor(0.0))
    torch.testing.assert_close(eased.flatten(), torch.tensor([0, 0.65625, 1, 0.65625, 0]))


def test_two_images_exchanged_give_another_video_and_the_recipe_names_both(pipeline) -> None:
    red, blue = coloured(255, 0, 0), coloured(0, 0, 255)
    there = kinema.generate(red, last_image=blue, model=pipeline, seed=1, **SIZE)
    back = kinema.generate(blue, last_image=red, model=pipeline, seed=1, **SIZE)
    assert there.frames.shape == (4, 64, 64, 3)
    assert not np.array_equal(there.frames, back.frames)
    assert there.recipe.last_image_sha256 == back.recipe.image_sha256 == open_image(blue).sha256
    assert kinema.generate(red, model=pipeline, seed=1, **SIZE).recipe.last_image_sha256 is None


@pytest.mark.parametrize(
    ("encoded_channels", "last_image", "loop", "motion"),
    [(5, ("fused", {"eases": False}), {"eases": True}, 140), (None, ("between", {}), {"eases": False}, 100)],
)
def test_model_whose_encoder_leaves_channels_out_fuses_both_predictions_with_more_motion_and_eases_loops(
    encoded_channels, last_image, loop, motion, tmp_path, monkeypatch
) -> None:
    used, motions, make_step = [], [], denoising.make_step

    def step_of(*arguments):
        motions.append(arguments[3].time_ids[0, 1].item())
        return make_step(*arguments)

    monkeypatch.setattr(denoising, "make_step", step_of)
    for name in ("fused", "between"):
        make = getattr(samplers, name)
        monkeypatch.setattr(
            samplers, name, lambda *a, name=name, make=make, **k: used.append((name, k)) or make(*a, **k)
        )
    folder = make_tiny_svd(tmp_path / "model", latent_channels=8, encoded_channels=encoded_channels)
    model = kinema.load(folder, device="cpu", dtype="float32")
    parameters = {"model": model, "seed": 1, "motion_bucket_id": 100, **SIZE}
    kinema.generate(coloured(255, 0, 0), last_image=coloured(0, 0, 255), **parameters)
    assert used[0] == last_image
    used.clear()
    kinema.generate(coloured(255, 0, 0), loop=True, **parameters)
    assert used == [("fused", loop)]
    assert motions == pytest.approx([motion] * 3)  # of both images, then of the loop's


@pytest.mark.parametrize(("motion", "expected"), [(100, 140), (200, 255), (300, 300)])
def test_more_motion_does_not_leave_the_range_of_the_training(motion, expected) -> None:
    conditions = Conditions(torch.zeros(1, 1, 4), torch.zeros(1, 4, 2, 2), torch.tensor([[6.0, motion, 0.02]]))
    torch.testing.assert_close(conditions.with_motion(1.4).time_ids, torch.tensor([[6.0, expected, 0.02]]))


def test_loop_has_the_requested_frames_and_continues_from_latents_to_the_same_bytes(pipeline, tmp_path) -> None:
    request = VideoRequest(model=pipeline.name, seed=3, loop=True, **SIZE)
    image = open_image(coloured(0, 255, 0))
    whole = drive(generate(pipeline, image, request))
    latents = drive(to_latents(pipeline, image, request))
    latents.save(tmp_path / "latents")
    again = drive(to_video(pipeline, image, request, Checkpoint.load(tmp_path / "latents")))
    assert whole.frames.shape == (4, 64, 64, 3)
    assert np.array_equal(whole.frames, again.frames)
    assert whole.recipe.request.loop
    assert not np.array_equal(whole.frames, kinema.generate(image.rgb, model=pipeline, seed=3, **SIZE).frames)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loop": True}, "a loop ends at its first image"),
        ({"num_frames": 1}, "num_frames 1 has no last frame"),
    ],
)
def test_last_image_is_rejected_where_it_can_not_apply(pipeline, parameters, message) -> None:
    with pytest.raises(kinema.InvalidRequest, match=message):
        kinema.generate(coloured(9, 9, 9), last_image=coloured(1, 2, 3), model=pipeline, **(SIZE | parameters))
