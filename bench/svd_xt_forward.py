"""Compare Kinema's and diffusers' forward of full-size SVD-XT on a GPU, and each kernel; random weights, one process:

    python bench/svd_xt_forward.py --out bench/results/svd-xt-forward-h100
    python bench/svd_xt_forward.py --out /tmp/tiny --tiny --device cpu
    TRITON_INTERPRET=1 python bench/svd_xt_forward.py --out /tmp/tiny --tiny --device cpu --interpreted --sections make

Sections run in order; a failed section does not stop the others, and none starts after --seconds. forward.json is
written after each section. profile-*.txt are the torch profiles of one step and one decoding.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from kinema.engine.fast.graphs import Replayed
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

import forward as parts
from kinema.benchmark.measure import distance
from kinema.engine import image_to_video
from kinema.engine.fast import FastDecoder, FastUNet, fp8, fused, gpu, layers

Work = Callable[[], Any]


@contextmanager
def by_library(*, along_time: bool) -> Iterator[None]:
    """Disable `fast.convolution` for temporal convolutions, or for all others, within the context."""
    from kinema.engine.fast import convolution

    fits = convolution.fits

    def fits_some(x: torch.Tensor, weight: torch.Tensor, *, adds: bool = False) -> bool:
        return (weight.shape[1] == 3 * x.shape[3]) != along_time and fits(x, weight, adds=adds)

    with mock.patch.object(convolution, "fits", fits_some):
        yield


@contextmanager
def without_winograd() -> Iterator[None]:
    """Disable `fast.winograd` within the context."""
    from kinema.engine.fast import winograd

    with mock.patch.object(winograd, "fits", return_value=False):
        yield


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


class Bench:
    """The benchmark's networks, inputs and results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.started = time.perf_counter()
        self.results: dict[str, Any] = {
            "what": "SVD-XT's configuration, random weights, float16, guided; ms are medians by device events",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": parts.machine(self.device),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        self.outputs: dict[str, torch.Tensor] = {}
        self.frames: int = 25
        self.size = (1024, 576)
        if args.tiny:
            self.size, self.frames = (64, 64), 3

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def save(self) -> None:
        self.args.out.mkdir(parents=True, exist_ok=True)
        (self.args.out / "forward.json").write_text(json.dumps(self.results, indent=1, ensure_ascii=False) + "\n")

    def ms(self, work: Work, runs: int | None = None, warm: int = 1) -> float:
        """Return the median milliseconds of `runs` calls after `warm` warm-up calls."""
        for _ in range(warm):
            work()
        taken = []
        for _ in range(runs or self.args.runs):
            if self.device.type == "cuda":
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                work()
                ended.record()
                torch.cuda.synchronize()
                taken.append(began.elapsed_time(ended))
            else:
                taken.append(1000 * parts.seconds(work, self.device))
        return round(statistics.median(taken), 4)

    def guarded(self, name: str, work: Callable[[], Any], into: dict[str, Any]) -> Any:
        """Store the result of `work` under its name, or its error, and save all results."""
        before = self.seconds()
        try:
            into[name] = work()
        except Exception as error:  # noqa: BLE001 an error must not stop the other sections
            into[name] = {"error": f"{type(error).__name__}: {error}"[:600], "where": traceback.format_exc()[-900:]}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.results.setdefault("seconds_of", {})[name] = round(self.seconds() - before, 1)
        self.save()
        if name not in CONTAINERS:  # their parts are already printed
            print(f"{self.seconds():6.1f} s  {name}: {json.dumps(into[name])[:500]}", flush=True)
        return into[name]

    def peak(self, work: Work) -> float | None:
        return parts.peak(work, self.device) if self.device.type == "cuda" else None

    # Sections

    def build(self) -> dict[str, Any]:
        self.unet, self.vae = parts.networks("tiny" if self.args.tiny else "svd-xt", self.device, self.dtype)
        for part in (self.unet, self.vae):
            part.to(self.device)  # diffusers creates the mix factors on the CPU
            for parameter in part.parameters():
                if parameter.dim() < 2:  # randomise initial values of 1, 0 and 0.5
                    parameter.add_(0.1 * torch.randn_like(parameter))
        width, height = self.size
        self.inputs = parts.inputs(self.unet, frames=self.frames, width=width, height=height, guided=True)
        self.time_step = torch.tensor(parts.TIME, device=self.device)
        self.stock = parts.theirs(self.unet, self.vae, self.inputs)
        return {"seconds": round(self.seconds(), 2)}

    def ceilings(self) -> dict[str, Any]:
        size, wide = (256, 2**16) if self.args.tiny else (8192, 2**30)
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        c = torch.randn(wide, device=self.device, dtype=self.dtype)
        d = torch.empty_like(c)
        matmul, copy = self.ms(lambda: a @ b, 10, 3), self.ms(lambda: d.copy_(c), 10, 3)
        return {"product_tflops": round(2 * size**3 / matmul / 1e9, 1), "copy_tbs": round(4 * wide / copy / 1e9, 3)}

    def kernels(self) -> dict[str, Any]:
        """Compare each kernel with plain torch; replace a failed kernel by plain torch for the rest of the run."""
        frames, pixels, channels = (6, 33, 320) if self.args.tiny else (50, 576, 640)

        def new(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=self.device, dtype=self.dtype)

        x, y, bias = new(frames, pixels, channels), new(frames, pixels, channels), new(channels).float()
        norm = layers.LayerNorm(new(channels), new(channels), 1e-5)
        groups = layers.GroupNorm(32, new(channels), new(channels), 1e-5)
        table, shift = new(frames, channels).float(), new(2, channels)
        weight = new(8 * channels, channels) * channels**-0.5
        product, in_bytes = (
            layers.Product(weight, new(8 * channels)),
            layers.Product.in_bytes(weight, new(8 * channels)),
        )
        span_scales = fused.affine(fused.channel_sums(x), groups, pixels, span=frames // 2, plus=shift)
        frame_scales = fused.affine(fused.channel_sums(x), groups, pixels)
        high = 12 if pixels == 576 else 3
        images = x.view(frames, high, -1, channels)
        qkv, rows = new(2, frames // 2, pixels, 3, 5, 64), layers.pixels(x)
        quantized = (rows * fp8.FP8_SCALE).to(fp8.FP8_DTYPE)
        conv = layers.Product(new(channels, 9 * channels) * (9 * channels) ** -0.5)
        time_conv = layers.Product(new(channels, 3 * channels) * channels**-0.5)
        wide = new(2, 1, pixels, 512)

        def plain_frame_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(q), q.shape[2], -1)

        def added(add: Callable[..., torch.Tensor]) -> torch.Tensor:
            out = torch.empty_like(x)
            sums = add(x, y, bias, out).sum(1)
            return torch.cat([out.float().flatten(), sums.flatten() / pixels])

        def summed(out: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
            return torch.cat([out.float().flatten(), sums.sum(1).flatten() / pixels])

        def with_residual(work: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
            into = layers.pixels(y).clone()
            return torch.cat([work(rows, into, norm, table, *arguments), into])

        checks: dict[str, tuple[Callable[..., Any], Callable[[Callable[..., Any]], torch.Tensor]]] = {
            "channel_sums": (fused.plain_channel_sums, lambda f: f(x).sum(1)),
            "add": (fused.plain_add, added),
            "affine": (
                fused.plain_affine,
                lambda f: torch.cat(f(fused.channel_sums(x), groups, pixels, span=frames // 2, plus=shift)),
            ),
            "normalised": (
                fused.plain_normalised,
                lambda f: f(x, span_scales, span=frames // 2, silu=True, out=torch.empty_like(x)),
            ),
            "layer_norm": (fused.plain_layer_norm, lambda f: f(rows, norm, table)),
            "add_layer_norm": (fused.plain_add_layer_norm, with_residual),
            "mix_layer_norm": (fused.plain_mix_layer_norm, lambda f: with_residual(f, table, 0.3)),
            "gated": (fused.plain_gated, lambda f: f(rows, product)),
            "product": (fused.plain_product, lambda f: f(quantized, in_bytes, self.dtype)),
            "convolved": (
                fused.plain_convolved,
                lambda f: summed(*f(images, conv, self.dtype)),
            ),
            "activated_convolved": (
                fused.plain_activated_convolved,
                lambda f: summed(*f([images], frame_scales, conv, self.dtype)),
            ),
            "along_time": (fused.plain_along_time, lambda f: f(x, time_conv, frames // 2, self.dtype)[0]),
            "time_attention": (fused.plain_time_attention, lambda f: f(qkv)),
            "frame_attention": (
                plain_frame_attention,
                lambda f: torch.cat([f(*qkv[:, 0].permute(2, 0, 3, 1, 4)).flatten(), f(wide, wide, wide).flatten()]),
            ),
        }
        result: dict[str, Any] = {}
        for name, (plain, call) in checks.items():

            def check(name: str = name, plain: Callable[..., Any] = plain, call: Any = call) -> dict[str, Any]:
                began = time.perf_counter()
                error = parts.relative_error(call(getattr(fused, name)), call(plain))
                assert error < 0.01, error
                return {"error": error, "seconds": round(time.perf_counter() - began, 2)}

            if "error" not in self.guarded(name, check, result) or "where" in result[name]:
                setattr(fused, name, plain)
                result[name]["replaced"] = True
        return result

    def diffusers(self) -> dict[str, Any]:
        self.outputs = {name: work().cpu() for name, work in self.stock.items()}
        return {
            "step_ms": self.ms(self.stock["step"], 3, 1),
            "step_peak_gib": self.peak(self.stock["step"]),
            "decode_ms": self.ms(self.stock["decode"], 2, 0),
            "decode_peak_gib": self.peak(self.stock["decode"]),
        }

    def make(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        before = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
        began = time.perf_counter()
        self.network, self.decoder = FastUNet(self.unet), FastDecoder(self.vae)
        inputs = self.inputs
        self.constants = self.network.constants(
            inputs["embedding"], inputs["time_ids"], inputs["image_latents"], self.frames
        )
        parts.synchronize(self.device)
        result["make_s"] = round(time.perf_counter() - began, 3)
        if before:
            result["made_gib"] = round((torch.cuda.memory_allocated() - before) / 2**30, 3)
        for name, work in (("step", self.step), ("decode", self.decode)):
            if self.device.type == "cuda":  # as the engine does before its first call
                from kinema.engine.fast import kernels

                began = time.perf_counter()
                with kernels.compiled_together():
                    work()
                result[f"compile_for_{name}_s"] = round(time.perf_counter() - began, 3)
            began = time.perf_counter()
            work()
            parts.synchronize(self.device)
            result[f"first_{name}_s"] = round(time.perf_counter() - began, 3)
        return result

    def step(self) -> torch.Tensor:
        return self.network(self.inputs["sample"], self.time_step, self.constants)

    def decode(self) -> torch.Tensor:
        return self.decoder(self.inputs["latents"])

    def ours(self) -> dict[str, Any]:
        result = {
            "step_ms": self.ms(self.step),
            "decode_ms": self.ms(self.decode, 3),
            "step_peak_gib": self.peak(self.step),
            "decode_peak_gib": self.peak(self.decode),
        }
        for name, theirs in self.outputs.items():
            work = {"step": self.step, "decode": self.decode}[name]
            result[f"{name}_from_diffusers"] = parts.relative_error(work().cpu(), theirs)
        return result

    def graph(self) -> dict[str, Any]:
        replayed = Replayed(lambda sample, time: self.network(sample, time, self.constants))

        def work() -> torch.Tensor:
            return replayed(self.inputs["sample"], self.time_step)

        work()
        began = time.perf_counter()
        work()
        parts.synchronize(self.device)
        capture = round(time.perf_counter() - began, 3)
        eager = self.step()
        return {"step_ms": self.ms(work), "capture_s": capture, "equal_to_eager": bool(torch.equal(eager, work()))}

    def errors(self) -> dict[str, Any]:
        """Return errors relative to diffusers in float32 without TF32: of one step, and of decoding eight frames."""
        wide = {name: tensor.float() for name, tensor in self.inputs.items()}
        result: dict[str, Any] = {}

        def compare(name: str, true: torch.Tensor, runs: dict[str, torch.Tensor]) -> None:
            result[name] = {side: parts.relative_error(each.float().cpu(), true.cpu()) for side, each in runs.items()}
            result[name]["ratio"] = round(result[name]["kinema"] / result[name]["diffusers"], 4)

        unet = deepcopy(self.unet).float()
        true = parts.theirs(unet, self.vae, wide)["step"]()
        self.true = true.cpu()
        del unet
        compare("step", true, {"kinema": self.step(), "diffusers": self.outputs["step"]})
        few = self.inputs["latents"][:8]
        runs = {"kinema": self.decoder(few), "diffusers": self.vae.decode(few, num_frames=len(few)).sample}
        vae = deepcopy(self.vae).float()
        compare("decode", vae.decode(few.float(), num_frames=len(few)).sample, runs)
        return result

    def variants(self) -> dict[str, Any]:
        """Change one implementation at a time; return ms of the step and, if affected, of the decoding."""

        @contextmanager
        def tiled(*tile: int) -> Iterator[None]:
            from kinema.engine.fast import kernels, stationary

            with mock.patch.object(stationary, "FEWEST", 2**30), mock.patch.dict(kernels.PRODUCT, {2: tile}):
                yield

        def efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = F.scaled_dot_product_attention(q, k, v)
            return out.transpose(1, 2).reshape(len(q), q.shape[2], -1)

        def upsample(module: Any, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
            doubled = (2 * x.shape[2], 2 * x.shape[3])
            return module.conv.product(F.interpolate(x, size or doubled, mode="nearest"))

        patches: dict[str, tuple[list[Any], str]] = {
            "default": ([], "both"),
            "3×3 convolutions without Winograd": ([without_winograd()], "step"),
            "3×3 convolutions by cuDNN": ([by_library(along_time=False)], "both"),
            "temporal convolutions by plain Triton": ([by_library(along_time=True)], "both"),
            "upsampling by interpolation": ([mock.patch.object(layers.Upsample, "product", upsample)], "both"),
            "cudnn benchmark": ([torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)], "both"),
            **{f"fused gate GEMM, {tile}": ([tiled(*tile)], "step") for tile in self.tiles()},
            "no GEMM kernels of Kinema": ([mock.patch.object(fused, "multiplies", return_value=False)], "both"),
            "attention by cuDNN": ([mock.patch.object(fused, "MANY_PIXELS", 2**30)], "step"),
            "attention by torch's default": ([mock.patch.object(fused, "frame_attention", efficient)], "both"),
            "time attention plain": (
                [mock.patch.object(fused, "time_attention", fused.plain_time_attention)],
                "step",
            ),
            "layer norm plain": (
                [
                    mock.patch.object(fused, name, getattr(fused, f"plain_{name}"))
                    for name in ("layer_norm", "add_layer_norm", "mix_layer_norm")
                ],
                "step",
            ),
        }
        result: dict[str, Any] = {}
        for name, (changes, where) in patches.items():
            if self.seconds() > self.args.seconds:
                break

            def one(changes: list[Any] = changes, where: str = where) -> dict[str, Any]:
                with ExitStack() as stack:
                    for change in changes:
                        stack.enter_context(change)
                    # FastUNet and FastDecoder store no function of `fused`, so the existing instances use the patches.
                    row: dict[str, Any] = {"step_ms": self.ms(self.step, 3)}
                    row["step_from_diffusers"] = parts.relative_error(self.step().cpu(), self.outputs["step"])
                    if where == "both":
                        row["decode_ms"] = self.ms(self.decode, 2)
                return row

            self.guarded(name, one, result)
        return result

    def tiles(self) -> list[tuple[int, ...]]:
        """Return tile configurations of GEMMs, as in `kernels.PRODUCT`; none on a CPU."""
        if self.device.type == "cpu":
            return []
        return [(128, 128, 64, 4, 3, 0), (128, 128, 64, 4, 3, 2), (128, 256, 64, 8, 3, 1), (256, 128, 64, 8, 3, 1)]

    def fp8(self) -> dict[str, Any]:
        """Measure the step in fp8: time, memory, profile, error, and other tile configurations of GEMMs."""
        self.network = FastUNet(self.unet, in_bytes=True)
        inputs = self.inputs
        self.constants = self.network.constants(
            inputs["embedding"], inputs["time_ids"], inputs["image_latents"], self.frames
        )
        result: dict[str, Any] = {"step_ms": self.ms(self.step), "step_peak_gib": self.peak(self.step)}
        result["graph"] = self.graph()
        if self.outputs:
            result["step_from_diffusers"] = parts.relative_error(self.step().cpu(), self.outputs["step"])
        if hasattr(self, "true"):
            result["error"] = parts.relative_error(self.step().float().cpu(), self.true)
        result["profile"] = self.profiled("step fp8", self.step)
        pipeline = self.pipeline("fast", "fp8")
        for name in ("fp8 video", "second fp8 video"):
            self.guarded(name, lambda pipeline=pipeline: self.one_video("fast", pipeline), result)
        del pipeline
        if self.device.type == "cuda":
            from kinema.engine.fast import kernels

            for tile in [(128, 128, 128, 4, 3, 0), (128, 256, 64, 8, 3, 1)]:
                with mock.patch.dict(kernels.PRODUCT, {1: tile}):
                    self.guarded(f"GEMM tiles {tile}, step_ms", lambda: self.ms(self.step, 3), result)
        self.make()
        return result

    def together(self) -> dict[str, Any]:
        """Compare a step of two videos with a step of one."""
        inputs = {name: tensor.repeat_interleave(2, 0) for name, tensor in self.inputs.items() if name != "latents"}
        constants = self.network.constants(
            inputs["embedding"], inputs["time_ids"], inputs["image_latents"], self.frames
        )
        two = lambda: self.network(inputs["sample"], self.time_step, constants)  # noqa: E731
        return {"one_ms": self.ms(self.step, 3), "two_ms": self.ms(two, 3), "two_peak_gib": self.peak(two)}

    def plans(self) -> dict[str, Any]:
        """Generate videos with torch's memory limited to decreasing sizes."""
        from kinema.models import offload

        for name in ("network", "decoder", "constants"):
            self.__dict__.pop(name, None)
        self.stock.clear()
        result: dict[str, Any] = {}
        total = torch.cuda.mem_get_info()[1]
        for gib in (14, 12, 10, 8, 6, 4):
            torch.cuda.empty_cache()
            limit = gib * 2**30

            def free(_: torch.device, limit: int = limit) -> int:
                return limit - torch.cuda.memory_allocated()

            torch.cuda.set_per_process_memory_fraction(limit / total)
            pipeline = self.pipeline("fast")
            with mock.patch.object(offload, "free_memory", free):
                report = self.guarded(f"{gib} GiB", lambda pipeline=pipeline: self.one_video("fast", pipeline), result)
                if report.get("plan") == "streamed":  # its first video includes preparing the weights
                    name = f"{gib} GiB, second video"
                    self.guarded(name, lambda pipeline=pipeline: self.one_video("fast", pipeline), result)
            pipeline.cached_networks.clear()
            torch.cuda.set_per_process_memory_fraction(1.0)
        return result

    def pocket(self) -> dict[str, Any]:
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
            pipeline = load("pocket", device=str(self.device), dtype=dtype, settings=settings)
            frames[name] = drive(generate(pipeline, image, request_for(model="pocket", seed=42))).frames
        pairs = (("bfloat16", "float32"), ("fp8", "bfloat16"), ("fp8", "float32"))
        return {f"{one} and {other}": distance(frames[one], frames[other]) for one, other in pairs}

    def micro(self) -> dict[str, Any]:
        """Measure single kernels on the shapes of a guided step: ms, and TB/s of the minimum traffic or TFLOP/s."""
        result: dict[str, Any] = {}
        for label, (width, height, channels, heads) in self.levels().items():
            if self.seconds() > self.args.seconds:
                break
            self.guarded(label, lambda c=channels, w=width, h=height, n=heads: self.level(w, h, c, n), result)
        return result

    def levels(self) -> dict[str, tuple[int, int, int, int]]:
        if self.args.tiny:
            return {"level 0": (8, 8, 32, 1)}
        return {"level 0": (128, 72, 320, 5), "level 1": (64, 36, 640, 10), "level 2": (32, 18, 1280, 20)}

    def level(self, width: int, height: int, channels: int, heads: int) -> dict[str, Any]:
        frames, pixels = self.frames, width * height
        rows = 2 * frames * pixels
        unit = rows * channels * 2  # bytes of the hidden states

        def new(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=self.device, dtype=self.dtype)

        x = new(2, frames, height, width, channels)
        flat, by_frame = layers.pixels(x), x.view(2 * frames, pixels, channels)
        other, table = torch.randn_like(x), torch.randn(2 * frames, channels, device=self.device)
        norm = layers.LayerNorm(new(channels), new(channels), 1e-5)
        groups = layers.GroupNorm(32, new(channels), new(channels), 1e-5)
        sums, into = fused.channel_sums(by_frame), torch.empty_like(by_frame)
        wide = layers.Product(new(8 * channels, channels) * channels**-0.5, new(8 * channels))
        qkv = new(2, frames, pixels, 3, heads, channels // heads)
        product, added_to = fused.plain_product(flat, wide, self.dtype), layers.pixels(other)
        scales = fused.affine(sums, groups, pixels), fused.affine(sums, groups, pixels, span=frames)
        conv = new(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        time_conv = new(channels, channels, 3, 1).contiguous(memory_format=torch.channels_last)
        time_product = layers.Product(time_conv.permute(0, 2, 3, 1).flatten(1))

        def within(backend: SDPBackend) -> torch.Tensor:
            q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        added_weight, flop = new(channels, 4 * channels), 2 * rows * channels**2
        works: dict[str, tuple[Work, float, float]] = {
            "time attention": (lambda: fused.time_attention(qkv), 4 * unit, 0),
            "time attention plain": (lambda: fused.plain_time_attention(qkv), 4 * unit, 0),
            "layer norm": (lambda: fused.layer_norm(flat, norm, table), 2 * unit, 0),
            "layer norm by torch": (lambda: F.layer_norm(flat, (channels,), norm.weight, norm.bias), 2 * unit, 0),
            "add layer norm": (lambda: fused.add_layer_norm(flat, into.view_as(flat), norm, table), 4 * unit, 0),
            "mix layer norm": (
                lambda: fused.mix_layer_norm(flat, into.view_as(flat), norm, table, table, 0.5),
                4 * unit,
                0,
            ),
            "channel sums": (lambda: fused.channel_sums(by_frame), unit, 0),
            "add": (lambda: fused.add(by_frame, other.view_as(by_frame), table[0], into), 3 * unit, 0),
            "group norm after sums": (
                lambda: fused.normalised(by_frame, scales[0], silu=True, out=into),
                2 * unit,
                0,
            ),
            "group norm of frames after sums": (
                lambda: fused.normalised(by_frame, scales[1], span=frames, silu=True, out=into),
                2 * unit,
                0,
            ),
            "group norm and SiLU by torch": (
                lambda: F.silu(F.group_norm(layers.images(x), 32, groups.weight, groups.bias)),
                2 * unit,
                0,
            ),
            "fused gate GEMM": (lambda: fused.gated(flat, wide), 0, 8 * flop),
            "gate GEMM without gate": (lambda: fused.plain_product(flat, wide, self.dtype), 0, 8 * flop),
            "QKV GEMM": (lambda: flat @ wide.weight[: 3 * channels].t(), 0, 3 * flop),
            "convolution": (lambda: F.conv2d(layers.images(x), conv, None, 1, 1), 0, 9 * flop),
            "temporal convolution": (lambda: F.conv2d(layers.strip(x), time_conv, None, 1, (1, 0)), 0, 3 * flop),
            "temporal convolution with channel sums": (
                lambda: fused.along_time(by_frame, time_product, frames, self.dtype),
                0,
                3 * flop,
            ),
            "attention, default": (
                lambda: fused.frame_attention(*qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)),
                0,
                4 * 2 * frames * pixels**2 * channels,
            ),
            "attention, cuDNN": (lambda: within(SDPBackend.CUDNN_ATTENTION), 0, 4 * 2 * frames * pixels**2 * channels),
            "attention, flash": (lambda: within(SDPBackend.FLASH_ATTENTION), 0, 4 * 2 * frames * pixels**2 * channels),
            "GEMM with residual": (
                lambda: added_to.addmm_(product[:, : 4 * channels], added_weight.t()),
                0,
                4 * flop,
            ),
        }
        result: dict[str, Any] = {}
        for name, (work, moved, counted) in works.items():
            try:
                taken = self.ms(work, 5, 2)
            except Exception as error:  # noqa: BLE001 an error must not stop the other kernels
                result[name] = f"{type(error).__name__}: {error}"[:200]
                continue
            rate = f"{moved / taken / 1e9:.2f} TB/s" if moved else f"{counted / taken / 1e9:.0f} TFLOP/s"
            result[name] = f"{taken:.3f} ms, {rate}"
        return result

    def profile(self) -> dict[str, Any]:
        return {name: self.profiled(name, work) for name, work in (("step", self.step), ("decode", self.decode))}

    def profiled(self, name: str, work: Work) -> dict[str, Any]:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        with profile(activities=activities) as profiler:
            work()
            parts.synchronize(self.device)
        table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=110)
        (self.args.out / f"profile-{name.replace(' ', '-')}.txt").write_text(table)
        kernels = [e for e in profiler.key_averages() if "CUDA" in str(e.device_type) and e.self_device_time_total]
        kernels.sort(key=lambda e: -e.self_device_time_total)
        return {
            "kernels_ms": round(sum(e.self_device_time_total for e in kernels) / 1000, 2),
            "launches": sum(e.count for e in kernels),
            "top": [[e.key[:120], e.count, round(e.self_device_time_total / 1000, 3)] for e in kernels[:25]],
        }

    def power(self) -> dict[str, Any]:
        """Measure the GPU's power over 4 s of each workload; its energy counter updates about every 0.1 s."""
        if self.device.type != "cuda":
            return {}
        size = 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        counters = GpuCounters()
        result: dict[str, Any] = {"limit_w": counters.limit()}
        for name, work in (("step", self.step), ("decode", self.decode), ("matmul of 8192", lambda: a @ b)):
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

    def video(self) -> dict[str, Any]:
        """Run `kinema.engine.generate` from image to frames with the fast engine, twice."""
        for name in ("network", "decoder", "constants"):  # the engine creates its own
            delattr(self, name)
        result: dict[str, Any] = {}
        for name in ("first", "second"):
            self.guarded(f"video {name}", lambda: self.one_video("fast"), result)
        self.network, self.decoder = FastUNet(self.unet), FastDecoder(self.vae)
        inputs = self.inputs
        self.constants = self.network.constants(
            inputs["embedding"], inputs["time_ids"], inputs["image_latents"], self.frames
        )
        return result

    def sizes(self) -> dict[str, Any]:
        """Measure the seconds of the first and second video of two steps for each size, in order."""
        from kinema.engine import generate
        from kinema.media.image import open_image
        from kinema.values import VideoRequest

        pipeline, result = self.pipeline("fast"), {}
        image = open_image(Image.effect_mandelbrot((512, 512), (-2, -1.5, 1, 1.5), 90).convert("RGB"))
        sizes = [(1024, 576, 25), (1024, 576, 14), (576, 1024, 25), (768, 448, 21), (512, 320, 14), (256, 256, 14)]
        for width, height, frames in [(64, 64, 3), (96, 64, 2)] if self.args.tiny else sizes:
            settings = {"width": width, "height": height, "num_frames": frames, "num_inference_steps": 2}
            request = VideoRequest.checked(seed=0, **settings)

            def both(request: VideoRequest = request) -> dict[str, float]:
                taken = {}
                for name in ("first_s", "next_s"):
                    began = time.perf_counter()
                    for _ in generate(pipeline, image, request):
                        pass
                    parts.synchronize(self.device)
                    taken[name] = round(time.perf_counter() - began, 3)
                return taken

            self.guarded(f"{frames} frames of {width}×{height}", both, result)
        return result

    def reference(self) -> dict[str, Any]:
        """Generate a video with the reference engine."""
        result: dict[str, Any] = {}
        self.guarded("video reference", lambda: self.one_video("reference"), result)
        return result

    def one_video(self, engine: str, pipeline: Any = None) -> dict[str, Any]:
        """Return a video's seconds by stage, memory and plan; a reused `pipeline` keeps its cached networks."""
        from kinema.engine import generate
        from kinema.media.image import open_image
        from kinema.steps import Step, drive
        from kinema.values import VideoRequest

        pipeline = pipeline or self.pipeline(engine)
        width, height = self.size
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), "uint8")
        settings = {"width": width, "height": height, "num_frames": self.frames, "num_inference_steps": 25}
        if self.args.tiny:
            settings["num_inference_steps"] = 2
        stages: dict[str, float] = {}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        parts.synchronize(self.device)
        began = last = time.perf_counter()

        def on_step(step: Step) -> None:
            nonlocal last
            if step.stage != "denoise" or step.step == step.total:  # no synchronisation between steps
                parts.synchronize(self.device)
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
        if self.device.type == "cuda":
            result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            result["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        name = engine if pipeline.precision == "full" else pipeline.precision
        self.videos = getattr(self, "videos", {})
        for other, theirs in self.videos.items():  # the first video of each precision and engine
            result[f"psnr_to_{other}_db"] = distance(frames, theirs)["psnr_db"]
        self.videos.setdefault(name, frames)
        return result

    def pipeline(self, engine: str, precision: str = "full") -> Any:
        """Return the benchmark's networks as a VideoPipeline, without a model folder."""
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        from kinema.models.loading import VideoPipeline
        from kinema.models.memory_plan import Shape
        from kinema.values import ModelIdentity
        from svd_xt import svd_config

        if not hasattr(self, "encoder"):
            sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14}
            if self.args.tiny:
                sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "patch_size": 56}
            config = CLIPVisionConfig(
                num_attention_heads=16, image_size=224, projection_dim=1024, hidden_act="gelu", **sizes
            )
            torch.set_default_dtype(self.dtype)
            with self.device:
                self.encoder = CLIPVisionModelWithProjection(config).eval().requires_grad_(requires_grad=False)
            torch.set_default_dtype(torch.float32)
        pipeline = VideoPipeline(
            name="svd-xt",
            unet=self.unet,
            vae=self.vae,
            image_encoder=self.encoder,
            image_mean=svd_config.IMAGE_MEAN,
            image_std=svd_config.IMAGE_STD,
            scheduler=svd_config.SCHEDULER,
            device=self.device,
            dtype=self.dtype,
            shape=Shape(self.unet.config.block_out_channels[0], self.vae.config.block_out_channels[0]),
            image_size=224,
            snapshot=None,  # not used, because the identity is set below
            engine=engine,
            precision=precision,
        )
        # The cached property's value: there are no files to hash.
        vars(pipeline)["identity"] = ModelIdentity(name="svd-xt", weights_sha256="0" * 64, revision=None)
        return pipeline


def known_version(name: str) -> str:
    """Return the version of a distribution, or 'not installed'."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


SECTIONS = (
    "ceilings",
    "kernels",
    "diffusers",
    "make",
    "ours",
    "graph",
    "errors",
    "profile",
    "power",
    "video",
    "sizes",
    "variants",
    "fp8",
    "together",
    "pocket",
    "micro",
    "reference",
    "plans",
)
CONTAINERS = ("kernels", "variants", "micro", "video", "sizes", "reference", "plans")


@contextmanager
def gpu_implementation(*, kernels: bool) -> Iterator[None]:
    """Use the GPU implementation on a CPU, with its kernels in Triton's interpreter if `kernels`."""
    with ExitStack() as stack:
        if kernels:  # which have no tiles for float32
            from kinema.engine.fast.kernels import PRODUCT

            stack.enter_context(mock.patch.dict(PRODUCT, {4: (32, 64, 32, 4, 2, 0)}))
        stack.enter_context(mock.patch.object(gpu, "suits", return_value=True))
        stack.enter_context(mock.patch.object(fused, "has_kernels", return_value=kernels))
        stack.enter_context(mock.patch.object(fused, "multiplies", return_value=kernels))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated sections")
    parser.add_argument("--seconds", type=float, default=150, help="time limit: no section starts later")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="use a tiny configuration, to test the script")
    parser.add_argument(
        "--interpreted", action="store_true", help="run the GPU kernels on a CPU; needs TRITON_INTERPRET=1"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    image_to_video.version = known_version
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    bench = Bench(args)
    with torch.inference_mode(), ExitStack() as stack:
        if args.device == "cpu":
            stack.enter_context(gpu_implementation(kernels=args.interpreted))
        bench.guarded("build", bench.build, bench.results)
        for name in args.sections.split(","):
            if bench.seconds() > args.seconds:
                bench.results.setdefault("left_out", []).append(name)
                continue
            bench.guarded(name, getattr(bench, name), bench.results)
    bench.save()


if __name__ == "__main__":
    main()
