"""/readyz asks the database, in bounded time, whatever the database does."""

import asyncio
import threading
import time

import pytest

from kinema.errors import QueueUnavailable
from kinema.serving import lifespan
from kinema.serving.lifespan import ServerState
from kinema.settings import Settings


class Database:
    """Stands for the queue of a server whose workers are ready."""

    ready, workers = True, (1,)

    def __init__(self, check):
        self.check_database = check


@pytest.fixture
def host(monkeypatch):
    def make(check):
        monkeypatch.setattr(lifespan, "Queue", lambda *_, **__: Database(check))
        return ServerState(Settings())

    return make


async def ask(host, times):
    return await asyncio.gather(*(host.ready() for _ in range(times)))


def test_server_with_working_database_is_ready(host):
    assert asyncio.run(ask(host(lambda: None), 1)) == [True]


def test_unavailable_database_is_logged_once_and_not_ready(host, caplog):
    def away():
        raise QueueUnavailable("the database is away")

    server = host(away)
    assert [asyncio.run(ask(server, 1)) for _ in range(3)] == [[False]] * 3
    assert caplog.text.count("not ready: the database is away") == 1


def test_hanging_database_is_not_ready_and_blocks_one_thread(host, monkeypatch):
    monkeypatch.setattr(lifespan, "PROBE_SECONDS", 0.1)
    released, asked = threading.Event(), []

    def hang():
        asked.append(1)
        released.wait(30)

    async def ask_and_release():
        found = await ask(host(hang), 20)
        released.set()
        return found

    began = time.monotonic()
    assert asyncio.run(ask_and_release()) == [False] * 20
    assert time.monotonic() - began < 10
    assert len(asked) == 1
