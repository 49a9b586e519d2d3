"""Compare a step and a decoding of full-size SVD-XT by Kinema and by diffusers, and whole videos; one process:

    python bench/step.py --out bench/results/h100
    python bench/step.py --out /tmp/tiny --tiny --device cpu --sections diffusers,make,ours,errors

Weights are random. Sections run in order; a failed section does not stop the others, and none starts after --seconds.
step.json is written after each section. profile-*.txt are the torch profiles of one step and one decoding.
"""

import ctypes
import os
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import forward as parts
from common import Bench, Work, run
from kinema.benchmark.measure import distance
from kinema.engine.fast.cuda_graph import GraphedCallable


class GpuCounters:
    """A GPU's counters, read by NVML, the driver's management library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._device = ctypes.c_void_p()
        self._library.nvmlInit_v2()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        self._library.nvmlDeviceGetHandleByIndex_v2(int(visible), ctypes.byref(self._device))

    def _read(self, name: str, into: Any, *arguments: int) -> int:
        if getattr(self._library, name)(self._device, *arguments, ctypes.byref(into)):
            raise RuntimeError(f"{name} failed")
        return int(into.value)

    def joules(self) -> float:
        return self._read("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong()) / 1000

    def limit(self) -> float:
        """Return the power limit in watts."""
        return self._read("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint()) / 1000

    def clock(self) -> int:
        """Return the current clock of the multiprocessors in MHz."""
        return self._read("nvmlDeviceGetClockInfo", ctypes.c_uint(), 1)


def diffusers(bench: Bench) -> dict[str, Any]:
    bench.outputs = {name: work().cpu() for name, work in bench.stock.items()}
    return {
        "step_ms": bench.ms(bench.stock["step"], 3, 1),
        "step_peak_gib": bench.peak(bench.stock["step"]),
        "decode_ms": bench.ms(bench.stock["decode"], 2, 0),
        "decode_peak_gib": bench.peak(bench.stock["decode"]),
    }


def make(bench: Bench) -> dict[str, Any]:
    result: dict[str, Any] = {}
    before = torch.cuda.memory_allocated() if bench.device.type == "cuda" else 0
    began = time.perf_counter()
    bench.make_networks()
    parts.synchronize(bench.device)
    result["make_s"] = round(time.perf_counter() - began, 3)
    if before:
        result["made_gib"] = round((torch.cuda.memory_allocated() - before) / 2**30, 3)
    for name, work in (("step", bench.step), ("decode", bench.decode)):
        if bench.device.type == "cuda":  # as the engine does before its first call
            from kinema.engine.fast.kernels.launch import compiled_together

            began = time.perf_counter()
            with compiled_together():
                work()
            result[f"compile_for_{name}_s"] = round(time.perf_counter() - began, 3)
        began = time.perf_counter()
        work()
        parts.synchronize(bench.device)
        result[f"first_{name}_s"] = round(time.perf_counter() - began, 3)
    return result


def ours(bench: Bench) -> dict[str, Any]:
    result = {
        "step_ms": bench.ms(bench.step),
        "decode_ms": bench.ms(bench.decode, 3),
        "step_peak_gib": bench.peak(bench.step),
        "decode_peak_gib": bench.peak(bench.decode),
    }
    for name, theirs in bench.outputs.items():
        work = {"step": bench.step, "decode": bench.decode}[name]
        result[f"{name}_from_diffusers"] = parts.relative_error(work().cpu(), theirs)
    return result


def graph(bench: Bench) -> dict[str, Any]:
    graphed = GraphedCallable(lambda sample, time: bench.network(sample, time, bench.constants))

    def work() -> torch.Tensor:
        return graphed(bench.inputs["sample"], bench.time_step)

    work()
    began = time.perf_counter()
    work()
    parts.synchronize(bench.device)
    capture = round(time.perf_counter() - began, 3)
    eager = bench.step()
    return {"step_ms": bench.ms(work), "capture_s": capture, "equal_to_eager": bool(torch.equal(eager, work()))}


def errors(bench: Bench) -> dict[str, Any]:
    """Return errors relative to diffusers in float32 without TF32: of one step, and of decoding eight frames."""
    wide = {name: tensor.float() for name, tensor in bench.inputs.items()}
    result: dict[str, Any] = {}

    def compare(name: str, true: torch.Tensor, runs: dict[str, torch.Tensor]) -> None:
        result[name] = {side: parts.relative_error(each.float().cpu(), true.cpu()) for side, each in runs.items()}
        result[name]["ratio"] = round(result[name]["kinema"] / result[name]["diffusers"], 4)

    unet = deepcopy(bench.unet).float()
    true = parts.theirs(unet, bench.vae, wide)["step"]()
    bench.true = true.cpu()
    del unet
    compare("step", true, {"kinema": bench.step(), "diffusers": bench.outputs["step"]})
    few = bench.inputs["latents"][:8]
    runs = {"kinema": bench.decoder(few), "diffusers": bench.vae.decode(few, num_frames=len(few)).sample}
    vae = deepcopy(bench.vae).float()
    compare("decode", vae.decode(few.float(), num_frames=len(few)).sample, runs)
    return result


def profile(bench: Bench) -> dict[str, Any]:
    return {name: profiled(bench, name, work) for name, work in (("step", bench.step), ("decode", bench.decode))}


def profiled(bench: Bench, name: str, work: Work) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device.type == "cuda")
    with profile(activities=activities) as profiler:
        work()
        parts.synchronize(bench.device)
    table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=110)
    (bench.args.out / f"profile-{name.replace(' ', '-')}.txt").write_text(table)
    kernels = [e for e in profiler.key_averages() if "CUDA" in str(e.device_type) and e.self_device_time_total]
    kernels.sort(key=lambda e: -e.self_device_time_total)
    return {
        "kernels_ms": round(sum(e.self_device_time_total for e in kernels) / 1000, 2),
        "launches": sum(e.count for e in kernels),
        "top": [[e.key[:120], e.count, round(e.self_device_time_total / 1000, 3)] for e in kernels[:25]],
    }


def power(bench: Bench) -> dict[str, Any]:
    """Measure the GPU's power over 4 s of each workload; its energy counter updates about every 0.1 s."""
    if bench.device.type != "cuda":
        return {}
    size = 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=bench.dtype) for _ in range(2))
    counters = GpuCounters()
    result: dict[str, Any] = {"limit_w": counters.limit()}
    for name, work in (("step", bench.step), ("decode", bench.decode), ("matmul of 8192", lambda: a @ b)):
        work()
        torch.cuda.synchronize()
        joules, began, calls = counters.joules(), time.perf_counter(), 0
        while time.perf_counter() - began < 4:
            work()
            torch.cuda.synchronize()
            calls += 1
        taken = time.perf_counter() - began
        joules = counters.joules() - joules
        result[name] = {
            "ms": round(1000 * taken / calls, 3),
            "watts": round(joules / taken),
            "joules": round(joules / calls, 3),
            "mhz": counters.clock(),
        }
    result["matmul of 8192"]["joules_a_tflop"] = round(result["matmul of 8192"]["joules"] / (2 * size**3 / 1e12), 3)
    return result


def video(bench: Bench) -> dict[str, Any]:
    """Run `kinema.engine.generate` from image to frames with the fast engine, twice."""
    for name in ("network", "decoder", "constants"):  # the engine creates its own
        vars(bench).pop(name, None)
    result: dict[str, Any] = {}
    for name in ("first", "second"):
        bench.guarded(f"video {name}", lambda: one_video(bench, "fast"), result)
    bench.make_networks()
    return result


def sizes(bench: Bench) -> dict[str, Any]:
    """Measure the seconds of the first and second video of two steps for each size, in order."""
    from kinema.engine import generate
    from kinema.media.image import open_image
    from kinema.values import VideoRequest

    pipeline, result = pipeline_of(bench, "fast"), {}
    image = open_image(Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
    sizes = [(1024, 576, 25), (1024, 576, 14), (576, 1024, 25), (768, 448, 21), (512, 320, 14), (256, 256, 14)]
    for width, height, frames in [(64, 64, 3), (96, 64, 2)] if bench.args.tiny else sizes:
        settings = {"width": width, "height": height, "num_frames": frames, "num_inference_steps": 2}
        request = VideoRequest.checked(seed=0, **settings)

        def both(request: VideoRequest = request) -> dict[str, float]:
            taken = {}
            for name in ("first_s", "next_s"):
                began = time.perf_counter()
                for _ in generate(pipeline, image, request):
                    pass
                parts.synchronize(bench.device)
                taken[name] = round(time.perf_counter() - began, 3)
            return taken

        bench.guarded(f"{frames} frames of {width}×{height}", both, result)
    return result


def fp8(bench: Bench) -> dict[str, Any]:
    """Measure the step in fp8: time, memory, profile, error, and a whole video."""
    bench.make_networks(fp8=True)
    result: dict[str, Any] = {"step_ms": bench.ms(bench.step), "step_peak_gib": bench.peak(bench.step)}
    if bench.device.type == "cuda":
        result["graph"] = graph(bench)
    if bench.outputs:
        result["step_from_diffusers"] = parts.relative_error(bench.step().cpu(), bench.outputs["step"])
    if hasattr(bench, "true"):
        result["error"] = parts.relative_error(bench.step().float().cpu(), bench.true)
    result["profile"] = profiled(bench, "step fp8", bench.step)
    pipeline = pipeline_of(bench, "fast", "fp8")
    for name in ("fp8 video", "second fp8 video"):
        bench.guarded(name, lambda pipeline=pipeline: one_video(bench, "fast", pipeline), result)
    del pipeline
    bench.make_networks()
    return result


def together(bench: Bench) -> dict[str, Any]:
    """Compare a step of two videos with a step of one."""
    inputs = {name: tensor.repeat_interleave(2, 0) for name, tensor in bench.inputs.items() if name != "latents"}
    constants = bench.constants_of(inputs)
    two = lambda: bench.network(inputs["sample"], bench.time_step, constants)  # noqa: E731
    return {"one_ms": bench.ms(bench.step, 3), "two_ms": bench.ms(two, 3), "two_peak_gib": bench.peak(two)}


def pocket(bench: Bench) -> dict[str, Any]:
    """Compare the pocket model's frames in each precision: PSNR and the largest difference."""
    from kinema.engine import generate
    from kinema.media.image import open_image
    from kinema.models.catalog import request_for
    from kinema.models.loading import load
    from kinema.settings import Settings
    from kinema.steps import drive

    image = open_image(Path(__file__).parent.parent / "examples" / "rocket.jpg")
    frames = {}
    for name, dtype in (("float32", "float32"), ("bfloat16", "bfloat16"), ("fp8", "bfloat16")):
        settings = Settings(precision="fp8" if name == "fp8" else "full")
        pipeline = load("pocket", device=str(bench.device), dtype=dtype, settings=settings)
        frames[name] = drive(generate(pipeline, image, request_for(model="pocket", seed=42))).frames
    pairs = (("bfloat16", "float32"), ("fp8", "bfloat16"), ("fp8", "float32"))
    return {f"{one} and {other}": distance(frames[one], frames[other]) for one, other in pairs}


def reference(bench: Bench) -> dict[str, Any]:
    """Generate a video with the reference engine."""
    result: dict[str, Any] = {}
    bench.guarded("video reference", lambda: one_video(bench, "reference"), result)
    return result


def plans(bench: Bench) -> dict[str, Any]:
    """Generate videos with less and less memory: a tensor occupies the rest of the GPU."""
    for name in ("network", "decoder", "constants"):
        vars(bench).pop(name, None)
    bench.stock.clear()
    result: dict[str, Any] = {}
    for gib in (14, 12, 10, 8, 6, 4):
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        occupied = torch.empty(
            free - gib * 2**30 + torch.cuda.memory_allocated(), dtype=torch.uint8, device=bench.device
        )
        torch.cuda.set_per_process_memory_fraction((occupied.numel() + gib * 2**30) / total)
        pipeline = pipeline_of(bench, "fast")
        once = partial(one_video, bench, "fast", pipeline, occupied=occupied.numel())
        report = bench.guarded(f"{gib} GiB", once, result)
        if report.get("plan") == "streamed":  # its first video includes preparing the weights
            bench.guarded(f"{gib} GiB, second video", once, result)
        pipeline.cached_networks.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
        del occupied
    return result


def one_video(bench: Bench, engine: str, pipeline: Any = None, *, occupied: int = 0) -> dict[str, Any]:
    """Return a video's seconds by stage, memory and plan; a reused `pipeline` keeps its cached networks."""
    from kinema.engine import generate
    from kinema.media.image import open_image
    from kinema.steps import Step, drive
    from kinema.values import VideoRequest

    pipeline = pipeline or pipeline_of(bench, engine)
    width, height = bench.size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), "uint8")
    settings = {"width": width, "height": height, "num_frames": bench.frames, "num_inference_steps": 25}
    if bench.args.tiny:
        settings["num_inference_steps"] = 2
    stages: dict[str, float] = {}
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    parts.synchronize(bench.device)
    began = last = time.perf_counter()

    def on_step(step: Step) -> None:
        nonlocal last
        if step.stage != "denoise" or step.step == step.total:  # no synchronisation between steps
            parts.synchronize(bench.device)
        now = time.perf_counter()
        stages[step.stage] = stages.get(step.stage, 0) + now - last
        last = now

    request = VideoRequest.checked(seed=0, **settings)
    video = drive(generate(pipeline, open_image(Image.fromarray(noise)), request), on_step)
    frames, recipe = video.frames, video.recipe
    result: dict[str, Any] = {"plan": recipe.memory_plan, "decode_chunk_size": recipe.decode_chunk_size}
    result |= {"engine": recipe.engine, "events": list(recipe.events)}
    result["seconds"] = round(time.perf_counter() - began, 3)
    result |= {f"{stage}_s": round(each, 3) for stage, each in stages.items()}
    if bench.device.type == "cuda":
        result["peak_gib"] = round((torch.cuda.max_memory_allocated() - occupied) / 2**30, 2)
        result["reserved_gib"] = round((torch.cuda.max_memory_reserved() - occupied) / 2**30, 2)
    name = engine if pipeline.precision == "full" else pipeline.precision
    bench.videos = getattr(bench, "videos", {})
    for other, theirs in bench.videos.items():  # the first video of each precision and engine
        result[f"psnr_to_{other}_db"] = distance(frames, theirs)["psnr_db"]
    bench.videos.setdefault(name, frames)
    return result


def pipeline_of(bench: Bench, engine: str, precision: str = "full") -> Any:
    """Return the benchmark's networks as a VideoPipeline, without a model folder."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import Shape
    from kinema.recipe import ModelIdentity
    from svd_xt import svd_config

    if not hasattr(bench, "encoder"):
        sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
        if bench.args.tiny:
            sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "patch_size": 56}
        config = CLIPVisionConfig(
            num_attention_heads=16, image_size=224, projection_dim=1024, hidden_act="gelu", **sizes
        )
        torch.set_default_dtype(bench.dtype)
        with bench.device:
            bench.encoder = CLIPVisionModelWithProjection(config).eval().requires_grad_(requires_grad=False)
        torch.set_default_dtype(torch.float32)
    pipeline = VideoPipeline(
        name="svd-xt",
        unet=bench.unet,
        vae=bench.vae,
        image_encoder=bench.encoder,
        image_mean=svd_config.IMAGE_MEAN,
        image_std=svd_config.IMAGE_STD,
        scheduler=svd_config.SCHEDULER,
        device=bench.device,
        dtype=bench.dtype,
        shape=Shape(bench.unet.config.block_out_channels[0], bench.vae.config.block_out_channels[0]),
        image_size=224,
        snapshot=None,  # not used, because the identity is set below
        engine=engine,
        precision=precision,
    )
    # The cached property's value: there are no files to hash.
    vars(pipeline)["identity"] = ModelIdentity(name="svd-xt", weights_sha256="0" * 64, revision=None)
    return pipeline


SECTIONS = {
    "diffusers": diffusers,
    "make": make,
    "ours": ours,
    "graph": graph,
    "errors": errors,
    "profile": profile,
    "power": power,
    "video": video,
    "sizes": sizes,
    "fp8": fp8,
    "together": together,
    "pocket": pocket,
    "reference": reference,
    "plans": plans,
}

if __name__ == "__main__":
    run("step", __doc__, SECTIONS, groups=("video", "sizes", "reference", "plans"))
