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

from kinema.benchmark import check, check_settings
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
    from kinema.settings import Settings
    from kinema.values import Engine, Recipe, VideoRequest

Record = dict[str, Any]

LIBRARIES = ("torch", "diffusers", "transformers", "triton")
STAGES = ("encode", "denoise", "step", "decode", "all")
MEANINGS = {
    "cold": "a process of each side's own, once: seconds from its start to its first finished file, loaded_after of "
    "them until the model is in memory; nothing is compiled before",
    "cold_again": "the same in one more process, which finds what the first compiled; null where nothing was",
    "load_seconds": "of those, loading the model, its files read and its libraries imported before",
    "peak_memory_gib": "of that process when its first video is done: rss of its whole life, and on a GPU what torch "
    "counts from the loaded model on",
    "warm": "seconds of further videos in those same processes, all sides in turns; step is denoise by the number "
    "of steps. After each video, outside these seconds, torch gives back what it keeps of a GPU's memory, for the "
    "other sides, and has it again before the next by a video of one step",
    "tflop": "counted by torch's FlopCounterMode on diffusers' networks: its arithmetic, whoever computes",
    "matrix_tflop_per_second": "one large matrix product on this machine, by dtype",
    "factor": "a peer's seconds (median) by Kinema's",
    "frames": "a peer's video beside Kinema's, in 255ths; psnr_db is null where all pixels are the same",
    "latents_apart": "of the last step: the norm of a peer's less Kinema's, by that of the peer's",
}


def measure(
    model: str,
    image: InputImage,
    request: VideoRequest,
    *,
    settings: Settings,
    engine: Engine | None = None,
    peers: Sequence[str] = ("diffusers",),
    peer_dtype: str | None = None,
    runs: int = 3,
    note: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[str | Record]:
    """Yield a line at the start of each unit of work, and the record, again whenever it is extended.

    Args:
        model: Catalog name, hub id or folder.
        image: The input image of all sides.
        request: The parameters; if `decode_chunk_size` is None, the baselines use Kinema's choice.
        settings: Device, dtype and Kinema's precision.
        engine: "fast", "reference", or None for the default of `kinema.models.loading.load`.
        peers: The baselines, of "diffusers" and "diffusers-compile", or none.
        peer_dtype: The baselines' dtype: "float16", "bfloat16" or "float32"; None for Kinema's.
        runs: Warm videos per side.
        note: A note for readers of the record.
        progress: Called with each chunk of a download.

    Raises:
        InvalidRequest: before any work, see `check` and `check_settings` of `kinema.benchmark`.
        KinemaError: from loading and generating; GenerationFailed also if a side's process ends early.
    """
    check(engine, peer_dtype)
    check_settings(peers, request)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    snapshot = locate(resolve(model), half=dtype.itemsize == 2, progress=progress)
    half = any(f".{VARIANT}." in name for name in snapshot.files)
    arithmetic = str(dtype).removeprefix("torch.")
    task = BenchmarkTask(model, snapshot.folder, half, str(device), arithmetic, engine, settings.precision, image)
    kinds = {"kinema": dtype} | {name: pick_dtype(peer_dtype, device) if peer_dtype else dtype for name in peers}
    tasks = {name: replace(task, dtype=str(kind).removeprefix("torch.")) for name, kind in kinds.items()}
    load = list(psutil.getloadavg())
    _ready(snapshot)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        race = _Race(tasks, Path(folder))
        request = yield from race.run(request, runs)
        yield "matrix products"
        rates = {str(kind): matrix_rate(device, kind) for kind in set(kinds.values())}
        flop = counted(snapshot.folder, request)
        race.tell(request.num_inference_steps, flop, {name: rates[str(kind)] for name, kind in kinds.items()})
        record = {
            "what": "one video of one still: Kinema"
            + (f" beside {' and '.join(peers)}, taking turns" if peers else " alone"),
            "note": note,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(device) | {"load_before": [round(each, 2) for each in load]},
            "versions": versions(),
            "dtype": task.dtype,
            "peer_dtype": tasks[peers[-1]].dtype if peers else None,
            **_made_by(race.recipe),
            "image": {"name": image.name, "sha256": image.sha256},
            "runs": runs,
            "tflop": {name: _brief(count / 1e12) for name, count in flop.items()},
            "matrix_tflop_per_second": {
                name.removeprefix("torch."): _brief(rate / 1e12) for name, rate in rates.items()
            },
            "kinema": race.told["kinema"],
            "peers": {name: race.told[name] for name in peers},
            "meaning": MEANINGS,
        }
        yield record
        yield from race.run_again(request)
        yield record


class _Race:
    """All sides of one benchmark, Kinema first, and their results."""

    def __init__(self, tasks: Mapping[str, BenchmarkTask], folder: Path) -> None:
        self.tasks, self.folder = tasks, folder
        self.told: dict[str, Record] = {}
        self.made: dict[str, list[TimedRun]] = {name: [] for name in tasks}

    @property
    def recipe(self) -> Recipe:
        """Recipe of Kinema's last video."""
        recipe = self.made["kinema"][-1].recipe
        assert recipe is not None, "ours has one"
        return recipe

    def run(self, request: VideoRequest, runs: int) -> Generator[str, None, VideoRequest]:
        """Run each side's first video, then all sides in turns; return the request with Kinema's chunk size."""
        sides: dict[str, SideProcess] = {}
        with ExitStack() as living:
            for name in self.tasks:
                yield f"{name}: loading in a fresh process, and a first video"
                sides[name] = living.enter_context(self._started(name, name))
                run, found = sides[name].first(request)
                self.told[name] = _first_figures(found)
                if run.recipe:
                    request = request.changed(decode_chunk_size=run.recipe.decode_chunk_size)
            for i in range(runs):  # in turns, so that other load affects all sides
                for name, side in sides.items():
                    yield f"{name}: video {i + 1} of {runs}"
                    self.made[name].append(side.make(request))
        return request

    def tell(self, steps: int, flop: Mapping[str, int], rates: Mapping[str, float]) -> None:
        """Record the results of the warm videos; `rates` are the matmul rates of each side's dtype."""
        for name, made in self.made.items():
            warm = _warm(made, steps)
            self.told[name] |= {"warm": warm} | _speeds(warm["median"], flop, rates[name], steps)
        ours, last = self.told["kinema"], self.made["kinema"][-1]
        for name in [*self.tasks][1:]:
            theirs = self.made[name][-1]
            self.told[name]["factor"] = factors(ours, self.told[name])
            self.told[name]["frames"] = distance(last.frames, theirs.frames)
            apart = np.linalg.norm(theirs.latents - last.latents) / np.linalg.norm(theirs.latents)
            self.told[name]["latents_apart"] = _brief(float(apart))

    def run_again(self, request: VideoRequest) -> Iterator[str]:
        """Start one more process for each side that compiled something."""
        for name in self.tasks:
            if any(path.is_file() for path in self._caches(name).rglob("*")):
                yield f"{name}: once more in a fresh process, which finds what the first compiled"
                with self._started(name, f"{name}-again") as side:
                    self.told[name]["cold_again"] = _first_figures(side.first(request)[1])["cold"]

    def _started(self, name: str, folder: str) -> AbstractContextManager[SideProcess]:
        return started(name, self.tasks[name], self.folder / folder, self._caches(name))

    def _caches(self, name: str) -> Path:
        return self.folder / f"{name}-caches"


def _made_by(recipe: Recipe) -> Record:
    """Return the recipe's part of the record."""
    return {
        "model": recipe.model.model_dump(),
        "device": recipe.device,
        "engine": recipe.engine,
        "precision": recipe.precision,
        "memory_plan": recipe.memory_plan,
        "events": list(recipe.events),
        "settings": recipe.request.model_dump(exclude=set(TEXT_TO_IMAGE_FIELDS)),
    }


def _ready(snapshot: Snapshot) -> None:
    """Read all libraries and model files from disk first, so that all sides find them in the page cache."""
    import diffusers
    import transformers

    with hub.quiet():
        _ = diffusers.StableVideoDiffusionPipeline, transformers.CLIPVisionModelWithProjection  # imported when named
    for name in snapshot.files:
        with (snapshot.folder / name).open("rb") as file:
            while file.read(2**24):
                pass


def _first_figures(found: Mapping[str, Any]) -> Record:
    """Return the record of a side's start; see `SideProcess.first`."""
    return {
        "cold": {"seconds": _brief(found["seconds"]), "loaded_after": _brief(found["loaded"])},
        "cold_again": None,
        "load_seconds": _brief(found["load_seconds"]),
        "peak_memory_gib": {kind: _brief(count / GIB) for kind, count in found["peak"].items()},
    }


def _warm(made: Sequence[TimedRun], steps: int) -> Record:
    """Return seconds by stage, per step and in total: of each run, and median, minimum and maximum."""
    each = []
    for run in made:
        seconds = run.seconds | {"step": run.seconds["denoise"] / steps, "all": sum(run.seconds.values())}
        each.append({stage: _brief(seconds[stage]) for stage in STAGES})
    told: dict[str, Callable[[list[float]], float]] = {"median": statistics.median, "min": min, "max": max}
    return {
        name: {stage: _brief(of([one[stage] for one in each])) for stage in STAGES} for name, of in told.items()
    } | {"runs": each}


def _speeds(seconds: Mapping[str, float], flop: Mapping[str, int], rate: float, steps: int) -> Record:
    """Return TFLOP/s of denoising and decoding, and their share of the matmul rate."""
    done = {"denoise": flop["step"] * steps / seconds["denoise"], "decode": flop["decode"] / seconds["decode"]}
    return {
        "tflop_per_second": {stage: _brief(each / 1e12) for stage, each in done.items()},
        "share_of_matrix_rate": {stage: _brief(each / rate) for stage, each in done.items()},
    }


def factors(ours: Record, peer: Record) -> dict[str, float]:
    """Return the baseline's seconds divided by Kinema's; above 1, Kinema is faster."""
    pairs = {stage: (peer["warm"]["median"][stage], ours["warm"]["median"][stage]) for stage in STAGES}
    pairs["load"] = (peer["load_seconds"], ours["load_seconds"])
    pairs["cold"] = (peer["cold"]["seconds"], ours["cold"]["seconds"])
    return {name: _brief(theirs / own) for name, (theirs, own) in pairs.items()}


def distance(ours: Frames, theirs: Frames) -> Record:
    """Return the difference of two videos (uint8, same shape)."""
    apart = np.abs(ours.astype(np.int16) - theirs)
    square = float(np.square(apart, dtype=np.float64).mean())
    return {
        "psnr_db": _brief(10 * np.log10(255**2 / square)) if square else None,
        "greatest_difference": int(apart.max()),
        "mean_difference": _brief(float(apart.mean())),
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
        except PackageNotFoundError:  # Triton comes with torch's CUDA builds alone
            continue
    return found | {"torch": str(torch.__version__)}  # with its build


def _brief(number: float) -> float:
    """Round to five significant digits."""
    return float(f"{number:.5g}")
