"""Saved videos play in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from kinema.media.video_writer import save_video

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
HAVE_ENOUGH_TO_PLAY = 3


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_saved_video_plays(chromium: Browser, tmp_path: Path, suffix: str) -> None:
    y, x = np.mgrid[:160, :288]
    frames = np.stack([np.stack([x + 9 * i, y, x // 2 + y // 2], -1) % 256 for i in range(14)]).astype(np.uint8)
    save_video(frames, tmp_path / f"video{suffix}", fps=7)
    (tmp_path / "page.html").write_text(f'<video id="v" src="video{suffix}" muted autoplay loop></video>')
    page = chromium.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function(f"document.getElementById('v').readyState >= {HAVE_ENOUGH_TO_PLAY}", timeout=20_000)
    page.wait_for_function("document.getElementById('v').currentTime > 0", timeout=20_000)
    facts = page.evaluate(
        "(() => { const v = document.getElementById('v');"
        " return [v.videoWidth, v.videoHeight, v.duration, v.error] })()"
    )
    page.close()
    assert facts[:2] == [288, 160]
    assert facts[2] == pytest.approx(2.0, abs=0.01)
    assert facts[3] is None
