"""`kinema generate`: stills, or prompts from which they are drawn, become videos."""

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
    Json,
    Model,
    Precision,
    Prompt,
    Quiet,
    expanded,
    to_stdout,
    with_settings,
)
from kinema.cli.report import report
from kinema.errors import InvalidRequest
from kinema.models.catalog import for_image_model, request_for
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.cli.checked_images import CheckedImage
    from kinema.cli.render_task import RenderTask
    from kinema.cli.report import Report
    from kinema.settings import Settings


@with_settings
def generate(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STILL",
            show_default=False,
            help="Pictures (JPEG, PNG, WebP): paths, or http(s) addresses. None where a --prompt is given.",
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
            help="Where the video goes: .mp4, .webm, .gif, .webp, or no ending for a folder of png. For several videos "
            "a folder, or a template with {stem}, {index} or {seed}. - writes an mp4 to stdout. Missing folders are "
            "created. Unset: STEM.mp4 in the current folder. The stem of a prompt is its words.",
        ),
    ] = None,
    contact_sheet: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Write all frames on one PNG too; named as -o is for several videos.",
        ),
    ] = None,
    save_image: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Keep the still that is drawn from a prompt as a PNG; named as -o is for several videos. With the "
            "same seed it gives the same video.",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    **settings: Any,
) -> None:
    """Turn stills, or prompts from which they are drawn, into short videos. Each video's path goes to stdout.

    Everything that can be is checked before the work begins. Models are loaded once: all stills are drawn first, and
    the painter is gone when the videos are made. If one video fails, those done before it stay.

    [dim]kinema generate rocket.png -o rocket.mp4 --seed 42 --motion-bucket-id 127[/dim]

    [dim]kinema generate photos/*.jpg -o "videos/{stem}-{seed}.webm" --model svd-xt[/dim]

    [dim]kinema generate --prompt "a red hot-air balloon over a snowy mountain at sunset" -o balloon.mp4[/dim]
    """
    from kinema.library import check_source
    from kinema.settings import read_settings

    with report(json_lines=json, quiet=quiet) as told, ExitStack() as stack:
        fetched = stack.enter_context(TemporaryDirectory(prefix="kinema-"))
        machine = read_settings(device=device, dtype=dtype, precision=precision, model=model)
        check_source(images or None, prompt or None)
        sources = prompt or [expanded(image) for image in images or []]
        if output == STDOUT and len(sources) > 1:
            raise InvalidRequest(
                f"-o - writes one video to stdout, and {len(sources)} are asked for; name a folder, as -o videos/",
                "output",
            )
        # Checked before torch is there to choose a model: no setting's range depends on it.
        for source in sources:
            _checked(source if prompt else None, settings)
        if save_image is not None and not prompt:
            raise InvalidRequest("--save-image keeps a still that is drawn: drop it, or give a --prompt", "save_image")
        checked_images = [] if prompt else check_images(sources, Path(fetched))
        chosen = machine.model or chosen_model(machine, told)
        named = _named(chosen, sources, checked_images, settings, machine, told)
        target = stack.enter_context(to_stdout(output, told, json=json))
        jobs = _jobs(named, target, contact_sheet, save_image, force=force)
        for warning in dict.fromkeys(warning for job in jobs for warning in job.warnings):
            told.tell("warning", warning)
        from kinema.cli.render import draw_all, load, make

        if prompt:
            image_model = jobs[0].request.image_model
            assert image_model is not None
            jobs = draw_all(jobs, image_model, machine, told)
        pipeline = load(chosen, machine, told)
        for job in jobs:
            make(pipeline, job if job.checked is None else replace(job, image=job.checked.open()), told)


def chosen_model(machine: Settings, told: Report) -> str:
    """The model that is taken when none is named, said with the reason."""
    from kinema.models.loading import default_model

    name, reason = default_model(machine)
    told.tell("model", f"model {name}: {reason}", model=name, reason=reason)
    return name


def _named(
    model: str,
    sources: Sequence[str],
    checked_images: Sequence[CheckedImage],
    settings: dict[str, Any],
    machine: Settings,
    told: Report,
) -> list[tuple[str, CheckedImage | None, VideoRequest]]:
    """Every video to be made: what from, its image where one is given, and its request with all models named."""
    from kinema.models.resolve import resolve

    resolve(model)
    if checked_images:
        return [(image.source, image, request_for(model=model, **settings)) for image in checked_images]
    requests = [request_for(model=model, prompt=prompt, **settings) for prompt in sources]
    image_model = requests[0].image_model or _image_model((requests[0].width, requests[0].height), machine, told)
    resolve(image_model, text_to_image=True)
    return [
        (prompt, None, for_image_model(request, image_model)) for prompt, request in zip(sources, requests, strict=True)
    ]


def _image_model(size: tuple[int, int], machine: Settings, told: Report) -> str:
    """The painter that is taken when none is named, said with the reason."""
    from kinema.models.image_pipeline import default_image_model

    name, reason = default_image_model(size, machine)
    told.tell("model", f"painter {name}: {reason}", model=name, reason=reason)
    return name


def _checked(prompt: str | None, settings: dict[str, Any]) -> None:
    """Refuse settings that no model would take."""
    VideoRequest.checked(**{name: value for name, value in {"prompt": prompt, **settings}.items() if value is not None})


def _jobs(
    named: Sequence[tuple[str, CheckedImage | None, VideoRequest]],
    output: str | None,
    contact_sheet: str | None,
    save_image: str | None,
    *,
    force: bool,
) -> list[RenderTask]:
    """Every video to be made, its settings and its places checked."""
    from kinema.cli.output_paths import keep_apart, sheet_paths, video_paths
    from kinema.cli.render_task import RenderTask
    from kinema.library import all_warnings
    from kinema.media.image import plain_name
    from kinema.models.catalog import parameter_warnings

    requests = [request for _, _, request in named]
    stems = [(image.name if image else plain_name(source, 60)) or "video" for source, image, _ in named]
    targets = video_paths(output, stems, requests)
    sheets = sheet_paths(contact_sheet, stems, requests)
    drawn = sheet_paths(save_image, stems, requests, what="image")
    keep_apart([*targets, *sheets, *drawn], [source for source, image, _ in named if image], force=force)
    count = len(named)
    return [
        RenderTask(
            source,
            None,
            request,
            target,
            sheet,
            saved_image,
            f"{index}/{count}" if count > 1 else "",
            tuple(all_warnings(image.facts, request) if image else parameter_warnings(request)),
            checked=image,
        )
        for index, ((source, image, request), target, sheet, saved_image) in enumerate(
            zip(named, targets, sheets, drawn, strict=True), 1
        )
    ]
