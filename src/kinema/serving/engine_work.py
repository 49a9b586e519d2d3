"""The engine as the queue's work: it runs in a worker's process, where a model stays loaded from job to job."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

from kinema.errors import InsufficientMemory, KinemaError
from kinema.jobs.job import Preview
from kinema.media.image import open_image
from kinema.settings import read_settings
from kinema.values import ImageGeneration, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL import Image

    from kinema.engine import Checkpoint, Projection
    from kinema.jobs.job import Task, TaskResult
    from kinema.media.image import InputImage
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.loading import VideoPipeline

PREVIEW_WIDTH = 384  # pixels at most
_IMAGE_GENERATION = "kinema-image-generation"  # a text chunk of the drawn still's PNG

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedImage:
    """A drawn still; its file tells how it was drawn, so that the video's recipe can."""

    image: InputImage

    def save(self, path: Path) -> None:
        """Write a PNG."""
        from PIL.PngImagePlugin import PngInfo

        told = PngInfo()
        if self.image.image_generation is not None:
            told.add_text(_IMAGE_GENERATION, self.image.image_generation.model_dump_json())
        self.image.rgb.save(path, "PNG", pnginfo=told)


class EngineWork:
    """One worker's: a video model and a painter, each the one that was wanted last.

    The default model is loaded at once where it lies on this machine, so that the first job waits for nothing.
    """

    def __init__(self) -> None:
        self._settings = read_settings()
        self._pipeline: tuple[str, VideoPipeline] | None = None
        self._image_pipeline: tuple[str, ImagePipeline] | None = None
        self._projection: Projection | None = None
        try:
            self._load_default()
        except KinemaError as error:  # a job that needs the model will say so, and others may not
            print(f"no model is loaded yet: {error}", file=sys.stderr)  # noqa: T201 - the worker's log

    def __call__(self, task: Task) -> Iterator[Step | Preview | TaskResult]:
        """Do one part of a job."""
        match task.part:
            case "image":
                return self._draw(task)
            case "latents":
                return self._denoise(task)
            case "video":
                return self._decode(task)

    def _draw(self, task: Task) -> Iterator[Step | Preview | TaskResult]:
        from kinema.engine import generate_image

        assert task.request.image_model is not None, "every request with a prompt names its painter"
        for result in generate_image(self._image_pipeline_of(task.request.image_model), task.request):
            if isinstance(result, Step):
                yield replace(result, latents=None)
            else:
                yield Preview(lambda image=result.rgb: _jpeg(image))  # type: ignore[misc]
                yield GeneratedImage(result)

    def _denoise(self, task: Task) -> Iterator[Step | Preview | TaskResult]:
        from kinema.engine import Projection, to_latents

        pipeline = self._models_of(task.request.model)
        if self._projection is None:  # before the first step: it encodes, and no part may move while the steps compute
            self._projection = Projection.fit(pipeline)
        result: Step | Checkpoint
        for result in to_latents(pipeline, _image_of(task), task.request):
            yield result
            if isinstance(result, Step) and result.clean is not None:
                yield Preview(lambda clean=result.clean: self._seen(clean))  # type: ignore[misc]

    def _decode(self, task: Task) -> Iterator[Step | Preview | TaskResult]:
        from PIL import Image

        from kinema.engine import Checkpoint, to_video

        assert task.latents is not None, "they were made before"
        denoised = Checkpoint.load(task.latents)
        for result in to_video(self._models_of(task.request.model), _image_of(task), task.request, denoised):
            yield result
            if isinstance(result, Step) and result.frames is not None:
                yield Preview(lambda frame=result.frames[-1]: _jpeg(Image.fromarray(frame)))  # type: ignore[misc]

    def _seen(self, clean: object) -> bytes:
        """An image of the model's estimate so far."""
        import torch
        from PIL import ImageOps

        assert self._projection is not None, "it was fitted before the first step"
        assert isinstance(clean, torch.Tensor), "a step's estimate is one"
        image = self._projection.image(clean)
        return _jpeg(ImageOps.scale(image, self._projection.factor))

    def _models_of(self, model: str) -> VideoPipeline:
        """The model, loaded; the one before it is dropped first."""
        from kinema.models import loading

        if self._pipeline is None or self._pipeline[0] != model:
            if self._pipeline is not None:
                self._pipeline[1].release()
            self._pipeline = self._projection = None
            self._pipeline = (model, self._roomy(lambda: loading.load(model, settings=self._settings)))
        return self._pipeline[1]

    def _image_pipeline_of(self, name: str) -> ImagePipeline:
        """The same of painters, which wait in the computer's memory."""
        from kinema.models import image_pipeline

        if self._image_pipeline is None or self._image_pipeline[0] != name:
            self._drop_image_pipeline()
            load = self._roomy(lambda: image_pipeline.load_image_pipeline(name, settings=self._settings))
            self._image_pipeline = (name, load)
        return self._image_pipeline[1]

    def _roomy(self, load: Callable[[], Loaded]) -> Loaded:
        """What is loaded, if need be at the expense of the other one that is."""
        try:
            return load()
        except InsufficientMemory:
            if self._pipeline is None and self._image_pipeline is None:
                raise
        self._drop_image_pipeline()
        if self._pipeline is not None:
            self._pipeline[1].release()
        self._pipeline = self._projection = None
        return load()

    def _drop_image_pipeline(self) -> None:
        if self._image_pipeline is not None:
            self._image_pipeline[1].release()
        self._image_pipeline = None

    def _load_default(self) -> None:
        from pathlib import Path

        from kinema.models import loading
        from kinema.models.catalog import CATALOG
        from kinema.models.resolve import installed_snapshot

        name = loading.default_model(self._settings)[0]
        entry = CATALOG.get(name)
        installed = Path(name).expanduser().is_dir() if entry is None else entry.folder or installed_snapshot(entry)
        if installed:
            self._models_of(name)


def _image_of(task: Task) -> InputImage:
    """The still as the engine takes it; of one that was drawn for this job, its file also tells how."""
    from PIL import Image

    assert task.image is not None, "it was given, or drawn before"
    image = replace(open_image(task.image), name=None)
    if task.request.prompt is None:
        return image
    with Image.open(task.image, formats=("PNG",)) as file:
        told = file.info.get(_IMAGE_GENERATION)
    return image if told is None else replace(image, image_generation=ImageGeneration.model_validate_json(told))


def _jpeg(image: Image.Image) -> bytes:
    """A small JPEG."""
    from PIL import Image as Images

    width = min(PREVIEW_WIDTH, image.width)
    small = image.resize((width, max(1, round(image.height * width / image.width))), Images.Resampling.BILINEAR)
    data = BytesIO()
    small.save(data, "JPEG", quality=80)
    return data.getvalue()
