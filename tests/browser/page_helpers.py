"""Steps that the page's tests share, and the server process that they test."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

ROCKET = Path(__file__).parents[2] / "examples" / "rocket.jpg"


class Server:
    """The page's server in its own process; it can be killed and started again on the same data folder."""

    def __init__(self, data, work="page_work:Work"):
        self.data = data
        self._hold = data / "hold"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [
            sys.executable, str(Path(__file__).with_name("page_server.py")), str(data), str(self.port), work,
        ]  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}/studio/"
        self.start()

    def start(self):
        # Worker processes import the stand-in from this folder.
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "2", "PAGE_WORK_HOLD": str(self._hold)}
        self.process = subprocess.Popen(self.command, env=environment)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urlopen(self.url, timeout=5):
                return
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not respond"
            time.sleep(0.1)

    @contextlib.contextmanager
    def hold(self):
        """Keep jobs of the stand-in in progress until the end of the block."""
        self._hold.touch()
        try:
            yield
        finally:
            self._hold.unlink()

    def kill(self):
        self.process.kill()
        self.process.wait()


def ready(page):
    """Wait until the page shows the time estimate, its first response from the server."""
    page.wait_for_selector("#k-note .k-estimate")


def upload_image(page, path=ROCKET):
    with page.expect_file_chooser() as chooser:
        page.click("[data-choose]")
    chooser.value.set_files(path)
    page.wait_for_selector(".k-image .k-media img")


def number_field(page, label):
    """Return a field by its label, which may be followed by help text."""
    return page.get_by_label(re.compile(rf"^\s*{label}(\s|$)"))


def set_number(page, label, value):
    """Fill a number field; open the section "More parameters" if needed."""
    field = number_field(page, label)
    if not field.is_visible():
        page.click(".k-more > button")
    field.fill(str(value))
    field.press("Tab")


def generate(page):
    """Press Generate; return the id of the job that the page shows then."""
    before = page.get_attribute(".k-panel", "data-job")
    page.click("#k-generate")
    page.wait_for_function("(before) => document.querySelector('.k-panel').dataset.job !== before", arg=before)
    return page.get_attribute(".k-panel", "data-job")


def finished(page, status="completed"):
    page.wait_for_selector(f".k-panel[data-status={status}]")
