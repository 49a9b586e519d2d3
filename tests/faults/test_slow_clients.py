"""Clients that open many connections and send an incomplete request on each."""

import resource
import signal
import socket
import time
from contextlib import ExitStack

import httpx
import pytest
from figures import record
from server_process import start, stop, wait_ready

INCOMPLETE_BODY = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nhalf"
CONNECTIONS = 1500


@pytest.fixture
def descriptors():
    """Raise the limit of file descriptors of this process, which is the client."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 2 * CONNECTIONS:
        pytest.skip(f"the test needs {2 * CONNECTIONS} file descriptors, but the limit is {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2 * CONNECTIONS, before[0]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
@pytest.mark.usefixtures("descriptors")
def test_incomplete_requests_delay_neither_lists_nor_workers_nor_shutdown(tmp_path, png):
    server = start(tmp_path / "data")
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    try:
        with ExitStack() as stack, server.client() as client:
            slowest = 0.0
            for number in range(CONNECTIONS):
                connection = stack.enter_context(socket.create_connection(address, timeout=30))
                connection.sendall(INCOMPLETE_BODY[: -number % len(INCOMPLETE_BODY)])
                if number % 50 == 49:
                    started = time.monotonic()
                    assert httpx.get(f"{server.url}/v1/videos", timeout=30).status_code == 200
                    slowest = max(slowest, time.monotonic() - started)
            record(f"list of videos among {CONNECTIONS} half-sent requests", slowest, bar=1, unit="s")
            (worker,) = server.api_process().children()
            worker.kill()
            wait_ready(server)

            video = client.post(
                "/v1/videos",
                data={"motion_bucket_id": "200", "num_inference_steps": "100"},
                files={"image": ("a.png", png)},
            ).json()
            for data in (
                INCOMPLETE_BODY,
                f"GET /v1/videos/{video['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
            ):
                for _ in range(10):
                    stack.enter_context(socket.create_connection(address, timeout=30)).sendall(data)
            time.sleep(1)
            started = time.monotonic()
            server.end(signal.SIGTERM, seconds=120)
            record(
                "end of a server with half-sent bodies and open streams", time.monotonic() - started, bar=30, unit="s"
            )
    finally:
        stop(server)
