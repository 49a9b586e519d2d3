"""`kinema batch`: make a video of each image or prompt of a list, and continue after an interruption."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinema.cli.common_options import CommonOptions, with_common_options
from kinema.cli.exit_codes import Interrupted
from kinema.cli.item_failures import ItemFailure, ItemFailures
from kinema.cli.options import OUTPUT_PANEL, expanded
from kinema.cli.report import open_report
from kinema.cli.variations import MAX_SEEDS
from kinema.errors import InvalidRequest, KinemaError
from kinema.models.video_size import expand_size
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.batch.batch_folder import BatchFolder
    from kinema.batch.batch_items import BatchItem, Outcome
    from kinema.batch.batch_jobs import BatchJobs
    from kinema.batch.server_jobs import ServerJobs
    from kinema.cli.report import Report
    from kinema.settings import Settings

SERVER_PANEL = "Server"
_NOT_ON_A_SERVER = ("device", "dtype", "precision", "gpus", "credentials", "watermark")


@with_common_options
def batch(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES|FOLDER|MANIFEST.jsonl",
            show_default=False,
            help="Images (JPEG, PNG, WebP, HEIC, AVIF), folders of images, or manifests: each line of a .jsonl file is "
            'an object with "image" (a path, relative to the manifest) or "prompt", any video parameter or "seconds", '
            'and optionally "last_image" (a path to where the video ends) and "name", the name of the output file '
            "without its extension.",
        ),
    ],
    *,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
            help="Output folder; created if missing. Videos are NAME.mp4, or NAME-seedN.mp4 with --seeds. Only files "
            "of this batch are overwritten.",
        ),
    ],
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_SEEDS,
            rich_help_panel=OUTPUT_PANEL,
            help="Videos per image or prompt, with the seeds seed to seed + N - 1. If --seed is -1 or unset, the first "
            "seed is derived from the content of the image file or prompt, so that it is the same in each run.",
        ),
    ] = 1,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            rich_help_panel=SERVER_PANEL,
            help="Make the videos on this Kinema server, such as http://gpu:3000. Unset: on this machine, which needs "
            "kinema\\[server].",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="KINEMA_API_KEY",
            rich_help_panel=SERVER_PANEL,
            show_envvar=False,
            help="API key of the server. Prefer KINEMA_API_KEY: other users can see the command line.",
        ),
    ] = None,
    options: CommonOptions,
    **parameters: Any,
) -> None:
    """Make a video of each image or prompt, and print the path of each finished video to stdout.

    Run the same command again to continue after an interruption: finished videos are kept, failed ones are tried again,
    and new images are added. An image that fails does not stop the others. At the end, the output folder has
    summary.json, summary.csv and contact-sheet.png.

    [dim]kinema batch photos --out videos --seeds 4[/dim]

    [dim]kinema batch manifest.jsonl --out videos --server http://gpu:3000[/dim]
    """
    from kinema.batch.batch_folder import BatchFolder
    from kinema.batch.batch_items import MANIFEST_EXTENSION, last_image_path, plan_items
    from kinema.library import check_last_image

    with open_report(json_lines=options.json, quiet=options.quiet) as report, ExitStack() as stack:
        given = {name: value for name, value in expand_size(parameters).items() if value is not None}
        # Before torch is imported to choose a model. A manifest may have prompts.
        has_manifest = any(source.lower().endswith(MANIFEST_EXTENSION) for source in sources)
        VideoRequest.checked(**given | ({"prompt": "-"} if has_manifest else {}))
        given |= {} if options.seconds is None else {"seconds": options.seconds}
        folder = BatchFolder(Path(expanded(out)))
        jobs: BatchJobs
        if server is None:
            jobs = _own_queue(folder, report, options.settings())
        else:
            for name in _NOT_ON_A_SERVER:
                if getattr(options, name) is not None:
                    raise InvalidRequest(f"--{name} does not apply with --server, which decides it; remove it", name)
            jobs = stack.enter_context(_server_jobs(server, api_key, options.model))
        request = jobs.complete({name: value for name, value in given.items() if not has_manifest})
        last_image = None
        if options.last_image is not None:
            downloads = Path(stack.enter_context(TemporaryDirectory(prefix="kinema-")))
            last_image = last_image_path(expanded(options.last_image), downloads)
        if last_image is not None and not has_manifest:
            check_last_image(request)
        items, failures = plan_items(
            [expanded(source) for source in sources],
            given,
            jobs.complete,
            seeds=seeds,
            out=folder.path,
            last_image=last_image,
            file_options=jobs.file_options,
        )
        with folder:
            outcomes = _run(items, failures, folder, jobs, report)
        _report_failures(outcomes, report)


def _own_queue(folder: BatchFolder, report: Report, settings: Settings) -> BatchJobs:
    from kinema.batch.own_queue import OwnQueue

    return OwnQueue(folder.hidden, settings, report.download)


def _server_jobs(url: str, api_key: str | None, model: str | None) -> ServerJobs:
    from kinema.batch.server_jobs import ServerJobs

    return ServerJobs(url, api_key, model)


def _run(
    items: Sequence[BatchItem], failures: list[Outcome], folder: BatchFolder, jobs: BatchJobs, report: Report
) -> list[Outcome]:
    """Run the items and write the summary, also if the run ends early. Return all outcomes in order."""
    from kinema.batch.batch_folder import foreign_file
    from kinema.batch.batch_items import SUMMARY_FILES
    from kinema.batch.batch_jobs import run_items
    from kinema.batch.batch_progress import BatchProgress
    from kinema.batch.batch_summary import write_contact_sheet, write_summary

    for name in SUMMARY_FILES:
        if folder.state(name).kind == "foreign":
            raise foreign_file(folder.path / name)
    outcomes = {item.name: item.pending for item in items}
    progress = BatchProgress(len(items) + len(failures), failed=len(failures))
    report.batch_progress(progress)
    try:
        for outcome in run_items(items, folder, jobs):
            if isinstance(outcome, str):
                report.emit("warning", outcome)
                continue
            outcomes[outcome.name] = outcome
            _report_outcome(outcome, folder, report)
            progress.add(outcome)
            report.batch_progress(progress)
    except (KinemaError, Interrupted):
        write_summary([*outcomes.values(), *failures], folder)
        report.emit(
            "note", f"{progress.completed} of {progress.total} videos are completed; run the same command to continue"
        )
        raise
    everything = [*outcomes.values(), *failures]
    write_summary(everything, folder)
    count, unreadable = write_contact_sheet(everything, folder)
    for file in unreadable:
        report.emit("warning", f"{file} can't be read and is not on the contact sheet")
    report.batch_done(progress, folder.path, pictures=count)
    return everything


def _report_outcome(outcome: Outcome, folder: BatchFolder, report: Report) -> None:
    if outcome.file is not None:
        seconds = None if outcome.seconds is None else round(outcome.seconds, 2)
        report.result(folder.path / outcome.file, seed=outcome.seed, seconds=seconds, earlier=outcome.is_earlier)


def _report_failures(outcomes: Sequence[Outcome], report: Report) -> None:
    failures = ItemFailures(report)
    for outcome in outcomes:
        if outcome.error is not None:
            error = outcome.error
            failures.items.append(ItemFailure(outcome.name, outcome.source, outcome.seed, error.code, error.message))
    failures.report_all()
