"""The server's end of a connection to the bridge."""

import shutil
import tempfile
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from kinema.jobs.cluster import RemoteWorker


@pytest.fixture
def bridge():
    folder = Path(tempfile.mkdtemp())  # short: sockets have short names
    with Listener(str(folder / "socket"), family="AF_UNIX") as listener:
        yield listener
    shutil.rmtree(folder)


def test_worker_has_ended_although_the_bridge_keeps_the_connection_open(bridge):
    worker = RemoteWorker(Path(bridge.address), "work", 1)
    with bridge.accept() as connection:
        assert connection.recv() == ("worker", "work")
        connection.send(("ended", "no node had free GPUs", False))
        for _ in range(2):  # the second would wait for a message
            with pytest.raises(EOFError):
                worker.receive()
        worker.kill()
        assert (worker.wait(), worker.ended_by_itself) == ("no node had free GPUs", False)
