"""The engine as the queue's work: it runs in a worker's process, where a model stays loaded from job to job."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

from kinema.errors import InsufficientMemory, KinemaError
from kinema.jobs.values import Preview
from kinema.media.still import open_still
from kinema.settings import read_settings
from kinema.values import Painting, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from PIL import Image

    from kinema.engine import Denoised, Projection
    from kinema.jobs.values import Product, Task
    from kinema.media.still import Still
    from kinema.models.loading import Models
    from kinema.models.painters import Painter

PREVIEW_WIDTH = 384  # pixels at most
_PAINTING = "kinema-painting"  # a text chunk of the drawn still's PNG

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A drawn still; its file tells how it was drawn, so that the video's recipe can."""

    still: Still

    def save(self, path: Path) -> None:
        """Write a PNG."""
        from PIL.PngImagePlugin import PngInfo

        told = PngInfo()
        if self.still.painting is not None:
            told.add_text(_PAINTING, self.still.painting.model_dump_json())
        self.still.image.save(path, "PNG", pnginfo=told)


class Work:
    """One worker's: a video model and a painter, each the one that was wanted last.

    The default model is loaded at once where it lies on this machine, so that the first job waits for nothing.
    """

    def __init__(self) -> None:
        self._settings = read_settings()
        self._models: tuple[str, Models] | None = None
        self._painter: tuple[str, Painter] | None = None
        self._projection: Projection | None = None
        try:
            self._load_default()
        except KinemaError as error:  # a job that needs the model will say so, and others may not
            print(f"no model is loaded yet: {error}", file=sys.stderr)  # noqa: T201 - the worker's log

    def __call__(self, task: Task) -> Iterator[Step | Preview | Product]:
        """Do one part of a job."""
        match task.part:
            case "still":
                return self._draw(task)
            case "latents":
                return self._denoise(task)
            case "video":
                return self._decode(task)

    def _draw(self, task: Task) -> Iterator[Step | Preview | Product]:
        from kinema.engine import paint

        assert task.request.image_model is not None, "every request with a prompt names its painter"
        for result in paint(self._painter_of(task.request.image_model), task.request):
            if isinstance(result, Step):
                yield replace(result, latents=None)
            else:
                yield Preview(lambda image=result.image: _jpeg(image))  # type: ignore[misc]
                yield Drawn(result)

    def _denoise(self, task: Task) -> Iterator[Step | Preview | Product]:
        from kinema.engine import Projection, to_latents

        models = self._models_of(task.request.model)
        if self._projection is None:  # before the first step: it encodes, and no part may move while the steps compute
            self._projection = Projection.fit(models)
        result: Step | Denoised
        for result in to_latents(models, _still_of(task), task.request):
            yield result
            if isinstance(result, Step) and result.clean is not None:
                yield Preview(lambda clean=result.clean: self._seen(clean))  # type: ignore[misc]

    def _decode(self, task: Task) -> Iterator[Step | Preview | Product]:
        from PIL import Image

        from kinema.engine import Denoised, to_clip

        assert task.latents is not None, "they were made before"
        denoised = Denoised.load(task.latents)
        for result in to_clip(self._models_of(task.request.model), _still_of(task), task.request, denoised):
            yield result
            if isinstance(result, Step) and result.frames is not None:
                yield Preview(lambda frame=result.frames[-1]: _jpeg(Image.fromarray(frame)))  # type: ignore[misc]

    def _seen(self, clean: object) -> bytes:
        """An image of the model's estimate so far."""
        import torch
        from PIL import ImageOps

        assert self._projection is not None, "it was fitted before the first step"
        assert isinstance(clean, torch.Tensor), "a step's estimate is one"
        picture = self._projection.picture(clean)
        return _jpeg(ImageOps.scale(picture, self._projection.factor))

    def _models_of(self, model: str) -> Models:
        """The model, loaded; the one before it is dropped first."""
        from kinema.models import loading

        if self._models is None or self._models[0] != model:
            if self._models is not None:
                self._models[1].release()
            self._models = self._projection = None
            self._models = (model, self._roomy(lambda: loading.load(model, settings=self._settings)))
        return self._models[1]

    def _painter_of(self, painter: str) -> Painter:
        """The same of painters, which wait in the computer's memory."""
        from kinema.models import painters

        if self._painter is None or self._painter[0] != painter:
            self._drop_painter()
            load = self._roomy(lambda: painters.load_painter(painter, settings=self._settings))
            self._painter = (painter, load)
        return self._painter[1]

    def _roomy(self, load: Callable[[], Loaded]) -> Loaded:
        """What is loaded, if need be at the expense of the other one that is."""
        try:
            return load()
        except InsufficientMemory:
            if self._models is None and self._painter is None:
                raise
        self._drop_painter()
        if self._models is not None:
            self._models[1].release()
        self._models = self._projection = None
        return load()

    def _drop_painter(self) -> None:
        if self._painter is not None:
            self._painter[1].release()
        self._painter = None

    def _load_default(self) -> None:
        from pathlib import Path

        from kinema.models import loading
        from kinema.models.catalog import CATALOG
        from kinema.models.finding import held

        name = loading.default_model(self._settings)[0]
        entry = CATALOG.get(name)
        there = Path(name).expanduser().is_dir() if entry is None else entry.folder or held(entry)
        if there:
            self._models_of(name)


def _still_of(task: Task) -> Still:
    """The still as the engine takes it; of one that was drawn for this job, its file also tells how."""
    from PIL import Image

    assert task.still is not None, "it was given, or drawn before"
    still = replace(open_still(task.still), name=None)
    if task.request.prompt is None:
        return still
    with Image.open(task.still, formats=("PNG",)) as file:
        told = file.info.get(_PAINTING)
    return still if told is None else replace(still, painting=Painting.model_validate_json(told))


def _jpeg(image: Image.Image) -> bytes:
    """A small JPEG."""
    from PIL import Image as Images

    width = min(PREVIEW_WIDTH, image.width)
    small = image.resize((width, max(1, round(image.height * width / image.width))), Images.Resampling.BILINEAR)
    data = BytesIO()
    small.save(data, "JPEG", quality=80)
    return data.getvalue()
