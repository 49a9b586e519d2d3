"""Secrets of a server are in no command line of its processes and in no log, also when something fails."""

import contextlib
import sys
import threading
import time

import httpx
import psutil
import pytest
from server_process import free_port, start, stop, wait_for, wait_ready
from server_work import FAULTS
from webhook_receiver import SECRET, receiving

pytestmark = pytest.mark.slow  # servers with settings of their own

KEY, OTHER_KEY, OPTION_KEY, WRONG_KEY = "key-1-5e1f2b", "key-2-77aa01", "key-3-c0ffee", "key-4-90b2d4"
DATABASE_PASSWORD = "database-password-31d7"
TRACE_TOKEN, HUB_TOKEN, URL_TOKEN = "trace-token-ab12", "hf_hubtoken9834", "url-token-66f0"
# What can be read of the store's credentials: the secret key, and the signatures that it makes.
STORE_SECRETS = ("do-not-log-this", "X-Amz-Signature")
FAST = {"motion_bucket_id": "1", "num_frames": "2"}


class CommandLines:
    """The command lines of a server and of all processes below it, read many times a second until the end."""

    def __init__(self, server):
        self.found = set()
        self._root = psutil.Process(server.process.pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _run(self):
        while not self._ended.wait(0.05):
            self.read()

    def read(self):
        with contextlib.suppress(psutil.Error):
            for process in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    self.found.add(" ".join(process.cmdline()))


def logs(server):
    """Return everything that the server wrote: its output, and files of logs anywhere in its folders."""
    files = {server.log, *server.data.parent.rglob("*.log")}
    return "\n".join(file.read_text("utf-8", "replace") for file in files)


def found_secrets(text):
    secrets = (
        KEY, OTHER_KEY, OPTION_KEY, WRONG_KEY, SECRET.removeprefix("whsec_"), DATABASE_PASSWORD, TRACE_TOKEN, HUB_TOKEN,
        URL_TOKEN, *STORE_SECRETS, "PRIVATE KEY",
    )  # fmt: skip
    return [secret for secret in secrets if secret in text]


def set_secrets_of_libraries(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{TRACE_TOKEN}")
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)


def use(server, receiver, s3, png):
    """Use every secret, with success and with failures."""
    with server.client(headers={"X-API-Key": KEY}) as client:
        for headers in ({"X-API-Key": WRONG_KEY}, {"Authorization": f"Bearer {WRONG_KEY}"}):
            assert httpx.get(f"{server.url}/v1/videos", headers=headers).status_code == 401
        assert httpx.get(f"{server.url}/v1/videos?api_key={KEY}", auth=("x", OTHER_KEY)).status_code == 200
        image = {"input_reference": ("a.png", png)}
        sent = FAST | {"webhook_url": f"http://{receiver.host}/hook?token={URL_TOKEN}"}
        job = client.post("/v1/videos", data=sent, files=image).json()
        assert wait_for(client, job["id"])["status"] == "completed"
        receiver.wait(1)
        refused = FAST | {"webhook_url": f"http://127.0.0.1:9/hook?token={URL_TOKEN}"}
        assert wait_for(client, client.post("/v1/videos", data=refused, files=image).json()["id"])
        presigned = client.get(f"/v1/videos/{job['id']}/content")
        assert presigned.status_code == 307
        assert httpx.get(presigned.headers["location"]).content[4:8] == b"ftyp"
        failed = client.post("/v1/videos", data=FAST | {"model": "defect"}, files=image).json()
        assert wait_for(client, failed["id"])["status"] == "failed"
        elsewhere = {"input_reference": f"http://user:{URL_TOKEN}@elsewhere.example/a.png?token={URL_TOKEN}"}
        assert client.post("/v1/videos", data=FAST | elsewhere).status_code == 400
        for fault in ("denied", "away"):
            with s3.fault(fault):
                assert client.post("/v1/videos", data=FAST, files=image).status_code == 503
    return job["id"]


def wait_for_log(server, text, seconds=120):
    deadline = time.monotonic() + seconds
    while text not in logs(server):
        assert time.monotonic() < deadline, logs(server)[-4000:]
        time.sleep(0.1)


def test_secrets_are_in_no_command_line_and_no_log(tmp_path, s3, s3_store, png, monkeypatch):
    set_secrets_of_libraries(monkeypatch)
    with receiving() as receiver:
        server = start(
            tmp_path / "data", wait=False, api_keys=f"{KEY},{OTHER_KEY}", webhook_secret=SECRET, store=s3_store,
            webhook_hosts=f"{receiver.host},127.0.0.1:9", presign_seconds=60, models=FAULTS,
        )  # fmt: skip
        try:
            with CommandLines(server) as lines:
                wait_ready(server)
                job_id = use(server, receiver, s3, png)
                wait_for_log(server, "responded with an error (ConnectError); next attempt")
        finally:
            stop(server)
    text = "\n".join(sorted(lines.found))
    for module in ("bentoml", "_bentoml_impl.worker", "kinema.jobs.worker_process", "kinema.serving.decode_process"):
        assert module in text
    assert found_secrets(text) == []
    log = logs(server)
    for part in (f"job {job_id} completed", "RuntimeError: a bug", "is delivered", "status=401"):
        assert part in log
    assert found_secrets(log) == []


def test_password_of_a_missing_database_and_key_option_are_not_shown(tmp_path, monkeypatch):
    set_secrets_of_libraries(monkeypatch)
    port = free_port()
    command = [sys.executable, "-m", "kinema", "serve", "--port", str(port), "--key", OPTION_KEY]
    url = f"postgresql://kinema:{DATABASE_PASSWORD}@127.0.0.1:9/kinema"
    server = start(tmp_path / "data", wait=False, command=command, port=port, database_url=url)
    try:
        with CommandLines(server) as lines:
            wait_for_log(server, "set KINEMA_DATABASE_URL to")
    finally:
        stop(server)
    typed = " ".join(command)
    text = "\n".join(lines.found - {typed})  # `kinema serve` replaces itself by a process without the key
    assert "bentoml serve" in text
    assert found_secrets(text) == []
    assert "API keys: 1" in logs(server)
    assert found_secrets(logs(server)) == []
