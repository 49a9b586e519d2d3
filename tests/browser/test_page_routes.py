"""The page's routes and the middleware around Gradio, tested with an HTTP client."""

import io
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from page_helpers import ROCKET
from PIL import Image

from kinema.jobs import NewJob, Queue
from kinema.settings import Settings
from kinema.values import VideoRequest


@pytest.fixture(scope="session")
def queue(server):
    """The server's queue, opened in the test process."""
    queue = Queue(Settings(data_dir=server.data, min_free_gb=0))
    yield queue
    queue.close(grace=0)


@pytest.fixture(scope="session")
def client(server):
    with httpx.Client(base_url=server.url.removesuffix("/studio/"), follow_redirects=True) as client:
        yield client


def image(size=(300, 200)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("ko-KR,ko;q=0.9,en;q=0.8", "ko"), ("en-GB", "en"), ("fr,ko;q=0.5", "ko"), ("de", "en"), ("", "en")],
)
def test_studio_redirects_to_the_browser_language(client, accepted, language):
    for path in ("/studio", "/studio/"):
        response = client.get(path, headers={"accept-language": accepted})
        assert response.url.path == f"/studio/{language}/"


def test_redirect_keeps_the_chosen_language_and_the_job(client):
    client.cookies.set("kinema_language", "ko")
    try:
        assert str(client.get("/studio/?job=video_1").url).endswith("/studio/ko/?job=video_1")
    finally:
        client.cookies.clear()


def test_document_has_its_language_and_a_policy_without_other_hosts(client):
    response = client.get("/studio/ko/")
    assert '<html\n\tlang="ko"' in response.text
    assert "../static/page.js" in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "fonts.googleapis" not in client.get("/studio/ko/theme.css").text


def test_static_files_are_served(client):
    for name in ("page.css", "page.js", "icon.svg"):
        assert client.get(f"/studio/static/{name}").status_code == 200
    assert client.get("/studio/static/../blocks.py").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/upload", "gradio_api/proxy=http://localhost/", "gradio_api/deep_link", "monitoring", "monitoring/",
        "gradio_api/file=http://localhost/", "gradio_api/file/http://localhost/", "gradio_api/info", "config",
        "gradio_api/run/0", "gradio_api/call/0", "gradio_api/component_server", "gradio_api/queue/join/", "login",
    ],
)  # fmt: skip
def test_unused_gradio_routes_return_404(client, path):
    assert client.get(f"/studio/en/{path}").status_code == 404
    assert client.post(f"/studio/en/{path}", files={"files": b"x"}).status_code == 404


@pytest.fixture
def elsewhere():
    """A server that must receive no request: its URL and the paths that were requested."""
    paths = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a secret")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Recorder) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}/", paths
        other.shutdown()


def test_gradio_fetches_no_url(client, elsewhere):
    url, paths = elsewhere
    for path in (f"file={url}", f"file/{url}", f"proxy={url}"):
        response = client.get(f"/studio/en/gradio_api/{path}", follow_redirects=False)
        assert (response.status_code, response.content, dict(response.headers).get("location")) == (404, b"", None)
    assert not paths


@pytest.mark.parametrize("mark", ["gradio.FileData", "gradio\\u002eFileData"])
def test_call_with_a_file_is_rejected(client, elsewhere, mark):
    url, paths = elsewhere
    file = {"path": url, "url": url, "meta": {"_type": "MARK"}}
    call = json.dumps({"data": [file] * 4, "fn_index": 0, "session_hash": "strange"}).replace("MARK", mark)
    response = client.post(
        "/studio/en/gradio_api/queue/join", content=call, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert not paths


def test_call_that_is_too_large_or_not_json_is_rejected(client):
    path = "/studio/en/gradio_api/queue/join"
    assert client.post(path, content=b'"' + b"x" * 1_000_000 + b'"').status_code == 413
    assert client.post(path, content=b"[" * 100_000).status_code == 400


def test_uploaded_image_is_served_fitted(client):
    sha256 = client.post("/studio/images", content=image()).json()["image"]
    response = client.get(f"/studio/images/{sha256}?width=288&height=160")
    assert Image.open(io.BytesIO(response.content)).size == (288, 160)
    rocket = client.post("/studio/images", content=ROCKET.read_bytes()).json()["image"]
    crops = [
        client.get(f"/studio/images/{rocket}?width=160&height=288&crop_position={position}") for position in (0, 1, 2)
    ]
    assert [crop.status_code for crop in crops] == [200, 200, 422]
    assert crops[0].content != crops[1].content
    padded = client.get(f"/studio/images/{sha256}?width=512&height=160&fit=pad")
    assert Image.open(io.BytesIO(padded.content)).getpixel((2, 80)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("data", "status", "expected"),
    [(b"", 422, "empty"), (b"GIF89a", 422, "GIF"), (b"0" * 20_000_001, 413, "20 MB"), (image((8, 8)), 422, "8×8")],
)
def test_invalid_image_is_rejected(client, data, status, expected):
    response = client.post("/studio/images", content=data)
    assert response.status_code == status
    assert expected in response.json()["error"]["message"]


def test_invalid_image_is_rejected_in_the_page_language(client):
    for data in (b"GIF89a", b"0" * 20_000_001):
        response = client.post("/studio/images?language=ko", content=data)
        message = response.json()["error"]["message"]
        assert ("PNG로 저장해" in message) or ("20 MB가 넘습니다" in message)
        assert response.headers["content-language"] == "ko"


@pytest.mark.parametrize("name", ["..%2f..%2fjobs.sqlite3", "A" * 64, "a" * 63, "a" * 64, "%00"])
def test_images_route_serves_no_other_file(client, name):
    assert client.get(f"/studio/images/{name}?width=288&height=160").status_code in (404, 422)


@pytest.mark.parametrize(
    "size", ["width=288&height=99999", "width=0&height=160", "width=288", "width=288&height=64&fit=x"]
)
def test_invalid_size_or_fit_returns_422(client, size):
    sha256 = client.post("/studio/images", content=image()).json()["image"]
    assert client.get(f"/studio/images/{sha256}?{size}").status_code == 422


def test_upload_deletes_old_drafts(client, server):
    old = server.data / "drafts" / ("b" * 64)
    old.write_bytes(b"old")
    os.utime(old, (time.time() - 90_000,) * 2)
    client.post("/studio/images", content=image((64, 64)))
    assert not old.exists()


def test_unknown_job_returns_404(client):
    for file in ("preview.jpg", "video.mp4", "recipe.json"):
        assert client.get(f"/studio/jobs/video_{'0' * 32}/{file}").status_code == 404
        assert client.get(f"/studio/jobs/..%2f..%2fx/{file}").status_code == 404


def test_events_end_when_the_job_is_finished(client, queue):
    slow = VideoRequest(model="pocket", seed=1, width=288, height=160, num_inference_steps=200)
    job = queue.submit(NewJob(slow, image=image()))
    assert client.get(f"/studio/jobs/{job.id}/video.mp4").status_code == 409
    queue.cancel(job.id)
    events = client.get(f"/studio/jobs/{job.id}/events?language=ko")
    assert events.headers["content-type"].startswith("text/event-stream")
    assert "취소됨" in events.text.encode().decode("unicode_escape")
