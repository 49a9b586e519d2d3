"""A fresh process, from its start to a finished video: `in_fresh_process` starts it, `main` runs in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.errors import GenerationFailed

if TYPE_CHECKING:
    from kinema.benchmark.runs import Task
    from kinema.values import VideoRequest


def in_fresh_process(name: str, task: Task, request: VideoRequest) -> dict[str, Any]:
    """Make one video in a process of its own, with nothing compiled before.

    Returns:
        `seconds` to the finished file, `loaded` of them until the model was there, `peak` bytes by kind of memory, and
        the `decode_chunk_size` that was used.

    Raises:
        GenerationFailed: when it made none, with its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        still = Path(folder) / "still.png"
        task.still.image.save(still)
        given = {
            "name": name,
            "task": {
                "model": task.model,
                "folder": str(task.folder.absolute()),
                "half": task.half,
                "device": task.device,
                "dtype": task.dtype,
                "engine": task.engine,
            },
            "request": request.model_dump(),
            "still": str(still),
            "video": str(Path(folder) / "video.mp4"),
        }
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        began = time.perf_counter()  # one clock for all processes
        done = subprocess.run(
            [sys.executable, "-m", "kinema.benchmark.cold"],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | caches,
        )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise GenerationFailed(f"a fresh process of {name} made no video: {words[-1]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told | {"seconds": told["finished"] - began, "loaded": told["loaded"] - began}


def main() -> None:
    """Make the video that stdin asks for, and tell of it in one line on stdout."""
    import torch

    from kinema.benchmark.runs import Task, cuda_peaks, peak_rss, side
    from kinema.media.still import open_still
    from kinema.media.video import save_video
    from kinema.values import VideoRequest

    given = json.load(sys.stdin)
    folder = Path(given["task"].pop("folder"))
    task = Task(**given["task"], folder=folder, still=open_still(given["still"]))
    request = VideoRequest.checked(**given["request"])
    make = side(given["name"], task)
    loaded = time.perf_counter()
    run = make(request)
    save_video(run.frames, given["video"], request.frame_rate, run.recipe)
    told = {
        "finished": time.perf_counter(),
        "loaded": loaded,
        "peak": {"rss": peak_rss(), **cuda_peaks(torch.device(task.device))},
        "decode_chunk_size": run.recipe.decode_chunk_size if run.recipe else request.decode_chunk_size,
    }
    print(json.dumps(told))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
