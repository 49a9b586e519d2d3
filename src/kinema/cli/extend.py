"""`kinema extend`: continue a video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinema.cli.credentials_option import Credentials, keys_to_sign, on_off, sidecars
from kinema.cli.options import (
    MODEL_PANEL,
    OUTPUT_PANEL,
    VIDEO_PANEL,
    Device,
    Dtype,
    Force,
    Gpus,
    Json,
    Precision,
    Quiet,
    VideoFile,
    expanded,
    to_stdout,
)
from kinema.cli.report import open_report
from kinema.cli.variation_options import Boomerang, Crf, Watermark  # noqa: TC001 - typer reads the annotations
from kinema.errors import InvalidRequest

if TYPE_CHECKING:
    from kinema.cli.render_task import RenderTask
    from kinema.media.image import InputImage
    from kinema.media.source_video import SourceVideo
    from kinema.recipe import FileEncoding
    from kinema.settings import Settings
    from kinema.values import VideoRequest


def extend(
    file: VideoFile,
    *,
    seconds: Annotated[
        str | None,
        typer.Option(
            metavar="FLOAT", help="Duration to add, at the video's playback rate.", rich_help_panel=VIDEO_PANEL
        ),
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option(metavar="INT", help="Frames to add, in place of --seconds.", rich_help_panel=VIDEO_PANEL),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="Image that the video was made from: path or http(s) URL. Unset: its first frame, less sharp.",
            rich_help_panel=VIDEO_PANEL,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Output file; - writes an mp4 to stdout. Unset: STEM-extended with the same extension in the current "
            "folder.",
        ),
    ] = None,
    crf: Crf = None,
    boomerang: Boomerang = False,
    credentials: Credentials = None,
    watermark: Watermark = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Path of the model, required if it was loaded from a folder (the recipe contains only the folder's "
            "name).",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    gpus: Gpus = None,
) -> None:
    """Continue a video made by Kinema, with the model, parameters and seed of its recipe.

    The result has the frames of the video, then the new ones. Its recipe says which video it was extended from.

    [dim]kinema extend rocket.mp4 --seconds 4 --image rocket.png[/dim]
    """
    from kinema.cli.render import load_video_pipeline, render_video
    from kinema.extension import (
        FROM_FIRST_FRAME,
        check_model,
        check_model_name,
        extended_request,
        image_of,
        loadable_name,
    )
    from kinema.media.encoding_steps import file_encoding, with_kept_watermark
    from kinema.media.image import open_image
    from kinema.media.source_video import open_source_video
    from kinema.models.resolve import resolve
    from kinema.settings import read_settings

    with open_report(json_lines=json, quiet=quiet) as report, to_stdout(output, report, json=json) as output_path:
        settings = read_settings(
            device=device,
            dtype=dtype,
            precision=precision,
            gpus_per_video=gpus,
            credentials=on_off(credentials),
            watermark=on_off(watermark),
        )
        encoding = file_encoding(crf=crf, boomerang=boomerang)
        source = open_source_video(expanded(file))
        if watermark is False and source.watermark is not None:
            raise InvalidRequest(
                f"{file} has the invisible watermark {source.watermark.payload}, which the new frames get too; remove "
                "--no-watermark",
                "watermark",
            )
        request = extended_request(source, seconds=seconds, num_frames=num_frames)
        opened, request = image_of(source, None if image is None else open_image(expanded(image)), request)
        name = model or loadable_name(source)
        check_model_name(source.recipe.model, source.label, name)
        resolve(name)
        task = _task(file, image, source, opened, request, output_path, encoding, settings, force=force)
        if source.watermark is None:
            task = replace(task, watermark=settings.watermark == "on")
        else:
            task = replace(task, encoding=with_kept_watermark(encoding, source.watermark))
        if image is None:
            report.emit("warning", FROM_FIRST_FRAME)
        pipeline = load_video_pipeline(name, settings, report)
        check_model(source, pipeline)
        render_video(pipeline, task, report)


def _task(
    file: str,
    image: str | None,
    source: SourceVideo,
    opened: InputImage,
    request: VideoRequest,
    output: str | None,
    encoding: FileEncoding,
    settings: Settings,
    *,
    force: bool,
) -> RenderTask:
    """Return the task, with its output path checked."""
    from kinema.cli.output_paths import check_conflicts, video_paths
    from kinema.cli.render_task import RenderTask

    video = Path(file)
    stems = [f"{video.stem}-extended"]
    [path] = video_paths(output, stems, [request], extension=video.suffix, crf=encoding.crf)
    keys = keys_to_sign(settings)
    check_conflicts([path, *sidecars([path], keys)], [file, image] if image else [file], force=force)
    return RenderTask(file, opened, request, path, encoding=encoding, keys=keys, source_video=source)
