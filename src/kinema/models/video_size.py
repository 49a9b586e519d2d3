"""The size of a video: read from text such as 1024x576, or chosen by the shape of the image."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.models.catalog import default_parameters
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIZE = re.compile(r"(\d{1,5})\s*[x×]\s*(\d{1,5})", re.IGNORECASE)
# SVD's UNet has 8 pixels per latent and halves the latents three times: sides in multiples of 64 need no rounding.
_LARGEST_UNIT = 64


def parse_size(value: object) -> tuple[int, int]:
    """Return width and height from text such as "1024x576" or "1024×576", or from a pair of integers.

    Raises:
        InvalidRequest: it is neither. The range is checked by `VideoRequest`.
    """
    match value:
        case (int(width), int(height)):
            return width, height
        case str() if match := _SIZE.fullmatch(value.strip()):
            return int(match[1]), int(match[2])
    raise InvalidRequest(f"size {value!r} is invalid; expected width x height, such as 1024x576", "size")


def expand_size(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with `width` and `height` in place of `size`; those that are None are not set.

    Raises:
        InvalidRequest: `size` is invalid, or is set together with width or height.
    """
    expanded = {name: value for name, value in parameters.items() if name != "size"}
    if (size := parameters.get("size")) is None:
        return expanded
    for name in ("width", "height"):
        if (other := parameters.get(name)) is not None:
            raise InvalidRequest(f"size {size!r} and {name} {other!r} are both set; remove one of them", "size")
    expanded["width"], expanded["height"] = parse_size(size)
    return expanded


def fitting_size(image: tuple[int, int], model: tuple[int, int]) -> tuple[int, int]:
    """Return the size (width, height) of the video of an image, in pixels.

    A landscape image gets the model's size, a portrait one the same size upright. An image from 4:5 to 5:4 gets a
    square of about as many pixels, whose side has the powers of two, up to 64, that divide both of the model's sides:
    1024×576 → 768×768, 288×160 → 224×224. So the networks halve it as exactly as the model's size. A model whose own
    size is square gets it for all images.

    Args:
        image: Upright size of the image.
        model: Default size of the model's videos.
    """
    if _is_square(*model):
        return model
    if _is_square(*image):
        unit = math.gcd(*model, _LARGEST_UNIT)
        side = unit * round(math.sqrt(math.prod(model)) / unit)
        return side, side
    long, short = max(model), min(model)
    return (long, short) if image[0] > image[1] else (short, long)


def follow_image(
    request: VideoRequest,
    image_size: tuple[int, int],
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> VideoRequest:
    """Return the request with width and height by the image, except those that `given` sets.

    Args:
        request: A request for an image.
        image_size: Upright size of the image.
        given: The parameters from which the request was made, before defaults; None is not set.
        defaults: The defaults of a loaded model; None looks them up by the model's name.
    """
    unset = [name for name in ("width", "height") if given.get(name) is None]
    if not unset:
        return request
    defaults = default_parameters(request.model) if defaults is None else defaults
    model = tuple(defaults.get(name, VideoRequest.model_fields[name].default) for name in ("width", "height"))
    width, height = fitting_size(image_size, (model[0], model[1]))
    sides = {"width": width, "height": height}
    return request.changed(**{name: sides[name] for name in unset})


def _is_square(width: int, height: int) -> bool:
    return 4 * max(width, height) <= 5 * min(width, height)
