"""`kinema generate`: stills become videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinema.cli.options import OUTPUT_PANEL, Device, Dtype, Force, Json, Model, Quiet, with_settings
from kinema.cli.progress import report
from kinema.models.catalog import request_for
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.cli.making import Job
    from kinema.cli.progress import Report
    from kinema.media.still import Still
    from kinema.settings import Settings


@with_settings
def generate(
    stills: Annotated[
        list[str],
        typer.Argument(metavar="STILL", help="Pictures (JPEG, PNG, WebP): paths, or http(s) addresses."),
    ],
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Where the video goes: .mp4, .webm, .gif, .webp, or no ending for a folder of png. For several stills "
            "a folder, or a template with {stem}, {index} or {seed}. Unset: STEM.mp4 in the current folder.",
        ),
    ] = None,
    contact_sheet: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Write all frames on one PNG too; named as -o is for several stills.",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    **settings: Any,
) -> None:
    """Turn stills into short videos. The model is loaded once, and each video's path goes to stdout.

    Everything that can be is checked before the work begins. If one video fails, those done before it stay.

    [dim]kinema generate rocket.png -o rocket.mp4 --seed 42 --motion-bucket-id 127[/dim]

    [dim]kinema generate photos/*.jpg -o "videos/{stem}-{seed}.webm" --model svd-xt[/dim]
    """
    from kinema.settings import read_settings

    with report(json_lines=json, quiet=quiet) as told:
        machine = read_settings(device=device, dtype=dtype, model=model)
        # Checked before torch is there to choose a model: no setting's range depends on it.
        VideoRequest.checked(**{name: value for name, value in settings.items() if value is not None})
        opened = _opened(stills)
        chosen = machine.model or _chosen(machine, told)
        jobs = _jobs(chosen, stills, opened, settings, output, contact_sheet, force=force)
        for caution in dict.fromkeys(caution for job in jobs for caution in job.cautions):
            told.tell("warning", caution)
        from kinema.cli.making import load, make

        models = load(chosen, machine, told)
        for job in jobs:
            make(models, job, told)


def _opened(sources: Sequence[str]) -> list[Still]:
    from kinema.media.still import open_still

    return [open_still(source) for source in sources]


def _chosen(machine: Settings, told: Report) -> str:
    """The model that is taken when none is named, said with the reason."""
    from kinema.models.loading import default_model

    name, reason = default_model(machine)
    told.tell("model", f"model {name}: {reason}", model=name, reason=reason)
    return name


def _jobs(
    model: str,
    sources: Sequence[str],
    stills: Sequence[Still],
    settings: dict[str, Any],
    output: str | None,
    contact_sheet: str | None,
    *,
    force: bool,
) -> list[Job]:
    """Every video to be made, its model known, its settings and its places checked."""
    from kinema.cli.making import Job
    from kinema.cli.targets import keep_apart, sheet_paths, video_paths
    from kinema.library import all_cautions
    from kinema.models.finding import resolve

    resolve(model)
    requests = [request_for(model=model, **settings) for _ in stills]
    stems = [still.name or "video" for still in stills]
    targets = video_paths(output, stems, requests, force=force)
    sheets = sheet_paths(contact_sheet, stems, requests, force=force)
    keep_apart([*targets, *sheets], sources)
    count = len(stills)
    return [
        Job(
            source,
            still,
            request,
            target,
            sheet,
            f"{index}/{count}" if count > 1 else "",
            tuple(all_cautions(still, request)),
        )
        for index, (source, still, request, target, sheet) in enumerate(
            zip(sources, stills, requests, targets, sheets, strict=True), 1
        )
    ]
