"""The Python API: turn an image or a prompt into a video, with progress and warnings."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from kinema.errors import InvalidRequest
from kinema.media.image import fit_warnings, open_image
from kinema.messages import Message
from kinema.models.catalog import for_image_model, frames_at_once, parameter_warnings, request_for
from kinema.models.video_size import expand_size, follow_image
from kinema.models.windows import check_two_ends
from kinema.steps import drive
from kinema.values import VideoParameters

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping
    from pathlib import Path

    from kinema.media.image import ImageFacts, ImageSource, InputImage
    from kinema.media.video import Video
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.loading import VideoPipeline
    from kinema.steps import Event, Restart, Step
    from kinema.values import Engine, Precision, VideoRequest

# Parameters of diffusers' pipelines and methods, and what to use in their place.
DIFFUSERS_PARAMETERS = {
    "generator": "use seed=…, an integer",
    "callback_on_step_end": "iterate over kinema.stream(…), which yields each step",
    "callback_on_step_end_tensor_inputs": "iterate over kinema.stream(…), which yields each step with its latents",
    "callback": "iterate over kinema.stream(…), which yields each step",
    "num_videos_per_prompt": "call kinema.generate once per video, each with another seed",
    "num_images_per_prompt": "call kinema.generate once per video, each with another seed",
    "output_type": "a Video has `frames` (uint8 [num_frames, height, width, 3]) and `save`",
    "return_dict": "kinema.generate always returns a Video",
    "guidance_scale": "use min_guidance_scale and max_guidance_scale for the video, image_guidance_scale for an image",
    "latents": "the noise is drawn from seed=…, an integer",
    "sigmas": "the noise levels follow from num_inference_steps",
    "torch_dtype": 'use dtype="float16", "bfloat16" or "float32"',
}


Function = TypeVar("Function", bound="Callable[..., Any]")


class KinemaWarning(UserWarning):
    """The request is valid, but the result may be poor."""


def load(
    model: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    engine: Engine | None = None,
    precision: Precision | None = None,
    gpus: int | None = None,
) -> VideoPipeline:
    """Load a video model, for use in several calls of `generate`.

    Args:
        model: Catalog name (`pocket`, `svd`, `svd-xt`, `svd-xt-1.1`), hub id, or folder in diffusers' layout.
            None: `svd-xt` if a CUDA device has enough memory (without sequential offload), and it is downloaded or the
            hub can be reached; else `pocket`.
        device: "cuda", "cuda:1", "mps" or "cpu". None: the best available.
        dtype: "float16", "bfloat16" or "float32". None: the fastest that is safe on the device.
        engine: "fast" (Kinema's own forward passes) or "reference" (those of diffusers). None: fast where it is
            measured to be as accurate and faster, on CPUs and in half precision on NVIDIA GPUs since Ampere; else
            reference.
        precision: "full", or "fp8" to run the UNet's large matmuls in 8-bit floating point: faster, slightly less
            accurate (see docs/performance.md); it requires the fast engine and an NVIDIA H100 or H200.
            None: as in the settings, by default "full".
        gpus: 2 or 4 to generate each video on so many GPUs, from `device` on, each with the whole model. With 2 and
            guidance, frames equal those of one GPU under the memory plan `resident_split` and with the same
            `decode_chunk_size`; else within rounding. None: as in the settings, by default 1.

    Raises:
        ModelError: the model is unavailable or invalid.
        InvalidRequest: device, dtype, engine, precision or number of GPUs is not available.
    """
    from kinema.models import loading
    from kinema.settings import read_settings

    settings = read_settings(
        device=device, dtype=dtype, precision=precision, gpus_per_video=None if gpus is None else str(gpus)
    )
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


class _ModelDefault:
    def __repr__(self) -> str:
        return "<default of the model>"


def _with_each_keyword(function: Function) -> Function:
    """List the keywords of `VideoParameters` in the signature that help() and interactive completion show."""
    signature = inspect.signature(function)
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_ModelDefault(), annotation=annotation)
        for name, annotation in VideoParameters.__annotations__.items()
    ]
    named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
    return function


@_with_each_keyword
def generate(
    image: ImageSource | None = None,
    *,
    last_image: ImageSource | None = None,
    prompt: str | None = None,
    model: str | Path | VideoPipeline | None = None,
    image_model: str | Path | ImagePipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    engine: Engine | None = None,
    precision: Precision | None = None,
    gpus: int | None = None,
    **parameters: Unpack[VideoParameters],
) -> Video:
    """Turn an image or a prompt into a short video.

        video = kinema.generate("rocket.png", seed=42, motion_bucket_id=180)
        video = kinema.generate(prompt="a red hot-air balloon over a snowy mountain at sunset")
        video.save("rocket.mp4")

    Args:
        image: Path, http(s) URL, encoded bytes, open binary file, PIL image, or uint8 array [height, width, 3].
        last_image: Image at which the video ends, as for `image`. Denoising takes twice as long.
        prompt: Text from which to generate the image, in place of `image`. The seed applies to both models.
        model: As for `load`, or a pipeline returned by it.
        image_model: As for `load_image_pipeline`, or a pipeline returned by it. None: also depends on the video's size.
        device: As for `load`.
        dtype: As for `load`.
        engine: As for `load`.
        precision: As for `load`.
        gpus: As for `load`.
        **parameters: Fields of `VideoRequest`; by default those of the models. `size`, "576x1024" or (576, 1024), sets
            width and height. A side that is not set follows the image: landscape images get the model's size, portrait
            ones the same upright, and those from 4:5 to 5:4 a square of about as many pixels.

    Returns:
        The video: `frames` uint8 [num_frames, height, width, 3], `fps`, `seed`, `recipe`, and the input `image`;
        `save(path)` writes it to a file.

    Raises:
        KinemaError: the input is invalid or the generation failed.
    """
    loading = Loading(model, image_model, device, dtype, engine, precision, gpus)
    return drive(start(image, prompt, loading, last_image, **parameters))


@_with_each_keyword
def stream(
    image: ImageSource | None = None,
    *,
    last_image: ImageSource | None = None,
    prompt: str | None = None,
    model: str | Path | VideoPipeline | None = None,
    image_model: str | Path | ImagePipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    engine: Engine | None = None,
    precision: Precision | None = None,
    gpus: int | None = None,
    **parameters: Unpack[VideoParameters],
) -> Generator[Step | Restart | Video, None, None]:
    """Do the same as `generate`, but yield each `Step` when it is done, and finally the `Video`.

    A `Restart` means that a stage begins again and that its earlier steps are void. Parameters and image are validated
    before any model is loaded. To cancel, stop iterating or call `close`.

    Raises:
        InvalidRequest, InvalidImage: immediately. Other errors are raised during iteration.
    """
    loading = Loading(model, image_model, device, dtype, engine, precision, gpus)
    return _with_result(start(image, prompt, loading, last_image, **parameters))


def _with_result(events: Generator[Event, None, Video]) -> Generator[Event | Video, None, None]:
    yield (yield from events)


@dataclass(frozen=True, eq=False)
class Loading:
    """The models of a call, and how to load those that are not loaded yet."""

    model: str | Path | VideoPipeline | None = None
    image_model: str | Path | ImagePipeline | None = None
    device: str | None = None
    dtype: str | None = None
    engine: Engine | None = None
    precision: Precision | None = None
    gpus: int | None = None


def start(
    image: ImageSource | None,
    prompt: str | None,
    loading: Loading,
    last_image: ImageSource | None = None,
    **parameters: Any,
) -> Generator[Event, None, Video]:
    """Validate image and parameters, issue warnings, and return the generator of events that returns the video.

    Raises:
        InvalidRequest, InvalidImage: immediately. Other errors are raised during iteration.
    """
    _explain_diffusers_parameters(parameters)
    parameters = expand_size(parameters)
    check_image_or_prompt(image, prompt)
    name, defaults = _video_model(loading)
    request = request_for(model=name, defaults=defaults, prompt=prompt, **parameters)
    last = None
    if last_image is not None:
        check_last_image(request)
        last = open_image(last_image)
    if image is not None:
        if loading.image_model is not None:
            raise InvalidRequest("image_model only applies with a prompt; remove it or add a prompt", "image_model")
        opened = open_image(image)
        request = follow_image(request, opened.facts.size, parameters, defaults)
        warn([*all_warnings(opened.facts, request), *_warnings_about(last, request)])
        return _from_image(loading, opened, request, last)
    loading, request = _with_image_model(loading, request)
    warn([*parameter_warnings(request), *_warnings_about(last, request)])
    return _from_prompt(loading, request, last)


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


def check_last_image(request: VideoRequest) -> None:
    """Check that a video can end at a last image, as far as that is known before the model is loaded.

    Raises:
        InvalidRequest: see `kinema.models.windows.check_two_ends`.
    """
    check_two_ends(request, frames_at_once(request.model), has_last_image=True)


def _video_model(loading: Loading) -> tuple[str, dict[str, Any] | None]:
    """Return the name of the video model and, if it is loaded, its default parameters.

    Raises:
        InvalidRequest: an option for loading was passed with a loaded model.
    """
    from kinema.models.loading import VideoPipeline, default_model
    from kinema.settings import read_settings

    model = loading.model
    if not isinstance(model, VideoPipeline):
        settings = read_settings(device=loading.device, dtype=loading.dtype, precision=loading.precision)
        return str(model or default_model(settings)[0]), None
    for name in ("device", "dtype", "engine", "precision", "gpus"):
        if (value := getattr(loading, name)) is not None:
            raise InvalidRequest(f"{name} {value!r} cannot be changed for a loaded model; pass it to kinema.load", name)
    return model.name, model.defaults


def _with_image_model(loading: Loading, request: VideoRequest) -> tuple[Loading, VideoRequest]:
    """Choose the text-to-image model if there is none, and complete the request by the model's default parameters."""
    from kinema.models.image_pipeline import ImagePipeline, completed, default_image_model
    from kinema.models.loading import VideoPipeline
    from kinema.settings import read_settings

    image_model = loading.image_model
    if isinstance(image_model, ImagePipeline):
        return loading, completed(image_model, request)
    if image_model is None:
        device = str(loading.model.device) if isinstance(loading.model, VideoPipeline) else loading.device
        image_model = default_image_model((request.width, request.height), read_settings(device=device))[0]
    return replace(loading, image_model=image_model), for_image_model(request, str(image_model))


def _from_image(
    loading: Loading, image: InputImage, request: VideoRequest, last_image: InputImage | None
) -> Generator[Event, None, Video]:
    from kinema.engine import generate as generate_video
    from kinema.models.loading import VideoPipeline

    pipeline = loading.model
    if not isinstance(pipeline, VideoPipeline):
        options = {name: getattr(loading, name) for name in ("device", "dtype", "engine", "precision", "gpus")}
        pipeline = load(pipeline, **options)
    return (yield from generate_video(pipeline, image, request, last_image))


def _from_prompt(
    loading: Loading, request: VideoRequest, last_image: InputImage | None
) -> Generator[Event, None, Video]:
    """Generate image and video. A text-to-image model loaded here is unloaded before the video model is loaded."""
    from kinema.engine import generate_image, prompt_warnings
    from kinema.models.image_pipeline import ImagePipeline, completed
    from kinema.models.loading import VideoPipeline

    image_pipeline = loading.image_model
    is_loaded_here = not isinstance(image_pipeline, ImagePipeline)
    if not isinstance(image_pipeline, ImagePipeline):
        device, dtype = loading.device, loading.dtype
        if isinstance(loading.model, VideoPipeline):  # the same as for the video model
            device, dtype = str(loading.model.device), str(loading.model.dtype).removeprefix("torch.")
        image_pipeline = load_image_pipeline(image_pipeline, device=device, dtype=dtype)
    try:
        request = completed(image_pipeline, request)
        warn(prompt_warnings(image_pipeline, request))
        image = yield from generate_image(image_pipeline, request)
    finally:
        if is_loaded_here:
            image_pipeline.release()
    del image_pipeline
    return (yield from _from_image(loading, image, request, last_image))


def _explain_diffusers_parameters(parameters: Mapping[str, object]) -> None:
    """Reject a parameter that only diffusers' pipelines have.

    Raises:
        InvalidRequest: with what Kinema has in its place.
    """
    for name in parameters:
        if (remedy := DIFFUSERS_PARAMETERS.get(name)) is not None:
            raise InvalidRequest(f"{name} is a parameter of diffusers' pipelines; {remedy}", name)


def warn(messages: Iterable[str]) -> None:
    """Issue warnings that point at the line outside this package that called it."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "kinema":
        frame, level = frame.f_back, level + 1
    for message in messages:
        warnings.warn(message, KinemaWarning, stacklevel=level)


def all_warnings(image: ImageFacts, request: VideoRequest) -> list[Message]:
    """Return the warnings about the image, its fitting and the parameters."""
    return [*image_warnings(image, request), *parameter_warnings(request)]


def last_image_warnings(image: ImageFacts, request: VideoRequest) -> list[Message]:
    """Return the warnings about the image at which a video ends, and its fitting."""
    return [about_last_image(warning) for warning in image_warnings(image, request)]


def _warnings_about(last_image: InputImage | None, request: VideoRequest) -> list[Message]:
    return [] if last_image is None else last_image_warnings(last_image.facts, request)


def about_last_image(message: str) -> Message:
    """Return a message about an image as one about the last image."""
    return Message("of_last_image", "last image: {message}", message=message)


def image_warnings(image: ImageFacts, request: VideoRequest) -> list[Message]:
    """Return the warnings about the image and its fitting."""
    return [*image.warnings, *fit_warnings(image.size, request.width, request.height, request.fit)]
