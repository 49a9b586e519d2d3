"""Memory plans: what each way to run a model needs, and the fastest one that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from kinema.errors import InsufficientMemory

if TYPE_CHECKING:
    from collections.abc import Mapping

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
class MemoryPlan:
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
        """Which of `VideoPipeline.forwards` serves the next video too."""
        return "resident" if self.stays else "streamed" if self.name == "streamed" else None

    @property
    def splits(self) -> bool:
        """Whether guidance's two halves are computed one after the other: half the memory, and hardly slower."""
        return self.name != "resident"

    def next(self, plans: tuple[PlanName, ...] = PLANS) -> MemoryPlan | None:
        """The one of `plans` to take when memory ran out all the same, or None after the last."""
        place = plans.index(self.name) + 1
        return MemoryPlan(plans[place], self.decode_chunk_size) if place < len(plans) else None


def plans(*, guided: bool, fast: bool) -> tuple[PlanName, ...]:
    """Those of a video, quickest first: guidance alone can be split, and our own forward alone streamed."""
    there = {"resident_split": guided, "streamed": fast}
    return tuple(name for name in PLANS if there.get(name, True))


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
) -> MemoryPlan:
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
            return MemoryPlan(name, chunk, needed, free_bytes)
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
