"""/readyz checks the database within a time limit."""

import asyncio
import threading
import time

import pytest

from kinema.errors import QueueUnavailable
from kinema.serving import lifespan
from kinema.serving.lifespan import ServerState
from kinema.settings import Settings


class FakeQueue:
    """A fake queue with ready workers."""

    ready, workers_ready = True, True
    batches = file_table = batch_files = webhooks = None

    def __init__(self, check):
        self.check_database = check

    def check_store(self):
        pass


@pytest.fixture
def make_state(monkeypatch):
    def make(check):
        monkeypatch.setattr(lifespan, "Queue", lambda *_, **__: FakeQueue(check))
        return ServerState(Settings())

    return make


async def check_ready(state, times):
    return await asyncio.gather(*(state.ready() for _ in range(times)))


def test_server_with_working_database_is_ready(make_state):
    assert asyncio.run(check_ready(make_state(lambda: None), 1)) == [True]


def test_unavailable_database_is_logged_once_and_not_ready(make_state, caplog):
    def fail():
        raise QueueUnavailable("the database is unavailable")

    state = make_state(fail)
    assert [asyncio.run(check_ready(state, 1)) for _ in range(3)] == [[False]] * 3
    assert caplog.text.count("not ready: the database is unavailable") == 1


def test_hanging_database_is_not_ready_and_blocks_one_thread(make_state, monkeypatch):
    monkeypatch.setattr(lifespan, "PROBE_SECONDS", 0.1)
    released, checks = threading.Event(), []

    def hang():
        checks.append(1)
        released.wait(30)

    async def check_and_release():
        results = await check_ready(make_state(hang), 20)
        released.set()
        return results

    start_time = time.monotonic()
    assert asyncio.run(check_and_release()) == [False] * 20
    assert time.monotonic() - start_time < 10
    assert len(checks) == 1
