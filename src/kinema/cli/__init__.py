"""The command: what was asked on the command line becomes calls of the library, and every outcome an exit code.

Results go to stdout, everything else to stderr. Heavy libraries are imported by the commands that need them, so that
`kinema --help` is quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Annotated

import typer

from kinema.cli import bench_command, doctor, generate, inspect, model_commands, remake, serve
from kinema.cli.exit_codes import EPILOG, READER_GONE, Interrupted, code_of, stopping_cleanly
from kinema.cli.report import say
from kinema.errors import KinemaError
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFECT = 70  # as EX_SOFTWARE of sysexits.h

app = typer.Typer(
    name="kinema",
    help="A still image becomes a short video with Stable Video Diffusion, on your own hardware.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(name="generate", no_args_is_help=True, epilog=EPILOG)(generate.generate)
app.command(name="inspect", no_args_is_help=True)(inspect.inspect)
app.command(name="remake", no_args_is_help=True, epilog=EPILOG)(remake.remake)
app.add_typer(model_commands.app, name="models")
app.command(name="serve")(serve.serve)
app.command(name="bench", epilog=EPILOG)(bench_command.bench)
app.command(name="doctor")(doctor.doctor)


def _show_version(*, wanted: bool) -> None:
    if wanted:
        print(f"kinema {own_version()}")  # noqa: T201 - the result
        raise typer.Exit


@app.callback()
def _kinema(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _show_version(wanted=wanted),
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """A still image becomes a short video with Stable Video Diffusion, on your own hardware."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` when None is given), and give its exit code; `EPILOG` says what they mean."""
    with contextlib.suppress(AttributeError):  # a stand-in for stdout
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # any file's name can be printed
    try:
        with stopping_cleanly():
            command = typer.main.get_command(app)
            code: int = command.main(arguments, prog_name="kinema", standalone_mode=False) or 0
        with contextlib.suppress(AttributeError):
            sys.stdout.flush()  # here, where it can still be told that no one reads it
        return code
    except KinemaError as error:
        say(str(error), "error")
        return code_of(error)
    except Interrupted as stop:
        say("nothing half-written is left", "interrupted")
        return stop.code
    except typer.TyperException as error:
        return _misused(error)
    except (BrokenPipeError, SystemExit) as stop:
        if not isinstance(stop, BrokenPipeError) and not isinstance(stop.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the very end
        return READER_GONE
    except Exception:  # noqa: BLE001 - the last resort: told whole, so that it can be mended
        traceback.print_exc()
        say("this is a defect of Kinema; please report it with the lines above", "error")
        return DEFECT


def _misused(error: typer.TyperException) -> int:
    """Tell in one line what is wrong with the command line itself."""
    message = error.format_message().rstrip(".")
    if message:  # none where help was printed for want of arguments
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "kinema"
        say(f"{message[:1].lower()}{message[1:]} (see `{where} --help`)", "error")
    return error.exit_code
