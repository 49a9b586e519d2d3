"""Benchmark of Kinema and diffusers' pipeline with the same weights, image, parameters and seed.

`measure.measure` runs it. This module has the checks before it, which need no torch.
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

ONE_GPU = "kinema-one-gpu"
BASELINES = ("diffusers", "diffusers-compile", ONE_GPU)
DTYPES = ("float16", "bfloat16", "float32")


def named(against: str) -> list[str]:
    """Parse comma-separated names of baselines; "nothing" means none.

    Raises:
        InvalidRequest: for an unknown or repeated name.
    """
    baselines = [] if against.strip() == "nothing" else [name.strip() for name in against.split(",")]
    for name in baselines:
        if name not in BASELINES:
            known = ", ".join(BASELINES)
            raise InvalidRequest(f"baseline {name!r} is not supported; use {known} or nothing", "against")
        if baselines.count(name) > 1:
            raise InvalidRequest(f"baseline {name} is repeated in {against!r}; list each once", "against")
    return baselines


def check(engine: str | None, baseline_dtype: str | None = None) -> None:
    """Check the names of the engine and the baselines' dtype.

    Raises:
        InvalidRequest: for an unknown name; lists the supported ones.
    """
    if engine is not None and engine not in get_args(Engine):
        raise InvalidRequest(f"engine {engine!r} is not supported; use {' or '.join(get_args(Engine))}", "engine")
    if baseline_dtype is not None and baseline_dtype not in DTYPES:
        raise InvalidRequest(
            f"baseline_dtype {baseline_dtype!r} is not supported; use {', '.join(DTYPES)}", "baseline_dtype"
        )


def check_settings(baselines: Sequence[str], request: VideoRequest, gpus: int = 1) -> None:
    """Reject what a baseline does not support: diffusers' pipeline only checks the last frame's guidance scale.

    Raises:
        InvalidRequest: with a remedy.
    """
    low, high = request.min_guidance_scale, request.max_guidance_scale
    if ONE_GPU in baselines and gpus == 1:
        raise InvalidRequest(f"baseline {ONE_GPU} is Kinema itself unless Kinema has more; add --gpus 2", "against")
    if {*baselines} - {ONE_GPU} and request.guided != (high > 1):
        raise InvalidRequest(
            f"diffusers' pipeline fails at num_frames {request.num_frames} with guidance from {low:g} to {high:g}: "
            "use 1 for both or values above 1 for both, or --against nothing",
            "max_guidance_scale",
        )


def gradient(width: int, height: int) -> InputImage:
    """Return the default image: a colour gradient."""
    import numpy as np

    from kinema.media.image import open_image

    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    image = np.stack([x, y, (2 - x - y) / 2], axis=-1)
    return replace(open_image((image * 255).round().astype(np.uint8)), name="gradient")
