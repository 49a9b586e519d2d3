"""Where a model runs: its device, its arithmetic, and how much of it lies on the device at a time."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from kinema.errors import InsufficientMemory, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from kinema.values import Engine, VideoRequest

Part = Literal["image_encoder", "vae", "unet"]
PlanName = Literal["resident", "resident_split", "model_offload", "streamed", "sequential_offload"]
PARTS: tuple[Part, ...] = get_args(Part)
PLANS: tuple[PlanName, ...] = get_args(PlanName)
STAYING: tuple[PlanName, ...] = ("resident", "resident_split")

# Peak of what one stage keeps beside its weights, in feature maps of the first level's channels. Counted by adding up
# the live tensors of diffusers' modules at SVD-XT's sizes; the count is the same for every size, within 4%. A first
# level without attention needs less in a step, and is planned as if it had it: 11 maps where 64, 96, 128, 160 channels
# follow each other.
DENOISE_MAPS = 28  # of latent size, for each frame of what is computed at once: the feed-forward's gate is widest
DECODE_MAPS = 8  # of frame size, for each frame of a chunk: the last up block
ENCODE_MAPS = 5  # of frame size, for one still
# The same of our own forward on a GPU: it decodes all frames in two maps, and in a few frames' worth more. What it lays
# out anew beside the UNet's weights is a share of these. Measured on an H100, as above: 3.6 GiB for a step, 7.7 for
# decoding 25 frames, 1.1 laid out beside 2.8; a CUDA graph's memory is cut up, so that more of it is reserved.
FAST_DENOISE_MAPS, FAST_DECODE_MAPS, FAST_PIECES, FAST_SHARE = 16, 2.05, 2**30, 0.38
# What the allocator and the libraries take beyond that. Measured on an H100, SVD-XT in float16 at 1024×576 with 4.2 GiB
# of weights: 13.3 GiB at chunk 8 and 32.4 at chunk 25, where 13.2 and 32.3 are counted.
WORKSPACE = 1.1
# The two pieces of the UNet that are on the device while it is streamed, as a share of its weights and what is laid out
# anew beside them: SVD-XT's largest has 0.31 GiB, of 3.9.
STREAMED_SHARE = 0.18
# The largest single layer of a part, as a share of its weights: what sequential offload has on the device at a time.
LAYER_SHARE = 0.05
# A chunk of fewer frames may flicker at its borders, so a slower plan that decodes this many is preferred to it.
STEADY_CHUNK = 4
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model's configuration decides its memory; the defaults are those of every published SVD."""

    unet_channels: int = 320
    vae_channels: int = 128
    force_upcast: bool = True
    vae_factor: int = 8
    """Pixels to one latent, a side."""

    @classmethod
    def of(cls, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Shape:
        """From the configurations of both networks, checked: each level of the VAE but the last halves the size."""
        levels = vae["block_out_channels"]
        force_upcast = bool(vae.get("force_upcast", True))
        return cls(unet["block_out_channels"][0], levels[0], force_upcast, 2 ** (len(levels) - 1))


@dataclass(frozen=True, slots=True)
class Plan:
    """How a video will be made in the memory that is free."""

    name: PlanName
    decode_chunk_size: int
    needed_bytes: int = 0
    free_bytes: int = 0

    @property
    def stays(self) -> bool:
        """Whether the whole model is on the device, and left there."""
        return self.name in STAYING

    @property
    def keeps(self) -> str | None:
        """Which of `Models.forwards` serves the next video too."""
        return "resident" if self.stays else "streamed" if self.name == "streamed" else None

    @property
    def splits(self) -> bool:
        """Whether guidance's two halves are computed one after the other: half the memory, and hardly slower."""
        return self.name != "resident"

    def next(self, plans: tuple[PlanName, ...] = PLANS) -> Plan | None:
        """The one of `plans` to take when memory ran out all the same, or None after the last."""
        place = plans.index(self.name) + 1
        return Plan(plans[place], self.decode_chunk_size) if place < len(plans) else None


def plans(*, guided: bool, fast: bool) -> tuple[PlanName, ...]:
    """Those of a video, quickest first: guidance alone can be split, and our own forward alone streamed."""
    there = {"resident_split": guided, "streamed": fast}
    return tuple(name for name in PLANS if there.get(name, True))


class Placeable(Protocol):
    """What placement needs of `kinema.models.loading.Models`."""

    unet: torch.nn.Module
    vae: torch.nn.Module
    image_encoder: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    engine: Engine
    forwards: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """What decides its memory."""


def available_devices() -> list[str]:
    """The devices of this machine, best first: `cuda`, `cuda:0`, …, `mps`, `cpu`."""
    import torch

    devices = []
    if torch.cuda.is_available():
        devices += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def pick_device(wanted: str | None = None) -> torch.device:
    """The device asked for, or the best there is when None or "auto".

    Raises:
        InvalidRequest: when it is not a device, or not one of this machine; the message lists those that are.
    """
    import torch

    there = available_devices()
    if wanted in (None, "auto"):
        return torch.device(there[0])
    if wanted not in there:
        raise InvalidRequest(f"there is no device {wanted!r} here; there is {', '.join(there)} (or auto)", "device")
    return torch.device(wanted)


def pick_dtype(wanted: str | None, device: torch.device) -> torch.dtype:
    """The arithmetic asked for; None or "auto" is float16 on GPUs, bfloat16 on CPUs that have it, else float32.

    Raises:
        InvalidRequest: when it is none of float16, bfloat16 and float32.
    """
    import torch

    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if wanted in (None, "auto"):
        if device.type != "cpu":
            return torch.float16
        return torch.bfloat16 if has_native_bf16() else torch.float32
    if wanted not in dtypes:
        raise InvalidRequest(f"there is no dtype {wanted!r}; there is auto, {', '.join(dtypes)}", "dtype")
    return dtypes[wanted]


def has_native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AMX, AVX-512 BF16, or Arm's BF16); elsewhere it is slower."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" in capabilities or "bf16" in capabilities:
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    try:  # an older torch
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) is not None


def cpu_instructions() -> str:
    """The instruction sets that torch computes with on this CPU, such as "AVX512, amx_bf16"."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    low_precision = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if capabilities.get(name)]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *low_precision])


@cache
def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether our own kernels compute on a device: in half precision, on NVIDIA's from Ampere on, where Triton is."""
    import torch

    if device.type != "cuda" or dtype.itemsize != 2 or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether it is a GPU of NVIDIA's Hopper generation, for which our products are cut up and were measured."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device, counting what torch holds there but does not use."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    import psutil

    return min(int(psutil.virtual_memory().available), _container_memory())


def _container_memory() -> int:
    """Bytes left under a Linux container's limit; a very large number where there is none."""
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return int((group / limit).read_text()) - int((group / used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 2**62


def plan_memory(
    weights: Mapping[Part, int],
    *,
    width: int,
    height: int,
    num_frames: int,
    guided: bool,
    dtype_bytes: int,
    free_bytes: int,
    shape: Shape = Shape(),
    decode_chunk_size: int | None = None,
    offload: bool = True,
    fast: bool = False,
) -> Plan:
    """The quickest plan that fits, and the most frames that can be decoded together under it.

    Args:
        weights: Bytes of each part in the arithmetic that will be used.
        width: Pixels of a frame.
        height: Pixels of a frame.
        num_frames: Frames of the video.
        guided: Whether each step has an unconditional pass too.
        dtype_bytes: 2 or 4.
        free_bytes: What the device has left, with nothing of the model on it.
        shape: The model's own sizes.
        decode_chunk_size: Frames decoded together, when it was asked for; else chosen here.
        offload: Whether parts may wait in another memory: not where the device is the CPU.
        fast: Whether our own forward computes, by its kernels; layer by layer it is always diffusers'.

    Raises:
        InsufficientMemory: when even the leanest plan does not fit, with the figures and what would help.
    """
    chunks = [min(decode_chunk_size, num_frames)] if decode_chunk_size else _halvings(num_frames)
    names = plans(guided=guided, fast=fast) if offload else ("resident",)
    steady = [chunk for chunk in chunks if chunk >= STEADY_CHUNK]
    flickering = [chunk for chunk in chunks if chunk < STEADY_CHUNK]
    least = 2**62
    for name, chunk in [(name, chunk) for some in (steady, flickering) for name in names for chunk in some]:
        ours = fast and name != "sequential_offload"
        at_once = 2 if guided and name == "resident" else 1
        stages = _stages(
            width, height, num_frames, chunk, at_once=at_once, dtype_bytes=dtype_bytes, shape=shape, fast=ours
        )
        needed = _peak(name, weights, stages, dtype_bytes, shape, fast=ours)
        if needed <= free_bytes:
            return Plan(name, chunk, needed, free_bytes)
        least = min(least, needed)
    raise InsufficientMemory(
        f"{num_frames} frames of {width}×{height} need about {least / GIB:.1f} GiB even in the leanest way, and "
        f"{max(free_bytes, 0) / GIB:.1f} GiB are free. Smaller width and height, fewer num_frames"
        f"{', a smaller decode_chunk_size' if decode_chunk_size else ''} or --model pocket need less"
    )


def _halvings(frames: int) -> list[int]:
    """25 → 25, 13, 7, 4, 2, 1."""
    chunks = [frames]
    while chunks[-1] > 1:
        chunks.append((chunks[-1] + 1) // 2)
    return chunks


def _stages(
    width: int, height: int, frames: int, chunk: int, *, at_once: int, dtype_bytes: int, shape: Shape, fast: bool
) -> dict[str, int]:
    """Bytes that each stage keeps beside its weights, where denoising has one or two clips `at_once`."""
    pixels = width * height
    video = pixels * frames * 3  # what is decoded already, as uint8
    latent_map = pixels // shape.vae_factor**2 * frames * at_once * shape.unet_channels * dtype_bytes
    frame_map = pixels * shape.vae_channels
    encode_bytes = max(dtype_bytes, 4) if shape.force_upcast else dtype_bytes
    clip_map = frame_map * chunk * dtype_bytes
    decode: float = DECODE_MAPS * clip_map
    if fast:
        decode = min(decode, FAST_DECODE_MAPS * clip_map + FAST_PIECES)
    return {
        "encode": int(WORKSPACE * ENCODE_MAPS * frame_map * encode_bytes),
        "denoise": int(WORKSPACE * (FAST_DENOISE_MAPS if fast else DENOISE_MAPS) * latent_map),
        "decode": int(WORKSPACE * decode) + video,
    }


def _peak(
    name: PlanName,
    weights: Mapping[Part, int],
    stages: Mapping[str, int],
    dtype_bytes: int,
    shape: Shape,
    *,
    fast: bool,
) -> int:
    """Bytes on the device at the plan's worst moment."""
    upcast = weights["vae"] * (4 // dtype_bytes - 1) if shape.force_upcast else 0  # the VAE in float32, to encode
    laid_out = int(weights["unet"] * FAST_SHARE) if fast else 0
    used: dict[str, tuple[int, ...]] = {
        "embed": (weights["image_encoder"],),
        "encode": (weights["vae"], upcast),
        "denoise": (weights["unet"], laid_out),
        "decode": (weights["vae"],),
    }
    if name in STAYING:
        return sum(weights.values()) + laid_out + max(upcast + stages["encode"], stages["denoise"], stages["decode"])
    pieces = 0
    if name == "streamed":  # which have their place on the device for good
        pieces = int(STREAMED_SHARE * sum(used["denoise"]))
        used["denoise"] = ()
    share = LAYER_SHARE if name == "sequential_offload" else 1
    return pieces + max(int(sum(parts) * share) + stages.get(stage, 0) for stage, parts in used.items())


def plan_for(models: Placeable, request: VideoRequest) -> Plan:
    """The plan for one request on the memory that is free now.

    Raises:
        InsufficientMemory: as `plan_memory`.
    """
    on_cpu = models.device.type == "cpu"
    lying = {part: _bytes(_module(models, part)) for part in PARTS}
    there = sum(each[models.device.type] for each in lying.values())
    # What is kept there is counted again with what the plan needs.
    shares = {"resident": FAST_SHARE, "streamed": (1 + FAST_SHARE) * STREAMED_SHARE}
    there += sum(int(lying["unet"].total() * shares[name]) for name in models.forwards)
    return plan_memory(
        {part: each.total() for part, each in lying.items()},
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        guided=request.guided,
        dtype_bytes=models.dtype.itemsize,
        free_bytes=free_memory(models.device) + there,
        shape=models.shape,
        decode_chunk_size=request.decode_chunk_size,
        offload=not on_cpu,
        fast=is_fast(models),
    )


def plan_as_it_lies(models: Placeable) -> Plan:
    """For a moment's work of one part: nothing moves where the whole model is on its device, else that part comes."""
    there = all(set(_bytes(_module(models, part))) == {models.device.type} for part in PARTS)
    return Plan("resident" if there else "model_offload", 1)


def is_fast(models: Placeable) -> bool:
    """Whether our own forward computes by its kernels, which decides what it needs and how it may be placed."""
    return models.engine == "fast" and has_kernels(models.device, models.dtype)


def _module(models: Placeable, part: Part) -> torch.nn.Module:
    module: torch.nn.Module = getattr(models, part)
    return module


def _bytes(module: torch.nn.Module) -> Counter[str]:
    """Bytes of a module's weights, by the type of device where they lie."""
    lying: Counter[str] = Counter()
    for weight in module.parameters():
        lying[weight.device.type] += weight.numel() * weight.element_size()
    return lying


@dataclass
class Placed:
    """A model whose parts come to the device by a plan; made by `place`."""

    models: Placeable
    plan: Plan

    @contextmanager
    def on_device(self, part: Part, dtype: torch.dtype | None = None, of: Sequence[str] | None = None) -> Iterator[Any]:
        """The part, ready to compute on the model's device; enter once for each stage, not for each step.

        Args:
            part: "image_encoder", "vae" or "unet".
            dtype: Other arithmetic than the model's, for this while only.
            of: The part's modules that it is for, where others are not used.
        """
        module, home = _module(self.models, part), self.models.dtype
        turned = []
        if dtype not in (None, home):
            turned = [module] if of is None else [module.get_submodule(name) for name in of]
        try:
            for each in turned:
                _move(each, device=None, dtype=dtype)
            with self._offloaded(part, module):
                yield module
        finally:
            for each in turned:
                _move(each, device=None, dtype=home)

    @contextmanager
    def _offloaded(self, part: Part, module: torch.nn.Module) -> Iterator[None]:
        """The module on the device while inside, and back where the plan keeps it after; streamed, it never moves."""
        device = self.models.device
        if self.plan.stays or (self.plan.name == "streamed" and part == "unet"):  # `place` has put it there
            yield
            return
        if self.plan.name == "sequential_offload":
            with _sequential(module, device):
                yield
            return
        _move(module, device, dtype=None)
        try:
            yield
        finally:
            _move(module, "cpu", dtype=None)
            release_cache(device)


@contextmanager
def place(models: Placeable, plan: Plan) -> Iterator[Placed]:
    """Put a model where its plan wants it, and hand out its parts by `Placed.on_device`.

    Under a plan that stays all parts are on the device afterwards; under the others none is. Each is in the model's
    arithmetic. They are one generator's until it ends: nobody else may place them between two of its steps.
    """
    where = models.device if plan.stays else "cpu"
    for part in PARTS:
        _move(_module(models, part), where, models.dtype)
    for name in set(models.forwards) - {plan.keeps}:
        del models.forwards[name]
    if not plan.stays:
        release_cache(models.device)
    yield Placed(models, plan)


def _move(module: torch.nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """`module.to` where it is not there yet, past diffusers' own, which warns of modules that no SVD has."""
    import torch

    wanted = torch.empty(0, device=device or "cpu").device  # with its index
    for tensor in _tensors(module):
        turns = dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype
        if turns or (device is not None and tensor.device != wanted):
            torch.nn.Module.to(module, device=device, dtype=dtype)
            return


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Weights and buffers. torch's own ways to them take several milliseconds, for which a GPU would wait."""
    for each in module.modules():
        for tensor in (*each._parameters.values(), *each._buffers.values()):  # noqa: SLF001
            if tensor is not None:
                yield tensor


@contextmanager
def _sequential(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Each layer comes to the device as it is called, and leaves after: slow, and hardly any memory."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    _move(module, "cpu", dtype=None)
    cpu_offload(module, device, offload_buffers=True)
    try:
        yield
    finally:
        remove_hook_from_module(module, recurse=True)
        release_cache(device)


# glibc's names for what is tuned, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_pages() -> None:
    """Let this process keep the memory that tensors on the CPU free, for the next ones to reuse.

    glibc gives every large block back to the system at once, and the next tensor's pages are zeroed anew: nearly half
    of the time of decoding. Where there is no glibc, nothing changes. `release_cache` gives the memory back.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def release_cache(device: torch.device) -> None:
    """Give back to the device what is kept there for later."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
