"""One video's way through the engine into a file, from its prompt or its still: what `generate` and `remake` share."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING

from kinema.cli.targets import make_folders
from kinema.models.catalog import CATALOG, PAINTERS, human_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.cli.checked_images import CheckedImage
    from kinema.cli.progress import Report
    from kinema.media.clip import Clip
    from kinema.media.still import Still
    from kinema.models.catalog import Entry
    from kinema.models.loading import Models
    from kinema.models.painters import Painter
    from kinema.settings import Settings
    from kinema.values import VideoRequest


@dataclass(frozen=True, eq=False)
class Job:
    """One video to be made; everything in it is checked."""

    source: str
    """The still as it was named, or the prompt."""
    still: Still | None
    """None while it is not drawn yet, or not opened again."""
    request: VideoRequest
    target: Path
    sheet: Path | None = None
    drawn: Path | None = None
    """Where the drawn still is to be kept, if anywhere."""
    place: str = ""
    """"2/3" of several."""
    cautions: tuple[str, ...] = ()
    recorded: VideoRequest | None = None
    """What the recipe is to say was asked, where it is not `request`: a remake's recipe is that of the original."""
    paint_seconds: float | None = None
    """How long its still took, once it is drawn."""
    image: CheckedImage | None = None
    """What the still is to be opened from, where one is given."""

    @property
    def headline(self) -> str:
        """What begins, in one line."""
        request = self.request
        size = f"{request.num_frames} frames of {request.width}×{request.height}"
        return f"{self._named}: {size}, {request.num_inference_steps} steps, seed {request.seed}"

    @property
    def paint_headline(self) -> str:
        """The same of the still that is drawn first."""
        request = self.request
        steps = f", {request.image_num_inference_steps} steps" if request.image_num_inference_steps else ""
        return f"{self._named}: a still of {request.width}×{request.height}{steps}, seed {request.seed}"

    @property
    def is_drawn(self) -> bool:
        """Whether its still is drawn from the prompt, rather than given."""
        return self.source == self.request.prompt

    @property
    def _named(self) -> str:
        name = f'"{self.source}"' if self.is_drawn else self.source
        return f"{self.place} {name}" if self.place else name


@dataclass(frozen=True, eq=False)
class Made:
    """One video that is there, and how long it took in seconds."""

    job: Job
    clip: Clip
    path: Path
    sheet: Path | None
    seconds: float


def load(model: str, settings: Settings, report: Report) -> Models:
    """A model in memory, told as it comes."""
    from kinema.models import loading

    tell_fetch(CATALOG.get(model), report)
    report.tell("load", f"loading {model}", model=model)
    began = time.monotonic()
    models = loading.load(model, settings=settings, progress=report.download)
    _tell_loaded(models, time.monotonic() - began, report)
    return models


def load_painter(painter: str, settings: Settings, report: Report) -> Painter:
    """A painter in memory, told as it comes."""
    from kinema.models import painters

    tell_fetch(PAINTERS.get(painter), report)
    report.tell("load", f"loading {painter}", model=painter)
    began = time.monotonic()
    loaded = painters.load_painter(painter, settings=settings, progress=report.download)
    _tell_loaded(loaded, time.monotonic() - began, report)
    return loaded


def tell_fetch(entry: Entry | None, report: Report) -> None:
    """Say that a model of the catalog has to be fetched, how large it is, and under which licence it is."""
    from kinema.models.finding import held

    if entry and entry.repository and held(entry) is None:
        size = f"{human_bytes(entry.size_bytes)} " if entry.size_bytes else ""
        source = f"{size}from {entry.repository}, {entry.licence} ({entry.licence_url})"
        report.tell("note", f"{entry.name} is fetched first: {source}")


def _tell_loaded(loaded: Models | Painter, seconds: float, report: Report) -> None:
    dtype = str(loaded.dtype).removeprefix("torch.")
    report.tell(
        "loaded",
        f"{loaded.name} on {loaded.device} in {dtype}, loaded in {seconds:.1f} s",
        model=loaded.name,
        device=str(loaded.device),
        dtype=dtype,
        seconds=round(seconds, 2),
    )
    for note in loaded.notes:
        report.tell("warning", note)


def draw_all(jobs: list[Job], painter: str, settings: Settings, report: Report) -> list[Job]:
    """The jobs with their stills drawn. The painter's memory is given back before the video model comes."""
    loaded = load_painter(painter, settings, report)
    try:
        return [draw(loaded, job, report) for job in jobs]
    finally:
        loaded.release()


def draw(painter: Painter, job: Job, report: Report) -> Job:
    """Draw one still, and keep it where that was asked for.

    Raises:
        KinemaError: one of its kinds; nothing is left of the still then.
    """
    from kinema.engine import paint, prompt_cautions
    from kinema.media.video import publish
    from kinema.models.painters import completed
    from kinema.values import Step

    job = replace(job, request=completed(painter, job.request))
    words = prompt_cautions(painter, job.request)
    for caution in words:
        report.tell("warning", caution)
    report.paint(job)
    began = time.monotonic()
    still: Still | None = None
    for result in paint(painter, job.request):
        if isinstance(result, Step):
            report.step(result)
        else:
            still = result
    assert still is not None, "the painter ends with a still"
    if job.drawn:
        make_folders([job.drawn])
        picture = BytesIO()
        still.image.save(picture, "PNG")
        publish(picture.getvalue(), job.drawn)
    spent = time.monotonic() - began
    job = replace(job, still=still, paint_seconds=spent, cautions=(*job.cautions, *words))
    report.painted(job)
    return job


def make(models: Models, job: Job, report: Report) -> Made:
    """Make one video; its file is encoded while decoding goes on, and appears whole or not at all.

    Raises:
        KinemaError: one of its kinds; nothing is left of the video then.
    """
    from kinema.engine import generate
    from kinema.media.video import VideoWriter, publish
    from kinema.values import Step

    assert job.still is not None, "it was given, or is drawn"
    report.start(job)
    began = time.monotonic()
    clip: Clip | None = None
    make_folders([job.target, job.sheet])
    with VideoWriter(job.target, job.request.frame_rate) as writer:
        for result in generate(models, job.still, job.request):
            if isinstance(result, Step):
                if result.frames is not None:
                    if result.start == 0:  # the first, or those of a video that is decoded again
                        writer.restart()
                    writer.write(result.frames)
                report.step(result)
            else:
                clip = result
        assert clip is not None, "the engine ends with a clip"
        recipe = clip.recipe
        path = writer.finish(recipe.model_copy(update={"request": job.recorded}) if job.recorded else recipe)
    if job.sheet:
        picture = BytesIO()
        clip.contact_sheet().save(picture, "PNG")
        publish(picture.getvalue(), job.sheet)
    made = Made(job, clip, path, job.sheet, time.monotonic() - began + (job.paint_seconds or 0))
    report.done(made)
    return made
