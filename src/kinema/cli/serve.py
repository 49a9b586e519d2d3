"""`kinema serve`: check the settings, then start the server under BentoML."""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from typing import Annotated

import typer

from kinema.cli.options import Device, Dtype, Gpus, Model, Precision  # noqa: TC001 - typer reads annotations
from kinema.cli.report import print_line
from kinema.errors import InvalidRequest, QueueUnavailable
from kinema.extras import install_remedy
from kinema.models.resolve import check_folder
from kinema.serving.bentoml_arbiter import check_port
from kinema.settings import Settings, read_settings, unknown_variables

SERVICE = "kinema.serving.service:StableDiffusionVideo"
RETRY_SECONDS = 2.0


def serve(
    *,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="IP address to listen on, or localhost; 0.0.0.0 for all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port to listen on.")] = 3000,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    precision: Precision = None,
    gpus: Gpus = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Number of worker processes. Unset: one per GPU, or one without a GPU.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for the queue, its images and its videos. "
            f"Unset: {Settings.model_fields['data_dir'].default}.",
            show_default=False,
        ),
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            "--key",
            envvar="KINEMA_API_KEYS",
            metavar="KEY[,KEY]",
            help="Comma-separated API keys. Every request except health checks must send one, as `Authorization: "
            "Bearer KEY`, as `X-API-Key` or as the password of HTTP Basic authentication (any user name). Prefer "
            "KINEMA_API_KEYS: other users can see the command line.",
            show_default=False,
            show_envvar=False,
        ),
    ] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated",
            help="Accept remote connections even if no API key is set. With API keys, each request still needs one.",
        ),
    ] = False,
) -> None:
    """Serve /generate (as in BentoML's tutorial), /v1/videos (OpenAI's API) and the web page, with a durable job queue.

    Each option except --host and --port is also a setting: KINEMA_MODEL, KINEMA_WORKERS, … in the environment, or
    model, workers, … in kinema.toml. --key is KINEMA_API_KEYS, or api_keys.
    """
    overrides = {
        "model": model,
        "device": device,
        "dtype": dtype,
        "precision": precision,
        "gpus_per_video": gpus,
        "workers": workers,
        "data_dir": data_dir,
    }
    overrides |= {"api_keys": api_keys, "allow_unauthenticated": "true" if allow_unauthenticated else None}
    settings = read_settings(**overrides)
    for warning in unknown_variables():
        print_line(warning, "warning")
    _check_host(host, settings)
    _check_installed()
    host = "127.0.0.1" if host == "localhost" else host  # BentoML accepts only IP addresses
    check_port(host, port)
    for name in settings.models:
        check_folder(name)
    _check_data_folder(settings)
    print_line(f"jobs and videos are stored in {settings.data_dir.expanduser()}")
    for line in _access_lines(settings):
        print_line(line)
    # Other users of the machine can read a process's command line, but not its environment.
    environment = os.environ | {
        f"KINEMA_{name.upper()}": value for name, value in overrides.items() if value is not None
    }
    environment.setdefault("BENTOML_DO_NOT_TRACK", "True")
    sys.stdout.flush()
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own interpreter, which inherits signals and exit code


def _access_lines(settings: Settings) -> list[str]:
    """Return who can use the server, and which models beside the catalog's, if they are set."""
    if settings.api_keys:
        lines = [f"API keys: {len(settings.api_keys)}"]
    elif settings.allow_unauthenticated:
        lines = ["API keys: none; every client that can connect may use the server"]
    else:
        lines = ["API keys: none; only clients on this machine may use the server, and no proxies"]
    if proxies := os.environ.get("FORWARDED_ALLOW_IPS"):
        lines.append(f"trusted proxies (FORWARDED_ALLOW_IPS): {proxies}")
    if settings.hosts:
        lines.append(f"host names, in addition to localhost: {', '.join(settings.hosts)}")
    if settings.models:
        lines.append(f"models, in addition to the catalog: {', '.join(settings.models)}")
    return lines


def _check_host(host: str, settings: Settings) -> None:
    """Check that remote connections need a key, unless --allow-unauthenticated is set.

    Raises:
        InvalidRequest: `host` accepts remote connections without a key, or is neither `localhost` nor an IP address.
    """
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise InvalidRequest(
            f"host {host!r} is not an IP address; use one such as 127.0.0.1 or 0.0.0.0", "host"
        ) from None
    if not is_local and not settings.api_keys and not settings.allow_unauthenticated:
        raise InvalidRequest(
            f"host {host} accepts remote connections, but there is no API key: set KINEMA_API_KEYS, or pass "
            "--allow-unauthenticated to let everyone who can reach the server use it",
            "host",
        )


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("bentoml") is None or find_spec("dbos") is None:
        raise InvalidRequest("the server's packages are not installed; " + install_remedy("server"))


def _check_data_folder(settings: Settings) -> None:
    """Wait until the database can be opened, and check that the data folder and the database belong together.

    Raises:
        InvalidRequest: they do not.
        QueueUnavailable: the folder can't be written to.
    """
    from kinema.jobs import Queue
    from kinema.jobs.job_files import JobFiles

    JobFiles(settings.data_dir)
    printed = None
    while True:
        try:
            Queue(settings).close()
        except QueueUnavailable as error:
            if str(error) != printed:
                printed = str(error)
                print_line(f"{error}. Trying again every {RETRY_SECONDS:g} seconds", "warning")
            time.sleep(RETRY_SECONDS)
        else:
            return
