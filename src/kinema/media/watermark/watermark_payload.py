"""The payload of a video's watermark, which identifies its request and images."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from kinema.media.watermark.spread_pattern import PUBLIC_KEY
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

# The path of a model, and what follows from the memory of a machine, are not the same in a request and its recipe.
_LEFT_OUT = {"model", "image_model", "decode_chunk_size"}


def payload_of(request: VideoRequest, image_sha256: str, last_image_sha256: str | None = None) -> int:
    """Return 32 bits of a keyed hash of a request and its images; the same for the request in the video's recipe.

    Parameters with their default value do not count, so that a later version with more parameters gives the same.
    """
    defaults = {name: field.default for name, field in VideoRequest.model_fields.items()}
    parameters = request.model_dump(mode="json", exclude=_LEFT_OUT)
    given = {name: value for name, value in parameters.items() if name == "seed" or value != defaults[name]}
    return _hash({"request": given, "image": image_sha256, "last_image": last_image_sha256})


def _hash(facts: Mapping[str, object]) -> int:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4, key=PUBLIC_KEY).digest())
