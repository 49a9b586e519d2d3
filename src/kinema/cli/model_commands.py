"""`kinema models`: list models; `kinema models pull`: download one."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated

import typer

from kinema.cli.options import Command, CommandGroup, Json, Quiet
from kinema.cli.report import open_report, print_table, stdout_console
from kinema.models.catalog import CATALOG, IMAGE_MODELS, human_bytes

if TYPE_CHECKING:
    from kinema.models.resolve import InstalledModel

app = typer.Typer(cls=CommandGroup, invoke_without_command=True)


@app.callback()
def models(
    context: typer.Context, *, json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False
) -> None:
    """List the available models and show which are downloaded. Works offline."""
    if context.invoked_subcommand is not None:
        return
    from kinema.models.resolve import inventory

    installed = inventory()
    if json:
        print(json_text.dumps([_facts(model) for model in installed], indent=2))  # noqa: T201 - the result
        return
    _print_table(installed)


PULL_HELP = f"Name of the catalog ({', '.join([*CATALOG, *IMAGE_MODELS])}), or hub id (owner/name\\[@revision])."


@app.command(cls=Command, no_args_is_help=True)
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help=PULL_HELP)],
    *,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a model. Print its folder to stdout.

    An interrupted download is resumed.
    """
    from kinema.models.resolve import inventory, pull, resolve

    with open_report(json_lines=json, quiet=quiet) as report:
        source = resolve(name, text_to_image=None)
        entry = CATALOG.get(name) or IMAGE_MODELS.get(name)
        is_downloaded = next((model.present for model in inventory() if model.entry is entry), False)
        size = f"{human_bytes(entry.size_bytes)}, " if entry and entry.size_bytes else ""
        if entry:
            report.emit("note", f"{name}: {size}{entry.licence} ({entry.licence_url})")
        elif source.repository:
            report.emit("note", f"{source.repository}: for its licence see https://huggingface.co/{source.repository}")
        if not is_downloaded:
            report.emit("load", f"downloading {name}", model=name)
        snapshot = pull(name, report.download)
        state = "was already downloaded" if is_downloaded else "downloaded"
        report.emit(
            "loaded", f"{name} {state}, {human_bytes(snapshot.size_bytes)}", model=name, size_bytes=snapshot.size_bytes
        )
        report.result(snapshot.folder)


def _facts(model: InstalledModel) -> dict[str, object]:
    """Return the JSON object of a model."""
    entry = model.entry
    return {
        "name": entry.name,
        "description": entry.description,
        "makes": "images" if entry.text_to_image else "videos",
        "present": model.present,
        "path": str(model.path) if model.path else None,
        "kind": model.source,
        "repository": entry.repository,
        "revision": entry.revision,
        "gated": entry.gated,
        "size_bytes": model.size_bytes,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "defaults": dict(entry.defaults),
    }


def _print_table(installed: list[InstalledModel]) -> None:
    """Print the models to stdout as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "output", "downloaded", "size", "description, source, licence"):
        table.add_column(title, justify="right" if title == "size" else "left", overflow="fold")
    for model in installed:
        entry = model.entry
        licence = entry.licence + (" (accept it on the hub first)" if entry.gated else "")
        table.add_row(
            entry.name,
            "images" if entry.text_to_image else "videos",
            "yes" if model.present else "no",
            human_bytes(model.size_bytes) if model.size_bytes else "–",
            f"{entry.description}\n[dim]{entry.repository or 'included in this package'} · {licence}[/]",
        )
    print_table(table)
    stdout_console().print(
        "--model also accepts any hub id (owner/name) or folder in diffusers' layout, and so does --image-model for "
        "text-to-image models.",
        style="dim",
    )
