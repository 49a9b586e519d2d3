"""Extend a video: its recipe and image, checked, and the request for the longer video."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest, RecipeError
from kinema.library import load, warn
from kinema.media.image import open_image
from kinema.media.source_video import SourceVideo, open_source_video
from kinema.messages import Message
from kinema.models.catalog import CATALOG
from kinema.models.video_length import frames_in
from kinema.steps import drive
from kinema.values import MAX_FRAMES, TEXT_TO_IMAGE_FIELDS, VideoRequest

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from kinema.media.image import ImageSource, InputImage
    from kinema.media.video import Video
    from kinema.models.loading import VideoPipeline
    from kinema.recipe import ModelIdentity, Recipe
    from kinema.values import Engine, Precision


FROM_FIRST_FRAME = "without the image, the new frames are made from the first frame of the video, which is less sharp"


def extend(
    video: Video | str | os.PathLike[str],
    *,
    seconds: float | None = None,
    num_frames: int | None = None,
    image: ImageSource | None = None,
    model: str | Path | VideoPipeline | None = None,
    device: str | None = None,
    dtype: str | None = None,
    engine: Engine | None = None,
    precision: Precision | None = None,
    gpus: int | None = None,
) -> Video:
    """Continue a video, with the model, parameters and seed of its recipe.

        longer = kinema.extend("rocket.mp4", seconds=4, image="rocket.png")

    Args:
        video: A `Video`, or the file of one.
        seconds: Duration to add, at the playback rate of the video.
        num_frames: Frames to add, in place of `seconds`.
        image: The image that the video was made from. None: its first frame, with a warning.
        model: A loaded pipeline, or the folder of the model if it was loaded from a folder. None: the recipe's model.
        device: As for `load`.
        dtype: As for `load`.
        engine: As for `load`.
        precision: As for `load`.
        gpus: As for `load`.

    Returns:
        The frames of the video, unchanged, then the new ones.

    Raises:
        VideoError, RecipeError: the video can't be read, or was not made by Kinema from this image and model.
        KinemaError: the input is invalid or the generation failed.
    """
    from kinema.engine import generate
    from kinema.models.loading import VideoPipeline

    source = open_source_video(video)
    request = extended_request(source, seconds=seconds, num_frames=num_frames)
    opened, request = image_of(source, None if image is None else open_image(image), request)
    if image is None:
        warn([FROM_FIRST_FRAME])
    if isinstance(model, VideoPipeline):
        for name, value in (("device", device), ("dtype", dtype), ("precision", precision), ("gpus", gpus)):
            if value is not None:
                raise InvalidRequest(
                    f"{name} {value!r} cannot be changed for a loaded model; pass it to kinema.load", name
                )
        pipeline = model
    else:
        name = str(model or loadable_name(source))
        check_model_name(source.recipe.model, source.label, name)
        pipeline = load(name, device=device, dtype=dtype, engine=engine, precision=precision, gpus=gpus)
    check_model(source, pipeline)
    return drive(generate(pipeline, opened, request, source=source))


def extended_request(source: SourceVideo, *, seconds: object = None, num_frames: int | None = None) -> VideoRequest:
    """Return the request of the longer video.

    Raises:
        InvalidRequest: seconds and num_frames are both set or both missing, or the video would be too long.
    """
    return extended_recipe_request(source.recipe, source.label, seconds=seconds, num_frames=num_frames)


def extended_recipe_request(
    recipe: Recipe, label: str, *, seconds: object = None, num_frames: int | None = None
) -> VideoRequest:
    """Do the same for a video that is not read yet, by its recipe and its name in messages."""
    request = recipe.request
    if (seconds is None) == (num_frames is None):
        state = "both set; remove one" if seconds is not None else "both missing; pass one, such as seconds 2"
        raise InvalidRequest(f"seconds and num_frames are {state}", "seconds")
    most = MAX_FRAMES - request.num_frames
    added = num_frames
    if added is None:
        added = frames_in(seconds, request.generated_rate, most=most) if most else 1  # refused below
    if added < 1:
        raise InvalidRequest(f"num_frames {added} is out of range; use at least 1", "num_frames")
    if most < added:
        name = "num_frames" if seconds is None else "seconds"
        remedy = Message("extend_full", "it can't be extended")
        if most:
            longest = most / request.generated_rate
            remedy = Message("extend_at_most", "use at most {most} ({seconds:.3g} seconds)", most=most, seconds=longest)
        message = Message(
            "extend_too_long",
            "{label} has {frames} frames and can't have {added} more, as {maximum} is the maximum; {remedy}",
            label=label,
            frames=request.num_frames,
            added=added,
            maximum=MAX_FRAMES,
            remedy=remedy,
        )
        raise InvalidRequest(message, name)
    chunk = request.decode_chunk_size or recipe.decode_chunk_size
    return request.changed(num_frames=request.num_frames + added, decode_chunk_size=chunk)


def image_of(source: SourceVideo, image: InputImage | None, request: VideoRequest) -> tuple[InputImage, VideoRequest]:
    """Return the image of the extended video and its request; without an image, the video's first frame.

    A request keeps its prompt only with the image that was generated from it.

    Raises:
        RecipeError: the image differs from the recipe's.
    """
    recipe = source.recipe
    first = open_image(source.frames[0])
    if image is None:
        image = first
    elif image.sha256 not in (recipe.image_sha256, first.sha256):
        raise RecipeError(
            f"the image differs from that of {source.label} (SHA-256 {image.sha256[:12]}…, expected "
            f"{recipe.image_sha256[:12]}…); pass the original image, or none to use the first frame of the video"
        )
    if image.sha256 == recipe.image_sha256:
        return replace(image, image_generation=recipe.image_generation), request
    return image, request.changed(**dict.fromkeys(TEXT_TO_IMAGE_FIELDS))


def loadable_name(source: SourceVideo) -> str:
    """Return the name by which the model of a video can be loaded.

    Raises:
        RecipeError: it was loaded from a folder, whose path the recipe does not contain.
    """
    identity = source.recipe.model
    if _is_of_catalog(identity):
        return identity.name
    if identity.revision and "/" in identity.name:
        return f"{identity.name}@{identity.revision}"
    raise RecipeError(
        f"the model of {source.label} was loaded from a folder named {identity.name}, whose path the recipe does not "
        "contain; pass it with model"
    )


def _is_of_catalog(identity: ModelIdentity) -> bool:
    """Return whether a model is one of the catalog, not of a folder with the same name."""
    entry = CATALOG.get(identity.name)
    return entry is not None and (entry.repository is None) == (identity.revision is None)


def check_model_name(identity: ModelIdentity, label: str, name: str) -> None:
    """Check that a model of the catalog is not another one than that of a video, before it is loaded or downloaded.

    Raises:
        RecipeError: both are in the catalog, and differ.
    """
    if _is_of_catalog(identity) and name in CATALOG and name != identity.name:
        raise RecipeError(f"{label} was made by another model, {identity.name}, not {name}; use that model")


def check_model(source: SourceVideo, pipeline: VideoPipeline) -> None:
    """Check that a video was made by a model.

    Raises:
        RecipeError: it was made by another.
    """
    expected = source.recipe.model
    if pipeline.identity.weights_sha256 != expected.weights_sha256:
        raise RecipeError(
            f"{source.label} was made by another model, {expected.name} (weights {expected.weights_sha256[:12]}…), not "
            f"{pipeline.name} ({pipeline.identity.weights_sha256[:12]}…); use that model"
        )
