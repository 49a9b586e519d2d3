"""Measure `kinema batch` with many items and stub work, and kill it at random moments:

    python bench/batch_run.py --items 10000 --kills 5 --out bench/results/batch-10000.json

Each item has an image of its own of about 20 KB and takes 10 ms. The first run is measured until all items are planned
and until the first video; the kills and the memory are those of all runs. A video counts as made twice if the task logs
name more than one job for it, or if a finished video's file was written again.
"""

import argparse
import datetime
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]
SEED = 1


def make_images(folder: Path, count: int) -> int:
    """Write JPEG images of 320×180 with noise; return their mean size in bytes."""
    folder.mkdir()
    noise = np.random.default_rng(SEED).integers(0, 256, (180, 320, 3), np.uint8)
    for i in range(count):
        pixels = np.roll(noise, i % 180, 0) // 2
        pixels[:16, :16] = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05}.jpg", quality=68)
    return sum(path.stat().st_size for path in folder.iterdir()) // count


class Batch:
    """One process of `kinema batch`."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {
            "KINEMA_WORK": "batch_work:QuickWork",
            "KINEMA_DEVICE": "cpu",
            "BATCH_TASK_LOG": str(folder / "tasks.log"),
            "PYTHONPATH": os.pathsep.join(str(ROOT / "tests" / name) for name in ("batch", "serving")),
        }
        command = [sys.executable, "-m", "kinema", "batch", "photos", "--out", "videos", "--model", "pocket"]
        command += ["--motion-bucket-id", "0", "--json"]
        self.log = (folder / "events.log").open("ab")
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=self.log, stderr=self.log)

    def rss(self) -> int:
        """Return the memory of the process without its workers."""
        try:
            return psutil.Process(self.process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return 0


def videos(folder: Path) -> dict[str, int]:
    """Return the inode of each video, which changes if it is written again."""
    if not (folder / "videos").is_dir():
        return {}
    return {entry.name: entry.inode() for entry in os.scandir(folder / "videos") if entry.name.endswith(".mp4")}


def run(folder: Path, items: int, kills: int) -> dict[str, object]:
    """Run the batch, with kills between the first and the last video, until it is complete."""
    image_bytes = make_images(folder / "photos", items)
    chance, peak, rewritten, done = random.Random(SEED), 0, 0, {}
    began = time.perf_counter()
    planned = first = None
    targets = sorted(chance.uniform(0, 0.9) * items for _ in range(kills))
    for target in [*targets, None]:
        batch = Batch(folder)
        while batch.process.poll() is None:
            peak = max(peak, batch.rss())
            if planned is None and b'"progress"' in (folder / "events.log").read_bytes()[:10_000]:
                planned = time.perf_counter() - began
            now = videos(folder)
            rewritten += sum(now.get(name) != inode for name, inode in done.items())
            done = now
            first = first or (time.perf_counter() - began if done else None)
            if target is not None and len(done) >= target:
                time.sleep(chance.uniform(0, 0.3))
                batch.process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.2)
        code = batch.process.wait()
        print(f"exit code {code}, {len(done)} videos after {time.perf_counter() - began:.0f} s", flush=True)
    seconds = time.perf_counter() - began
    tasks = [line.split() for line in (folder / "tasks.log").read_text().splitlines()]
    jobs = Counter(job for job, _, event, *_ in tasks if event == "finished")
    summary = json.loads((folder / "videos" / "summary.json").read_text())
    return {
        "items": items,
        "image_bytes": image_bytes,
        "kills": kills,
        "seconds_to_plan": round(planned or 0, 1),
        "seconds_to_first_video": round(first or 0, 1),
        "seconds": round(seconds, 1),
        "peak_rss_mb": round(peak / 1e6),
        "completed": summary["completed"],
        "jobs_that_computed_a_video": len(jobs),
        "videos_computed_again_after_a_kill": sum(jobs.values()) - len(jobs),
        "made_twice": rewritten + len(jobs) - len(videos(folder)),
    }


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = run(Path(folder), arguments.items, arguments.kills)
    record |= {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    text = json.dumps(record, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
