"""The page on the complete server, with an API key and the pocket model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from page_helpers import finished, generate, upload_image

pytestmark = [pytest.mark.browser, pytest.mark.slow]
KEY = "open-sesame"


@pytest.fixture
def served(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"DATA_DIR": str(tmp_path), "MODEL": "pocket", "DEVICE": "cpu", "API_KEYS": KEY, "MIN_FREE_GB": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kinema", "serve", "--port", str(port)],
        env=os.environ | {f"KINEMA_{name}": value for name, value in settings.items()},
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while not _ready(url):
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server is not ready"
        time.sleep(0.5)
    yield url, process
    process.kill()
    process.wait()


def _ready(url):
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_browser_with_the_api_key_generates_a_video_with_pocket(served, chromium, visit):
    url, process = served
    assert httpx.get(f"{url}/studio/en/").status_code == 401
    upload = httpx.post(f"{url}/studio/en/gradio_api/upload", files={"files": b"x"}, headers={"X-API-Key": KEY})
    assert upload.status_code == 404
    page = visit(f"{url}/studio", http_credentials=("kinema", KEY))
    page.set_default_timeout(180_000)
    upload_image(page)
    job = generate(page)
    page.wait_for_selector(".k-panel img.k-preview")
    finished(page)
    page.wait_for_function("document.querySelector('.k-panel video').currentTime > 0")
    with page.expect_download() as recipe:
        page.click(".k-panel [href$='recipe.json']")
    stored = json.loads(recipe.value.path().read_text())
    assert stored["model"]["name"] == "pocket"
    assert httpx.get(f"{url}/v1/videos/{job}", headers={"X-API-Key": KEY}).json()["status"] == "completed"
    generate(page)  # the server must stop although a browser follows a job
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(40)
    assert time.monotonic() - started < 35
