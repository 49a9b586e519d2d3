"""`measure`: run Kinema and the baselines alternately, each in its own process, and record the results."""

from __future__ import annotations

import datetime
import platform
import re
import statistics
import tempfile
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from kinema.benchmark import ONE_GPU, check, check_settings
from kinema.benchmark.flops import counted, matrix_rate
from kinema.benchmark.side_process import SideProcess, started
from kinema.benchmark.stopwatch import GIB, BenchmarkTask
from kinema.models import hub
from kinema.models.devices import pick_device, pick_dtype
from kinema.models.model_files import VARIANT
from kinema.models.resolve import locate, resolve
from kinema.values import TEXT_TO_IMAGE_FIELDS
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from kinema.benchmark.stopwatch import TimedRun
    from kinema.media.image import InputImage
    from kinema.media.video_writer import Frames
    from kinema.models.hub import Progress, Snapshot
    from kinema.recipe import Recipe
    from kinema.settings import Settings
    from kinema.values import Engine, VideoRequest

Record = dict[str, Any]

LIBRARIES = ("torch", "diffusers", "transformers", "triton")
STAGES = ("encode", "denoise", "step", "decode", "all")
MEANINGS = {
    "cold": "one new process per side, with empty compiler caches: seconds from its start to the first saved video; "
    "loaded_after: seconds until the model is loaded",
    "cold_again": "the same in a second process, with the compiler caches of the first; null if nothing was compiled",
    "load_seconds": "seconds to load the model; its files are in the page cache, and the baseline's libraries "
    "are imported",
    "peak_memory_gib": "peak of that process at the end of its first video: rss since its start and, on a GPU, "
    "torch's allocated and reserved memory since the model was loaded",
    "warm": "seconds of further videos in the same processes, all sides alternating; step is denoise divided by the "
    "number of steps. After each video, torch releases its cached GPU memory for the other sides; before the next, "
    "a video of one step reserves it again. Neither is included in the seconds",
    "tflop": "counted by torch's FlopCounterMode on diffusers' networks; the same count is used for all sides",
    "matrix_tflop_per_second": "measured with one large matmul on this machine, by dtype",
    "factor": "median seconds of the baseline divided by Kinema's",
    "frames": "difference of the baseline's and Kinema's videos in levels (0 to 255); psnr_db is null if equal",
    "latents_relative_difference": "latents after the last step: norm of the difference divided by the norm of the "
    "baseline's",
}


def measure(
    model: str,
    image: InputImage,
    request: VideoRequest,
    *,
    settings: Settings,
    engine: Engine | None = None,
    baselines: Sequence[str] = ("diffusers",),
    baseline_dtype: str | None = None,
    runs: int = 3,
    note: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[str | Record]:
    """Yield a line at the start of each unit of work, and the record, again whenever it is extended.

    Args:
        model: Catalog name, hub id or folder.
        image: The input image of all sides.
        request: The parameters; if `decode_chunk_size` is None, the baselines use Kinema's choice.
        settings: Device, dtype, and Kinema's precision and number of GPUs.
        engine: "fast", "reference", or None for the default of `kinema.models.loading.load`.
        baselines: The baselines, of `kinema.benchmark.BASELINES`, or none.
        baseline_dtype: The baselines' dtype: "float16", "bfloat16" or "float32"; None for Kinema's.
        runs: Warm videos per side.
        note: A note for readers of the record.
        progress: Called with each chunk of a download.

    Raises:
        InvalidRequest: before any work, see `check` and `check_settings` of `kinema.benchmark`.
        KinemaError: from loading and generating; GenerationFailed also if a side's process ends early.
    """
    check(engine, baseline_dtype)
    check_settings(baselines, request, settings.gpus_per_video)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    snapshot = locate(resolve(model), half=dtype.itemsize == 2, progress=progress)
    half = any(f".{VARIANT}." in name for name in snapshot.files)
    dtype_name = str(dtype).removeprefix("torch.")
    task = BenchmarkTask(
        model,
        snapshot.folder,
        half,
        str(device),
        dtype_name,
        engine,
        settings.precision,
        settings.gpus_per_video,
        image,
    )
    dtypes = {"kinema": dtype} | {
        name: pick_dtype(baseline_dtype, device) if baseline_dtype and name != ONE_GPU else dtype for name in baselines
    }
    tasks = {name: replace(task, dtype=str(side_dtype).removeprefix("torch.")) for name, side_dtype in dtypes.items()}
    if ONE_GPU in tasks:
        tasks[ONE_GPU] = replace(task, gpus=1)
    load = list(psutil.getloadavg())
    _warm_page_cache(snapshot)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        race = _Race(tasks, Path(folder))
        request = yield from race.run(request, runs)
        yield "matmul rate"
        rates = {str(each): matrix_rate(device, each) for each in set(dtypes.values())}
        flop = counted(snapshot.folder, request)
        race.summarise(request.num_inference_steps, flop, {name: rates[str(each)] for name, each in dtypes.items()})
        record = {
            "what": "one video from one image: Kinema"
            + (f" and {' and '.join(baselines)}, alternating" if baselines else " without baselines"),
            "note": note,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(device) | {"load_before": [round(each, 2) for each in load]},
            "versions": versions(),
            "dtype": task.dtype,
            "baseline_dtype": next((tasks[name].dtype for name in baselines if name != ONE_GPU), None),
            **_recipe_fields(race.recipe),
            "image": {"name": image.name, "sha256": image.sha256},
            "runs": runs,
            "tflop": {name: _brief(count / 1e12) for name, count in flop.items()},
            "matrix_tflop_per_second": {
                name.removeprefix("torch."): _brief(rate / 1e12) for name, rate in rates.items()
            },
            "kinema": race.results["kinema"],
            "baselines": {name: race.results[name] for name in baselines},
            "meaning": MEANINGS,
        }
        yield record
        yield from race.run_again(request)
        yield record


class _Race:
    """All sides of one benchmark, Kinema first, and their results."""

    def __init__(self, tasks: Mapping[str, BenchmarkTask], folder: Path) -> None:
        self.tasks, self.folder = tasks, folder
        self.results: dict[str, Record] = {}
        self.runs: dict[str, list[TimedRun]] = {name: [] for name in tasks}

    @property
    def recipe(self) -> Recipe:
        """Recipe of Kinema's last video."""
        recipe = self.runs["kinema"][-1].recipe
        assert recipe is not None, "Kinema's videos have a recipe"
        return recipe

    def run(self, request: VideoRequest, runs: int) -> Generator[str, None, VideoRequest]:
        """Run each side's first video, then all sides alternately; return the request with Kinema's chunk size."""
        sides: dict[str, SideProcess] = {}
        with ExitStack() as stack:
            for name in self.tasks:
                yield f"{name}: load the model in a new process, generate the first video"
                sides[name] = stack.enter_context(self._started(name, name))
                run, report = sides[name].first(request)
                self.results[name] = _cold_start_record(report)
                if run.recipe:
                    request = request.changed(decode_chunk_size=run.recipe.decode_chunk_size)
            for i in range(runs):  # alternate, so that other load affects all sides
                for name, side in sides.items():
                    yield f"{name}: video {i + 1} of {runs}"
                    self.runs[name].append(side.make(request))
        return request

    def summarise(self, steps: int, flop: Mapping[str, int], rates: Mapping[str, float]) -> None:
        """Record the results of the warm videos; `rates` are the matmul rates of each side's dtype."""
        for name, runs in self.runs.items():
            warm = _warm(runs, steps)
            self.results[name] |= {"warm": warm} | _speeds(warm["median"], flop, rates[name], steps)
        ours, last = self.results["kinema"], self.runs["kinema"][-1]
        for name in [*self.tasks][1:]:
            theirs = self.runs[name][-1]
            self.results[name]["factor"] = factors(ours, self.results[name])
            self.results[name]["frames"] = distance(last.frames, theirs.frames)
            difference = np.linalg.norm(theirs.latents - last.latents) / np.linalg.norm(theirs.latents)
            self.results[name]["latents_relative_difference"] = _brief(float(difference))

    def run_again(self, request: VideoRequest) -> Iterator[str]:
        """Start one more process for each side that compiled something."""
        for name in self.tasks:
            if any(path.is_file() for path in self._caches(name).rglob("*")):
                yield f"{name}: repeat in a new process, with the compiler caches of the first"
                with self._started(name, f"{name}-again") as side:
                    self.results[name]["cold_again"] = _cold_start_record(side.first(request)[1])["cold"]

    def _started(self, name: str, folder: str) -> AbstractContextManager[SideProcess]:
        return started(name, self.tasks[name], self.folder / folder, self._caches(name))

    def _caches(self, name: str) -> Path:
        return self.folder / f"{name}-caches"


def _recipe_fields(recipe: Recipe) -> Record:
    """Return the recipe's part of the record."""
    return {
        "model": recipe.model.model_dump(),
        "device": recipe.device,
        "engine": recipe.engine,
        "precision": recipe.precision,
        "memory_plan": recipe.memory_plan,
        "gpus": recipe.gpus,
        "events": list(recipe.events),
        "parameters": recipe.request.model_dump(exclude=set(TEXT_TO_IMAGE_FIELDS)),
    }


def _warm_page_cache(snapshot: Snapshot) -> None:
    """Read all libraries and model files from disk first, so that all sides find them in the page cache."""
    import diffusers
    import transformers

    with hub.quiet():
        _ = diffusers.StableVideoDiffusionPipeline, transformers.CLIPVisionModelWithProjection  # lazy imports
    for name in snapshot.files:
        with (snapshot.folder / name).open("rb") as file:
            while file.read(2**24):
                pass


def _cold_start_record(report: Mapping[str, Any]) -> Record:
    """Return the record of a side's cold start; see `SideProcess.first`."""
    return {
        "cold": {"seconds": _brief(report["seconds"]), "loaded_after": _brief(report["loaded"])},
        "cold_again": None,
        "load_seconds": _brief(report["load_seconds"]),
        "peak_memory_gib": {kind: _brief(count / GIB) for kind, count in report["peak"].items()},
    }


def _warm(runs: Sequence[TimedRun], steps: int) -> Record:
    """Return seconds by stage, per step and in total: of each run, and median, minimum and maximum."""
    each = []
    for run in runs:
        seconds = run.seconds | {"step": run.seconds["denoise"] / steps, "all": sum(run.seconds.values())}
        each.append({stage: _brief(seconds[stage]) for stage in STAGES})
    statistic: dict[str, Callable[[list[float]], float]] = {"median": statistics.median, "min": min, "max": max}
    return {
        name: {stage: _brief(function([one[stage] for one in each])) for stage in STAGES}
        for name, function in statistic.items()
    } | {"runs": each}


def _speeds(seconds: Mapping[str, float], flop: Mapping[str, int], rate: float, steps: int) -> Record:
    """Return TFLOP/s of denoising and decoding, and their share of the matmul rate."""
    speeds = {"denoise": flop["step"] * steps / seconds["denoise"], "decode": flop["decode"] / seconds["decode"]}
    return {
        "tflop_per_second": {stage: _brief(each / 1e12) for stage, each in speeds.items()},
        "share_of_matrix_rate": {stage: _brief(each / rate) for stage, each in speeds.items()},
    }


def factors(ours: Record, baseline: Record) -> dict[str, float]:
    """Return the baseline's seconds divided by Kinema's; above 1, Kinema is faster."""
    pairs = {stage: (baseline["warm"]["median"][stage], ours["warm"]["median"][stage]) for stage in STAGES}
    pairs["load"] = (baseline["load_seconds"], ours["load_seconds"])
    pairs["cold"] = (baseline["cold"]["seconds"], ours["cold"]["seconds"])
    return {name: _brief(theirs / own) for name, (theirs, own) in pairs.items()}


def distance(ours: Frames, theirs: Frames) -> Record:
    """Return the difference of two videos (uint8, same shape)."""
    difference = np.abs(ours.astype(np.int16) - theirs)
    square = float(np.square(difference, dtype=np.float64).mean())
    return {
        "psnr_db": _brief(10 * np.log10(255**2 / square)) if square else None,
        "max_difference": int(difference.max()),
        "mean_difference": _brief(float(difference.mean())),
    }


def machine(device: torch.device) -> Record:
    """Describe the machine."""
    facts: Record = {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": _brief(psutil.virtual_memory().total / GIB),
    }
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_memory_gib": _brief(torch.cuda.get_device_properties(device).total_memory / GIB),
            "tf32": {
                "matrix products": torch.backends.cuda.matmul.allow_tf32,
                "convolutions": torch.backends.cudnn.allow_tf32,
            },
        }
    return facts


def _processor() -> str:
    """Return the processor's name, if the system reports it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Kinema, Python and the libraries."""
    found = {"kinema": own_version(), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # Triton is only installed with torch's CUDA builds
            continue
    return found | {"torch": str(torch.__version__)}  # includes the build tag


def _brief(number: float) -> float:
    """Round to five significant digits."""
    return float(f"{number:.5g}")
