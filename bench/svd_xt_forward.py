"""Our forward of full-size SVD-XT on a GPU beside diffusers', kernel by kernel; random weights, one process:

    python bench/svd_xt_forward.py --out bench/results/svd-xt-forward-h100
    python bench/svd_xt_forward.py --out /tmp/tiny --tiny --device cpu
    TRITON_INTERPRET=1 python bench/svd_xt_forward.py --out /tmp/tiny --tiny --device cpu --interpreted --sections make

Sections run in their order, each guarded, and none begins after --seconds. forward.json is written after each one;
profile-*.txt tell where the time of one step and one decoding goes.
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
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

import forward as parts
from kinema.benchmark.measure import distance
from kinema.engine import image_to_video
from kinema.engine.fast import FastDecoder, FastUNet, fp8, fused, gpu, layers
from kinema.engine.fast.graphs import Replayed

Work = Callable[[], Any]


@contextmanager
def by_library(*, along_time: bool) -> Iterator[None]:
    """While inside, convolutions along time, or all others, are not those of `fast.convolution`."""
    from kinema.engine.fast import convolution

    fits = convolution.fits

    def some(x: torch.Tensor, weight: torch.Tensor, *, adds: bool = False) -> bool:
        return (weight.shape[1] == 3 * x.shape[3]) != along_time and fits(x, weight, adds=adds)

    with mock.patch.object(convolution, "fits", some):
        yield


@contextmanager
def every_multiplication() -> Iterator[None]:
    """While inside, no convolution is that of `fast.winograd`."""
    from kinema.engine.fast import winograd

    with mock.patch.object(winograd, "fits", return_value=False):
        yield


class Meter:
    """A GPU's own counters, by NVIDIA's management library, which comes with the driver."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._device = ctypes.c_void_p()
        self._library.nvmlInit_v2()
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        self._library.nvmlDeviceGetHandleByIndex_v2(int(seen), ctypes.byref(self._device))

    def _read(self, name: str, into: Any, *given: int) -> int:
        if getattr(self._library, name)(self._device, *given, ctypes.byref(into)):
            raise RuntimeError(f"{name} gives nothing here")
        return int(into.value)

    def joules(self) -> float:
        return self._read("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong()) / 1000

    def limit(self) -> float:
        """Watts."""
        return self._read("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint()) / 1000

    def clock(self) -> int:
        """MHz of the multiprocessors, right now."""
        return self._read("nvmlDeviceGetClockInfo", ctypes.c_uint(), 1)


class Bench:
    """What is measured, on what, and what was found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.started = time.perf_counter()
        self.found: dict[str, Any] = {
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

    def keep(self) -> None:
        self.args.out.mkdir(parents=True, exist_ok=True)
        (self.args.out / "forward.json").write_text(json.dumps(self.found, indent=1, ensure_ascii=False) + "\n")

    def ms(self, work: Work, runs: int | None = None, warm: int = 1) -> float:
        """Median of some calls, after some to warm up."""
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
        """The result of `work` under its name, or why there is none; whatever was noted is kept."""
        before = self.seconds()
        try:
            into[name] = work()
        except Exception as error:  # noqa: BLE001 one that fails must not lose the rest
            into[name] = {"error": f"{type(error).__name__}: {error}"[:600], "where": traceback.format_exc()[-900:]}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.found.setdefault("seconds_of", {})[name] = round(self.seconds() - before, 1)
        self.keep()
        if name not in CONTAINERS:  # whose parts were printed
            print(f"{self.seconds():6.1f} s  {name}: {json.dumps(into[name])[:500]}", flush=True)
        return into[name]

    def peak(self, work: Work) -> float | None:
        return parts.peak(work, self.device) if self.device.type == "cuda" else None

    # Sections

    def build(self) -> dict[str, Any]:
        self.unet, self.vae = parts.networks("tiny" if self.args.tiny else "svd-xt", self.device, self.dtype)
        for part in (self.unet, self.vae):
            part.to(self.device)  # diffusers makes the mixers on the CPU
            for parameter in part.parameters():
                if parameter.dim() < 2:  # away from ones, zeros and halves
                    parameter.add_(0.1 * torch.randn_like(parameter))
        width, height = self.size
        self.given = parts.inputs(self.unet, frames=self.frames, width=width, height=height, guided=True)
        self.moment = torch.tensor(parts.TIME, device=self.device)
        self.stock = parts.theirs(self.unet, self.vae, self.given)
        return {"seconds": round(self.seconds(), 2)}

    def ceilings(self) -> dict[str, Any]:
        size, wide = (256, 2**16) if self.args.tiny else (8192, 2**30)
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        c = torch.randn(wide, device=self.device, dtype=self.dtype)
        d = torch.empty_like(c)
        product, copied = self.ms(lambda: a @ b, 10, 3), self.ms(lambda: d.copy_(c), 10, 3)
        return {"product_tflops": round(2 * size**3 / product / 1e9, 1), "copy_tbs": round(4 * wide / copied / 1e9, 3)}

    def kernels(self) -> dict[str, Any]:
        """Each kernel against plain torch; one that fails is left to plain torch from here on."""
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
        known = fused.affine(fused.channel_sums(x), groups, pixels, span=frames // 2, plus=shift)
        one_by_one = fused.affine(fused.channel_sums(x), groups, pixels)
        high = 12 if pixels == 576 else 3
        images = x.view(frames, high, -1, channels)
        qkv, rows = new(2, frames // 2, pixels, 3, 5, 64), layers.pixels(x)
        eighths = (rows * fp8.FP8_SCALE).to(fp8.FP8_DTYPE)
        conv = layers.Product(new(channels, 9 * channels) * (9 * channels) ** -0.5)
        by_time = layers.Product(new(channels, 3 * channels) * channels**-0.5)
        wide = new(2, 1, pixels, 512)

        def plain_frame_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(q), q.shape[2], -1)

        def added(add: Callable[..., torch.Tensor]) -> torch.Tensor:
            out = torch.empty_like(x)
            sums = add(x, y, bias, out).sum(1)
            return torch.cat([out.float().flatten(), sums.flatten() / pixels])

        def summed(made: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
            return torch.cat([made.float().flatten(), sums.sum(1).flatten() / pixels])

        def settled(work: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
            into = layers.pixels(y).clone()
            return torch.cat([work(rows, into, norm, table, *given), into])

        checks: dict[str, tuple[Callable[..., Any], Callable[[Callable[..., Any]], torch.Tensor]]] = {
            "channel_sums": (fused.plain_channel_sums, lambda f: f(x).sum(1)),
            "add": (fused.plain_add, added),
            "affine": (
                fused.plain_affine,
                lambda f: torch.cat(f(fused.channel_sums(x), groups, pixels, span=frames // 2, plus=shift)),
            ),
            "normalised": (
                fused.plain_normalised,
                lambda f: f(x, known, span=frames // 2, silu=True, out=torch.empty_like(x)),
            ),
            "layer_norm": (fused.plain_layer_norm, lambda f: f(rows, norm, table)),
            "add_layer_norm": (fused.plain_add_layer_norm, settled),
            "mix_layer_norm": (fused.plain_mix_layer_norm, lambda f: settled(f, table, 0.3)),
            "gated": (fused.plain_gated, lambda f: f(rows, product)),
            "product": (fused.plain_product, lambda f: f(eighths, in_bytes, self.dtype)),
            "convolved": (
                fused.plain_convolved,
                lambda f: summed(*f(images, conv, self.dtype)),
            ),
            "activated_convolved": (
                fused.plain_activated_convolved,
                lambda f: summed(*f([images], one_by_one, conv, self.dtype)),
            ),
            "along_time": (fused.plain_along_time, lambda f: f(x, by_time, frames // 2, self.dtype)[0]),
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
        given = self.given
        self.constants = self.network.constants(given["embedding"], given["time_ids"], given["held"], self.frames)
        parts.synchronize(self.device)
        result["make_s"] = round(time.perf_counter() - began, 3)
        if before:
            result["made_gib"] = round((torch.cuda.memory_allocated() - before) / 2**30, 3)
        for name, work in (("step", self.step), ("decode", self.decode)):
            if self.device.type == "cuda":  # as the engine does before the first call
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
        return self.network(self.given["sample"], self.moment, self.constants)

    def decode(self) -> torch.Tensor:
        return self.decoder(self.given["latents"])

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
            return replayed(self.given["sample"], self.moment)

        work()
        began = time.perf_counter()
        work()
        parts.synchronize(self.device)
        captured = round(time.perf_counter() - began, 3)
        eager = self.step()
        return {"step_ms": self.ms(work), "capture_s": captured, "equal_to_eager": bool(torch.equal(eager, work()))}

    def errors(self) -> dict[str, Any]:
        """Against diffusers in float32 without TF32: of the whole step, and of eight frames' decoding."""
        wide = {name: tensor.float() for name, tensor in self.given.items()}
        result: dict[str, Any] = {}

        def told(name: str, true: torch.Tensor, runs: dict[str, torch.Tensor]) -> None:
            result[name] = {who: parts.relative_error(each.float().cpu(), true.cpu()) for who, each in runs.items()}
            result[name]["ratio"] = round(result[name]["kinema"] / result[name]["diffusers"], 4)

        unet = deepcopy(self.unet).float()
        true = parts.theirs(unet, self.vae, wide)["step"]()
        self.true = true.cpu()
        del unet
        told("step", true, {"kinema": self.step(), "diffusers": self.outputs["step"]})
        few = self.given["latents"][:8]
        runs = {"kinema": self.decoder(few), "diffusers": self.vae.decode(few, num_frames=len(few)).sample}
        vae = deepcopy(self.vae).float()
        told("decode", vae.decode(few.float(), num_frames=len(few)).sample, runs)
        return result

    def variants(self) -> dict[str, Any]:
        """One thing otherwise at a time: ms of the step and, where it matters there, of the decoding."""

        @contextmanager
        def tiled(*tile: int) -> Iterator[None]:
            from kinema.engine.fast import kernels, stationary

            with mock.patch.object(stationary, "FEWEST", 2**30), mock.patch.dict(kernels.PRODUCT, {2: tile}):
                yield

        def efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            seen = F.scaled_dot_product_attention(q, k, v)
            return seen.transpose(1, 2).reshape(len(q), q.shape[2], -1)

        def upsample(module: Any, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
            doubled = (2 * x.shape[2], 2 * x.shape[3])
            return module.conv.product(F.interpolate(x, size or doubled, mode="nearest"))

        patches: dict[str, tuple[list[Any], str]] = {
            "as it is": ([], "both"),
            "3×3 convolutions in all multiplications": ([every_multiplication()], "step"),
            "3×3 convolutions by cuDNN": ([by_library(along_time=False)], "both"),
            "convolutions along time by plain Triton": ([by_library(along_time=True)], "both"),
            "upsampling by interpolation": ([mock.patch.object(layers.Upsample, "product", upsample)], "both"),
            "cudnn benchmark": ([torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)], "both"),
            **{f"gate in one with its product, {tile}": ([tiled(*tile)], "step") for tile in self.tiles()},
            "no matrix kernels of ours": ([mock.patch.object(fused, "multiplies", return_value=False)], "both"),
            "attention by cuDNN": ([mock.patch.object(fused, "MANY_PIXELS", 2**30)], "step"),
            "attention of torch's choice": ([mock.patch.object(fused, "frame_attention", efficient)], "both"),
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
                    # FastUNet and FastDecoder hold no function of `fused`, so that the same ones serve.
                    row: dict[str, Any] = {"step_ms": self.ms(self.step, 3)}
                    row["step_from_diffusers"] = parts.relative_error(self.step().cpu(), self.outputs["step"])
                    if where == "both":
                        row["decode_ms"] = self.ms(self.decode, 2)
                return row

            self.guarded(name, one, result)
        return result

    def tiles(self) -> list[tuple[int, ...]]:
        """Ways to cut up a product, as in `kernels.PRODUCT`; on a CPU there is none to try."""
        if self.device.type == "cpu":
            return []
        return [(128, 128, 64, 4, 3, 0), (128, 128, 64, 4, 3, 2), (128, 256, 64, 8, 3, 1), (256, 128, 64, 8, 3, 1)]

    def fp8(self) -> dict[str, Any]:
        """The step with numbers of one byte: time, memory, a profile, its error, and other ways to cut up products."""
        self.network = FastUNet(self.unet, in_bytes=True)
        given = self.given
        self.constants = self.network.constants(given["embedding"], given["time_ids"], given["held"], self.frames)
        result: dict[str, Any] = {"step_ms": self.ms(self.step), "step_peak_gib": self.peak(self.step)}
        result["graph"] = self.graph()
        if self.outputs:
            result["step_from_diffusers"] = parts.relative_error(self.step().cpu(), self.outputs["step"])
        if hasattr(self, "true"):
            result["error"] = parts.relative_error(self.step().float().cpu(), self.true)
        result["profile"] = self.profiled("step fp8", self.step)
        pipeline = self.pipeline("fast", "fp8")
        for name in ("fp8 video", "fp8 video, the next"):
            self.guarded(name, lambda pipeline=pipeline: self.one_video("fast", pipeline), result)
        del pipeline
        if self.device.type == "cuda":
            from kinema.engine.fast import kernels

            for tile in [(128, 128, 128, 4, 3, 0), (128, 256, 64, 8, 3, 1)]:
                with mock.patch.dict(kernels.PRODUCT, {1: tile}):
                    self.guarded(f"products {tile}, step_ms", lambda: self.ms(self.step, 3), result)
        self.make()
        return result

    def together(self) -> dict[str, Any]:
        """Two videos in one step, beside one."""
        given = {name: tensor.repeat_interleave(2, 0) for name, tensor in self.given.items() if name != "latents"}
        constants = self.network.constants(given["embedding"], given["time_ids"], given["held"], self.frames)
        two = lambda: self.network(given["sample"], self.moment, constants)  # noqa: E731
        return {"one_ms": self.ms(self.step, 3), "two_ms": self.ms(two, 3), "two_peak_gib": self.peak(two)}

    def plans(self) -> dict[str, Any]:
        """Whole videos in less and less memory, of which torch is allowed no more."""
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
                made = self.guarded(f"{gib} GiB", lambda pipeline=pipeline: self.one_video("fast", pipeline), result)
                if made.get("plan") == "streamed":  # whose first lays the weights out
                    again = f"{gib} GiB, the next"
                    self.guarded(again, lambda pipeline=pipeline: self.one_video("fast", pipeline), result)
            pipeline.cached_networks.clear()
            torch.cuda.set_per_process_memory_fraction(1.0)
        return result

    def pocket(self) -> dict[str, Any]:
        """The pocket model's frames in each arithmetic: PSNR, and the greatest difference, beside float32."""
        from kinema.engine import generate
        from kinema.media.image import open_image
        from kinema.models.catalog import request_for
        from kinema.models.loading import load
        from kinema.settings import Settings
        from kinema.values import Step

        image = open_image(Path(__file__).parent.parent / "examples" / "rocket.jpg")
        frames = {}
        for name, dtype in (("float32", "float32"), ("bfloat16", "bfloat16"), ("fp8", "bfloat16")):
            settings = Settings(precision="fp8" if name == "fp8" else "full")
            pipeline = load("pocket", device=str(self.device), dtype=dtype, settings=settings)
            *_, clip = (
                each
                for each in generate(pipeline, image, request_for(model="pocket", seed=42))
                if not isinstance(each, Step)
            )
            frames[name] = clip.frames
        pairs = (("bfloat16", "float32"), ("fp8", "bfloat16"), ("fp8", "float32"))
        return {f"{one} beside {other}": distance(frames[one], frames[other]) for one, other in pairs}

    def micro(self) -> dict[str, Any]:
        """Kernels alone, on the shapes of a guided step: ms, and TB/s of the fewest bytes or TFLOP/s."""
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
        unit = rows * channels * 2  # bytes of one clip

        def new(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=self.device, dtype=self.dtype)

        clip = new(2, frames, height, width, channels)
        flat, by_frame = layers.pixels(clip), clip.view(2 * frames, pixels, channels)
        other, table = torch.randn_like(clip), torch.randn(2 * frames, channels, device=self.device)
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
            "layer norm of torch": (lambda: F.layer_norm(flat, (channels,), norm.weight, norm.bias), 2 * unit, 0),
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
            "group norm and silu of torch": (
                lambda: F.silu(F.group_norm(layers.images(clip), 32, groups.weight, groups.bias)),
                2 * unit,
                0,
            ),
            "gate in one with its product": (lambda: fused.gated(flat, wide), 0, 8 * flop),
            "the product alone": (lambda: fused.plain_product(flat, wide, self.dtype), 0, 8 * flop),
            "qkv product": (lambda: flat @ wide.weight[: 3 * channels].t(), 0, 3 * flop),
            "convolution": (lambda: F.conv2d(layers.images(clip), conv, None, 1, 1), 0, 9 * flop),
            "time convolution": (lambda: F.conv2d(layers.strip(clip), time_conv, None, 1, (1, 0)), 0, 3 * flop),
            "time convolution in one with its sums": (
                lambda: fused.along_time(by_frame, time_product, frames, self.dtype),
                0,
                3 * flop,
            ),
            "attention, the quickest known": (
                lambda: fused.frame_attention(*qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)),
                0,
                4 * 2 * frames * pixels**2 * channels,
            ),
            "attention, cuDNN": (lambda: within(SDPBackend.CUDNN_ATTENTION), 0, 4 * 2 * frames * pixels**2 * channels),
            "attention, flash": (lambda: within(SDPBackend.FLASH_ATTENTION), 0, 4 * 2 * frames * pixels**2 * channels),
            "product added": (
                lambda: added_to.addmm_(product[:, : 4 * channels], added_weight.t()),
                0,
                4 * flop,
            ),
        }
        result: dict[str, Any] = {}
        for name, (work, moved, counted) in works.items():
            try:
                taken = self.ms(work, 5, 2)
            except Exception as error:  # noqa: BLE001 as above
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
        with profile(activities=activities) as seen:
            work()
            parts.synchronize(self.device)
        table = seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=110)
        (self.args.out / f"profile-{name.replace(' ', '-')}.txt").write_text(table)
        kernels = [e for e in seen.key_averages() if "CUDA" in str(e.device_type) and e.self_device_time_total]
        kernels.sort(key=lambda e: -e.self_device_time_total)
        return {
            "kernels_ms": round(sum(e.self_device_time_total for e in kernels) / 1000, 2),
            "launches": sum(e.count for e in kernels),
            "top": [[e.key[:120], e.count, round(e.self_device_time_total / 1000, 3)] for e in kernels[:25]],
        }

    def power(self) -> dict[str, Any]:
        """What the GPU draws while it does the same for some seconds; its counter of energy turns every 0.1 s or so."""
        if self.device.type != "cuda":
            return {}
        size = 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        meter = Meter()
        result: dict[str, Any] = {"limit_w": meter.limit()}
        for name, work in (("step", self.step), ("decode", self.decode), ("a product of 8192", lambda: a @ b)):
            work()
            torch.cuda.synchronize()
            joules, began, calls = meter.joules(), time.perf_counter(), 0
            while time.perf_counter() - began < 4:
                work()
                torch.cuda.synchronize()
                calls += 1
            taken = time.perf_counter() - began
            joules = meter.joules() - joules
            result[name] = {
                "ms": round(1000 * taken / calls, 3),
                "watts": round(joules / taken),
                "joules": round(joules / calls, 3),
                "mhz": meter.clock(),
            }
        result["a product of 8192"]["joules_a_tflop"] = round(
            result["a product of 8192"]["joules"] / (2 * size**3 / 1e12), 3
        )
        return result

    def video(self) -> dict[str, Any]:
        """`kinema.engine.generate` from a still to frames, by our engine, twice."""
        for name in ("network", "decoder", "constants"):  # the engine makes its own
            delattr(self, name)
        result: dict[str, Any] = {}
        for name in ("first", "second"):
            self.guarded(f"video {name}", lambda: self.one_video("fast"), result)
        self.network, self.decoder = FastUNet(self.unet), FastDecoder(self.vae)
        given = self.given
        self.constants = self.network.constants(given["embedding"], given["time_ids"], given["held"], self.frames)
        return result

    def sizes(self) -> dict[str, Any]:
        """What another size costs: seconds of its first video, of two steps, and of the next; one after the other."""
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
        """The same by diffusers' forward."""
        result: dict[str, Any] = {}
        self.guarded("video reference", lambda: self.one_video("reference"), result)
        return result

    def one_video(self, engine: str, pipeline: Any = None) -> dict[str, Any]:
        """Seconds by stage, memory and plan of one; `pipeline` from another keep what was laid out for it."""
        from kinema.engine import generate
        from kinema.media.image import open_image
        from kinema.values import Step, VideoRequest

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
        result: dict[str, Any] = {}
        for step in generate(pipeline, open_image(Image.fromarray(noise)), VideoRequest.checked(seed=0, **settings)):
            if not isinstance(step, Step):
                result |= {"plan": step.recipe.memory_plan, "decode_chunk_size": step.recipe.decode_chunk_size}
                result |= {"engine": step.recipe.engine, "events": list(step.recipe.events)}
                frames = step.frames
                break
            if step.stage != "denoise" or step.step == step.total:  # no waiting between steps
                parts.synchronize(self.device)
            now = time.perf_counter()
            stages[step.stage] = stages.get(step.stage, 0) + now - last
            last = now
        result["seconds"] = round(time.perf_counter() - began, 3)
        result |= {f"{stage}_s": round(each, 3) for stage, each in stages.items()}
        if self.device.type == "cuda":
            result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            result["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        name = engine if pipeline.precision == "full" else pipeline.precision
        self.videos = getattr(self, "videos", {})
        for other, theirs in self.videos.items():  # the first of each kind
            result[f"psnr_beside_{other}_db"] = distance(frames, theirs)["psnr_db"]
        self.videos.setdefault(name, frames)
        return result

    def pipeline(self, engine: str, precision: str = "full") -> Any:
        """The networks of this bench as the engine takes them, without a folder."""
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
            snapshot=None,  # never asked for, as the identity is known
            engine=engine,
            precision=precision,
        )
        pipeline.identity = ModelIdentity(name="svd-xt", weights_sha256="0" * 64, revision=None)
        return pipeline


def known_version(name: str) -> str:
    """Of a distribution, or of none where it is only a folder on the path."""
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
def as_on_a_gpu(*, kernels: bool) -> Iterator[None]:
    """The order of work of a GPU on a CPU, and its kernels too under Triton's interpreter."""
    with ExitStack() as stack:
        if kernels:  # which have no tile for float32, in which this proves the script
            from kinema.engine.fast.kernels import PRODUCT

            stack.enter_context(mock.patch.dict(PRODUCT, {4: (32, 64, 32, 4, 2, 0)}))
        stack.enter_context(mock.patch.object(gpu, "suits", return_value=True))
        stack.enter_context(mock.patch.object(fused, "has_kernels", return_value=kernels))
        stack.enter_context(mock.patch.object(fused, "multiplies", return_value=kernels))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, in order")
    parser.add_argument("--seconds", type=float, default=150, help="after which no section begins")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a tiny configuration, to try the script itself")
    parser.add_argument("--interpreted", action="store_true", help="the GPU's path on a CPU, with TRITON_INTERPRET=1")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    image_to_video.version = known_version
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    bench = Bench(args)
    with torch.inference_mode(), ExitStack() as stack:
        if args.device == "cpu":
            stack.enter_context(as_on_a_gpu(kernels=args.interpreted))
        bench.guarded("build", bench.build, bench.found)
        for name in args.sections.split(","):
            if bench.seconds() > args.seconds:
                bench.found.setdefault("left_out", []).append(name)
                continue
            bench.guarded(name, getattr(bench, name), bench.found)
    bench.keep()


if __name__ == "__main__":
    main()
