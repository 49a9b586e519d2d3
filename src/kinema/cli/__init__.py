"""The command line: maps each command to library calls and each outcome to an exit code.

Results go to stdout, everything else to stderr. Commands import heavy libraries themselves, so that `kinema --help` is
fast.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from kinema.cli import (
    batch_command,
    bench_command,
    doctor,
    extend,
    generate,
    inspect,
    model_commands,
    remake,
    serve,
    verify,
)
from kinema.cli.exit_codes import EPILOG, INTERNAL_ERROR, STDOUT_CLOSED, Interrupted, exit_code_for, raise_on_signals
from kinema.cli.options import Command, CommandGroup
from kinema.cli.report import print_line
from kinema.errors import KinemaError
from kinema.messages import rejected_value
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    name="kinema",
    cls=CommandGroup,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(name="generate", cls=Command, no_args_is_help=True, epilog=EPILOG)(generate.generate)
app.command(name="extend", cls=Command, no_args_is_help=True, epilog=EPILOG)(extend.extend)
app.command(name="batch", cls=Command, no_args_is_help=True, epilog=EPILOG)(batch_command.batch)
app.command(name="inspect", cls=Command, no_args_is_help=True)(inspect.inspect)
app.command(name="remake", cls=Command, no_args_is_help=True, epilog=EPILOG)(remake.remake)
app.command(name="verify", cls=Command, no_args_is_help=True)(verify.verify)
app.add_typer(model_commands.app, name="models")
app.command(name="serve", cls=Command)(serve.serve)
app.command(name="bench", cls=Command, epilog=EPILOG)(bench_command.bench)
app.command(name="doctor", cls=Command)(doctor.doctor)


def _print_version(*, requested: bool) -> None:
    if requested:
        print(f"kinema {own_version()}")  # noqa: T201 - the result
        raise typer.Exit


@app.callback()
def _kinema(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda requested: _print_version(requested=requested),
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Turn an image or a text prompt into a short video with Stable Video Diffusion, on your own hardware."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default `sys.argv`, and return its exit code (see `EPILOG`)."""
    with contextlib.suppress(AttributeError):  # stdout is replaced by another object
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # prints any file name
    try:
        with raise_on_signals():
            command = typer.main.get_command(app)
            code: int = command.main(arguments, prog_name="kinema", standalone_mode=False) or 0
        with contextlib.suppress(AttributeError):
            sys.stdout.flush()  # here, where BrokenPipeError is still handled
        return code
    except KinemaError as error:
        print_line(str(error), "error")
        return exit_code_for(error)
    except Interrupted as stop:
        print_line("no partial file is left", "interrupted")
        return stop.code
    except typer.TyperException as error:
        return _print_usage_error(error)
    except (BrokenPipeError, SystemExit) as stop:
        if not isinstance(stop, BrokenPipeError) and not isinstance(stop.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again at exit
        return STDOUT_CLOSED
    except Exception:  # noqa: BLE001 - the last resort
        traceback.print_exc()
        print_line("internal error of Kinema; please report it with the lines above", "error")
        return INTERNAL_ERROR


def _usage_message(error: typer.TyperException) -> str:
    """Return what is wrong with the command line, also where typer passes on pydantic's text."""
    parameter = getattr(error, "param", None)
    if isinstance(error.__cause__, ValidationError) and parameter is not None:
        return rejected_value(parameter.opts[0], error.__cause__.errors()[0])
    return error.format_message().rstrip(".")


def _print_usage_error(error: typer.TyperException) -> int:
    """Print an error of the command line itself in one line, and return its exit code."""
    message = _usage_message(error)
    if message:  # empty where help was printed because of missing arguments
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "kinema"
        print_line(f"{message[:1].lower()}{message[1:]} (see `{command} --help`)", "error")
    return error.exit_code
