"""Take the page's screenshots again: a server of its own, a real browser, the embedded model.

python docs/screenshot.py                  # those of docs/page.md
python docs/screenshot.py /tmp/dark.png --width 390 --height 844 --dark
python docs/screenshot.py /tmp/swagger.png --path /
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

START_SECONDS = 120
PHONE_WIDTH = 500  # narrower windows have a touch screen
DOCS = Path(__file__).parent
SHOTS = {DOCS / "page.webp": (1280, 900), DOCS / "page-phone.webp": (390, 844)}


@contextmanager
def server() -> Iterator[str]:
    """Serve the embedded model on a free port with an empty data folder; yield the server's URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"KINEMA_DATA_DIR": folder, "KINEMA_MODEL": "pocket", "KINEMA_MIN_FREE_GB": "0"}
        command = [sys.executable, "-m", "kinema", "serve", "--port", str(port)]
        process = subprocess.Popen(command, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def wait_until_ready(url: str) -> None:
    """Return when /readyz answers 200.

    Raises:
        TimeoutError: after START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(f"the server was not ready within {START_SECONDS} seconds")


def open_page(page: Page, url: str, *, generate: bool) -> None:
    """Open the page, and generate a video from the first example if asked."""
    page.goto(url)
    page.wait_for_selector("#k-note .k-estimate")
    if generate:
        page.click("[data-example=rocket]")
        page.wait_for_selector(".k-image .k-media img")
        page.click("#k-generate")
        page.wait_for_selector(".k-panel[data-status=completed]", timeout=300_000)
        page.wait_for_timeout(3_000)  # the video plays, and the card has its thumbnail
        page.evaluate("window.scrollTo(0, 0)")


def screenshot(url: str, size: tuple[int, int], args: argparse.Namespace) -> Image.Image:
    """Return what a browser window of this size shows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        is_phone = size[0] < PHONE_WIDTH
        page = browser.new_page(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if args.dark else "light",
            has_touch=is_phone,
            is_mobile=is_phone,
        )
        if args.path:
            page.goto(url + args.path, wait_until="networkidle")
            page.wait_for_timeout(2_000)  # scripts render it
        else:
            open_page(page, f"{url}/studio/{args.language}/", generate=not args.empty)
        data = page.screenshot()
        browser.close()
    return Image.open(io.BytesIO(data))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="a single screenshot to take: .webp or .png")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--language", default="en", choices=["en", "ko"])
    parser.add_argument("--path", help="another page of the server")
    parser.add_argument("--empty", action="store_true", help="without generating a video")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    with server() as url:
        for file, size in ({args.file: (args.width, args.height)} if args.file else SHOTS).items():
            screenshot(url, size, args).save(file, quality=80, method=6)
