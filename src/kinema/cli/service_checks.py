"""Checks of what a server depends on, for `kinema doctor`: a Ray cluster, database, store and signing certificate.

Nothing is changed, each check has a time limit, and no password or key is printed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from kinema.errors import InvalidRequest, KinemaError
from kinema.extras import install_remedy

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy as sa

    from kinema.settings import Settings

REACH_SECONDS = 5.0
# A process that imports Ray and connects takes some seconds.
CLUSTER_SECONDS = 60.0
ANSWER_SECONDS = 10.0


def check_services(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the facts about cluster, database, store and certificate, without those that are not set.

    Each has "problem": why it can't be used and the remedy, or None.
    """
    facts = {}
    if settings.ray_address is not None:
        facts["cluster"] = check_cluster(settings.ray_address, settings.gpus_per_video, settings.workers)
    if settings.database_url is not None:
        facts["database"] = check_database(settings.database_url.get_secret_value())
    if settings.store is not None:
        facts["store"] = check_store(settings.store)
    if settings.credentials != "off" and find_spec("c2pa") is not None:
        facts |= check_certificate(settings)
    return facts


def check_certificate(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return whether videos can be signed, for at least 30 days; nothing if there is no certificate yet."""
    from kinema.media.credentials.signing_keys import certificate_file, certificate_warning

    path = certificate_file(settings)
    if path is None:
        return {}
    try:
        problem = certificate_warning(settings)
    except KinemaError as error:
        problem = f"videos can't be signed with content credentials: {error}"
    return {"certificate": {"path": str(path), "problem": problem}}


def check_cluster(address: str, gpus_per_worker: int, maximum: int | None) -> dict[str, Any]:
    """Return the versions of Ray, the nodes, and the number of workers that a server would have."""
    facts: dict[str, Any] = {"address": address, "ray": None, "cluster_ray": None, "nodes": [], "workers": 0}
    try:
        facts |= _cluster_facts(address)
    except KinemaError as error:
        return facts | {"problem": str(error)}
    workers = sum(node["gpus"] // gpus_per_worker for node in facts["nodes"])
    facts["workers"] = min(workers, maximum or workers)
    if facts["problem"] is None and not workers:
        needed = "GPUs" if gpus_per_worker == 1 else f"{gpus_per_worker} GPUs"
        facts["problem"] = (
            f"no node of the Ray cluster at {address} has {needed}; add one: ray start --address {address}"
        )
    return facts


def _cluster_facts(address: str) -> dict[str, Any]:
    """Return what `kinema.scale.cluster_check` finds in a process of its own.

    Raises:
        InvalidRequest: the cluster can't be reached, or ray is not installed.
    """
    from kinema.jobs.cluster import check_installed

    check_installed()
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise InvalidRequest(
            f"the Ray cluster at {address} can't be reached ({error.strerror or error}); start its head, or correct "
            "KINEMA_RAY_ADDRESS",
            "ray_address",
        ) from None
    command = [sys.executable, "-P", "-m", "kinema.scale.cluster_check", address]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=CLUSTER_SECONDS)
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        raise InvalidRequest(
            f"what answers at {address} is no Ray cluster that works, or is of another version; no connection within "
            f"{CLUSTER_SECONDS:g} seconds; run there: ray status",
            "ray_address",
        ) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return found


def check_database(url: str) -> dict[str, Any]:
    """Return whether the database answers, and its URL without user, password and options."""
    try:
        import sqlalchemy as sa
    except ImportError:
        missing = "KINEMA_DATABASE_URL needs the server's packages; " + install_remedy("server")
        return {"url": None, "problem": missing}
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        return {"url": None, "problem": "KINEMA_DATABASE_URL is no URL; expected postgresql://… or sqlite:///PATH"}
    shown = sa.URL.create(parsed.drivername, host=parsed.host, port=parsed.port, database=parsed.database)
    reason = _problem_within(lambda: _connect_to_database(parsed))
    problem = None if reason is None else f"the database {shown} (KINEMA_DATABASE_URL) can't be used: {reason}"
    return {"url": str(shown), "problem": problem}


def _connect_to_database(url: sa.URL) -> None:
    """Connect to a database and read from it; a SQLite file that does not exist yet is not created."""
    import sqlalchemy as sa

    from kinema.jobs.database import create_engine, driver_message

    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        if not path.exists():
            if not os.access(path.parent, os.W_OK):
                raise InvalidRequest(f"the folder {path.parent} is missing or can't be written to")
            return
        query = {"uri": "true", "mode": "ro"}
        engine = sa.create_engine(sa.URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=query))
    else:
        engine = create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
            if engine.dialect.name == "sqlite":
                connection.execute(sa.text("SELECT count(*) FROM sqlite_master"))
    except sa.exc.SQLAlchemyError as error:
        raise InvalidRequest(driver_message(error)) from None
    finally:
        engine.dispose()


def check_store(url: str) -> dict[str, Any]:
    """Return whether the store answers."""
    reason = _problem_within(lambda: _read_from_store(url))
    problem = None if reason is None else f"the store {url} (KINEMA_STORE) can't be used: {reason}"
    return {"url": url, "problem": problem}


def _read_from_store(url: str) -> None:
    """Read a small file of the store, which need not exist."""
    from kinema.errors import QueueUnavailable
    from kinema.jobs.bucket_store import remedy_for
    from kinema.jobs.shared_files import ID_NAME, open_store

    parts = urlsplit(url)
    if parts.scheme == "file" and not os.access(unquote(parts.path), os.W_OK | os.X_OK):
        raise InvalidRequest("the folder is missing or can't be written to; mount or create it")
    try:
        for _ in open_store(url).read(ID_NAME):
            break
    except FileNotFoundError:  # a new store
        return
    except QueueUnavailable as error:
        raise InvalidRequest(remedy_for(str(getattr(error.args[0], "values", {}).get("reason", error)))) from None


def _problem_within(check: Callable[[], None]) -> str | None:
    """Return the error of a check, also that it took longer than ANSWER_SECONDS, or None."""
    problems: list[str | None] = []

    def run() -> None:
        try:
            check()
        except KinemaError as error:
            problems.append(str(error))
        except (ImportError, ValueError) as error:  # a missing or unknown driver
            problems.append(str(error))
        else:
            problems.append(None)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return problems[0] if problems else f"no answer within {ANSWER_SECONDS:g} seconds"


def service_rows(facts: dict[str, Any]) -> dict[str, str]:
    """Return the rows of the table for the services in the facts."""
    texts = {}
    if "cluster" in facts:
        texts["cluster"] = _cluster_text(facts["cluster"])
    for name in ("database", "store"):
        if name in facts:
            state = "can't be used, see above" if facts[name]["problem"] else "answers"
            texts[name] = f"{facts[name]['url'] or 'unknown'}: {state}"
    if "certificate" in facts:
        state = "see above" if facts["certificate"]["problem"] else "signs videos"
        texts["certificate"] = f"{facts['certificate']['path']}: {state}"
    return texts


def _cluster_text(cluster: dict[str, Any]) -> str:
    if cluster["cluster_ray"] is None:
        return f"{cluster['address']}: can't be used, see above"
    nodes = ", ".join(f"{node['name']} ({node['node_id'][:6]}) with {node['gpus']} GPUs" for node in cluster["nodes"])
    return (
        f"{cluster['address']}: {cluster['workers']} workers; Ray {cluster['cluster_ray']}, here {cluster['ray']}; "
        f"nodes: {nodes or 'none'}"
    )
