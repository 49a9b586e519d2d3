"""Memory plans: the memory that each way to run a model needs, and the fastest one that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from kinema.errors import InsufficientMemory

if TYPE_CHECKING:
    from collections.abc import Mapping

Component = Literal["image_encoder", "vae", "unet"]
PlanName = Literal["resident", "resident_split", "model_offload", "streamed", "sequential_offload"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
PLANS: tuple[PlanName, ...] = get_args(PlanName)
RESIDENT_PLANS: tuple[PlanName, ...] = ("resident", "resident_split")

# Peak activation memory of one stage, in feature maps with the first level's channels. Counted by summing the live
# tensors of diffusers' modules at SVD-XT's sizes; the count is the same for every size, within 4%. A first level
# without attention needs less in a step (11 maps with 64, 96, 128, 160 channels), but is planned as if it had it.
DENOISE_MAPS = 28  # of latent size, per frame of one forward: the feed-forward's gate is the widest activation
DECODE_MAPS = 8  # of frame size, per frame of a chunk: the last up block
ENCODE_MAPS = 5  # of frame size, for one image
# The same for the fast engine on a GPU: it decodes all frames in two maps plus the memory of a few frames. Its copies
# of UNet weights in another layout are a share of those weights. Measured on an H100, as above: 3.6 GiB for a step,
# 7.7 for decoding 25 frames, 1.1 of copies for 2.8 of weights; a CUDA graph fragments its memory, so more is reserved.
FAST_DENOISE_MAPS, FAST_DECODE_MAPS, FAST_PIECES, FAST_SHARE = 16, 2.05, 2**30, 0.38
# Overhead of the allocator and the libraries. Measured on an H100, SVD-XT in float16 at 1024×576 with 4.2 GiB of
# weights: 13.3 GiB at chunk 8 and 32.4 at chunk 25; the plan predicts 13.2 and 32.3.
WORKSPACE = 1.1
# The two pieces of the UNet that are on the device while it is streamed, as a share of its weights and their copies:
# SVD-XT's largest piece has 0.31 GiB of 3.9.
STREAMED_SHARE = 0.18
# The largest layer of a component, as a share of its weights: sequential offload has one layer on the device at a time.
LAYER_SHARE = 0.05
# Smaller chunks may flicker at their borders, so a slower plan that decodes this many frames together is preferred.
STEADY_CHUNK = 4
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Shape:
    """The parts of a model's configuration that determine its memory; the defaults are those of every published SVD."""

    unet_channels: int = 320
    vae_channels: int = 128
    force_upcast: bool = True
    vae_factor: int = 8
    """Pixels per latent along one side."""

    @classmethod
    def of(cls, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Shape:
        """Read the shape from checked configurations; each level of the VAE but the last halves the size."""
        levels = vae["block_out_channels"]
        force_upcast = bool(vae.get("force_upcast", True))
        return cls(unet["block_out_channels"][0], levels[0], force_upcast, 2 ** (len(levels) - 1))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a video is generated in the memory that is free."""

    name: PlanName
    decode_chunk_size: int
    needed_bytes: int = 0
    free_bytes: int = 0

    @property
    def is_resident(self) -> bool:
        """Whether the whole model is on the device and stays there."""
        return self.name in RESIDENT_PLANS

    @property
    def cache_key(self) -> str | None:
        """Key in `VideoPipeline.cached_networks` of the network to keep for the next video; None to keep no network."""
        return "resident" if self.is_resident else "streamed" if self.name == "streamed" else None

    @property
    def splits_guidance(self) -> bool:
        """Whether the two passes of guidance run one after the other: half the memory, and hardly slower."""
        return self.name != "resident"

    def next(self, plans: tuple[PlanName, ...] = PLANS) -> MemoryPlan | None:
        """Return the next leaner one of `plans`, to use after running out of memory; None after the last."""
        index = plans.index(self.name) + 1
        return MemoryPlan(plans[index], self.decode_chunk_size) if index < len(plans) else None


def plans(*, guided: bool, fast: bool, gpus: int = 1) -> tuple[PlanName, ...]:
    """Return the possible plans for a video, fastest first; only guidance can be split, only the fast UNet streamed.

    A group of GPUs has the whole model on each, and splits guidance between them.
    """
    if gpus > 1:
        return ("resident_split" if guided else "resident",)
    possible = {"resident_split": guided, "streamed": fast}
    return tuple(name for name in PLANS if possible.get(name, True))


def plan_memory(
    weights: Mapping[Component, int],
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
    gpus: int = 1,
    finishing_bytes: int = 0,
) -> MemoryPlan:
    """Return the fastest plan that fits, with the largest chunk of frames that can be decoded together.

    Args:
        weights: Bytes of each component in the dtype that is used.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        num_frames: Frames of the video.
        guided: Whether each step has an additional unconditional pass.
        dtype_bytes: 2 or 4.
        free_bytes: Free memory of the device without the model.
        shape: The model's sizes.
        decode_chunk_size: Frames decoded together; None chooses the number here.
        offload: Whether components can be offloaded to CPU memory; False if the device is the CPU.
        fast: Whether the fast engine runs with its kernels; sequential offload always uses diffusers' forward.
        gpus: Number of GPUs that generate the video together, with this memory on each.
        finishing_bytes: Bytes on the device of the networks after decoding.

    Raises:
        InsufficientMemory: if no plan fits; gives the sizes and a remedy.
    """
    chunks = [min(decode_chunk_size, num_frames)] if decode_chunk_size else _halvings(-(-num_frames // gpus))
    names = plans(guided=guided, fast=fast, gpus=gpus) if offload or gpus > 1 else ("resident",)
    steady = [chunk for chunk in chunks if chunk >= STEADY_CHUNK]
    flickering = [chunk for chunk in chunks if chunk < STEADY_CHUNK]
    least = 2**62
    for name, chunk in [(name, chunk) for some in (steady, flickering) for name in names for chunk in some]:
        is_fast = fast and name != "sequential_offload"
        batch_size = 2 if guided and name == "resident" else 1
        stages = _stages(
            width, height, num_frames, chunk, batch_size=batch_size, dtype_bytes=dtype_bytes, shape=shape, fast=is_fast
        )
        stages["finish"] = finishing_bytes
        keeps_step = is_fast and gpus > (2 if guided else 1)
        needed = _peak(name, weights, stages, dtype_bytes, shape, fast=is_fast, keeps_step=keeps_step)
        if needed <= free_bytes:
            return MemoryPlan(name, chunk, needed, free_bytes)
        least = min(least, needed)
    raise InsufficientMemory(
        f"{num_frames} frames of {width}×{height} need at least {least / GIB:.1f} GiB of memory"
        f"{' on each GPU of a group' if gpus > 1 else ''}, but only {max(free_bytes, 0) / GIB:.1f} GiB is free; use "
        f"{'gpus 1, ' if gpus > 1 else ''}a smaller width and height, fewer num_frames"
        f"{', interpolate 1, upscale 1' if finishing_bytes else ''}"
        f"{', a smaller decode_chunk_size' if decode_chunk_size else ''} or a smaller model"
    )


def _halvings(frames: int) -> list[int]:
    """25 → 25, 13, 7, 4, 2, 1."""
    chunks = [frames]
    while chunks[-1] > 1:
        chunks.append((chunks[-1] + 1) // 2)
    return chunks


def _stages(
    width: int, height: int, frames: int, chunk: int, *, batch_size: int, dtype_bytes: int, shape: Shape, fast: bool
) -> dict[str, int]:
    """Return the activation bytes of each stage; `batch_size` is the batch size of denoising, 1 or 2."""
    pixels = width * height
    video = pixels * frames * 3  # frames that are already decoded, as uint8
    latent_map = pixels // shape.vae_factor**2 * frames * batch_size * shape.unet_channels * dtype_bytes
    frame_map = pixels * shape.vae_channels
    encode_bytes = max(dtype_bytes, 4) if shape.force_upcast else dtype_bytes
    chunk_map = frame_map * chunk * dtype_bytes
    decode: float = DECODE_MAPS * chunk_map
    if fast:
        decode = min(decode, FAST_DECODE_MAPS * chunk_map + FAST_PIECES)
    return {
        "encode": int(WORKSPACE * ENCODE_MAPS * frame_map * encode_bytes),
        "denoise": int(WORKSPACE * (FAST_DENOISE_MAPS if fast else DENOISE_MAPS) * latent_map),
        "decode": int(WORKSPACE * decode) + video,
    }


def _peak(
    name: PlanName,
    weights: Mapping[Component, int],
    stages: Mapping[str, int],
    dtype_bytes: int,
    shape: Shape,
    *,
    fast: bool,
    keeps_step: bool = False,
) -> int:
    """Return the peak bytes on the device under the plan.

    Where frames are divided between GPUs (`keeps_step`), the memory of a step stays in a CUDA graph for the next video.
    """
    upcast = weights["vae"] * (4 // dtype_bytes - 1) if shape.force_upcast else 0  # the VAE in float32, to encode
    copies = int(weights["unet"] * FAST_SHARE) if fast else 0
    used: dict[str, tuple[int, ...]] = {
        "embed": (weights["image_encoder"],),
        "encode": (weights["vae"], upcast),
        "denoise": (weights["unet"], copies),
        "decode": (weights["vae"],),
        "finish": (),
    }
    if name in RESIDENT_PLANS:
        others = max(upcast + stages["encode"], stages["decode"], stages["finish"])
        step = stages["denoise"]
        return sum(weights.values()) + copies + (step + others if keeps_step else max(step, others))
    pieces = 0
    if name == "streamed":  # the pieces' buffers stay on the device during all stages
        pieces = int(STREAMED_SHARE * sum(used["denoise"]))
        used["denoise"] = ()
    share = LAYER_SHARE if name == "sequential_offload" else 1
    return pieces + max(int(sum(components) * share) + stages.get(stage, 0) for stage, components in used.items())
