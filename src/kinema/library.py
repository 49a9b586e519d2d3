"""The Python API: turn an image or a prompt into a video, with progress and warnings."""

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
    """The request is valid, but the result may be poor."""


def load(
    model: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    engine: Engine | None = None,
    precision: Precision | None = None,
) -> VideoPipeline:
    """Load a video model, for use in several calls of `generate`.

    Args:
        model: Catalog name (`pocket`, `svd`, `svd-xt`, `svd-xt-1.1`), hub id, or folder in diffusers' layout.
            None: `svd-xt` if a CUDA device has enough memory, else `pocket`.
        device: "cuda", "cuda:1", "mps" or "cpu". None: the best available.
        dtype: "float16", "bfloat16" or "float32". None: the fastest that is safe on the device.
        engine: "fast" (Kinema's forward implementation) or "reference" (diffusers'). None: fast where it is measured
            to be as accurate and faster, on CPUs and in half precision on NVIDIA GPUs since Ampere; else reference.
        precision: "full", or "fp8" to run the UNet's large matmuls in 8-bit floating point: faster, slightly less
            accurate (see docs/performance.md); it requires the fast engine and an NVIDIA H100 or H200.
            None: as in the settings, by default "full".

    Raises:
        ModelError: the model is unavailable or invalid.
        InvalidRequest: device, dtype, engine or precision is not available.
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
    """Load a text-to-image model, for use in several calls of `generate` as `image_model`.

    Args:
        image_model: Catalog name (`pocket-t2i`, `sd-2.1-base`, `sdxl-turbo`), hub id, or folder of a diffusers
            text-to-image pipeline. None: `sd-2.1-base` if a CUDA device has enough memory for 1024×576, else
            `pocket-t2i`.
        device: As for `load`.
        dtype: As for `load`.

    Raises:
        ModelError: the model is unavailable or invalid.
        InvalidRequest: device or dtype is not available.
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
    **parameters: Any,
) -> Iterator[Step | Video]:
    """Do the same as `generate`, but yield each `Step` when it is done, and finally the `Video`.

    Parameters and image are validated before any model is loaded. To cancel, stop iterating.

    Raises:
        InvalidRequest, InvalidImage: immediately. Other errors are raised during iteration.
    """
    check_image_or_prompt(image, prompt)
    name, defaults = _model_name(model, device, dtype)
    request = request_for(model=name, defaults=defaults, prompt=prompt, **parameters)
    if prompt is None:
        if image_model is not None:
            raise InvalidRequest("image_model only applies with a prompt; remove it or add a prompt", "image_model")
        opened = open_image(image)  # type: ignore[arg-type]  # check_image_or_prompt: not None
        _warn(all_warnings(opened.facts, request))
        return _from_image(name if model is None else model, device, dtype, opened, request)
    image_model, request = _choose_image_model(model, image_model, device, request)
    _warn(parameter_warnings(request))
    return _from_prompt(name if model is None else model, image_model, device, dtype, request)


def check_image_or_prompt(image: object, prompt: object) -> None:
    """Check that there is either an image or a prompt.

    Raises:
        InvalidRequest: there are both, or neither.
    """
    if image is not None and prompt is not None:
        raise InvalidRequest(
            "both an image and a prompt were passed; remove the prompt to use the image, or remove the image to "
            "generate one from the prompt",
            "prompt",
        )
    if image is None and prompt is None:
        raise InvalidRequest("neither an image nor a prompt was passed; pass one of them", "image")


def _model_name(
    model: str | Path | VideoPipeline | None, device: str | None, dtype: str | None
) -> tuple[str, dict[str, Any] | None]:
    """Return the name of the video model and, if it is loaded, its default parameters."""
    from kinema.models.loading import VideoPipeline, default_model
    from kinema.settings import read_settings

    if isinstance(model, VideoPipeline):
        if device is not None or dtype is not None:
            name, value = ("device", device) if device is not None else ("dtype", dtype)
            raise InvalidRequest(f"{name} {value!r} cannot be changed for a loaded model; pass it to kinema.load", name)
        return model.name, model.defaults
    settings = read_settings(device=device, dtype=dtype)
    return str(model or default_model(settings)[0]), None


def _choose_image_model(
    model: str | Path | VideoPipeline | None,
    image_model: str | Path | ImagePipeline | None,
    device: str | None,
    request: VideoRequest,
) -> tuple[str | Path | ImagePipeline, VideoRequest]:
    """Return the text-to-image model and the request completed by that model's default parameters."""
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
    """Generate image and video. A text-to-image model loaded here is unloaded before the video model is loaded."""
    from kinema.engine import generate_image, prompt_warnings
    from kinema.models.image_pipeline import ImagePipeline, completed
    from kinema.models.loading import VideoPipeline
    from kinema.values import Step

    is_loaded_here = not isinstance(image_model, ImagePipeline)
    if is_loaded_here and isinstance(model, VideoPipeline):  # same device and dtype as the video model
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
        if is_loaded_here:
            image_pipeline.release()
    assert image is not None, "generate_image ends with an image"
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
    **parameters: Any,
) -> Video:
    """Turn an image or a prompt into a short video.

        video = kinema.generate("rocket.png", seed=42, motion_bucket_id=180)
        video = kinema.generate(prompt="a red hot-air balloon over a snowy mountain at sunset")
        video.save("rocket.mp4")

    Args:
        image: Path, http(s) URL, encoded bytes, PIL image, or uint8 array [height, width, 3].
        prompt: Text from which to generate the image, in place of `image`. The seed applies to both models.
        model: As for `load`, or a pipeline returned by it.
        image_model: As for `load_image_pipeline`, or a pipeline returned by it. None: also depends on the video's size.
        device: As for `load`.
        dtype: As for `load`.
        **parameters: Fields of `VideoRequest`; by default those of the models.

    Returns:
        The video: `frames` uint8 [num_frames, height, width, 3], `fps`, `seed`, `recipe`, and the input `image`;
        `save(path)` writes it to a file.

    Raises:
        KinemaError: the input is invalid or the generation failed.
    """
    video = None
    for result in stream(
        image, prompt=prompt, model=model, image_model=image_model, device=device, dtype=dtype, **parameters
    ):
        video = result
    assert isinstance(video, Video), "stream ends with a video"
    return video


def _warn(messages: Iterable[str]) -> None:
    """Issue warnings that point at the line outside this module that called it."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__")) == __name__:
        frame, level = frame.f_back, level + 1
    for message in messages:
        warnings.warn(message, KinemaWarning, stacklevel=level)


def all_warnings(image: ImageFacts, request: VideoRequest) -> list[Message]:
    """Return the warnings about the image, its fitting and the parameters."""
    fitting = fit_warnings(image.size, request.width, request.height, request.fit)
    return [*image.warnings, *fitting, *parameter_warnings(request)]
