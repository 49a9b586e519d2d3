"""The page's routes, and what surrounds Gradio: asked by a client without a browser."""

import io
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from PIL import Image

from kinema.jobs import Queue
from kinema.settings import Settings
from kinema.values import VideoRequest


@pytest.fixture(scope="session")
def queue(server):
    """The same jobs, seen from another process."""
    queue = Queue(Settings(data_dir=server.data, min_free_gb=0))
    yield queue
    queue.close(grace=0)


@pytest.fixture(scope="session")
def client(server):
    with httpx.Client(base_url=server.address.removesuffix("/studio/"), follow_redirects=True) as client:
        yield client


def image(size=(300, 200)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("ko-KR,ko;q=0.9,en;q=0.8", "ko"), ("en-GB", "en"), ("fr,ko;q=0.5", "ko"), ("de", "en"), ("", "en")],
)
def test_the_browsers_language_is_chosen(client, accepted, language):
    for address in ("/studio", "/studio/"):
        answer = client.get(address, headers={"accept-language": accepted})
        assert answer.url.path == f"/studio/{language}/"


def test_a_chosen_language_is_kept_and_so_is_the_job(client):
    client.cookies.set("kinema_language", "ko")
    try:
        assert str(client.get("/studio/?job=video_1").url).endswith("/studio/ko/?job=video_1")
    finally:
        client.cookies.clear()


def test_the_document_is_in_its_language_and_asks_nothing_of_others(client):
    answer = client.get("/studio/ko/")
    assert '<html\n\tlang="ko"' in answer.text
    assert "../static/page.js" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "fonts.googleapis" not in client.get("/studio/ko/theme.css").text


def test_static_files_are_there(client):
    for name in ("page.css", "page.js", "icon.svg"):
        assert client.get(f"/studio/static/{name}").status_code == 200
    assert client.get("/studio/static/../words.py").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/upload", "gradio_api/proxy=http://localhost/", "gradio_api/deep_link", "monitoring", "monitoring/",
        "gradio_api/file=http://localhost/", "gradio_api/file/http://localhost/", "gradio_api/info", "config",
        "gradio_api/run/0", "gradio_api/call/0", "gradio_api/component_server", "gradio_api/queue/join/", "login",
    ],
)  # fmt: skip
def test_what_gradio_offers_beyond_the_page_is_closed(client, path):
    assert client.get(f"/studio/en/{path}").status_code == 404
    assert client.post(f"/studio/en/{path}", files={"files": b"x"}).status_code == 404


@pytest.fixture
def elsewhere():
    """A server that must not be asked, and what was asked of it."""
    asked = []

    class Told(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a secret")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Told) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}/", asked
        other.shutdown()


def test_no_address_is_fetched_through_gradio(client, elsewhere):
    address, asked = elsewhere
    for path in (f"file={address}", f"file/{address}", f"proxy={address}"):
        answer = client.get(f"/studio/en/gradio_api/{path}", follow_redirects=False)
        assert (answer.status_code, answer.content, dict(answer.headers).get("location")) == (404, b"", None)
    assert not asked


@pytest.mark.parametrize("spelt", ["gradio.FileData", "gradio\\u002eFileData"])
def test_no_call_names_a_file(client, elsewhere, spelt):
    address, asked = elsewhere
    told = {"path": address, "url": address, "meta": {"_type": "SPELT"}}
    call = json.dumps({"data": [told] * 4, "fn_index": 0, "session_hash": "strange"}).replace("SPELT", spelt)
    answer = client.post("/studio/en/gradio_api/queue/join", content=call, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert not asked


def test_a_call_that_is_too_large_or_no_json_is_refused(client):
    path = "/studio/en/gradio_api/queue/join"
    assert client.post(path, content=b'"' + b"x" * 1_000_000 + b'"').status_code == 413
    assert client.post(path, content=b"[" * 100_000).status_code == 400


def test_a_still_is_kept_and_fitted_as_the_engine_does(client):
    sha256 = client.post("/studio/images", content=image()).json()["image"]
    answer = client.get(f"/studio/images/{sha256}?width=288&height=160")
    assert Image.open(io.BytesIO(answer.content)).size == (288, 160)
    padded = client.get(f"/studio/images/{sha256}?width=512&height=160&fit=pad")
    assert Image.open(io.BytesIO(padded.content)).getpixel((2, 80)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [(b"", 422, "empty"), (b"GIF89a", 422, "GIF"), (b"0" * 20_000_001, 413, "20 MB"), (image((8, 8)), 422, "8×8")],
)
def test_what_is_no_still_is_refused(client, data, status, said):
    answer = client.post("/studio/images", content=data)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_what_is_no_still_is_refused_in_the_pages_language(client):
    for data in (b"GIF89a", b"0" * 20_000_001):
        answer = client.post("/studio/images?language=ko", content=data)
        said = answer.json()["error"]["message"]
        assert ("PNG로 저장해서" in said) or ("20 MB가 넘습니다" in said)
        assert answer.headers["content-language"] == "ko"


@pytest.mark.parametrize("name", ["..%2f..%2fjobs.sqlite3", "A" * 64, "a" * 63, "a" * 64, "%00"])
def test_no_other_file_is_shown(client, name):
    assert client.get(f"/studio/images/{name}?width=288&height=160").status_code in (404, 422)


@pytest.mark.parametrize(
    "size", ["width=288&height=99999", "width=0&height=160", "width=288", "width=288&height=64&fit=x"]
)
def test_a_still_is_not_fitted_to_any_size(client, size):
    sha256 = client.post("/studio/images", content=image()).json()["image"]
    assert client.get(f"/studio/images/{sha256}?{size}").status_code == 422


def test_old_drafts_go(client, server):
    old = server.data / "drafts" / ("b" * 64)
    old.write_bytes(b"old")
    os.utime(old, (time.time() - 90_000,) * 2)
    client.post("/studio/images", content=image((64, 64)))
    assert not old.exists()


def test_a_job_that_is_not_there_is_said_to_be_not_there(client):
    for what in ("preview.jpg", "video.mp4", "recipe.json"):
        assert client.get(f"/studio/jobs/video_{'0' * 32}/{what}").status_code == 404
        assert client.get(f"/studio/jobs/..%2f..%2fx/{what}").status_code == 404


def test_a_job_is_told_until_it_is_finished(client, queue):
    slow = VideoRequest(model="pocket", seed=1, width=288, height=160, num_inference_steps=200)
    job = queue.submit(slow, image=image())
    assert client.get(f"/studio/jobs/{job.id}/video.mp4").status_code == 409
    queue.cancel(job.id)
    told = client.get(f"/studio/jobs/{job.id}/events?language=ko")
    assert told.headers["content-type"].startswith("text/event-stream")
    assert "취소했습니다" in told.text.encode().decode("unicode_escape")
