"""How quick Kinema is on this machine, beside diffusers' own pipeline on the same weights, still, settings and seed.

`measuring.measure` is the whole of it; what stands here is checked before it, and needs no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from kinema.errors import InvalidRequest
from kinema.values import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.media.image import InputImage
    from kinema.values import VideoRequest

PEERS = ("diffusers", "diffusers-compile")
DTYPES = ("float16", "bfloat16", "float32")


def named(against: str) -> list[str]:
    """The peers that a list with commas names; "nothing" has none.

    Raises:
        InvalidRequest: naming those that are there, or the one that is named twice.
    """
    peers = [] if against.strip() == "nothing" else [name.strip() for name in against.split(",")]
    for name in peers:
        if name not in PEERS:
            raise InvalidRequest(f"there is no peer {name!r}; there is {', '.join(PEERS)}, or nothing", "against")
        if peers.count(name) > 1:
            raise InvalidRequest(f"the peer {name} is named twice in {against!r}; name each once", "against")
    return peers


def check(engine: str | None, peer_dtype: str | None = None) -> None:
    """Refuse an engine or an arithmetic that is not there.

    Raises:
        InvalidRequest: naming those that are.
    """
    if engine is not None and engine not in get_args(Engine):
        raise InvalidRequest(f"there is no engine {engine!r}; there is {' and '.join(get_args(Engine))}", "engine")
    if peer_dtype is not None and peer_dtype not in DTYPES:
        raise InvalidRequest(f"there is no peer_dtype {peer_dtype!r}; there is {', '.join(DTYPES)}", "peer_dtype")


def check_settings(peers: Sequence[str], request: VideoRequest) -> None:
    """Refuse settings at which peers fail: their pipeline prepares for guidance by the last frame's, and not the most.

    Raises:
        InvalidRequest: saying what to take.
    """
    low, high = request.min_guidance_scale, request.max_guidance_scale
    if peers and request.guided != (high > 1):
        raise InvalidRequest(
            f"diffusers' pipeline fails at num_frames {request.num_frames} with guidance from {low:g} to {high:g}: "
            "take both 1 or both above 1, or measure --against nothing",
            "max_guidance_scale",
        )


def gradient(width: int, height: int) -> InputImage:
    """A still for those who give none: colours that change evenly from side to side."""
    import numpy as np

    from kinema.media.image import open_image

    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    image = np.stack([x, y, (2 - x - y) / 2], axis=-1)
    return replace(open_image((image * 255).round().astype(np.uint8)), name="gradient")
