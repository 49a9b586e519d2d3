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
from kinema.cli.progress import report
from kinema.errors import InvalidRequest
from kinema.models.catalog import for_painter, request_for
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.cli.checked_images import CheckedImage
    from kinema.cli.making import Job
    from kinema.cli.progress import Report
    from kinema.settings import Settings


@with_settings
def generate(
    stills: Annotated[
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
    save_still: Annotated[
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
        check_source(stills or None, prompt or None)
        sources = prompt or [expanded(still) for still in stills or []]
        if output == STDOUT and len(sources) > 1:
            raise InvalidRequest(
                f"-o - writes one video to stdout, and {len(sources)} are asked for; name a folder, as -o videos/",
                "output",
            )
        # Checked before torch is there to choose a model: no setting's range depends on it.
        for source in sources:
            _checked(source if prompt else None, settings)
        if save_still is not None and not prompt:
            raise InvalidRequest("--save-still keeps a still that is drawn: drop it, or give a --prompt", "save_still")
        images = [] if prompt else check_images(sources, Path(fetched))
        chosen = machine.model or chosen_model(machine, told)
        named = _named(chosen, sources, images, settings, machine, told)
        target = stack.enter_context(to_stdout(output, told, json=json))
        jobs = _jobs(named, target, contact_sheet, save_still, force=force)
        for caution in dict.fromkeys(caution for job in jobs for caution in job.cautions):
            told.tell("warning", caution)
        from kinema.cli.making import draw_all, load, make

        if prompt:
            painter = jobs[0].request.image_model
            assert painter is not None
            jobs = draw_all(jobs, painter, machine, told)
        models = load(chosen, machine, told)
        for job in jobs:
            make(models, job if job.image is None else replace(job, still=job.image.open()), told)


def chosen_model(machine: Settings, told: Report) -> str:
    """The model that is taken when none is named, said with the reason."""
    from kinema.models.loading import default_model

    name, reason = default_model(machine)
    told.tell("model", f"model {name}: {reason}", model=name, reason=reason)
    return name


def _named(
    model: str,
    sources: Sequence[str],
    images: Sequence[CheckedImage],
    settings: dict[str, Any],
    machine: Settings,
    told: Report,
) -> list[tuple[str, CheckedImage | None, VideoRequest]]:
    """Every video to be made: what from, its image where one is given, and its request with all models named."""
    from kinema.models.finding import resolve

    resolve(model)
    if images:
        return [(image.source, image, request_for(model=model, **settings)) for image in images]
    requests = [request_for(model=model, prompt=prompt, **settings) for prompt in sources]
    painter = requests[0].image_model or _painter((requests[0].width, requests[0].height), machine, told)
    resolve(painter, paints=True)
    return [(prompt, None, for_painter(request, painter)) for prompt, request in zip(sources, requests, strict=True)]


def _painter(size: tuple[int, int], machine: Settings, told: Report) -> str:
    """The painter that is taken when none is named, said with the reason."""
    from kinema.models.painters import default_painter

    name, reason = default_painter(size, machine)
    told.tell("model", f"painter {name}: {reason}", model=name, reason=reason)
    return name


def _checked(prompt: str | None, settings: dict[str, Any]) -> None:
    """Refuse settings that no model would take."""
    VideoRequest.checked(**{name: value for name, value in {"prompt": prompt, **settings}.items() if value is not None})


def _jobs(
    named: Sequence[tuple[str, CheckedImage | None, VideoRequest]],
    output: str | None,
    contact_sheet: str | None,
    save_still: str | None,
    *,
    force: bool,
) -> list[Job]:
    """Every video to be made, its settings and its places checked."""
    from kinema.cli.making import Job
    from kinema.cli.targets import keep_apart, sheet_paths, video_paths
    from kinema.library import all_cautions
    from kinema.media.still import plain_name
    from kinema.models.catalog import cautions

    requests = [request for _, _, request in named]
    stems = [(image.name if image else plain_name(source, 60)) or "video" for source, image, _ in named]
    targets = video_paths(output, stems, requests)
    sheets = sheet_paths(contact_sheet, stems, requests)
    drawn = sheet_paths(save_still, stems, requests, what="still")
    keep_apart([*targets, *sheets, *drawn], [source for source, image, _ in named if image], force=force)
    count = len(named)
    return [
        Job(
            source,
            None,
            request,
            target,
            sheet,
            picture,
            f"{index}/{count}" if count > 1 else "",
            tuple(all_cautions(image.facts, request) if image else cautions(request)),
            image=image,
        )
        for index, ((source, image, request), target, sheet, picture) in enumerate(
            zip(named, targets, sheets, drawn, strict=True), 1
        )
    ]
