"""Load models and render tasks to files, for `generate` and `remake`."""

from __future__ import annotations

import time
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

from kinema.cli.output_paths import make_folders
from kinema.cli.render_task import RenderedVideo
from kinema.models.catalog import CATALOG, IMAGE_MODELS, human_bytes
from kinema.steps import drive

if TYPE_CHECKING:
    from kinema.cli.item_failures import ItemFailures
    from kinema.cli.render_task import RenderTask
    from kinema.cli.report import Report
    from kinema.media.credentials.file_signer import FileSigner
    from kinema.media.credentials.signing_keys import SigningKeys
    from kinema.media.image import InputImage
    from kinema.models.catalog import CatalogEntry
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.loading import VideoPipeline
    from kinema.settings import Settings
    from kinema.steps import Restart, Step
    from kinema.values import Engine


def load_video_pipeline(model: str, settings: Settings, report: Report, engine: Engine | None = None) -> VideoPipeline:
    """Load a video model and report the progress; `engine` as for `kinema.load`."""
    from kinema.models import loading

    report_download(CATALOG.get(model), report)
    report.emit("load", f"loading {model}", model=model)
    began = time.monotonic()
    pipeline = loading.load(model, engine=engine, settings=settings, progress=report.download)
    _report_loaded(pipeline, time.monotonic() - began, report)
    return pipeline


def load_image_pipeline(name: str, settings: Settings, report: Report) -> ImagePipeline:
    """Load a text-to-image model and report the progress."""
    from kinema.models import image_pipeline

    report_download(IMAGE_MODELS.get(name), report)
    report.emit("load", f"loading {name}", model=name)
    began = time.monotonic()
    pipeline = image_pipeline.load_image_pipeline(name, settings=settings, progress=report.download)
    _report_loaded(pipeline, time.monotonic() - began, report)
    return pipeline


def report_download(entry: CatalogEntry | None, report: Report) -> None:
    """Report size, source and licence of a catalog model that has to be downloaded first."""
    from kinema.models.resolve import installed_snapshot

    if entry and entry.repository and installed_snapshot(entry) is None:
        size = f"{human_bytes(entry.size_bytes)} " if entry.size_bytes else ""
        source = f"{size}from {entry.repository}, {entry.licence} ({entry.licence_url})"
        report.emit("note", f"downloading {entry.name} first: {source}")


def _report_loaded(pipeline: VideoPipeline | ImagePipeline, seconds: float, report: Report) -> None:
    dtype = str(pipeline.dtype).removeprefix("torch.")
    report.emit(
        "loaded",
        f"{pipeline.name} on {pipeline.device} in {dtype}, loaded in {seconds:.1f} s",
        model=pipeline.name,
        device=str(pipeline.device),
        dtype=dtype,
        seconds=round(seconds, 2),
    )
    for note in pipeline.notes:
        report.emit("warning", note)


def generate_images(
    tasks: list[RenderTask], image_model: str, settings: Settings, report: Report, failures: ItemFailures
) -> list[RenderTask]:
    """Return the tasks with their images generated; the text-to-image model is loaded, used and unloaded."""
    pipeline = load_image_pipeline(image_model, settings, report)
    done: list[RenderTask] = []
    try:
        for task in tasks:
            with failures.collect(task.name, task.source, task.request.seed):
                done.append(generate_task_image(pipeline, task, report))
    finally:
        pipeline.release()
    return done


def generate_task_image(pipeline: ImagePipeline, task: RenderTask, report: Report) -> RenderTask:
    """Return the task with its image generated, and save the image to `image_path` if set.

    Raises:
        KinemaError: the generation failed; no image file is left.
    """
    from kinema.engine import generate_image, prompt_warnings
    from kinema.media.video_writer import publish
    from kinema.models.image_pipeline import completed

    task = replace(task, request=completed(pipeline, task.request))
    warnings = prompt_warnings(pipeline, task.request)
    for warning in warnings:
        report.emit("warning", warning)
    report.image_started(task)
    began = time.monotonic()
    image = drive(generate_image(pipeline, task.request), report.step, report.restart)
    if task.image_path:
        make_folders([task.image_path])
        data = BytesIO()
        image.rgb.save(data, "PNG")
        publish(data.getvalue(), task.image_path)
    seconds = time.monotonic() - began
    task = replace(task, image=image, image_seconds=seconds, warnings=(*task.warnings, *warnings))
    report.image_done(task)
    return task


def render_video(pipeline: VideoPipeline, task: RenderTask, report: Report) -> RenderedVideo:
    """Render one video to a file, which is encoded during decoding and appears atomically.

    Raises:
        KinemaError: the generation failed; no video file is left.
    """
    from kinema.engine import generate
    from kinema.media.encoding_steps import with_watermark
    from kinema.media.video_writer import VideoWriter, publish

    assert task.image is not None
    report.video_started(task)
    began = time.monotonic()
    make_folders([task.output_path, task.contact_sheet_path])
    signer = None if task.keys is None else _signer(task.keys, task.image, task.last_image)
    encoding = task.encoding
    if task.watermark:
        last = None if task.last_image is None else task.last_image.sha256
        encoding = with_watermark(encoding, task.request, task.image.sha256, last)
    with VideoWriter(task.output_path, task.request.frame_rate, encoding=encoding, signer=signer) as writer:

        def on_step(step: Step) -> None:
            if step.frames is not None:
                writer.write(step.frames)
            report.step(step)

        def on_restart(restart: Restart) -> None:
            if restart.stage == "decode":
                writer.restart()
            report.restart(restart)

        events = generate(pipeline, task.image, task.request, task.last_image, task.source_video)
        video = drive(events, on_step, on_restart)
        recipe = video.recipe
        path = writer.finish(
            recipe.model_copy(update={"request": task.recipe_request}) if task.recipe_request else recipe
        )
    if task.contact_sheet_path:
        data = BytesIO()
        video.contact_sheet().save(data, "PNG")
        publish(data.getvalue(), task.contact_sheet_path)
    seconds = time.monotonic() - began + (task.image_seconds or 0)
    rendered = RenderedVideo(task, video, path, task.contact_sheet_path, seconds)
    report.video_done(rendered)
    return rendered


def _signer(keys: SigningKeys, *images: InputImage | None) -> FileSigner:
    from kinema.media.credentials.file_signer import FileSigner

    return FileSigner(keys, [image.file for image in images if image is not None and image.file is not None])
