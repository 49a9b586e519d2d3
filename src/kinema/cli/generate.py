"""`kinema generate`: turn images or prompts into videos."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinema.cli.checked_images import check_images
from kinema.cli.options import (
    OUTPUT_PANEL,
    STDOUT,
    Device,
    Dtype,
    Force,
    Gpus,
    Json,
    LastImage,
    Model,
    Precision,
    Prompt,
    Quiet,
    expanded,
    to_stdout,
    with_all_parameters,
)
from kinema.cli.report import open_report
from kinema.errors import InvalidRequest
from kinema.models.catalog import for_image_model, request_for
from kinema.models.video_size import expand_size, follow_image
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.cli.checked_images import CheckedImage
    from kinema.cli.render_task import RenderTask
    from kinema.cli.report import Report
    from kinema.settings import Settings


@with_all_parameters
def generate(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            show_default=False,
            help="Images (JPEG, PNG, WebP, HEIC, AVIF): paths or http(s) URLs. Omit them with --prompt.",
        ),
    ] = None,
    *,
    prompt: Prompt = None,
    last_image: LastImage = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Output file: .mp4, .webm, .gif or .webp. FOLDER/ is a folder of mp4 files. A name without "
            "extension is a folder of PNG frames for one video, and the same as FOLDER/ for several. Or a template "
            "with {stem}, {index} or {seed}. - writes an mp4 to stdout. Missing folders are created. Unset: STEM.mp4 "
            "in the current folder, where STEM is the image's name or the prompt's words.",
        ),
    ] = None,
    contact_sheet: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Also write all frames to one PNG file. Folders and templates as for -o.",
        ),
    ] = None,
    save_image: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Save the image generated from the prompt as PNG. Folders and templates as for -o. Generating "
            "from the saved image with the same seed gives the same video.",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    gpus: Gpus = None,
    **parameters: Any,
) -> None:
    """Turn images or prompts into short videos. Print the path of each video to stdout.

    All inputs are validated before any model is loaded. Each model is loaded once. With --prompt, all images are
    generated first; then the text-to-image model is unloaded and the video model is loaded. The first failure ends
    the run; videos finished before it are kept.

    [dim]kinema generate rocket.png -o rocket.mp4 --seed 42 --motion-bucket-id 127[/dim]

    [dim]kinema generate photos/*.jpg -o "videos/{stem}-{seed}.webm" --model svd-xt[/dim]

    [dim]kinema generate --prompt "a red hot-air balloon over a snowy mountain at sunset" -o balloon.mp4[/dim]
    """
    from kinema.library import check_image_or_prompt, check_last_image, image_warnings
    from kinema.media.image import open_image
    from kinema.settings import read_settings

    with open_report(json_lines=json, quiet=quiet) as report, ExitStack() as stack:
        downloads = Path(stack.enter_context(TemporaryDirectory(prefix="kinema-")))
        settings = read_settings(device=device, dtype=dtype, precision=precision, gpus_per_video=gpus, model=model)
        check_image_or_prompt(images or None, prompt or None)
        sources = prompt or [expanded(image) for image in images or []]
        if output == STDOUT and len(sources) > 1:
            raise InvalidRequest(
                f"-o - writes one video to stdout, but {len(sources)} were requested; use a folder, such as -o videos/",
                "output",
            )
        parameters = expand_size(parameters)
        # Before torch is imported to choose a model: the ranges are the same for all models.
        for source in sources:
            _check_parameters(source if prompt else None, parameters)
        if save_image is not None and not prompt:
            raise InvalidRequest("--save-image only applies with --prompt; remove it or add a --prompt", "save_image")
        checked_images = [] if prompt else check_images(sources, downloads)
        model_name = settings.model or choose_model(settings, report)
        inputs = _inputs(model_name, sources, checked_images, parameters, settings, report)
        output_path = stack.enter_context(to_stdout(output, report, json=json))
        tasks = _tasks(inputs, output_path, contact_sheet, save_image, force=force)
        if last_image is not None:
            check_last_image(tasks[0].request)
            last = open_image(expanded(last_image))
            tasks = [replace(task, last_image=last) for task in tasks]
            for problem in image_warnings(last.facts, tasks[0].request):
                report.emit("warning", f"last image: {problem}")
        for warning in dict.fromkeys(warning for task in tasks for warning in task.warnings):
            report.emit("warning", warning)
        from kinema.cli.render import generate_images, load_video_pipeline, render_video

        if prompt:
            image_model = tasks[0].request.image_model
            assert image_model is not None
            tasks = generate_images(tasks, image_model, settings, report)
        pipeline = load_video_pipeline(model_name, settings, report)
        for task in tasks:
            checked_image = task.checked_image
            render_video(pipeline, task if checked_image is None else replace(task, image=checked_image.open()), report)


def choose_model(settings: Settings, report: Report) -> str:
    """Return the default video model and report the reason."""
    from kinema.models.loading import default_model

    name, reason = default_model(settings)
    report.emit("model", f"using model {name}: {reason}", model=name, reason=reason)
    return name


def _inputs(
    model: str,
    sources: Sequence[str],
    checked_images: Sequence[CheckedImage],
    parameters: dict[str, Any],
    settings: Settings,
    report: Report,
) -> list[tuple[str, CheckedImage | None, VideoRequest]]:
    """Return source, input image if any, and complete request of each video; check that the models exist."""
    from kinema.models.resolve import resolve

    resolve(model)
    if checked_images:
        requests = [
            follow_image(request_for(model=model, **parameters), image.facts.size, parameters)
            for image in checked_images
        ]
        return [(image.source, image, request) for image, request in zip(checked_images, requests, strict=True)]
    requests = [request_for(model=model, prompt=prompt, **parameters) for prompt in sources]
    size = requests[0].width, requests[0].height
    image_model = requests[0].image_model or _choose_image_model(size, settings, report)
    resolve(image_model, text_to_image=True)
    return [
        (prompt, None, for_image_model(request, image_model)) for prompt, request in zip(sources, requests, strict=True)
    ]


def _choose_image_model(size: tuple[int, int], settings: Settings, report: Report) -> str:
    """Return the default text-to-image model for (width, height) and report the reason."""
    from kinema.models.image_pipeline import default_image_model

    name, reason = default_image_model(size, settings)
    report.emit("model", f"using text-to-image model {name}: {reason}", model=name, reason=reason)
    return name


def _check_parameters(prompt: str | None, parameters: dict[str, Any]) -> None:
    """Raise InvalidRequest for parameters that no model accepts."""
    VideoRequest.checked(
        **{name: value for name, value in {"prompt": prompt, **parameters}.items() if value is not None}
    )


def _tasks(
    inputs: Sequence[tuple[str, CheckedImage | None, VideoRequest]],
    output: str | None,
    contact_sheet: str | None,
    save_image: str | None,
    *,
    force: bool,
) -> list[RenderTask]:
    """Return the task of each video, with output paths checked."""
    from kinema.cli.output_paths import check_conflicts, png_paths, video_paths
    from kinema.cli.render_task import RenderTask
    from kinema.library import all_warnings
    from kinema.media.image import plain_name
    from kinema.models.catalog import parameter_warnings

    requests = [request for _, _, request in inputs]
    stems = [(image.name if image else plain_name(source, 60)) or "video" for source, image, _ in inputs]
    videos = video_paths(output, stems, requests)
    sheets = png_paths(contact_sheet, stems, requests, kind="contact sheet")
    images = png_paths(save_image, stems, requests, kind="image")
    check_conflicts([*videos, *sheets, *images], [source for source, image, _ in inputs if image], force=force)
    count = len(inputs)
    return [
        RenderTask(
            source,
            None,
            request,
            video,
            sheet,
            image_path,
            f"{index}/{count}" if count > 1 else "",
            tuple(all_warnings(image.facts, request) if image else parameter_warnings(request)),
            checked_image=image,
        )
        for index, ((source, image, request), video, sheet, image_path) in enumerate(
            zip(inputs, videos, sheets, images, strict=True), 1
        )
    ]
