"""Calls that wait for their video: interim responses, abandoned jobs and clients with short time-outs."""

import asyncio
import base64
import json
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import httpx
import pytest
from server_process import start, stop, wait_for
from starlette.requests import Request

from kinema.errors import JobNotFound
from kinema.serving import videos
from kinema.serving.connections import INTERIM
from kinema.settings import Settings

TUTORIAL = """
import bentoml
from pathlib import Path

with bentoml.SyncHTTPClient("http://localhost:3000") as client:
    result = client.generate(
        decode_chunk_size=2,
        image=Path("girl-image.png"),
        seed=0,
    )
"""
# They take about two and four seconds.
SHORT = {"motion_bucket_id": 250, "num_inference_steps": 4, "num_frames": 3}
LONG = SHORT | {"num_inference_steps": 14}
READ_SECONDS = 2.5


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    running = start(tmp_path_factory.mktemp("patient") / "data", interim_seconds=0.25)
    yield running
    stop(running)


def make_body(png, **fields):
    image = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return json.dumps(SHORT | fields | {"image": image}).encode()


def send_request(server, body, *, agent="curl/8", version="1.1", path="/generate"):
    """Send a request; return its connection."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
    head = f"POST {path} HTTP/{version}\r\nHost: localhost\r\nUser-Agent: {agent}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def read_headers(connection):
    """Return the headers of each response on a connection; the last one is the final response."""
    received = b""
    with connection:
        while piece := connection.recv(65536):
            received += piece
    headers = []
    while received.startswith(b"HTTP/1.1 100"):
        head, _, received = received.partition(b"\r\n\r\n")
        headers.append(head.decode())
    return [*headers, received.partition(b"\r\n\r\n")[0].decode()]


def find_job(server, seed):
    """Wait for the job with this seed and return it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for video in httpx.get(f"{server.url}/v1/videos").json()["data"]:
            if video["seed"] == seed:
                return video
        time.sleep(0.05)
    raise AssertionError("the job was not submitted")


@pytest.mark.parametrize("path", ["/generate", pytest.param("/v1/videos/sync", marks=pytest.mark.slow)])
def test_waiting_client_receives_interim_responses(patient, png, path):
    *interim, final = read_headers(send_request(patient, make_body(png), path=path))
    assert len(interim) >= 3
    assert {head.lower() for head in interim} == {"http/1.1 100 continue\r\nx-accel-buffering: no"}
    assert final.startswith("HTTP/1.1 200")


@pytest.mark.parametrize(
    ("agent", "version"), [("node", "1.1"), ("Go-http-client/1.1", "1.1"), ("unheard-of", "1.1"), ("curl/8", "1.0")]
)
def test_unsupported_clients_get_no_interim_responses(patient, png, agent, version):
    (final,) = read_headers(send_request(patient, make_body(png), agent=agent, version=version))
    assert final.startswith("HTTP/1.1 200")


@pytest.mark.slow
def test_client_with_short_read_timeout_gets_video(patient, png):
    with httpx.Client(timeout=READ_SECONDS) as client:
        response = client.post(f"{patient.url}/generate", files={"image": ("a.png", png)}, data=LONG)
    assert (response.status_code, response.headers["content-type"]) == (200, "video/mp4")
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{patient.url}/generate", make_body(png, **LONG), headers)
    with urllib.request.urlopen(request, timeout=READ_SECONDS) as response:
        assert b"ftyp" in response.read(100)


def test_abandoned_job_is_found_by_same_request(patient, png):
    body = make_body(png, seed=11)
    connection = send_request(patient, body, agent="node")
    first = find_job(patient, 11)
    connection.close()
    time.sleep(0.5)
    *_, final = read_headers(send_request(patient, body, agent="node"))
    assert f"x-kinema-job: {first['id']}" in final.lower()
    # An abandoned job is returned only once: the next request submits a new job.
    *_, final = read_headers(send_request(patient, make_body(png, seed=11)))
    assert "x-kinema-job" in final.lower()
    assert first["id"] not in final


def test_disconnect_of_supported_client_cancels_job(patient, png):
    connection = send_request(patient, make_body(png, seed=12))
    job = find_job(patient, 12)
    connection.close()
    with patient.client() as client:
        assert wait_for(client, job["id"])["error"]["code"] == "cancelled"


@pytest.mark.parametrize(("seconds", "is_sent"), [(0, False), (0.01, True)])
def test_interim_responses_can_be_disabled(seconds, is_sent):
    sent = []

    async def receive():
        await asyncio.Event().wait()

    async def finished(_):
        await asyncio.sleep(0.2)

    async def wait():
        state = SimpleNamespace(settings=Settings(interim_seconds=seconds), finished=finished)
        scope = {"type": "http", "extensions": {INTERIM: {"send": lambda: sent.append(1)}}}
        with pytest.raises(JobNotFound):  # `finished` returns None, as for a deleted job
            await videos.wait_for(state, Request(scope, receive), SimpleNamespace(id="video_1"), "", keep=False)

    asyncio.run(wait())
    assert bool(sent) == is_sent


@pytest.mark.slow
def test_tutorial_client_waits_for_long_job(tmp_path, png):
    server = start(tmp_path / "data", work="server_work:LongWork")
    try:
        (tmp_path / "girl-image.png").write_bytes(png)
        code = TUTORIAL.replace("http://localhost:3000", server.url) + "print(result)\n"
        start_time = time.monotonic()
        completed = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert completed.returncode == 0, completed.stderr[-2000:]
        assert time.monotonic() - start_time > 45
        assert completed.stdout.strip().endswith(".mp4")
    finally:
        stop(server)
