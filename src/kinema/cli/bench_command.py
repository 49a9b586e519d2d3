"""`kinema bench`: compare the speed of Kinema and diffusers on this machine."""

from __future__ import annotations

import json as json_text
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kinema.benchmark import check, check_settings, gradient, named
from kinema.cli.generate import choose_model
from kinema.cli.options import (
    MODEL_PANEL,
    OUTPUT_PANEL,
    Device,
    Dtype,
    Force,
    Gpus,
    Model,
    Precision,
    Quiet,
    with_video_parameters,
)
from kinema.cli.output_paths import check_conflicts, make_folders, record_path
from kinema.cli.render import report_download
from kinema.cli.report import open_report, print_table, stdout_console
from kinema.models.catalog import CATALOG, request_for
from kinema.models.video_size import expand_size, follow_image
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kinema.benchmark.measure import Record
    from kinema.values import Engine

# Row titles of the table, and their keys in a side's `warm` figures.
ROWS = {"encode": "encode", "denoise": "denoise", "one step": "step", "decode": "decode", "total": "all"}


@with_video_parameters
def bench(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGE",
            show_default=False,
            help="Image (JPEG, PNG, WebP, HEIC, AVIF): path or http(s) URL. Unset: a generated gradient.",
        ),
    ] = None,
    *,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Baselines to compare with, comma-separated: diffusers, diffusers-compile (torch.compile), "
            "kinema-one-gpu (with --gpus). 'nothing' measures Kinema only.",
        ),
    ] = "diffusers",
    baseline_dtype: Annotated[
        str | None,
        typer.Option(metavar="float16|bfloat16|float32", help="Dtype of the baselines. Unset: the same as Kinema's."),
    ] = None,
    runs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of warm runs per side, alternating; medians are shown.")
    ] = 3,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Remark to store with the measurements, e.g. "random weights".')
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.json",
            rich_help_panel=OUTPUT_PANEL,
            help="Also write the measurements to this file, as JSON.",
        ),
    ] = None,
    force: Force = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT_PANEL,
            help="Write the measurements to stdout as JSON, instead of the table.",
        ),
    ] = False,
    quiet: Quiet = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    gpus: Gpus = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="fast|reference",
            rich_help_panel=MODEL_PANEL,
            help="fast: Kinema's own forward passes; reference: those of diffusers. Unset: fast on CPUs, and in "
            "float16 or bfloat16 on NVIDIA GPUs from Ampere on with Triton installed; else reference.",
        ),
    ] = None,
    **parameters: Any,
) -> None:
    """Compare the speed of Kinema and diffusers on this machine, with the same weights, image, parameters and seed.

    Kinema and each baseline (the sides) run in their own processes; after one cold run each, warm runs alternate. The
    table shows the cold start (process start to first file), loading, the time of each stage, peak memory and
    TFLOP/s, then the difference between the frames. Close other programs first: they affect the timings.

    [dim]kinema bench rocket.png --model pocket --seed 42 -o pocket.json[/dim]
    """
    from kinema.library import all_warnings
    from kinema.media.image import open_image
    from kinema.media.video_writer import publish
    from kinema.models.resolve import resolve
    from kinema.settings import read_settings

    with open_report(json_lines=False, quiet=quiet) as report:
        settings = read_settings(device=device, dtype=dtype, precision=precision, gpus_per_video=gpus, model=model)
        path = record_path(output)
        check_conflicts([path], [image] if image else [], force=force)
        make_folders([path])
        baselines = named(against)
        check(engine, baseline_dtype)
        parameters = expand_size(parameters)
        VideoRequest.checked(**{name: value for name, value in parameters.items() if value is not None})
        opened = open_image(image) if image else None
        model_name = settings.model or choose_model(settings, report)
        resolve(model_name)
        request = request_for(model=model_name, **parameters)
        if opened is not None:
            request = follow_image(request, opened.facts.size, parameters)
        check_settings(baselines, request, settings.gpus_per_video)
        opened = opened or gradient(request.width, request.height)
        for warning in all_warnings(opened.facts, request):
            report.emit("warning", warning)
        report_download(CATALOG.get(model_name), report)
        from kinema.benchmark.measure import measure

        record: Record = {}
        for result in measure(
            model_name,
            opened,
            request,
            settings=settings,
            engine=cast("Engine | None", engine),  # validated above
            baselines=baselines,
            baseline_dtype=baseline_dtype,
            runs=runs,
            note=note,
            progress=report.download,
        ):
            if isinstance(result, str):
                report.emit("start", result)
            else:
                record = result
                if path is not None:  # intermediate results survive an interruption
                    publish(f"{_to_json(record)}\n".encode(), path)
        if path is not None:
            report.emit("note", f"record: {path}")
    if json:
        print(_to_json(record))  # noqa: T201 - the result
    else:
        _print_table(record)


def _to_json(record: Record) -> str:
    return json_text.dumps(record, indent=1, ensure_ascii=False)


def _print_table(record: Record) -> None:
    """Print the record as a table with explanations below."""
    from rich.table import Table

    kinema, baselines = record["kinema"], record["baselines"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ["", "kinema", *(title for name in baselines for title in (name, "factor"))]:
        table.add_column(title, justify="right" if title else "left")

    def row(title: str, cell: Callable[[Any], str], factor: str | None = None) -> None:
        cells = ((cell(side), f"{side['factor'][factor]:.2f}×" if factor else "") for side in baselines.values())
        table.add_row(title, cell(kinema), *(text for pair in cells for text in pair))

    row("cold start", lambda side: f"{side['cold']['seconds']:.2f} s", "cold")
    if any(side["cold_again"] for side in (kinema, *baselines.values())):
        row("second cold start", lambda side: f"{side['cold_again']['seconds']:.2f} s" if side["cold_again"] else "")
    row("loading", lambda side: f"{side['load_seconds']:.2f} s", "load")
    for title, stage in ROWS.items():
        row(title, partial(_spread, stage=stage), stage)
    row("peak memory", _memory)
    for stage in ("denoise", "decode"):
        row(f"{stage}, TFLOP/s", partial(_speed, stage=stage))
    print_table(table)
    console = stdout_console()
    console.print()
    for line in _lines(record):
        console.print(line, markup=False)


def _spread(side: Mapping[str, Any], stage: str) -> str:
    median, minimum, maximum = (side["warm"][name][stage] for name in ("median", "min", "max"))
    return f"{median:.3f} s ({minimum:.3f} to {maximum:.3f})"


def _memory(side: Mapping[str, Any]) -> str:
    return ", ".join(f"{kind} {amount:.2f} GiB" for kind, amount in side["peak_memory_gib"].items())


def _speed(side: Mapping[str, Any], stage: str) -> str:
    return f"{side['tflop_per_second'][stage]:.3g} ({side['share_of_matrix_rate'][stage]:.0%} of matmul rate)"


def _lines(record: Record) -> list[str]:
    """Return the lines below the table: difference of the frames, and the conditions of the measurement."""
    request, tflop, machine, model = (record[name] for name in ("parameters", "tflop", "machine", "model"))
    size = f"{request['num_frames']} frames of {request['width']}×{request['height']}"
    rates = ", ".join(f"{rate:.3g} ({kind})" for kind, rate in record["matrix_tflop_per_second"].items())
    dtype = record["dtype"]
    if record["baseline_dtype"] not in (None, dtype):
        dtype += f" (baselines in {record['baseline_dtype']})"
    if record["precision"] != "full":
        dtype += f", {record['precision']}"
    chunk, image = request["decode_chunk_size"], record["image"]["name"]
    facts = {
        "frames": "; ".join(_difference(name, side) for name, side in record["baselines"].items()),
        "compute": f"{tflop['step']:.3g} TFLOP per step and {tflop['decode']:.3g} to decode, as in diffusers; "
        f"matmul rate {rates} TFLOP/s",
        "videos": f"{size}, {request['num_inference_steps']} steps, seed {request['seed']}, image {image}; "
        f"medians of {record['runs']} runs",
        "model": f"{model['name']} ({model['weights_sha256'][:12]}) in {dtype}, {record['engine']} engine, "
        f"{record['memory_plan']}, {chunk} frames decoded at once"
        + (f", {record['gpus']} GPUs" if record["gpus"] > 1 else ""),
        "machine": f"{machine.get('gpu', machine['processor'])}, {machine['cores']} cores, "
        f"{machine['threads']} threads, {machine['capability']}, load {machine['load_before'][0]:g} before",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        "warning": "; ".join(record["events"]),
        "note": record["note"],
    }
    return [f"{name:<11} {fact}" for name, fact in facts.items() if fact]


def _difference(name: str, side: Mapping[str, Any]) -> str:
    frames, latents = side["frames"], f"final latents differ by {side['latents_relative_difference']:.2g} of their norm"
    if frames["psnr_db"] is None:
        return f"identical to {name}, pixel for pixel; {latents}"
    maximum = frames["max_difference"]
    return f"PSNR {frames['psnr_db']:.1f} dB against {name}, difference at most {maximum}/255; {latents}"
