"""`kinema generate`: turn images or prompts into videos."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinema.cli.checked_images import check_images, image_sources
from kinema.cli.common_options import CommonOptions, with_common_options
from kinema.cli.credentials_option import keys_to_sign, sidecars
from kinema.cli.item_failures import ItemFailures
from kinema.cli.motion_sheet_file import MotionSheetFile
from kinema.cli.named_warnings import named_warnings
from kinema.cli.options import (
    OUTPUT_PANEL,
    STDOUT,
    Force,
    Prompt,
    expanded,
    to_stdout,
)
from kinema.cli.report import open_report
from kinema.cli.variation_options import (  # noqa: TC001 - typer reads the annotations
    Boomerang,
    Crf,
    Motions,
    NumVideos,
    OnError,
    Sheet,
)
from kinema.cli.variations import read_variations
from kinema.errors import InvalidRequest
from kinema.models.catalog import for_image_model, request_for
from kinema.models.video_size import expand_size, follow_image
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.cli.checked_images import CheckedImage
    from kinema.cli.render_task import RenderTask
    from kinema.cli.report import Report
    from kinema.cli.variations import Variations
    from kinema.media.credentials.signing_keys import SigningKeys
    from kinema.models.loading import VideoPipeline
    from kinema.recipe import FileEncoding
    from kinema.settings import Settings


@with_common_options
def generate(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            show_default=False,
            help="Images (JPEG, PNG, WebP, HEIC, AVIF): paths, folders, http(s) URLs, or - for stdin. Of a folder, "
            "the images directly in it. Omit them with --prompt.",
        ),
    ] = None,
    *,
    prompt: Prompt = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Output file: .mp4, .webm, .gif or .webp. FOLDER/ is a folder of mp4 files. A name without "
            "extension is a folder of PNG frames for one video, and the same as FOLDER/ for several. Or a template "
            "with {stem}, {index}, {seed} or {motion}. - writes an mp4 to stdout. Missing folders are created. Unset: "
            "STEM.mp4 in the current folder, where STEM is the image's name or the prompt's words, or STEM-seedN.mp4 "
            "with --num-videos.",
        ),
    ] = None,
    num_videos: NumVideos = None,
    on_error: OnError = "continue",
    crf: Crf = None,
    boomerang: Boomerang = False,
    sheet: Sheet = None,
    motions: Motions = None,
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
    options: CommonOptions,
    **parameters: Any,
) -> None:
    """Turn images or prompts into short videos. Print the path of each video to stdout.

    All inputs are validated before any model is loaded. Each model is loaded once. With --prompt, all images are
    generated first; then the text-to-image model is unloaded and the video model is loaded. Of several videos, one
    that fails does not stop the others (see --on-error); all failures are named at the end.

    [dim]kinema generate rocket.png -o rocket.mp4 --seed 42 --motion-bucket-id 127[/dim]

    [dim]kinema generate photos/*.jpg -o "videos/{stem}-{seed}.webm" --model svd-xt[/dim]

    [dim]kinema generate --prompt "a red hot-air balloon over a snowy mountain at sunset" -o balloon.mp4[/dim]
    """
    from kinema.library import check_image_or_prompt
    from kinema.media.encoding_steps import file_encoding

    with open_report(json_lines=options.json, quiet=options.quiet) as report, ExitStack() as stack:
        downloads = Path(stack.enter_context(TemporaryDirectory(prefix="kinema-")))
        settings = options.settings()
        check_image_or_prompt(images or None, prompt or None)
        sources = prompt or image_sources([expanded(image) for image in images or []])
        encoding = file_encoding(crf=crf, boomerang=boomerang)
        variations, parameters = read_variations(num_videos, motions, sheet, 0 if prompt else len(sources), parameters)
        if output == STDOUT and (count := len(sources) * variations.count) > 1:
            raise InvalidRequest(
                f"-o - writes one video to stdout, but {count} were requested; use a folder, such as -o videos/",
                "output",
            )
        parameters = expand_size(parameters) | {"seconds": options.seconds}
        failures = ItemFailures(report, stops=on_error == "stop" or len(sources) * variations.count == 1)
        # Before torch is imported to choose a model: the ranges are the same for all models.
        for source in sources:
            _check_parameters(source if prompt else None, parameters)
        if save_image is not None and not prompt:
            raise InvalidRequest("--save-image only applies with --prompt; remove it or add a --prompt", "save_image")
        checked_images = [] if prompt else check_images(sources, downloads, failures)
        if not prompt and not checked_images:
            failures.report_all()
        model_name = settings.model or choose_model(settings, report)
        inputs = _inputs(model_name, sources, checked_images, parameters, settings, report)
        output_path = stack.enter_context(to_stdout(output, report, json=options.json))
        others = [] if options.last_image is None else [expanded(options.last_image)]
        keys = keys_to_sign(settings)
        tasks = _tasks(inputs, variations, output_path, contact_sheet, save_image, encoding, others, keys, force=force)
        tasks = [replace(task, watermark=settings.watermark == "on") for task in tasks]
        motion_sheet = MotionSheetFile.planned(sheet, tasks, force=force)
        if options.last_image is not None:
            tasks = _with_last_image(tasks, expanded(options.last_image))
        for warning in named_warnings(tasks):
            report.emit("warning", warning)
        from kinema.cli.render import generate_images, load_video_pipeline

        if prompt:
            image_model = tasks[0].request.image_model
            assert image_model is not None
            tasks = generate_images(tasks, image_model, settings, report, failures)
        pipeline = load_video_pipeline(model_name, settings, report) if tasks else None
        if motion_sheet is not None:  # also of the videos before an error or a signal
            stack.callback(motion_sheet.write, report)
        for task in tasks:
            assert pipeline is not None
            with failures.collect(task.name, task.source, task.request.seed):
                _render(pipeline, task, motion_sheet, report)
        failures.report_all()


def _render(pipeline: VideoPipeline, task: RenderTask, sheet: MotionSheetFile | None, report: Report) -> None:
    """Open the image if there is one, and render the video; neither stays in memory."""
    from kinema.cli.render import render_video

    if task.checked_image is not None:
        task = replace(task, image=task.checked_image.open())
    rendered = render_video(pipeline, task, report)
    if sheet is not None:
        sheet.add(rendered.video)


def _with_last_image(tasks: Sequence[RenderTask], path: str) -> list[RenderTask]:
    """Return the tasks with the image at which their videos end.

    Raises:
        InvalidRequest: a video is a loop, or has one frame.
        InvalidImage: see `kinema.media.image.open_image`.
    """
    from kinema.library import check_last_image, last_image_warnings
    from kinema.media.image import open_image

    for task in tasks:
        check_last_image(task.request)
    if path == STDOUT:
        raise InvalidRequest("the last image can't be read from stdin; name a file", "last_image")
    image = open_image(path)
    return [
        replace(task, last_image=image, warnings=(*task.warnings, *last_image_warnings(image.facts, task.request)))
        for task in tasks
    ]


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
    given = {name: value for name, value in {"prompt": prompt, **parameters}.items() if value is not None}
    given.pop("seconds", None)  # the frame rate may depend on the model
    VideoRequest.checked(**given)


def _tasks(
    inputs: Sequence[tuple[str, CheckedImage | None, VideoRequest]],
    variations: Variations,
    output: str | None,
    contact_sheet: str | None,
    save_image: str | None,
    encoding: FileEncoding,
    others: Sequence[str],
    keys: SigningKeys | None,
    *,
    force: bool,
) -> list[RenderTask]:
    """Return the task of each video, with output paths checked. `inputs` have one request per image or prompt.

    `others` are further files that must not be overwritten.
    """
    from kinema.cli.output_paths import check_conflicts, png_paths, video_paths
    from kinema.cli.render_task import RenderTask
    from kinema.library import all_warnings
    from kinema.media.image import plain_name
    from kinema.models.catalog import parameter_warnings

    inputs = [(source, image, request) for source, image, first in inputs for request in variations.requests(first)]
    requests = [request for _, _, request in inputs]
    stems = [(image.name if image else plain_name(source, 60)) or "video" for source, image, _ in inputs]
    suffixes = [variations.suffix(request) for request in requests]
    videos = video_paths(output, stems, requests, suffixes=suffixes, crf=encoding.crf)
    sheets = png_paths(contact_sheet, stems, requests, suffixes=suffixes, kind="contact sheet")
    images = png_paths(save_image, stems, requests, suffixes=suffixes, kind="image")
    sources = [*others, *(str(image.path) for _, image, _ in inputs if image)]
    check_conflicts([*videos, *sheets, *images, *sidecars(videos, keys)], sources, force=force)
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
            encoding=encoding,
            keys=keys,
            is_of_sheet=variations.motions is not None,
        )
        for index, ((source, image, request), video, sheet, image_path) in enumerate(
            zip(inputs, videos, sheets, images, strict=True), 1
        )
    ]
