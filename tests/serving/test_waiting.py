"""Calls that wait for their video: clients with a short read time-out get it all the same, or find it again."""

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
# About two seconds, and four.
SHORT = {"motion_bucket_id": 250, "num_inference_steps": 4, "num_frames": 3}
LONG = SHORT | {"num_inference_steps": 14}
READ_SECONDS = 2.5


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    running = start(tmp_path_factory.mktemp("patient") / "data", interim_seconds=0.25)
    yield running
    stop(running)


def body_of(png, **fields):
    image = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return json.dumps(SHORT | fields | {"image": image}).encode()


def ask(server, body, *, agent="curl/8", version="1.1", path="/generate"):
    """A connection on which a request was sent."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
    head = f"POST {path} HTTP/{version}\r\nHost: localhost\r\nUser-Agent: {agent}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def heads(connection):
    """The header of each response on a connection, the last being final."""
    received = b""
    with connection:
        while piece := connection.recv(65536):
            received += piece
    found = []
    while received.startswith(b"HTTP/1.1 100"):
        head, _, received = received.partition(b"\r\n\r\n")
        found.append(head.decode())
    return [*found, received.partition(b"\r\n\r\n")[0].decode()]


def the_job(server, seed):
    """The job with this seed, once there is one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for video in httpx.get(f"{server.url}/v1/videos").json()["data"]:
            if video["seed"] == seed:
                return video
        time.sleep(0.05)
    raise AssertionError("the job was not asked for")


@pytest.mark.parametrize("path", ["/generate", "/v1/videos/sync"])
def test_waiting_client_receives_interim_responses(patient, png, path):
    *interim, final = heads(ask(patient, body_of(png), path=path))
    assert len(interim) >= 3
    assert {head.lower() for head in interim} == {"http/1.1 100 continue\r\nx-accel-buffering: no"}
    assert final.startswith("HTTP/1.1 200")


@pytest.mark.parametrize(
    ("agent", "version"), [("node", "1.1"), ("Go-http-client/1.1", "1.1"), ("unheard-of", "1.1"), ("curl/8", "1.0")]
)
def test_unsupported_clients_get_no_interim_responses(patient, png, agent, version):
    (final,) = heads(ask(patient, body_of(png), agent=agent, version=version))
    assert final.startswith("HTTP/1.1 200")


def test_client_with_short_read_timeout_gets_video(patient, png):
    with httpx.Client(timeout=READ_SECONDS) as client:
        answer = client.post(f"{patient.url}/generate", files={"image": ("a.png", png)}, data=LONG)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{patient.url}/generate", body_of(png, **LONG), headers)
    with urllib.request.urlopen(asked, timeout=READ_SECONDS) as answer:
        assert b"ftyp" in answer.read(100)


def test_abandoned_job_is_found_by_same_request(patient, png):
    body = body_of(png, seed=11)
    gone = ask(patient, body, agent="node")
    first = the_job(patient, 11)
    gone.close()
    time.sleep(0.5)
    *_, final = heads(ask(patient, body, agent="node"))
    assert f"x-kinema-job: {first['id']}" in final.lower()
    # It was for that caller alone: whoever asks once more has another made.
    *_, final = heads(ask(patient, body_of(png, seed=11)))
    assert "x-kinema-job" in final.lower()
    assert first["id"] not in final


def test_disconnect_of_supported_client_cancels_job(patient, png):
    gone = ask(patient, body_of(png, seed=12))
    job = the_job(patient, 12)
    gone.close()
    with patient.client() as client:
        assert wait_for(client, job["id"])["error"]["code"] == "cancelled"


@pytest.mark.parametrize(("every", "some"), [(0, False), (0.01, True)])
def test_interim_responses_can_be_disabled(every, some):
    sent = []

    async def asked():
        await asyncio.Event().wait()

    async def finished(_):
        await asyncio.sleep(0.2)

    async def wait():
        host = SimpleNamespace(settings=Settings(interim_seconds=every), finished=finished)
        scope = {"type": "http", "extensions": {INTERIM: {"send": lambda: sent.append(1)}}}
        with pytest.raises(JobNotFound):  # it is gone in the end
            await videos.wait_for(host, Request(scope, asked), SimpleNamespace(id="video_1"), "", keep=False)

    asyncio.run(wait())
    assert bool(sent) == some


@pytest.mark.slow
def test_tutorial_client_waits_for_long_job(tmp_path, png):
    server = start(tmp_path / "data", work="server_work:long_work")
    try:
        (tmp_path / "girl-image.png").write_bytes(png)
        code = TUTORIAL.replace("http://localhost:3000", server.url) + "print(result)\n"
        began = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert time.monotonic() - began > 45
        assert ran.stdout.strip().endswith(".mp4")
    finally:
        stop(server)
