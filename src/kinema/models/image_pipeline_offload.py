"""Memory plan and offload of a text-to-image pipeline.

The pipeline is on the device only while it generates. Between images it stays in CPU memory, and the device's memory is
free for the video model.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kinema.errors import InsufficientMemory
from kinema.models.devices import free_memory, release_cache
from kinema.models.memory_plan import DECODE_MAPS, DENOISE_MAPS, GIB, LAYER_SHARE, WORKSPACE, MemoryPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.memory_plan import PlanName
    from kinema.values import VideoRequest

# Plans of a text-to-image pipeline, fastest first. A step on one image is too small to split its guidance.
PLANS: tuple[PlanName, ...] = ("resident", "model_offload", "sequential_offload")


def plan_image_pipeline(
    weights: Mapping[str, int],
    *,
    width: int,
    height: int,
    guided: bool,
    dtype_bytes: int,
    free_bytes: int,
    channels: int = 320,
    vae_channels: int = 128,
    vae_factor: int = 8,
    upcast: bool = False,
    offload: bool = True,
) -> MemoryPlan:
    """Return the fastest plan that fits for one image.

    Args:
        weights: Bytes of each component in the dtype that is used; the VAE's name is "vae".
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        guided: Whether each step has an additional unconditional pass.
        dtype_bytes: 2 or 4.
        free_bytes: Free memory of the device without the pipeline.
        channels: Channels of the UNet's first level; the defaults are Stable Diffusion's.
        vae_channels: Channels of the VAE's first level.
        vae_factor: Pixels per latent along one side.
        upcast: Whether the VAE decodes in float32 regardless of the dtype.
        offload: Whether components can be offloaded to CPU memory; False if the device is the CPU.

    Raises:
        InsufficientMemory: if no plan fits; gives the sizes and a remedy.
    """
    pixels = width * height
    denoise = int(WORKSPACE * DENOISE_MAPS * pixels // vae_factor**2 * (2 if guided else 1) * channels * dtype_bytes)
    decode_bytes = 4 if upcast else dtype_bytes
    decode = int(WORKSPACE * DECODE_MAPS * pixels * vae_channels * decode_bytes)
    sizes = {**weights, "vae": weights.get("vae", 0) * decode_bytes // dtype_bytes}
    largest = max(sizes, key=lambda name: sizes[name])
    stages = {**dict.fromkeys(sizes, 0), largest: denoise, "vae": decode}
    needed = {
        "resident": sum(sizes.values()) + max(denoise, decode),
        "model_offload": max(sizes[name] + stages[name] for name in sizes),
        "sequential_offload": max(int(sizes[name] * LAYER_SHARE) + stages[name] for name in sizes),
    }
    names = PLANS if offload else PLANS[:1]
    for name in names:
        if needed[name] <= free_bytes:
            return MemoryPlan(name, 1, needed[name], free_bytes)
    raise InsufficientMemory(
        f"an image of {width}×{height} needs at least {needed[names[-1]] / GIB:.1f} GiB of memory, but only "
        f"{max(free_bytes, 0) / GIB:.1f} GiB is free; use a smaller width and height, or a smaller image model"
    )


def plan_for(image_pipeline: ImagePipeline, request: VideoRequest, dtype: torch.dtype | None = None) -> MemoryPlan:
    """Return the plan for one image in the memory that is free now; `dtype` defaults to the pipeline's.

    Raises:
        InsufficientMemory: see `plan_image_pipeline`.
    """
    dtype = dtype or image_pipeline.dtype
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in image_pipeline.networks.items()}
    on_cpu = image_pipeline.device.type == "cpu"
    vae = getattr(getattr(image_pipeline.pipeline, "vae", None), "config", {})
    vae_levels = vae.get("block_out_channels") or (128, 256, 512, 512)
    unet = getattr(getattr(image_pipeline.pipeline, "unet", None), "config", {})
    free = free_memory(image_pipeline.device)
    return plan_image_pipeline(
        {name: count * dtype.itemsize for name, count in counts.items()},
        width=request.width,
        height=request.height,
        guided=(request.image_guidance_scale or 0) > 1,
        dtype_bytes=dtype.itemsize,
        # On the CPU, the weights are already in that memory.
        free_bytes=free + sum(counts.values()) * image_pipeline.dtype.itemsize if on_cpu else free,
        channels=(unet.get("block_out_channels") or (320,))[0],
        vae_channels=vae_levels[0],
        vae_factor=2 ** (len(vae_levels) - 1),
        upcast=bool(vae.get("force_upcast")) and "XL" in type(image_pipeline.pipeline).__name__,
        offload=not on_cpu,
    )


@contextmanager
def on_device(image_pipeline: ImagePipeline, plan: MemoryPlan, dtype: torch.dtype) -> Iterator[Any]:
    """Prepare the pipeline to run on its device; on exit, move it back to CPU memory and free the device.

    Attention is sliced only on MPS, and only if the whole pipeline does not fit. On other devices torch's attention
    stores no score matrix, and slicing would create one.
    """
    pipeline, device = image_pipeline.pipeline, image_pipeline.device
    sliced = device.type == "mps" and plan.name != "resident"
    try:
        _move(image_pipeline, None, dtype)
        if sliced:
            pipeline.enable_attention_slicing()
        match plan.name:
            case "resident":
                _move(image_pipeline, device, dtype)
            case "model_offload":
                pipeline.enable_model_cpu_offload(device=device)
            case "sequential_offload":
                pipeline.enable_sequential_cpu_offload(device=device)
        yield pipeline
    finally:
        pipeline.remove_all_hooks()
        if sliced:
            pipeline.disable_attention_slicing()
        _move(image_pipeline, "cpu", image_pipeline.dtype)
        release_cache(device)


def _move(image_pipeline: ImagePipeline, device: torch.device | str | None, dtype: torch.dtype) -> None:
    """Move all networks with torch's `to`; diffusers' own `to` warns about float16 on a CPU."""
    import torch

    for network in image_pipeline.networks.values():
        torch.nn.Module.to(network, device=device, dtype=dtype)
