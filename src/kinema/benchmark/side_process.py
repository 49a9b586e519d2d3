"""The process of one side: `started` starts it, `SideProcess` is its client, and `main` runs in it.

Requests and responses are lines of JSON; frames and latents are passed in a file.
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
from kinema.benchmark import ONE_GPU

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kinema.benchmark.stopwatch import BenchmarkTask, Make, TimedRun
    from kinema.values import VideoRequest

SideReport = dict[str, Any]


class SideProcess:
    """Client of one side's process.

    Both methods raise the process's KinemaError, or GenerationFailed with its last line of output.
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
        self._started = time.perf_counter()  # perf_counter is the same clock in all processes
        with (folder / "stderr.txt").open("w") as stderr:
            # -P: do not import modules from the current folder.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kinema.benchmark.side_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            )

    def first(self, request: VideoRequest) -> tuple[TimedRun, SideReport]:
        """Load the model, and generate and save a first video.

        Returns:
            The video, and `seconds` from the start of the process to the file, `loaded` until the model is loaded,
            `load_seconds` for loading alone, and `peak` bytes by kind of memory.
        """
        loaded = self._call(name=self._name, task=self._task)
        run, report = self._video(request, video=str(self._folder / "video.mp4"))
        since = {"seconds": report["finished"] - self._started, "loaded": loaded["loaded"] - self._started}
        return run, since | {"load_seconds": loaded["load_seconds"], "peak": report["peak"]}

    def make(self, request: VideoRequest) -> TimedRun:
        """Generate another video."""
        return self._video(request)[0]

    def _video(self, request: VideoRequest, video: str | None = None) -> tuple[TimedRun, SideReport]:
        import numpy as np

        from kinema.benchmark.stopwatch import TimedRun
        from kinema.recipe import Recipe

        arrays = self._folder / "arrays.npz"
        report = self._call(request=request.model_dump(), video=video, arrays=str(arrays))
        recipe = Recipe.model_validate(report["recipe"]) if report["recipe"] else None
        with np.load(arrays) as file:
            return TimedRun(report["seconds"], file["frames"], file["latents"], recipe), report

    def _call(self, **call: Any) -> SideReport:
        assert self.process.stdin is not None, "stdin is a pipe"
        assert self.process.stdout is not None, "stdout is a pipe"
        line = ""
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{json.dumps(call)}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            lines = (self._folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").split("\n")
            last = next(filter(None, reversed(lines)), "none")
            code = self.process.wait()
            raise errors.GenerationFailed(f"the process of {self._name} ended with {code}; its last output: {last}")
        response: SideReport = json.loads(line)
        if "error" in response:
            raise getattr(errors, response["error"])(response["message"])
        return response


@contextmanager
def started(name: str, task: BenchmarkTask, folder: Path, caches: Path) -> Iterator[SideProcess]:
    """Start one side in a new process, which ends with this context.

    Args:
        name: "kinema", or a baseline of `kinema.benchmark.BASELINES`.
        task: The model and the image.
        folder: Folder for its files; created here.
        caches: Folder of its compiler caches; created when needed.
    """
    side = SideProcess(name, task, folder, caches)
    try:
        yield side
    except BaseException:
        side.process.kill()
        raise
    finally:
        side.process.communicate()  # closes stdin, at which the process exits, and waits for it


def main() -> None:
    """Load the model of the first line of stdin, and generate a video for each further line; write a line for each."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries' output must not mix with the responses
    try:
        for response in _responses(map(json.loads, sys.stdin)):
            responses.write(f"{json.dumps(response)}\n")
            responses.flush()
    except errors.KinemaError as error:
        responses.write(json.dumps({"error": type(error).__name__, "message": str(error)}))
        responses.flush()


def _responses(calls: Iterator[SideReport]) -> Iterator[SideReport]:
    """Yield the responses for `SideProcess.first` and `SideProcess.make`."""
    import numpy as np
    import torch

    from kinema.benchmark.stopwatch import BenchmarkTask, cuda_peaks, peak_rss, synchronize
    from kinema.media.image import open_image
    from kinema.media.video_writer import save_video
    from kinema.models.devices import release_cache
    from kinema.values import VideoRequest

    first = next(calls)
    fields = first["task"]
    task = BenchmarkTask(**fields | {"folder": Path(fields["folder"]), "image": open_image(fields["image"])})
    device = torch.device(task.device)
    load = side(first["name"])
    synchronize(device)  # initialises the GPU before loading is measured
    started_at = time.perf_counter()
    make = load(task)
    synchronize(device)
    loaded = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield {"loaded": loaded, "load_seconds": loaded - started_at}
    for each in calls:
        request = VideoRequest.checked(**each["request"])
        if device.type == "cuda" and not each["video"]:  # so that torch reserves the released memory again
            make(request.model_copy(update={"num_inference_steps": 1}))
        run = make(request)
        if each["video"]:
            save_video(run.frames, each["video"], request.frame_rate, run.recipe)
        report = {
            "finished": time.perf_counter(),
            "seconds": run.seconds,
            "peak": {"rss": peak_rss(), **cuda_peaks(device)},
            "recipe": run.recipe.model_dump(mode="json") if run.recipe else None,
        }
        np.savez(each["arrays"], frames=run.frames, latents=run.latents)
        if device.type == "cuda":  # for the other sides; on a CPU this would undo `keep_pages`
            release_cache(device)
        yield report


def side(name: str) -> Callable[[BenchmarkTask], Make]:
    """Import one side's libraries, and return the function that loads its model."""
    if name in ("kinema", ONE_GPU):
        from kinema.benchmark.kinema_side import load_kinema

        return load_kinema
    from kinema.benchmark.diffusers_side import load_baseline

    return partial(load_baseline, name)


if __name__ == "__main__":
    main()
