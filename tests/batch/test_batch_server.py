"""`kinema batch --server` against a server process with stub work."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from batch_inputs import write_image
from server_process import free_port, start, stop

from kinema.batch import server_jobs

KEY = "correct-horse"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with API keys and room for two queued jobs."""
    running = start(tmp_path_factory.mktemp("served") / "data", queue_size=2, api_keys=KEY)
    yield running
    stop(running)


@pytest.fixture
def on_server(batch_in_process, server, monkeypatch):
    """Return a function that runs the batch on the server, with the key in the environment."""
    monkeypatch.setenv("KINEMA_API_KEY", KEY)
    return lambda *arguments: batch_in_process(*arguments, "--server", server.url)


def jobs(server):
    """Return all jobs of the server by title."""
    response = httpx.get(f"{server.url}/v1/videos?limit=100", headers={"Authorization": f"Bearer {KEY}"})
    return {video["prompt"]: video for video in response.json()["data"]}


def files():
    return sorted(path.name for path in Path("videos").glob("*.mp4"))


def test_size_follows_the_image_by_the_defaults_of_the_server(monkeypatch):
    model = {"id": "theirs", "kind": "video", "default": True, "defaults": {"width": 320, "height": 192}}
    monkeypatch.setattr(server_jobs.ServerJobs, "_models", [model])
    with server_jobs.ServerJobs("http://gpu:3000", None, None) as jobs:
        requests = [jobs.complete({}, size) for size in ((40, 30), (30, 40), (30, 30), None)]
        requests.append(jobs.complete({"width": 64}, (30, 40)))
    assert [(request.width, request.height) for request in requests] == [
        (320, 192), (192, 320), (256, 256), (320, 192), (64, 320),
    ]  # fmt: skip


@pytest.mark.slow
def test_full_queue_is_waited_for_and_a_rerun_finds_the_jobs(on_server, server, folder):
    for seed in range(8):
        write_image(folder / "photos" / f"item{seed}.png", seed)
    (folder / "photos" / "item9.png").write_bytes(b"no image")
    slow = "--motion-bucket-id", "15"  # milliseconds of a step, so that the queue fills up
    result = on_server("photos", *slow)
    assert (result.code, files()) == (6, [f"item{seed}.mp4" for seed in range(8)])
    assert "failed: item9: photos/item9.png is not a supported image" in result.err
    assert "status=429" in server.log.read_text()
    before = jobs(server)
    assert len([title for title in before if title.startswith("item")]) == 8
    (folder / "videos" / "item3.mp4").unlink()
    assert on_server("photos", *slow).code == 6
    assert len(files()) == 8
    assert {video["id"] for video in jobs(server).values()} == {video["id"] for video in before.values()}


@pytest.mark.slow
def test_failed_job_is_tried_again(on_server, server, folder):
    write_image(folder / "photos" / "again.png", 50)
    threading.Thread(target=cancel_first, args=(server, "again")).start()
    result = on_server("photos", "--motion-bucket-id", "500")
    assert (result.code, files()) == (6, [])
    assert "failed: again: the job was cancelled" in result.err
    assert on_server("photos", "--motion-bucket-id", "500").code == 0
    assert files() == ["again.mp4"]


def cancel_first(server, title):
    """Cancel the job with this title as soon as it exists."""
    while title not in (found := jobs(server)):
        time.sleep(0.05)
    headers = {"Authorization": f"Bearer {KEY}"}
    httpx.post(f"{server.url}/v1/videos/{found[title]['id']}/cancel", headers=headers)


def test_invalid_parameter_of_the_server_fails_the_item(on_server, photos):
    result = on_server("photos", "--num-frames", "128", "--width", "2048", "--height", "2048")
    assert result.code == 6
    assert result.err.count("failed: ") == 3
    assert json.loads(Path("videos/summary.json").read_text())["items"][0]["error_code"] == "invalid_request"


@pytest.mark.usefixtures("photos")
def test_last_image_of_a_line_is_sent(on_server, server, folder):
    line = {"image": "photos/a.png", "last_image": "photos/b.png", "name": "ends-at-b", "seconds": 0.5}
    (folder / "m.jsonl").write_text(json.dumps(line))
    assert on_server("m.jsonl").code == 0
    video = jobs(server)["ends-at-b"]
    assert video["last_image_sha256"] == hashlib.sha256((folder / "photos" / "b.png").read_bytes()).hexdigest()
    assert video["parameters"]["num_frames"] == 4


@pytest.mark.usefixtures("photos")
def test_wrong_key_is_an_error_before_work(on_server):
    result = on_server("photos", "--api-key", "wrong")
    assert (result.code, files()) == (2, [])
    assert "the server rejects the request: " in result.err
    assert "see --api-key" in result.err


@pytest.mark.usefixtures("photos")
def test_unknown_model_is_an_error_before_work(on_server):
    result = on_server("photos", "--model", "missing")
    assert (result.code, files()) == (2, [])
    assert "model 'missing' is not offered by the server; use one of pocket" in result.err


@pytest.mark.usefixtures("photos")
def test_server_that_never_answers_is_an_error(batch_in_process):
    url = f"http://127.0.0.1:{free_port()}"
    result = batch_in_process("photos", "--server", url)
    assert result.code == 6
    assert f"the server {url} does not answer (" in result.err


def test_batch_on_a_server_needs_no_package_of_the_server():
    """Run in a process without those packages."""
    code = """
import sys
sys.modules.update(dict.fromkeys(["bentoml", "dbos", "fastapi", "gradio", "sqlalchemy", "uvicorn"]))
import kinema.batch.server_jobs, kinema.batch.batch_folder, kinema.batch.batch_summary
from kinema.cli import main
sys.exit(main(["batch", "photos", "--out", "videos", "--server", "http://127.0.0.1:9"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr


class Unreliable(BaseHTTPRequestHandler):
    """Forwards requests to the server, but answers the first attempt of each with 503 or with half an answer."""

    target, attempts = "", {}

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        count = self.attempts[self.command, self.path] = self.attempts.get((self.command, self.path), -1) + 1
        if count == 0 and self.path != "/v1/models":
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        answer = httpx.request(self.command, self.target + self.path, headers=headers, content=body)
        self.send_response(answer.status_code)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content[: len(answer.content) // 2] if count == 1 else answer.content)

    do_GET = do_POST = do_DELETE = forward  # noqa: N815 - names of the base class

    def log_message(self, *_):
        pass


@pytest.mark.usefixtures("photos")
def test_interrupted_transfers_are_tried_again(batch_in_process, server, monkeypatch):
    monkeypatch.setattr(server_jobs, "MAX_PAUSE", 0.05)
    monkeypatch.setenv("KINEMA_API_KEY", KEY)
    monkeypatch.setattr(Unreliable, "target", server.url)
    monkeypatch.setattr(Unreliable, "attempts", {("GET", "/v1/models"): 1})
    with ThreadingHTTPServer(("127.0.0.1", 0), Unreliable) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        result = batch_in_process("photos", "--server", f"http://127.0.0.1:{proxy.server_port}")
        proxy.shutdown()
    assert (result.code, files()) == (0, ["a.mp4", "b.mp4", "c.mp4"])
    assert "does not answer (status 503); trying again" in result.err


@pytest.mark.usefixtures("photos")
def test_server_that_stops_answering_ends_the_run_with_a_summary(batch_in_process, server, monkeypatch):
    monkeypatch.setattr(server_jobs, "MAX_PAUSE", 0.05)
    monkeypatch.setattr(server_jobs, "GIVE_UP_SECONDS", 0.3)
    monkeypatch.setenv("KINEMA_API_KEY", KEY)

    class Gone(Unreliable):
        def forward(self):
            self.attempts[self.command, self.path] = -1
            super().forward()

        do_POST = forward  # noqa: N815 - a name of the base class

    monkeypatch.setattr(Unreliable, "target", server.url)
    monkeypatch.setattr(Unreliable, "attempts", {("GET", "/v1/models"): 1})
    with ThreadingHTTPServer(("127.0.0.1", 0), Gone) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        result = batch_in_process("photos", "--server", f"http://127.0.0.1:{proxy.server_port}")
        proxy.shutdown()
    assert result.code == 6
    assert "0 of 3 videos are completed; run the same command to continue" in result.err
    assert json.loads(Path("videos/summary.json").read_text())["pending"] == 3
