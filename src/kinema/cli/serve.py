"""`kinema serve`: the server in its friendly form."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kinema.cli.options import Device, Dtype, Model, Precision  # noqa: TC001 - typer reads annotations
from kinema.cli.report import say
from kinema.errors import InvalidRequest, QueueUnavailable
from kinema.serving.bentoml_arbiter import check_port
from kinema.settings import read_settings

if TYPE_CHECKING:
    from kinema.settings import Settings

SERVICE = "kinema.serving.service:StableDiffusionVideo"


def serve(
    *,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 3000,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    workers: Annotated[
        str | None, typer.Option(help="Processes that generate; unset, one for each GPU, or one.", show_default=False)
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder for the queue, its stills and videos.", show_default=False)
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            "--key",
            envvar="KINEMA_API_KEYS",
            help="Key that every request must bring; several by commas.",
            show_default=False,
            show_envvar=False,
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Answer other machines although no key is asked for.")] = False,
) -> None:
    """Serve BentoML's API, /v1/videos and the page, with a queue that survives restarts.

    Each option is also a setting: KINEMA_MODEL, KINEMA_WORKERS, … in the environment or kinema.toml.
    """
    given = {
        "model": model,
        "device": device,
        "dtype": dtype,
        "precision": precision,
        "workers": workers,
        "data_dir": data_dir,
    }
    given |= {"api_keys": api_keys, "open": "true" if open_ else None}
    settings = read_settings(**given)
    _check_address(host, settings)
    _check_installed()
    host = "127.0.0.1" if host == "localhost" else host  # BentoML takes addresses alone
    check_port(host, port)
    _check_data(settings)
    say(f"jobs and videos are in {settings.data_dir.expanduser()}")
    # A key on the command line is seen by everyone on this machine; in the environment by its owner alone.
    environment = os.environ | {f"KINEMA_{name.upper()}": value for name, value in given.items() if value is not None}
    environment.setdefault("BENTOML_DO_NOT_TRACK", "True")
    sys.stdout.flush()
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own interpreter, which takes over signals and exit code


def _check_address(host: str, settings: Settings) -> None:
    """Refuse to be reached from elsewhere by whoever comes.

    Raises:
        InvalidRequest: saying what to set.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise InvalidRequest(f"host {host!r} is no address; give one, as 127.0.0.1 or 0.0.0.0", "host") from None
    if not local and not settings.api_keys and not settings.open:
        raise InvalidRequest(
            f"host {host} is reached from other machines, and no key is asked for: set KINEMA_API_KEYS, "
            "or --open where everyone who can reach it may use it",
            "host",
        )


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("bentoml") is None or find_spec("dbos") is None:
        raise InvalidRequest("the server's packages are not installed: pip install 'kinema[server]'")


def _check_data(settings: Settings) -> None:
    """Refuse a data folder and a database that do not belong together; one that is away is waited for.

    Raises:
        InvalidRequest: saying what to set.
    """
    from kinema.jobs import Queue

    with contextlib.suppress(QueueUnavailable):
        Queue(settings).close()
