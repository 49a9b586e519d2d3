"""Take the page's screenshot again: a server of its own, a real browser, the embedded model.

python docs/screenshot.py docs/page.webp
python docs/screenshot.py /tmp/phone.png --width 390 --height 844
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

START_SECONDS = 120


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


def screenshot(url: str, size: tuple[int, int], language: str, *, generate: bool, dark: bool) -> Image.Image:
    """Open the page, generate a video from the first example if asked, and return what the window shows."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
        )
        page.goto(f"{url}/studio/{language}/")
        page.wait_for_selector("#k-note .k-estimate")
        if generate:
            page.click("[data-example=rocket]")
            page.wait_for_selector(".k-image .k-media img")
            page.click("#k-generate")
            page.wait_for_selector(".k-panel[data-status=completed]", timeout=300_000)
            page.wait_for_timeout(3_000)  # the video plays, and the card has its thumbnail
            page.evaluate("window.scrollTo(0, 0)")
        data = page.screenshot()
        browser.close()
    return Image.open(io.BytesIO(data))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where to write it: .webp or .png")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--language", default="en", choices=["en", "ko"])
    parser.add_argument("--empty", action="store_true", help="without generating a video")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    with server() as url:
        image = screenshot(url, (args.width, args.height), args.language, generate=not args.empty, dark=args.dark)
    image.save(args.file, quality=80, method=6)
