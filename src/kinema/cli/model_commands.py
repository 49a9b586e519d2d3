"""`kinema models`: what can be had and what is here; `kinema models pull` fetches ahead."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated

import typer

from kinema.cli.options import Json, Quiet  # noqa: TC001 - typer reads annotations
from kinema.cli.report import report, stdout_console
from kinema.models.catalog import CATALOG, IMAGE_MODELS, human_bytes

if TYPE_CHECKING:
    from kinema.models.resolve import InstalledModel

app = typer.Typer(help="What models can be had, and which are on this machine.", invoke_without_command=True)


@app.callback()
def models(
    context: typer.Context, *, json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False
) -> None:
    """What models can be had, and which are on this machine. The network is not asked."""
    if context.invoked_subcommand is not None:
        return
    from kinema.models.resolve import inventory

    held = inventory()
    if json:
        print(json_text.dumps([_facts(one) for one in held], indent=2))  # noqa: T201 - the result
        return
    _table(held)


@app.command(no_args_is_help=True)
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Catalog name, or hub id (owner/name[@revision]).")],
    *,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a model ahead of its use. Its folder goes to stdout.

    A download that broke off goes on where it stopped.
    """
    from kinema.models.resolve import inventory, pull, resolve

    with report(json_lines=json, quiet=quiet) as told:
        source = resolve(name, text_to_image=name in IMAGE_MODELS)
        entry = CATALOG.get(name) or IMAGE_MODELS.get(name)
        here = next((held.present for held in inventory() if held.entry is entry), False)
        size = f"{human_bytes(entry.size_bytes)}, " if entry and entry.size_bytes else ""
        if entry:
            told.tell("note", f"{name}: {size}{entry.licence} ({entry.licence_url})")
        elif source.repository:
            told.tell("note", f"{source.repository}: its licence is told at https://huggingface.co/{source.repository}")
        if not here:
            told.tell("load", f"fetching {name}", model=name)
        snapshot = pull(name, told.download)
        state = "was here already" if here else "is here"
        told.tell(
            "loaded", f"{name} {state}, {human_bytes(snapshot.size_bytes)}", model=name, size_bytes=snapshot.size_bytes
        )
        told.result(snapshot.folder)


def _facts(held: InstalledModel) -> dict[str, object]:
    """A model as JSON tells it."""
    entry = held.entry
    return {
        "name": entry.name,
        "description": entry.description,
        "makes": "images" if entry.text_to_image else "videos",
        "present": held.present,
        "path": str(held.path) if held.path else None,
        "kind": held.kind,
        "repository": entry.repository,
        "revision": entry.revision,
        "gated": entry.gated,
        "size_bytes": held.size_bytes,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "defaults": dict(entry.defaults),
    }


def _table(held: list[InstalledModel]) -> None:
    """The models on stdout, a line each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "makes", "here", "size", "what it is, where from, licence"):
        table.add_column(title, justify="right" if title == "size" else "left", overflow="fold")
    for one in held:
        entry = one.entry
        licence = entry.licence + (", to be accepted on the hub" if entry.gated else "")
        table.add_row(
            entry.name,
            "images" if entry.text_to_image else "videos",
            "yes" if one.present else "no",
            human_bytes(one.size_bytes) if one.size_bytes else "–",
            f"{entry.description}\n[dim]{entry.repository or 'in this package'} · {licence}[/]",
        )
    console = stdout_console()
    console.print(table)
    console.print(
        "Any hub id (owner/name) or folder in diffusers' layout can be used as --model too, or as --image-model where "
        "it draws stills.",
        style="dim",
    )
