"""Operation of the server: API keys, access control, full queue, log, shutdown and restart."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time

import httpx
import psutil
import pytest
from server_process import start, stop, wait_for, wait_ready
from starlette.datastructures import Headers

from kinema.jobs import Queue
from kinema.serving.lifespan import ServerState
from kinema.serving.middleware import _Guard
from kinema.settings import Settings

SLOW = {"motion_bucket_id": "200", "num_inference_steps": "20", "num_frames": "3"}
KEY = "a-key-of-tests"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with API keys and a queue of two jobs."""
    data = tmp_path_factory.mktemp("guarded") / "data"
    running = start(
        data, api_keys=f"another,{KEY}", queue_size=2, log_format="json", cors_origins="https://page.example"
    )
    yield running
    stop(running)


@pytest.mark.parametrize("path", ["/", "/v1/videos", "/v1/openapi.json", "/metrics", "/docs.json", "/schema.json"])
def test_request_without_key_returns_401(guarded, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": KEY + "x"}, {"Authorization": "Basic !!"}):
        response = httpx.get(guarded.url + path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unknown_key")
    assert "Basic" in response.headers["www-authenticate"]


def test_generate_without_key_returns_401(guarded, png):
    assert httpx.post(f"{guarded.url}/generate", files={"image": ("a.png", png)}).status_code == 401


@pytest.mark.parametrize("way", ["bearer", "header", "password"])
def test_key_is_accepted_as_bearer_header_or_password(guarded, way):
    headers = {"bearer": {"Authorization": f"Bearer {KEY}"}, "header": {"X-API-Key": KEY}}.get(way, {})
    auth = ("anyone", KEY) if way == "password" else None
    assert httpx.get(f"{guarded.url}/v1/videos", headers=headers, auth=auth).status_code == 200


def test_idempotency_key_of_a_batch_is_of_one_api_key(guarded):
    first, second = (httpx.Client(base_url=guarded.url, headers={"X-API-Key": key}) for key in (KEY, "another"))
    with first, second:
        form = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", b"{}")}}  # the batch fails without jobs
        file = first.post("/v1/files", **form).json()["id"]
        body = {"input_file_id": file, "endpoint": "/v1/videos", "completion_window": "24h"}
        key = {"Idempotency-Key": "import 7"}
        ids = [each.post("/v1/batches", json=body, headers=key).json()["id"] for each in (first, first, second, second)]
    assert (ids[0], ids[2]) == (ids[1], ids[3])
    assert ids[0] != ids[2]


def test_health_checks_need_no_key(guarded):
    assert [httpx.get(guarded.url + path).status_code for path in ("/livez", "/readyz")] == [200, 200]


def test_health_checks_accept_any_host_name(server):
    other = {"Host": "10.0.0.7:3000"}
    assert [httpx.get(server.url + path, headers=other).status_code for path in ("/livez", "/readyz")] == [200, 200]
    assert [httpx.get(server.url + path, headers=other).status_code for path in ("/healthz", "/metrics")] == [403, 403]


def test_cors_allows_only_configured_origin(guarded):
    ask = {"Access-Control-Request-Method": "POST"}
    allowed = httpx.options(f"{guarded.url}/v1/videos", headers=ask | {"Origin": "https://page.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    other = httpx.options(f"{guarded.url}/v1/videos", headers=ask | {"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_full_queue_returns_429_with_retry_after(guarded):
    with guarded.client(headers={"X-API-Key": KEY}) as client:
        responses = [client.post("/v1/videos", data=SLOW | {"prompt": "secret words"}) for _ in range(5)]
        assert [response.status_code for response in responses][-1] == 429
        assert responses[-1].json()["error"]["code"] == "queue_full"
        assert int(responses[-1].headers["retry-after"]) >= 1
        for response in responses:
            if response.status_code == 200:
                client.delete(f"/v1/videos/{response.json()['id']}")


def test_log_contains_no_keys_and_no_prompts(guarded):
    with guarded.client(headers={"X-API-Key": KEY}) as client:
        done = client.post("/v1/videos", data={"prompt": "secret words", "motion_bucket_id": "1", "num_frames": "2"})
        wait_for(client, done.json()["id"])
    log = guarded.log.read_text()
    assert f'"message": "job {done.json()["id"]} completed"' in log
    assert KEY not in log
    assert "secret words" not in log


@pytest.mark.slow
def test_sigterm_finishes_running_job_and_keeps_queued_job(tmp_path, png):
    running = start(tmp_path / "data")
    try:
        with running.client() as client:
            fields = SLOW | {"num_inference_steps": "10"}
            ids = [
                client.post("/v1/videos", data=fields, files={"image": ("a.png", png)}).json()["id"] for _ in range(2)
            ]
            while client.get(f"/v1/videos/{ids[0]}").json()["status"] != "in_progress":
                time.sleep(0.02)
            lines = []

            def subscribe():
                with httpx.stream("GET", f"{running.url}/v1/videos/{ids[1]}/events", timeout=40) as stream:
                    lines.extend(stream.iter_lines())

            subscriber = threading.Thread(target=subscribe)
            subscriber.start()
            time.sleep(0.3)
            with contextlib.ExitStack() as opened:
                # Clients that never complete their request, and one that never reads.
                content = f"GET /v1/videos/{ids[0]}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
                for sent in (
                    "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf",
                    "GET /",
                    content,
                ):
                    half = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])))
                    opened.enter_context(half).sendall(sent.encode())
                start_time = time.monotonic()
                assert running.end() == 0
                assert time.monotonic() - start_time < 30
            subscriber.join(5)
            assert not subscriber.is_alive()
        again = start(tmp_path / "data")
        try:
            with again.client() as client:
                first = client.get(f"/v1/videos/{ids[0]}").json()
                assert (first["status"], "attempts" in first) == ("completed", False)
                assert wait_for(client, ids[1])["status"] == "completed"
        finally:
            stop(again)
    finally:
        stop(running)


def test_shutdown_time_is_limited_from_signal(tmp_path, monkeypatch):
    alarms, graces = [], []
    monkeypatch.setattr(signal, "alarm", alarms.append)
    monkeypatch.setattr(Queue, "close", lambda _, grace: graces.append(grace))
    state = ServerState(Settings(data_dir=tmp_path))

    async def end():
        state._begin_shutdown()
        state._stopped_at -= 7  # the time since the signal
        await state.close()

    asyncio.run(end())
    assert alarms == [28]
    assert 14 < graces[0] <= 15


@pytest.mark.slow
def test_killed_server_process_restarts_and_job_continues(tmp_path, png):
    running = start(tmp_path / "data")
    try:
        with running.client() as client:
            fields = SLOW | {"num_inference_steps": "8"}
            video = client.post("/v1/videos", data=fields, files={"image": ("a.png", png)}).json()
            while client.get(f"/v1/videos/{video['id']}").json()["status"] != "in_progress":
                time.sleep(0.02)
            api = running.api_process()
            workers = [child.pid for child in api.children()]
            os.kill(api.pid, signal.SIGKILL)
            wait_ready(running)
            assert wait_for(client, video["id"])["status"] == "completed"
        assert not [pid for pid in workers if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    finally:
        stop(running)


def rejection_status(settings, *, client="127.0.0.1", method="POST", path="/v1/videos", **headers):
    """Return the status of a rejected request, None for an accepted one."""
    given = {"host": "localhost:3000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {"type": "http", "path": path, "method": method, "client": (client, 5)}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in given.items()]
    error = _Guard(lambda *_: None, settings, [])._check_access(scope, Headers(scope=scope))
    return None if error is None else error[0]


def test_remote_client_without_key_returns_403(tmp_path):
    closed, opened = Settings(data_dir=tmp_path), Settings(data_dir=tmp_path, allow_unauthenticated=True)
    assert rejection_status(closed) is None
    assert rejection_status(closed, client="192.0.2.7") == 403
    assert rejection_status(opened, client="192.0.2.7") is None
    for name in ("x_forwarded_for", "x_forwarded_port", "forwarded", "via"):
        assert rejection_status(closed, **{name: "192.0.2.7"}) == 403


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_only_health_checks_accept_remote_clients(tmp_path, keys):
    settings = Settings(data_dir=tmp_path, api_keys=keys, hosts=("video.example",))
    kubelet = {"client": "10.0.0.1", "host": "10.0.0.7:3000"}
    for path in ("/livez", "/readyz"):
        assert rejection_status(settings, path=path, method="GET", **kubelet) is None
        assert rejection_status(settings, path=path, method="POST", **kubelet) == 403
    for path in ("/", "/healthz", "/metrics", "/livez/", "/livez/x", "/v1/videos", "/studio/livez"):
        assert rejection_status(settings, path=path, method="GET", **kubelet) == 403


def test_cross_site_request_with_side_effects_is_rejected(tmp_path):
    settings = Settings(data_dir=tmp_path, cors_origins=("https://page.example",))
    assert rejection_status(settings, sec_fetch_site="cross-site") == 403
    assert rejection_status(settings, origin="https://other.example") == 403
    assert [rejection_status(settings, origin=origin) for origin in ("null", "", "http://[")] == [403, 403, 403]
    assert rejection_status(settings, origin="http://localhost:3000", sec_fetch_site="same-origin") is None
    assert rejection_status(settings, origin="https://page.example", sec_fetch_site="cross-site") is None
    assert rejection_status(settings, method="GET", sec_fetch_site="cross-site") is None


def test_host_name_is_case_insensitive(tmp_path):
    assert rejection_status(Settings(data_dir=tmp_path, hosts=("Video.Example",)), host="video.example") is None


def test_empty_key_is_invalid_setting(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        Settings(data_dir=tmp_path, api_keys=[""])


@pytest.mark.slow
def test_foreign_temporary_files_do_not_prevent_start(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "gradio").write_text("another user's")
    monkeypatch.setenv("TMPDIR", str(shared))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    running = start(tmp_path / "data")
    try:
        assert httpx.get(f"{running.url}/studio/en/").status_code == 200
        assert (tmp_path / "data" / "gradio").stat().st_mode & 0o777 == 0o700
    finally:
        stop(running)


@pytest.mark.slow
def test_readyz_names_reason_if_worker_is_not_ready(tmp_path):
    server = start(tmp_path / "data", work="server_work:missing", wait=False)
    try:
        response = None
        while response is None or "can't load its work" not in response.text:
            assert server.process.poll() is None
            with contextlib.suppress(httpx.HTTPError):
                response = httpx.get(f"{server.url}/readyz", timeout=30)
            time.sleep(0.1)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "unavailable"
    finally:
        stop(server)


@pytest.mark.slow
def test_wrong_keys_are_throttled_despite_forged_address(guarded):
    """Must be the last test of this file: keys from this address are throttled afterwards."""

    async def guess(client, number):
        headers = {"X-API-Key": f"guess {number}", "X-Forwarded-For": f"198.51.100.{number}"}
        return (await client.get("/v1/videos", headers=headers)).status_code

    async def guess_all():
        async with httpx.AsyncClient(base_url=guarded.url, timeout=60) as client:
            first = await asyncio.gather(*(guess(client, number) for number in range(20)))
            return first, await asyncio.gather(*(guess(client, number) for number in range(20, 40)))

    first, then = asyncio.run(guess_all())
    assert set(first) == {401}
    assert 429 in then


@pytest.mark.slow
def test_curl_gets_429_and_retry_after_at_the_limits_of_its_key(tmp_path):
    limits = {"key_waiting_jobs": 1, "key_requests_per_minute": 6}
    running = start(tmp_path / "data", api_keys=f"another,{KEY}", **limits)

    def curl(key, *arguments):
        command = ["curl", "-sS", "-w", "\n%{http_code} %header{retry-after}", "-H", f"X-API-Key: {key}", *arguments]
        body, _, status = subprocess.check_output([*command, f"{running.url}/v1/videos"], text=True).rpartition("\n")
        return json.loads(body), *status.split(" ")

    try:
        job = [part for name, value in SLOW.items() for part in ("-F", f"{name}={value}")] + ["-F", "prompt=a boat"]
        answers = [curl(KEY, *job) for _ in range(3)]  # the first one runs, or waits for the worker
        body, status, retry_after = answers[-1]
        assert (status, body["error"]["code"]) == ("429", "quota_exceeded")
        assert "its limit of waiting jobs (1, KINEMA_KEY_WAITING_JOBS)" in body["error"]["message"]
        assert int(retry_after) >= 1
        assert curl("another", *job)[1] == "200"
        body, status, retry_after = [curl(KEY) for _ in range(20)][-1]
        assert (status, body["error"]["code"]) == ("429", "too_many_requests")
        assert int(retry_after) >= 1
    finally:
        stop(running)
