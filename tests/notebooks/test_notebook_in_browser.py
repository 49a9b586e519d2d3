"""The videos of an executed notebook play in a real browser."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from lessons import code_cells
from nbconvert import HTMLExporter

if TYPE_CHECKING:
    from pathlib import Path

    from nbformat import NotebookNode
    from playwright.sync_api import Route

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]

BROWSER_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
IS_PLAYING = "v => v.readyState >= 3 && v.currentTime > 0 && v.error === null"


def test_every_video_of_the_executed_notebook_plays_offline(executed: NotebookNode, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    page_file = tmp_path / "lesson.html"
    page_file.write_text(HTMLExporter().from_notebook_node(executed)[0], encoding="utf-8")
    videos = sum("lesson.generate_" in cell.source for cell in code_cells(executed))

    def block_network(route: Route) -> None:
        """Abort requests to the network: nbconvert's MathJax and scripts use it, the videos must not."""
        route.continue_() if route.request.url.startswith("file:") else route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGS)
        page = browser.new_page()
        page.route("**/*", block_network)
        page.goto(page_file.as_uri(), wait_until="domcontentloaded")
        sizes = []
        for video in page.locator("video").all():
            video.scroll_into_view_if_needed()  # browsers autoplay only visible videos
            page.wait_for_function(IS_PLAYING, arg=video.element_handle(), timeout=20_000)
            sizes.append(video.evaluate("v => [v.videoWidth, v.videoHeight]"))
        browser.close()
    assert videos >= 2
    assert sizes == [[288, 160]] * videos
