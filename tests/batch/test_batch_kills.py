"""A batch that is killed at random moments and run again makes each video exactly once."""

import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from batch_inputs import write_image

ITEMS = 200
KILLS = 5


@pytest.mark.slow
def test_killed_batch_makes_each_video_exactly_once(folder, command, batch, monkeypatch):
    monkeypatch.setenv("KINEMA_WORK", "batch_work:QuickWork")
    for seed in range(ITEMS):
        write_image(folder / "photos" / f"{seed:03}.png", seed)
    finished_before = {}
    for kill in range(KILLS):
        with subprocess.Popen(command("photos"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(Path("videos").glob("*.mp4"))) < (kill + 0.5) * ITEMS / KILLS:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.2))
            process.kill()
        assert process.returncode == -9
        finished = {path.name: path.stat().st_ino for path in Path("videos").glob("*.mp4")}
        assert finished_before.items() <= finished.items()  # no finished video was written again
        finished_before = finished
    result = batch("photos")
    assert result.code == 0, result.err
    videos = {path.name: path.read_bytes() for path in Path("videos").glob("*.mp4")}
    assert len(videos) == len(set(videos.values())) == ITEMS
    finished = Counter(line.split()[0] for line in Path("tasks.log").read_text().splitlines() if "finished" in line)
    assert len(finished) == ITEMS  # one job for each video
    assert not list(folder.rglob(".part-*"))
