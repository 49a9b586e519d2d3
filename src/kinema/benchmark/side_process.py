"""A side's own process, from start to end: `started` starts it, `SideProcess` asks it, and `main` lives in it.

A line of JSON asks and one answers; frames and latents go by a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kinema.benchmark.stopwatch import BenchmarkTask, Make, TimedRun
    from kinema.values import VideoRequest

SideReport = dict[str, Any]


class SideProcess:
    """One side, seen from outside.

    Both methods raise what the process failed with where that is a KinemaError, and else GenerationFailed with its last
    words.
    """

    def __init__(self, name: str, task: BenchmarkTask, folder: Path, caches: Path) -> None:
        folder.mkdir()
        image = folder / "image.png"
        task.image.rgb.save(image)
        self._name, self._folder = name, folder
        self._task = vars(task) | {"folder": str(task.folder.absolute()), "image": str(image)}
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
        }
        self._began = time.perf_counter()  # one clock for all processes
        with (folder / "words").open("w") as words:
            # -P: the current folder holds no modules of ours, though it may hold some of the same names.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kinema.benchmark.side_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env=environment,
            )

    def first(self, request: VideoRequest) -> tuple[TimedRun, SideReport]:
        """Load the model and make a first video, to its file.

        Returns:
            It, and `seconds` from the process's start to the file, `loaded` of them until the model was there,
            `load_seconds` of those for loading alone, and `peak` bytes by kind of memory.
        """
        loaded = self._ask(name=self._name, task=self._task)
        run, made = self._video(request, video=str(self._folder / "video.mp4"))
        since = {"seconds": made["finished"] - self._began, "loaded": loaded["loaded"] - self._began}
        return run, since | {"load_seconds": loaded["load_seconds"], "peak": made["peak"]}

    def make(self, request: VideoRequest) -> TimedRun:
        """One more video."""
        return self._video(request)[0]

    def _video(self, request: VideoRequest, video: str | None = None) -> tuple[TimedRun, SideReport]:
        import numpy as np

        from kinema.benchmark.stopwatch import TimedRun
        from kinema.values import Recipe

        arrays = self._folder / "made.npz"
        made = self._ask(request=request.model_dump(), video=video, arrays=str(arrays))
        recipe = Recipe.model_validate(made["recipe"]) if made["recipe"] else None
        with np.load(arrays) as read:
            return TimedRun(made["seconds"], read["frames"], read["latents"], recipe), made

    def _ask(self, **asked: Any) -> SideReport:
        assert self.process.stdin is not None, "a pipe was asked for"
        assert self.process.stdout is not None, "here too"
        line = ""
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{json.dumps(asked)}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            words = (self._folder / "words").read_text(encoding="utf-8", errors="replace").split("\n")
            last = next(filter(None, reversed(words)), "none")
            code = self.process.wait()
            raise errors.GenerationFailed(f"the process of {self._name} ended with {code}; its last words: {last}")
        told: SideReport = json.loads(line)
        if "error" in told:
            raise getattr(errors, told["error"])(told["message"])
        return told


@contextmanager
def started(name: str, task: BenchmarkTask, folder: Path, caches: Path) -> Iterator[SideProcess]:
    """One side in a fresh process, which ends where this does.

    Args:
        name: "kinema", "diffusers" or "diffusers-compile".
        task: What it loads, and makes its videos of.
        folder: Where it keeps its files; made here.
        caches: Where it keeps what it compiles, and finds what was compiled before; made when it is needed.
    """
    side = SideProcess(name, task, folder, caches)
    try:
        yield side
    except BaseException:
        side.process.kill()
        raise
    finally:
        side.process.communicate()  # what it reads ends here, at which it ends, and is waited for


def main() -> None:
    """Load what the first line of stdin asks for, make a video for each line after it, and answer each by a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that what a library prints is no answer
    try:
        for told in _answers(map(json.loads, sys.stdin)):
            answers.write(f"{json.dumps(told)}\n")
            answers.flush()
    except errors.KinemaError as error:
        answers.write(json.dumps({"error": type(error).__name__, "message": str(error)}))
        answers.flush()


def _answers(asked: Iterator[SideReport]) -> Iterator[SideReport]:
    """What `SideProcess.first` and `SideProcess.make` are told."""
    import numpy as np
    import torch

    from kinema.benchmark.stopwatch import BenchmarkTask, cuda_peaks, peak_rss, synchronize
    from kinema.media.image import open_image
    from kinema.media.video_writer import save_video
    from kinema.models.devices import release_cache
    from kinema.values import VideoRequest

    first = next(asked)
    given = first["task"]
    task = BenchmarkTask(**given | {"folder": Path(given["folder"]), "image": open_image(given["image"])})
    device = torch.device(task.device)
    load = side(first["name"])
    synchronize(device)  # which wakes a GPU: that is no part of loading
    began = time.perf_counter()
    make = load(task)
    synchronize(device)
    loaded = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield {"loaded": loaded, "load_seconds": loaded - began}
    for each in asked:
        request = VideoRequest.checked(**each["request"])
        if device.type == "cuda" and not each["video"]:  # so that torch has its memory again, given back before
            make(request.model_copy(update={"num_inference_steps": 1}))
        run = make(request)
        if each["video"]:
            save_video(run.frames, each["video"], request.frame_rate, run.recipe)
        told = {
            "finished": time.perf_counter(),
            "seconds": run.seconds,
            "peak": {"rss": peak_rss(), **cuda_peaks(device)},
            "recipe": run.recipe.model_dump(mode="json") if run.recipe else None,
        }
        np.savez(each["arrays"], frames=run.frames, latents=run.latents)
        if device.type == "cuda":  # for the other side; on a CPU this would undo `keep_pages`
            release_cache(device)
        yield told


def side(name: str) -> Callable[[BenchmarkTask], Make]:
    """Import what one side computes with, and give what loads its model."""
    if name == "kinema":
        from kinema.benchmark.kinema_side import load_ours

        return load_ours
    from kinema.benchmark.diffusers_side import load_peer

    return partial(load_peer, name)


if __name__ == "__main__":
    main()
