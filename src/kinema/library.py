"""Kinema as a library: a still or a prompt and some settings in, a clip out; the command stands on the same parts."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.media.image import fit_warnings, open_image
from kinema.media.video import Video
from kinema.models.catalog import for_image_model, parameter_warnings, request_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from kinema.media.image import ImageFacts, InputImage, Source
    from kinema.messages import Message
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.loading import VideoPipeline
    from kinema.values import Engine, Precision, Step, VideoRequest


class KinemaWarning(UserWarning):
    """Something is allowed, but may not give what was hoped for."""


def load(
    model: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    engine: Engine | None = None,
    precision: Precision | None = None,
) -> VideoPipeline:
    """A model in memory, to make several videos with.

    Args:
        model: Catalog name (`pocket`, `svd`, `svd-xt`, `svd-xt-1.1`), hub id, or folder in diffusers' layout. None
            takes `svd-xt` where a CUDA device has room for it, else `pocket`.
        device: "cuda", "cuda:1", "mps" or "cpu"; None takes the best there is.
        dtype: "float16", "bfloat16" or "float32"; None takes the quickest that is safe on the device.
        engine: "fast" (our own forward) or "reference" (diffusers'); None takes the fast one where it has been
            measured to be as exact and quicker: on CPUs, and in half precision on NVIDIA's GPUs from Ampere on.
        precision: "fp8" computes the UNet's large products in numbers of one byte, which is quicker and not exact
            (docs/performance.md tells the price); it needs the fast engine and an NVIDIA H100 or H200.
            None asks the settings, whose default is "full".

    Raises:
        WeightsError: one of its kinds, when the model can't be had or used.
        InvalidRequest: for a device, dtype, engine or precision that is not there.
    """
    from kinema.models import loading
    from kinema.settings import read_settings

    settings = read_settings(device=device, dtype=dtype, precision=precision)
    if model is None:
        model, _ = loading.default_model(settings)
    return loading.load(model, engine=engine, settings=settings)


def load_image_pipeline(
    image_model: str | Path | None = None, *, device: str | None = None, dtype: str | None = None
) -> ImagePipeline:
    """A painter in memory, to draw several stills with: give it to `generate` as `image_model`.

    Args:
        image_model: Catalog name (`pocket-t2i`, `sd-2.1-base`, `sdxl-turbo`), hub id, or folder of any
            text-to-image pipeline of diffusers. None takes `sd-2.1-base` where a CUDA device has room for it at
            1024×576, else `pocket-t2i`.
        device: As for `load`.
        dtype: As for `load`.

    Raises:
        WeightsError: one of its kinds, when the painter can't be had or used.
        InvalidRequest: for a device or dtype that is not there.
    """
    from kinema.models import image_pipeline
    from kinema.settings import read_settings

    settings = read_settings(device=device, dtype=dtype)
    if image_model is None:
        image_model, _ = image_pipeline.default_image_model((1024, 576), settings)
    return image_pipeline.load_image_pipeline(image_model, settings=settings)


def stream(
    image: Source | None = None,
    *,
    prompt: str | None = None,
    model: str | Path | VideoPipeline | None = None,
    image_model: str | Path | ImagePipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> Iterator[Step | Video]:
    """`generate`, a step at a time: yields each `Step` as it is done, and at last the `Video`.

    Settings and still are checked before anything is loaded. To cancel is to stop iterating.

    Raises:
        InvalidRequest, InvalidImage: at once. Everything else as the steps go on.
    """
    check_source(image, prompt)
    name, defaults = _named(model, device, dtype)
    request = request_for(model=name, defaults=defaults, prompt=prompt, **settings)
    if prompt is None:
        if image_model is not None:
            raise InvalidRequest("image_model only applies with a prompt; remove it or add a prompt", "image_model")
        opened = open_image(image)  # type: ignore[arg-type]  # checked: it is there
        _warn(all_warnings(opened.facts, request))
        return _from_image(name if model is None else model, device, dtype, opened, request)
    image_pipeline, request = _with_image_pipeline(model, image_model, device, request)
    _warn(parameter_warnings(request))
    return _from_prompt(name if model is None else model, image_pipeline, device, dtype, request)


def check_source(image: object, prompt: object) -> None:
    """Refuse a still and a prompt together, and neither.

    Raises:
        InvalidRequest: saying what to drop, or what to give.
    """
    if image is not None and prompt is not None:
        raise InvalidRequest(
            "a still and a prompt are both given: drop the prompt to make a video of the still, or drop the still to "
            "have one drawn from the prompt",
            "prompt",
        )
    if image is None and prompt is None:
        raise InvalidRequest("neither a still nor a prompt is given: give one of them", "image")


def _named(
    model: str | Path | VideoPipeline | None, device: str | None, dtype: str | None
) -> tuple[str, dict[str, Any] | None]:
    """The name of the video model, and its own defaults where it is loaded and knows them."""
    from kinema.models.loading import VideoPipeline, default_model
    from kinema.settings import read_settings

    if isinstance(model, VideoPipeline):
        if device is not None or dtype is not None:
            name, value = ("device", device) if device is not None else ("dtype", dtype)
            raise InvalidRequest(f"{name} {value!r} can't change a loaded model; give it to kinema.load", name)
        return model.name, model.defaults
    machine = read_settings(device=device, dtype=dtype)
    return str(model or default_model(machine)[0]), None


def _with_image_pipeline(
    model: str | Path | VideoPipeline | None,
    image_model: str | Path | ImagePipeline | None,
    device: str | None,
    request: VideoRequest,
) -> tuple[str | Path | ImagePipeline, VideoRequest]:
    """Who paints, and the request with the painter's own settings beneath those that were given."""
    from kinema.models.image_pipeline import ImagePipeline, completed, default_image_model
    from kinema.models.loading import VideoPipeline
    from kinema.settings import read_settings

    if isinstance(image_model, ImagePipeline):
        return image_model, completed(image_model, request)
    if image_model is None:
        device = str(model.device) if isinstance(model, VideoPipeline) else device
        image_model = default_image_model((request.width, request.height), read_settings(device=device))[0]
    return image_model, for_image_model(request, str(image_model))


def _from_image(
    model: str | Path | VideoPipeline, device: str | None, dtype: str | None, image: InputImage, request: VideoRequest
) -> Iterator[Step | Video]:
    from kinema.engine import generate as steps
    from kinema.models.loading import VideoPipeline

    pipeline = model if isinstance(model, VideoPipeline) else load(model, device=device, dtype=dtype)
    yield from steps(pipeline, image, request)


def _from_prompt(
    model: str | Path | VideoPipeline,
    image_model: str | Path | ImagePipeline,
    device: str | None,
    dtype: str | None,
    request: VideoRequest,
) -> Iterator[Step | Video]:
    """Both halves. A painter that is loaded here is dropped before the video model is loaded."""
    from kinema.engine import generate_image, prompt_warnings
    from kinema.models.image_pipeline import ImagePipeline, completed
    from kinema.models.loading import VideoPipeline
    from kinema.values import Step

    own = not isinstance(image_model, ImagePipeline)
    if own and isinstance(model, VideoPipeline):  # where the video is made, and as it is
        device, dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    image_pipeline = (
        image_model
        if isinstance(image_model, ImagePipeline)
        else load_image_pipeline(image_model, device=device, dtype=dtype)
    )
    image = None
    try:
        request = completed(image_pipeline, request)
        _warn(prompt_warnings(image_pipeline, request))
        for result in generate_image(image_pipeline, request):
            if isinstance(result, Step):
                yield result
            else:
                image = result
    finally:
        if own:
            image_pipeline.release()
    assert image is not None, "the painter ends with a still"
    del image_pipeline
    if isinstance(model, VideoPipeline):
        device = dtype = None
    yield from _from_image(model, device, dtype, image, request)


def generate(
    image: Source | None = None,
    *,
    prompt: str | None = None,
    model: str | Path | VideoPipeline | None = None,
    image_model: str | Path | ImagePipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **settings: Any,
) -> Video:
    """Turn a still, or a prompt from which one is drawn, into a short video.

        clip = kinema.generate("rocket.png", seed=42, motion_bucket_id=180)
        clip = kinema.generate(prompt="a red hot-air balloon over a snowy mountain at sunset")
        clip.save("rocket.mp4")

    Args:
        image: Path, http(s) address, encoded bytes, PIL image, or uint8 array [height, width, 3].
        prompt: A sentence, in place of the still; the seed drives both halves.
        model: As for `load`, or what `load` returned.
        image_model: As for `load_image_pipeline`, or what it returned. None chooses one by the video's size too.
        device: As for `load`.
        dtype: As for `load`.
        **settings: Those of `VideoRequest`; the models' own defaults lie beneath them.

    Returns:
        The clip: `frames` uint8 [num_frames, height, width, 3], `fps`, `seed`, `recipe`, and the `image` that it was
        made from; `save(path)` writes it.

    Raises:
        KinemaError: one of its kinds; the message says what to do.
    """
    video = None
    for result in stream(
        image, prompt=prompt, model=model, image_model=image_model, device=device, dtype=dtype, **settings
    ):
        video = result
    assert isinstance(video, Video), "the engine ends with a clip"
    return video


def _warn(found: Iterable[str]) -> None:
    """Warn at the line that called Kinema, however deep this is."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__")) == __name__:
        frame, level = frame.f_back, level + 1
    for warning in found:
        warnings.warn(warning, KinemaWarning, stacklevel=level)


def all_warnings(image: ImageFacts, request: VideoRequest) -> list[Message]:
    """Everything a person should know before the work begins: of the still, its fitting, and the settings."""
    fitting = fit_warnings(image.size, request.width, request.height, request.fit)
    return [*image.warnings, *fitting, *parameter_warnings(request)]
