"""Kinema as a library: a still and some settings in, a clip out; the command stands on the same two functions."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.media.clip import Clip
from kinema.media.still import fit_cautions, open_still
from kinema.models.catalog import cautions, request_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kinema.media.still import Source, Still
    from kinema.models.loading import Models
    from kinema.values import Step, VideoRequest


class KinemaWarning(UserWarning):
    """Something is allowed, but may not give what was hoped for."""


def load(model: str | Path | None = None, *, device: str | None = None, dtype: str | None = None) -> Models:
    """A model in memory, to make several videos with.

    Args:
        model: Catalog name (`pocket`, `svd`, `svd-xt`, `svd-xt-1.1`), hub id, or folder in diffusers' layout. None
            takes `svd-xt` where a CUDA device has room for it, else `pocket`.
        device: "cuda", "cuda:1", "mps" or "cpu"; None takes the best there is.
        dtype: "float16", "bfloat16" or "float32"; None takes the quickest that is safe on the device.

    Raises:
        WeightsError: one of its kinds, when the model can't be had or used.
        InvalidRequest: for a device or dtype that is not there.
    """
    from kinema.models import loading
    from kinema.settings import read_settings

    settings = read_settings(device=device, dtype=dtype)
    if model is None:
        model, _ = loading.default_model(settings)
    return loading.load(model, settings=settings)


def stream(
    still: Source,
    *,
    model: str | Path | Models | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> Iterator[Step | Clip]:
    """`generate`, a step at a time: yields each `Step` as it is done, and at last the `Clip`.

    Settings and still are checked before anything is loaded. To cancel is to stop iterating.

    Raises:
        InvalidRequest, InvalidStill: at once. Everything else as the steps go on.
    """
    return _begin(still, model, device, dtype, settings)


def _begin(
    still: Source, model: str | Path | Models | None, device: str | None, dtype: str | None, settings: dict[str, Any]
) -> Iterator[Step | Clip]:
    """Check everything, warn at the line that called `stream` or `generate`, and give the steps."""
    from kinema.models.loading import Models, default_model
    from kinema.settings import read_settings

    defaults = None
    if isinstance(model, Models):
        if device is not None or dtype is not None:
            name, value = ("device", device) if device is not None else ("dtype", dtype)
            raise InvalidRequest(f"{name} {value!r} can't change a loaded model; give it to kinema.load", name)
        name, defaults = model.name, model.defaults
    else:
        machine = read_settings(device=device, dtype=dtype)
        model = model or default_model(machine)[0]
        name = str(model)
    request = request_for(model=name, defaults=defaults, **settings)
    opened = open_still(still)
    for caution in all_cautions(opened, request):
        warnings.warn(caution, KinemaWarning, stacklevel=3)
    return _steps(model, device, dtype, opened, request)


def _steps(
    model: str | Path | Models, device: str | None, dtype: str | None, still: Still, request: VideoRequest
) -> Iterator[Step | Clip]:
    from kinema.engine import generate as steps
    from kinema.models.loading import Models

    models = model if isinstance(model, Models) else load(model, device=device, dtype=dtype)
    yield from steps(models, still, request)


def generate(
    still: Source,
    *,
    model: str | Path | Models | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> Clip:
    """Turn a still into a short video.

        clip = kinema.generate("rocket.png", seed=42, motion_bucket_id=180)
        clip.save("rocket.mp4")

    Args:
        still: Path, http(s) address, encoded bytes, PIL image, or uint8 array [height, width, 3].
        model: As for `load`, or what `load` returned.
        device: As for `load`.
        dtype: As for `load`.
        **settings: Those of `VideoRequest`; the model's own defaults lie beneath them.

    Returns:
        The clip: `frames` uint8 [num_frames, height, width, 3], `fps`, `seed`, `recipe`; `save(path)` writes it.

    Raises:
        KinemaError: one of its kinds; the message says what to do.
    """
    clip = None
    for result in _begin(still, model, device, dtype, settings):
        clip = result
    assert isinstance(clip, Clip), "the engine ends with a clip"
    return clip


def all_cautions(still: Still, request: VideoRequest) -> list[str]:
    """Everything a person should know before the work begins: of the still, its fitting, and the settings."""
    fitting = fit_cautions(still, request.width, request.height, request.fit)
    return [*still.warnings, *fitting, *cautions(request)]
