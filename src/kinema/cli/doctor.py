"""`kinema doctor`: show the machine's capabilities and how Kinema would use them."""

from __future__ import annotations

import json as json_text
import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinema.cli.report import print_table, stdout_console
from kinema.cli.service_checks import check_services, service_rows
from kinema.errors import InsufficientMemory, InvalidRequest, ModelError
from kinema.models.catalog import request_for
from kinema.version import own_version

if TYPE_CHECKING:
    import torch

    from kinema.jobs.eta import StageSpeeds
    from kinema.models.catalog import CatalogEntry
    from kinema.models.memory_plan import Component, MemoryPlan, Shape
    from kinema.models.resolve import InstalledModel
    from kinema.settings import Settings

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "av", "pillow")


def doctor(*, json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False) -> None:
    """Show device, dtype, kernels, memory, the expected generation time and memory plan of each model, and settings.

    The time of a video, for the default parameters and a loaded model, is that of the server's latest jobs on this
    machine, or else an estimate: the model's FLOPs by the speed of a few layers or a matmul, measured now. Estimates
    were within a factor of 1.5 of the measured time on an NVIDIA H100 (svd-xt). Those for CPUs follow measurements on
    an AMD EPYC (pocket).

    With KINEMA_RAY_ADDRESS, KINEMA_DATABASE_URL or KINEMA_STORE, also check whether cluster, database and store answer.
    A certificate for content credentials that can't be used, or expires within 30 days, is a problem too.
    """
    from kinema.settings import read_settings, unknown_variables

    settings = read_settings()
    services = check_services(settings)
    facts = _facts(settings) | services
    facts["problems"] += unknown_variables()
    facts["problems"] += [service["problem"] for service in services.values() if service["problem"]]
    if json:
        print(json_text.dumps(facts, indent=2))  # noqa: T201 - the result
    else:
        _print_tables(facts)


def _facts(settings: Settings) -> dict[str, Any]:
    """Return everything that the command shows."""
    from kinema.models import hub
    from kinema.models.devices import available_devices, free_memory, pick_device, pick_dtype
    from kinema.models.gpu_group import devices_of
    from kinema.models.image_pipeline import default_image_model
    from kinema.models.loading import default_model
    from kinema.models.resolve import inventory

    problems, active_settings = [], settings.model_dump(mode="json")
    try:
        device = pick_device(settings.device)
    except InvalidRequest as error:
        problems.append(f"the setting KINEMA_DEVICE is not usable: {error}; the best available device is shown instead")
        device = pick_device("auto")
        settings = settings.model_copy(update={"device": "auto"})
    gpus = settings.gpus_per_video
    try:
        devices_of(device, settings)
    except InvalidRequest as error:
        problems.append(
            f"the setting KINEMA_GPUS_PER_VIDEO is not usable: {error}; the plans of one GPU are shown instead"
        )
        gpus = 1
    dtype = pick_dtype(settings.dtype, device)
    model, reason = default_model(settings)
    installed = inventory()
    problems += [
        f"the weights of {installed_model.entry.name} are missing from this package; reinstall it"
        for installed_model in installed
        if installed_model.source == "embedded" and not installed_model.present
    ]
    image_model, image_model_reason = default_image_model(_video_size(model), settings)
    rate = _machine_rate(device, dtype) if gpus == 1 else None
    times = _VideoTimes(_server_speeds(settings), rate, device, dtype)
    return {
        "kinema": own_version(),
        "device": str(device),
        "device_name": _device_name(device),
        "devices": available_devices(),
        "gpus_per_video": gpus,
        "dtype": str(dtype).removeprefix("torch."),
        "dtype_reason": _dtype_reason(settings, device),
        "kernels": _kernels(device, dtype),
        "memory_free_bytes": free_memory(device),
        "memory_total_bytes": _total_memory(device),
        "default_model": model,
        "default_model_reason": reason,
        "default_image_model": image_model,
        "default_image_model_reason": image_model_reason,
        "models": [_model_facts(installed_model, device, dtype, gpus, times) for installed_model in installed],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "cache": str(hub.cache_folder()),
        "offline": hub.offline(),
        "settings": active_settings,
        "problems": problems,
    }


def _video_size(model: str) -> tuple[int, int]:
    """Return the default width and height of a model's videos."""
    request = request_for(model=model)
    return request.width, request.height


def _machine_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """Measure this machine's speed in FLOP/s; None if there is no memory for it."""
    import torch

    from kinema.benchmark.expected_time import machine_rate

    try:
        return machine_rate(device, dtype)
    except torch.OutOfMemoryError:
        return None


def _device_name(device: torch.device) -> str:
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return f"{platform.machine()}, {cores} cores"


def _total_memory(device: torch.device) -> int:
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return int(psutil.virtual_memory().total)


def _dtype_reason(settings: Settings, device: torch.device) -> str:
    from kinema.models.devices import has_native_bf16

    if settings.dtype != "auto":
        return "set by KINEMA_DTYPE or kinema.toml"
    if device.type != "cpu":
        return "the fastest on a GPU"
    return "this CPU supports it in hardware" if has_native_bf16() else "this CPU does not support bfloat16 in hardware"


def _kernels(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return which of Kinema's kernels run on the device, and why others do not."""
    from kinema.engine.fast.hardware import capabilities

    found = capabilities(device)
    if found.triton and dtype.itemsize != 2:
        return {"active": [], "reason": "kernels need dtype float16 or bfloat16"}
    return {"active": found.active(), "reason": found.reason}


def _kernels_text(kernels: dict[str, Any]) -> str:
    """Return "Triton, fp8", "none: …" or "Triton; others are off: …"."""
    active, reason = ", ".join(kernels["active"]), kernels["reason"]
    if not active:
        return f"none: {reason}"
    return f"{active}; others are off: {reason}" if reason else active


def _server_speeds(settings: Settings) -> StageSpeeds | None:
    """Return the speeds of the jobs in the data folder; None if the server is not installed."""
    try:
        from kinema.jobs.job_history import measured_speeds
    except ImportError:
        return None
    return measured_speeds(settings.data_dir.expanduser() / "jobs.sqlite3")


@dataclass(frozen=True)
class _VideoTimes:
    """What is known about the speed of this machine."""

    speeds: StageSpeeds | None
    rate: float | None
    device: torch.device
    dtype: torch.dtype

    def of(self, entry: CatalogEntry, plan: MemoryPlan) -> dict[str, Any] | None:
        """Return the seconds of a video at the default parameters and their source; None if unknown."""
        from kinema.benchmark.expected_time import expected_seconds

        if entry.tflop is None:
            return None
        request = request_for(model=entry.name)
        if self.speeds:
            from kinema.jobs.eta import JobSize
            from kinema.values import Workload

            if (seconds := self.speeds.estimate_job(JobSize(request, Workload(request.work)))) is not None:
                return {"seconds": float(f"{seconds:.3g}"), "source": "measured"}
        if self.rate is None or plan.name == "sequential_offload":  # transfers take the time
            return None
        steps = request.num_inference_steps
        estimate = expected_seconds(entry.tflop, steps, self.rate, self.device, self.dtype)
        return None if estimate is None else {"seconds": float(f"{estimate:.3g}"), "source": "estimate"}


def _model_facts(
    model: InstalledModel, device: torch.device, dtype: torch.dtype, gpus: int, times: _VideoTimes
) -> dict[str, Any]:
    """Return what is shown about a catalog model, including memory plan and time at its default parameters."""
    facts: dict[str, Any] = {
        "name": model.entry.name,
        "makes": "images" if model.entry.text_to_image else "videos",
        "present": model.present,
        "path": str(model.path) if model.path else None,
        "demo": model.entry.demo,
        "time": None,
        "plan": None,
        "error": None,
    }
    try:
        if model.entry.text_to_image:
            plan = _image_pipeline_plan(model, device, dtype)
        else:
            plan = _video_pipeline_plan(model, device, dtype, gpus)
    except InsufficientMemory as error:
        return facts | {"error": f"does not fit: {error}"}
    except ModelError as error:
        return facts | {"error": str(error)}
    chunk, needed = plan.decode_chunk_size, plan.needed_bytes
    facts["time"] = times.of(model.entry, plan)
    return facts | {"plan": {"name": plan.name, "decode_chunk_size": chunk, "needed_bytes": needed}}


def _video_pipeline_plan(model: InstalledModel, device: torch.device, dtype: torch.dtype, gpus: int) -> MemoryPlan:
    """Return the memory plan of a catalog model at its default parameters, whether downloaded or not."""
    from kinema.models.devices import free_memory, has_kernels
    from kinema.models.memory_plan import plan_memory

    request = request_for(model=model.entry.name)
    weights, shape = _sizes(model, dtype.itemsize)
    return plan_memory(
        weights,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        guided=request.guided,
        dtype_bytes=dtype.itemsize,
        free_bytes=free_memory(device),
        fast=has_kernels(device, dtype),
        shape=shape,
        decode_chunk_size=request.decode_chunk_size,
        offload=device.type != "cpu",
        gpus=gpus,
    )


def _image_pipeline_plan(model: InstalledModel, device: torch.device, dtype: torch.dtype) -> MemoryPlan:
    """Return the memory plan of a text-to-image model of the catalog, at its native size or `svd-xt`'s."""
    from kinema.models.devices import free_memory
    from kinema.models.image_pipeline_files import IMAGE_PIPELINE
    from kinema.models.image_pipeline_offload import plan_image_pipeline
    from kinema.models.model_files import choose_weights, read_headers
    from kinema.models.resolve import check_embedded

    entry = model.entry
    if entry.weights_bytes is not None:  # stored as 2 bytes per parameter
        weights = {component: count // 2 * dtype.itemsize for component, count in entry.weights_bytes.items()}
    else:
        assert entry.folder is not None
        check_embedded(entry.name, entry.folder)
        weights = {}
        for component, stem in IMAGE_PIPELINE.stems(entry.folder).items():
            chosen = choose_weights(model.snapshot.files if model.snapshot else (), component, half=True, stem=stem)
            headers = read_headers(entry.folder, chosen).values() if chosen else ()
            weights[component] = dtype.itemsize * sum(
                math.prod(shape) for header in headers for shape in header.values()
            )
    width, height = entry.native_size or (1024, 576)
    return plan_image_pipeline(
        weights,
        width=width,
        height=height,
        guided=entry.defaults.get("image_guidance_scale", 0) > 1,
        dtype_bytes=dtype.itemsize,
        free_bytes=free_memory(device),
        upcast="text_encoder_2" in weights,
        offload=device.type != "cpu",
    )


def _sizes(model: InstalledModel, itemsize: int) -> tuple[dict[Component, int], Shape]:
    """Return the bytes of each component at `itemsize` bytes per parameter, and the model's memory-relevant shape."""
    from kinema.models.memory_plan import COMPONENTS, Shape
    from kinema.models.model_files import check_configs, choose_weights, read_headers
    from kinema.models.resolve import locate, resolve

    entry = model.entry
    if entry.weights_bytes is not None:  # stored as 2 bytes per parameter
        return {component: entry.weights_bytes[component] // 2 * itemsize for component in COMPONENTS}, Shape()
    snapshot = model.snapshot or locate(resolve(entry.name))
    weights: dict[Component, int] = {}
    for component in COMPONENTS:
        chosen = choose_weights(snapshot.files, component, half=True)
        assert chosen is not None, "locate checks that they exist"
        headers = read_headers(snapshot.folder, chosen).values()
        weights[component] = itemsize * sum(math.prod(shape) for header in headers for shape in header.values())
    configs = check_configs(snapshot.folder)
    return weights, Shape.of(configs["unet"], configs["vae"])


def _print_tables(facts: dict[str, Any]) -> None:
    """Print the facts as tables."""
    from rich.table import Table

    console = stdout_console()
    for problem in facts["problems"]:
        console.print(f"[bold red]problem[/]: {problem}\n")
    rows = {
        "kinema": facts["kinema"],
        "device": f"{facts['device']} ({facts['device_name']}); available: {', '.join(facts['devices'])}"
        + (f"; {facts['gpus_per_video']} for each video" if facts["gpus_per_video"] > 1 else ""),
        "dtype": f"{facts['dtype']}: {facts['dtype_reason']}",
        "kernels": _kernels_text(facts["kernels"]),
        "memory": f"{_gib(facts['memory_free_bytes'])} free of {_gib(facts['memory_total_bytes'])}",
        "model": f"{facts['default_model']}: {facts['default_model_reason']}",
        "image_model": f"{facts['default_image_model']}: {facts['default_image_model_reason']}",
        **service_rows(facts),
        "versions": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
        "cache": facts["cache"] + (", offline (HF_HUB_OFFLINE)" if facts["offline"] else ""),
        "settings": _changed_settings(facts["settings"]) or "all at their defaults",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, text)
    print_table(table)
    console.print()
    print_table(_models_table(facts["models"]))


def _changed_settings(active: dict[str, Any]) -> str:
    """Return the settings that differ from their defaults; secrets are masked in `active`."""
    from kinema.settings import Settings

    defaults = Settings.model_construct().model_dump(mode="json")
    return ", ".join(f"{name} {value}" for name, value in active.items() if value != defaults[name])


def _models_table(models: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "downloaded", "time of a video", "memory plan at the default parameters"):
        table.add_column(title)
    for model in models:
        plan = model["plan"]
        frames = f"{plan['decode_chunk_size']} frames decoded at once, " if plan and model["makes"] == "videos" else ""
        text = f"{plan['name']}, {frames}{_gib(plan['needed_bytes'])}" if plan else model["error"]
        name = f"{model['name']} (demo model)" if model["demo"] else model["name"]
        table.add_row(name, "yes" if model["present"] else "no", _time_text(model["time"]), text)
    return table


def _time_text(time: dict[str, Any] | None) -> str:
    """Return "about 4 s (estimate)", "about 4 min (measured)", or a dash if the time is unknown."""
    if time is None:
        return "–"
    seconds = time["seconds"]
    if seconds < 1:
        return f"under 1 s ({time['source']})"
    size, unit = (3600, "h") if seconds >= 5400 else (60, "min") if seconds >= 90 else (1, "s")
    return f"about {round(seconds / size)} {unit} ({time['source']})"


def _gib(count: int) -> str:
    """Return a number of bytes as GiB."""
    return f"{count / 2**30:.1f} GiB"
