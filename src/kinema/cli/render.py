"""One video's way through the engine into a file, from its prompt or its still: what `generate` and `remake` share."""

from __future__ import annotations

import time
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

from kinema.cli.output_paths import make_folders
from kinema.cli.render_task import RenderedVideo
from kinema.models.catalog import CATALOG, IMAGE_MODELS, human_bytes

if TYPE_CHECKING:
    from kinema.cli.render_task import RenderTask
    from kinema.cli.report import Report
    from kinema.media.image import InputImage
    from kinema.media.video import Video
    from kinema.models.catalog import CatalogEntry
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.loading import VideoPipeline
    from kinema.settings import Settings


def load(model: str, settings: Settings, report: Report) -> VideoPipeline:
    """A model in memory, told as it comes."""
    from kinema.models import loading

    tell_fetch(CATALOG.get(model), report)
    report.tell("load", f"loading {model}", model=model)
    began = time.monotonic()
    pipeline = loading.load(model, settings=settings, progress=report.download)
    _tell_loaded(pipeline, time.monotonic() - began, report)
    return pipeline


def load_image_pipeline(name: str, settings: Settings, report: Report) -> ImagePipeline:
    """A painter in memory, told as it comes."""
    from kinema.models import image_pipeline

    tell_fetch(IMAGE_MODELS.get(name), report)
    report.tell("load", f"loading {name}", model=name)
    began = time.monotonic()
    loaded = image_pipeline.load_image_pipeline(name, settings=settings, progress=report.download)
    _tell_loaded(loaded, time.monotonic() - began, report)
    return loaded


def tell_fetch(entry: CatalogEntry | None, report: Report) -> None:
    """Say that a model of the catalog has to be fetched, how large it is, and under which licence it is."""
    from kinema.models.resolve import installed_snapshot

    if entry and entry.repository and installed_snapshot(entry) is None:
        size = f"{human_bytes(entry.size_bytes)} " if entry.size_bytes else ""
        source = f"{size}from {entry.repository}, {entry.licence} ({entry.licence_url})"
        report.tell("note", f"{entry.name} is fetched first: {source}")


def _tell_loaded(loaded: VideoPipeline | ImagePipeline, seconds: float, report: Report) -> None:
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


def draw_all(jobs: list[RenderTask], image_model: str, settings: Settings, report: Report) -> list[RenderTask]:
    """The jobs with their stills drawn. The painter's memory is given back before the video model comes."""
    loaded = load_image_pipeline(image_model, settings, report)
    try:
        return [draw(loaded, job, report) for job in jobs]
    finally:
        loaded.release()


def draw(image_pipeline: ImagePipeline, job: RenderTask, report: Report) -> RenderTask:
    """Draw one still, and keep it where that was asked for.

    Raises:
        KinemaError: one of its kinds; nothing is left of the still then.
    """
    from kinema.engine import generate_image, prompt_warnings
    from kinema.media.video_writer import publish
    from kinema.models.image_pipeline import completed
    from kinema.values import Step

    job = replace(job, request=completed(image_pipeline, job.request))
    words = prompt_warnings(image_pipeline, job.request)
    for warning in words:
        report.tell("warning", warning)
    report.generate_image(job)
    began = time.monotonic()
    image: InputImage | None = None
    for result in generate_image(image_pipeline, job.request):
        if isinstance(result, Step):
            report.step(result)
        else:
            image = result
    assert image is not None, "the painter ends with a still"
    if job.drawn:
        make_folders([job.drawn])
        data = BytesIO()
        image.rgb.save(data, "PNG")
        publish(data.getvalue(), job.drawn)
    spent = time.monotonic() - began
    job = replace(job, image=image, image_seconds=spent, warnings=(*job.warnings, *words))
    report.image_done(job)
    return job


def make(pipeline: VideoPipeline, job: RenderTask, report: Report) -> RenderedVideo:
    """Make one video; its file is encoded while decoding goes on, and appears whole or not at all.

    Raises:
        KinemaError: one of its kinds; nothing is left of the video then.
    """
    from kinema.engine import generate
    from kinema.media.video_writer import VideoWriter, publish
    from kinema.values import Step

    assert job.image is not None, "it was given, or is drawn"
    report.start(job)
    began = time.monotonic()
    video: Video | None = None
    make_folders([job.target, job.sheet])
    with VideoWriter(job.target, job.request.frame_rate) as writer:
        for result in generate(pipeline, job.image, job.request):
            if isinstance(result, Step):
                if result.frames is not None:
                    if result.start == 0:  # the first, or those of a video that is decoded again
                        writer.restart()
                    writer.write(result.frames)
                report.step(result)
            else:
                video = result
        assert video is not None, "the engine ends with a clip"
        recipe = video.recipe
        path = writer.finish(recipe.model_copy(update={"request": job.recorded}) if job.recorded else recipe)
    if job.sheet:
        data = BytesIO()
        video.contact_sheet().save(data, "PNG")
        publish(data.getvalue(), job.sheet)
    made = RenderedVideo(job, video, path, job.sheet, time.monotonic() - began + (job.image_seconds or 0))
    report.done(made)
    return made
