"""Clients that open many connections and send half a request on each."""

import resource
import signal
import socket
import time
from contextlib import ExitStack

import httpx
import pytest
from figures import record
from server_process import start, stop, wait_ready

HALF_A_BODY = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nhalf"
MANY = 1500


@pytest.fixture
def descriptors():
    """Enough of them for this process, which is the client."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 2 * MANY:
        pytest.skip(f"the clients need {2 * MANY} descriptors, and this process may have {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2 * MANY, before[0]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
@pytest.mark.usefixtures("descriptors")
def test_half_sent_requests_stall_neither_lists_nor_workers_nor_the_end(tmp_path, png):
    server = start(tmp_path / "data")
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    try:
        with ExitStack() as opened, server.client() as client:
            slowest = 0.0
            for number in range(MANY):
                connection = opened.enter_context(socket.create_connection(address, timeout=30))
                connection.sendall(HALF_A_BODY[: -number % len(HALF_A_BODY)])
                if number % 50 == 49:
                    began = time.monotonic()
                    assert httpx.get(f"{server.url}/v1/videos", timeout=30).status_code == 200
                    slowest = max(slowest, time.monotonic() - began)
            record(f"list of videos among {MANY} half-sent requests", slowest, bar=1, unit="s")
            (worker,) = server.api_process().children()
            worker.kill()
            wait_ready(server)

            video = client.post(
                "/v1/videos",
                data={"motion_bucket_id": "200", "num_inference_steps": "100"},
                files={"image": ("a.png", png)},
            ).json()
            for sent in (
                HALF_A_BODY,
                f"GET /v1/videos/{video['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
            ):
                for _ in range(10):
                    opened.enter_context(socket.create_connection(address, timeout=30)).sendall(sent)
            time.sleep(1)
            began = time.monotonic()
            server.end(signal.SIGTERM, seconds=120)
            record("end of a server with half-sent bodies and open streams", time.monotonic() - began, bar=30, unit="s")
    finally:
        stop(server)
