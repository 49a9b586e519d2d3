"""The engine as the queue's work, on a tiny model: the parts of a job write the same file as a single run."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema.engine import Checkpoint, Projection, generate, to_latents, to_video
from kinema.jobs.job import Preview, Task
from kinema.media.image import fit_image, open_image
from kinema.media.video_reader import read_recipe
from kinema.models import loading
from kinema.models.catalog import request_for
from kinema.serving.engine_work import EngineWork
from kinema.values import Step
from tiny import make_tiny_svd

SMALL = {"width": 64, "height": 64, "num_frames": 2, "num_inference_steps": 2, "seed": 5}


@pytest.fixture
def work(monkeypatch, tiny_svd):
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_DTYPE", "float32")
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    return EngineWork()


def run(steps):
    results = list(steps)
    return results[:-1], results[-1]


def test_saved_checkpoint_decodes_to_video_of_one_run(tiny_svd, png, tmp_path):
    pipeline = loading.load(tiny_svd, device="cpu", dtype="float32")
    image, request = open_image(png), request_for(model=str(tiny_svd), **SMALL)
    *_, whole = generate(pipeline, image, request)
    *_, denoised = to_latents(pipeline, image, request)
    denoised.save(tmp_path / "latents.safetensors")
    *_, again = to_video(pipeline, image, request, Checkpoint.load(tmp_path / "latents.safetensors"))
    assert np.array_equal(whole.frames, again.frames)
    assert whole.recipe == again.recipe


def test_task_parts_write_same_file_as_one_run(work, tiny_svd, png, tmp_path):
    request = request_for(model=str(tiny_svd), **SMALL)
    image = tmp_path / "image"
    image.write_bytes(png)
    steps, denoised = run(work(Task("j", "latents", request, image)))
    assert [(s.stage, s.step) for s in steps if isinstance(s, Step)] == [
        ("encode", 1), ("encode", 2), ("denoise", 1), ("denoise", 2),
    ]  # fmt: skip
    denoised.save(tmp_path / "latents.safetensors")
    _, video = run(work(Task("j", "video", request, image, tmp_path / "latents.safetensors")))
    *_, whole = generate(loading.load(tiny_svd, device="cpu", dtype="float32"), open_image(png), request)
    assert video.save(tmp_path / "one.mp4").read_bytes() == whole.save(tmp_path / "other.mp4").read_bytes()


def test_previews_are_small_and_encoded_on_demand(work, tiny_svd, png, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(png)
    steps, _ = run(work(Task("j", "latents", request_for(model=str(tiny_svd), **SMALL), image)))
    previews = [step.encode() for step in steps if isinstance(step, Preview)]
    assert len(previews) == 2
    assert {Image.open(io.BytesIO(data)).format for data in previews} == {"JPEG"}


@pytest.mark.parametrize("vae_levels", [2, 3, 4])
def test_preview_has_size_of_video(work, tmp_path, png, vae_levels):
    folder, image = make_tiny_svd(tmp_path / "svd", vae_levels=vae_levels), tmp_path / "image"
    image.write_bytes(png)
    request = request_for(model=str(folder), **{**SMALL, "width": 72, "num_inference_steps": 1})
    steps, _ = run(work(Task("j", "latents", request, image)))
    (preview,) = [step.encode() for step in steps if isinstance(step, Preview)]
    assert Image.open(io.BytesIO(preview)).size == (72, request.height)


def test_projection_is_fitted_before_first_step(work, tiny_svd, png, tmp_path, monkeypatch):
    """Fitting may move modules that the steps use."""
    image, events, fit = tmp_path / "image", [], Projection.fit
    image.write_bytes(png)
    monkeypatch.setattr(Projection, "fit", staticmethod(lambda pipeline: events.append("fit") or fit(pipeline)))
    for result in work(Task("j", "latents", request_for(model=str(tiny_svd), **SMALL), image)):
        events.append(type(result).__name__)
        if isinstance(result, Preview):
            result.encode()
    assert events[0] == "fit"
    assert events.count("fit") == 1


def test_first_preview_resembles_image(monkeypatch, tmp_path):
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_MODEL", "pocket")
    rocket = Path(__file__).parents[2] / "examples" / "rocket.jpg"
    request = request_for(model="pocket", seed=3, num_frames=2)
    preview = next(
        result for result in EngineWork()(Task("j", "latents", request, rocket)) if isinstance(result, Preview)
    )
    preview_image = Image.open(io.BytesIO(preview.encode())).resize((36, 20))
    scene = fit_image(open_image(rocket), 288, 160).resize((36, 20))
    correlation = np.corrcoef(np.asarray(preview_image, float).ravel(), np.asarray(scene, float).ravel())[0, 1]
    assert correlation > 0.6, correlation


def test_projection_returns_image_for_any_channel_count(tiny_svd_4_levels):
    import torch

    projection = Projection.fit(loading.load(tiny_svd_4_levels, device="cpu", dtype="float32"))
    assert projection.image(torch.randn(1, 3, 8, 6, 10) * 700).size == (10, 6)


def test_generated_image_recipe_is_in_video(work, tiny_svd, tiny_sd, tmp_path):
    request = request_for(
        model=str(tiny_svd), prompt="a cat", image_model=str(tiny_sd), image_num_inference_steps=1, **SMALL
    )
    _, generated = run(work(Task("j", "image", request)))
    generated.save(tmp_path / "image.png")
    _, denoised = run(work(Task("j", "latents", request, tmp_path / "image.png")))
    denoised.save(tmp_path / "latents.safetensors")
    _, video = run(work(Task("j", "video", request, tmp_path / "image.png", tmp_path / "latents.safetensors")))
    recipe = read_recipe(video.save(tmp_path / "cat.mp4"))
    assert recipe.image_generation == generated.image.image_generation
    assert recipe.image_sha256 == generated.image.sha256
