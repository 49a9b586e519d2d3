"""`kinema bench`: how quick Kinema is on this machine, beside diffusers."""

from __future__ import annotations

import json as json_text
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kinema.benchmark import check, check_settings, gradient, named
from kinema.cli.generate import chosen_model
from kinema.cli.options import (
    MODEL_PANEL,
    OUTPUT_PANEL,
    Device,
    Dtype,
    Force,
    Model,
    Precision,
    Quiet,
    with_video_settings,
)
from kinema.cli.output_paths import keep_apart, make_folders, record_path
from kinema.cli.render import tell_fetch
from kinema.cli.report import report, stdout_console
from kinema.models.catalog import CATALOG, request_for
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kinema.benchmark.measure import Record
    from kinema.values import Engine

# Rows of the table: what they are called, and where they lie in a side's `warm` figures.
ROWS = {"encode": "encode", "denoise": "denoise", "a step of it": "step", "decode": "decode", "in all": "all"}


@with_video_settings
def bench(
    image: Annotated[
        str | None,
        typer.Argument(
            metavar="STILL",
            show_default=False,
            help="A picture (JPEG, PNG, WebP): path, or http(s) address. Unset: a gradient is drawn.",
        ),
    ] = None,
    *,
    against: Annotated[
        str,
        typer.Option(
            metavar="PEER[,PEER]",
            help="Whom to measure beside: diffusers, diffusers-compile (torch.compile), both, or nothing.",
        ),
    ] = "diffusers",
    peer_dtype: Annotated[
        str | None,
        typer.Option(metavar="float16|bfloat16|float32", help="The peers' arithmetic. Unset: the same as ours."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Warm videos of each, in turns; medians are told.")] = 3,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help='What a reader of the record should know: "random weights".')
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE.json", rich_help_panel=OUTPUT_PANEL, help="Write the record there too."),
    ] = None,
    force: Force = False,
    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT_PANEL, help="Write the record to stdout, not the table.")
    ] = False,
    quiet: Quiet = False,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="fast|reference",
            rich_help_panel=MODEL_PANEL,
            help="Whose forward computes on our side: Kinema's own, or diffusers'. Unset: as generate does.",
        ),
    ] = None,
    **settings: Any,
) -> None:
    """Measure Kinema beside diffusers on this machine: the same weights, still, settings and seed, in turns.

    Each has a process of its own, and is told cold (from its start to the first finished file), loading, by stage, in
    memory and in arithmetic; and how far their frames are from each other. Times are worth what else the machine does
    meanwhile.

    [dim]kinema bench rocket.png --model pocket --seed 42 --out pocket.json[/dim]
    """
    from kinema.library import all_warnings
    from kinema.media.image import open_image
    from kinema.media.video_writer import publish
    from kinema.models.resolve import resolve
    from kinema.settings import read_settings

    with report(json_lines=False, quiet=quiet) as told:
        machine = read_settings(device=device, dtype=dtype, precision=precision, model=model)
        target = record_path(output)
        keep_apart([target], [image] if image else [], force=force)
        make_folders([target])
        peers = named(against)
        check(engine, peer_dtype)
        VideoRequest.checked(**{name: value for name, value in settings.items() if value is not None})
        opened = open_image(image) if image else None
        chosen = machine.model or chosen_model(machine, told)
        resolve(chosen)
        request = request_for(model=chosen, **settings)
        check_settings(peers, request)
        opened = opened or gradient(request.width, request.height)
        for warning in all_warnings(opened.facts, request):
            told.tell("warning", warning)
        tell_fetch(CATALOG.get(chosen), told)
        from kinema.benchmark.measure import measure

        record: Record = {}
        for result in measure(
            chosen,
            opened,
            request,
            settings=machine,
            engine=cast("Engine | None", engine),  # checked
            peers=peers,
            peer_dtype=peer_dtype,
            runs=runs,
            note=note,
            progress=told.download,
        ):
            if isinstance(result, str):
                told.tell("start", result)
            else:
                record = result
                if target is not None:  # what is known already outlives an interruption
                    publish(f"{_text(record)}\n".encode(), target)
        if target is not None:
            told.tell("note", f"the record: {target}")
    if json:
        print(_text(record))  # noqa: T201 - the result
    else:
        _show(record)


def _text(record: Record) -> str:
    return json_text.dumps(record, indent=1, ensure_ascii=False)


def _show(record: Record) -> None:
    """The record as a person reads it."""
    from rich.table import Table

    ours, peers = record["kinema"], record["peers"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ["", "kinema", *(title for name in peers for title in (name, "factor"))]:
        table.add_column(title, justify="right" if title else "left")

    def row(title: str, cell: Callable[[Any], str], factor: str | None = None) -> None:
        theirs = ((cell(peer), f"{peer['factor'][factor]:.2f}×" if factor else "") for peer in peers.values())
        table.add_row(title, cell(ours), *(text for pair in theirs for text in pair))

    row("a fresh process", lambda side: f"{side['cold']['seconds']:.2f} s", "cold")
    if any(side["cold_again"] for side in (ours, *peers.values())):
        row("another", lambda side: f"{side['cold_again']['seconds']:.2f} s" if side["cold_again"] else "")
    row("loading", lambda side: f"{side['load_seconds']:.2f} s", "load")
    for title, stage in ROWS.items():
        row(title, partial(_spread, stage=stage), stage)
    row("memory", _memory)
    for stage in ("denoise", "decode"):
        row(f"{stage}, TFLOP/s", partial(_speed, stage=stage))
    console = stdout_console()
    console.print(table)
    console.print()
    for line in _lines(record):
        console.print(line, markup=False)


def _spread(side: Mapping[str, Any], stage: str) -> str:
    middle, least, most = (side["warm"][name][stage] for name in ("median", "min", "max"))
    return f"{middle:.3f} s ({least:.3f} to {most:.3f})"


def _memory(side: Mapping[str, Any]) -> str:
    return ", ".join(f"{kind} {amount:.2f} GiB" for kind, amount in side["peak_memory_gib"].items())


def _speed(side: Mapping[str, Any], stage: str) -> str:
    return f"{side['tflop_per_second'][stage]:.3g} ({side['share_of_matrix_rate'][stage]:.0%} of matrix products)"


def _lines(record: Record) -> list[str]:
    """What stands under the table: the price of the speed, and whose figures these are."""
    settings, tflop, there, model = (record[name] for name in ("settings", "tflop", "machine", "model"))
    size = f"{settings['num_frames']} frames of {settings['width']}×{settings['height']}"
    rates = ", ".join(f"{rate:.3g} ({kind})" for kind, rate in record["matrix_tflop_per_second"].items())
    arithmetic = record["dtype"]
    if record["peer_dtype"] not in (None, arithmetic):
        arithmetic += f" (the peers in {record['peer_dtype']})"
    if record["precision"] != "full":
        arithmetic += f", {record['precision']}"
    chunk, image = settings["decode_chunk_size"], record["image"]["name"]
    facts = {
        "frames": "; ".join(_distance(name, peer) for name, peer in record["peers"].items()),
        "arithmetic": f"{tflop['step']:.3g} TFLOP a step and {tflop['decode']:.3g} to decode, as diffusers does it; "
        f"matrix products at {rates} TFLOP/s here",
        "videos": f"{size} in {settings['num_inference_steps']} steps, seed {settings['seed']}, of {image}; "
        f"{record['runs']} of each, medians",
        "model": f"{model['name']} ({model['weights_sha256'][:12]}) in {arithmetic}, {record['engine']} engine, "
        f"{record['memory_plan']}, {chunk} frames decoded together",
        "machine": f"{there.get('gpu', there['processor'])}, {there['cores']} cores, {there['threads']} threads, "
        f"{there['capability']}, load {there['load_before'][0]:g} before",
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        "warning": "; ".join(record["events"]),
        "note": record["note"],
    }
    return [f"{name:<11} {fact}" for name, fact in facts.items() if fact]


def _distance(name: str, peer: Mapping[str, Any]) -> str:
    apart, latents = peer["frames"], f"the last latents by {peer['latents_apart']:.2g} of their norm"
    if apart["psnr_db"] is None:
        return f"that of {name}, pixel for pixel; {latents}"
    most = apart["greatest_difference"]
    return f"PSNR {apart['psnr_db']:.1f} dB beside that of {name}, at most {most}/255 apart; {latents}"
