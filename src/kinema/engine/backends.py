"""Which forward computes: Kinema's own (`kinema.engine.fast`), or diffusers' as the readable reference and fallback."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from kinema.engine.fast import FastDecoder, FastUNet
from kinema.engine.fast.graphs import Replayed
from kinema.models.devices import has_kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from kinema.engine.conditioning import Conditions
    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.values import Engine, Precision


# Pixels of latents up to which a step is replayed as a CUDA graph: beyond, the GPU always has work waiting, and to
# record the graph takes longer than it saves.
REPLAYED = 2**17


def engine_for(pipeline: VideoPipeline, plan: MemoryPlan) -> Engine:
    """The one that the model is set to; layers that come and go one by one can be called by diffusers' own only."""
    return "reference" if plan.name == "sequential_offload" else pipeline.engine


def precision_for(pipeline: VideoPipeline, plan: MemoryPlan) -> Precision:
    """Likewise: diffusers' forward is never anything but exact."""
    return pipeline.precision if engine_for(pipeline, plan) == "fast" else "full"


def step_of(
    pipeline: VideoPipeline, plan: MemoryPlan, unet: Any, conditions: Conditions, num_frames: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """A call of the UNet for one clip.

    Args:
        pipeline: Says which forward, and keeps ours for the next video where the plan leaves the UNet on the device.
        plan: Where the UNet is before and after, and whether the conditions are taken one after the other.
        unet: On its device, and not moved while the call is used.
        conditions: Of one clip, or twice under guidance.
        num_frames: Of the clip.

    Returns:
        (scaled noisy latents [1, f, c, h, w], time) → v for each condition, [1 or 2, f, c, h, w]; of the fast one on a
        GPU, in memory that the next call overwrites.
    """
    fast = engine_for(pipeline, plan) == "fast"
    network = _network(pipeline, plan, unet) if fast else None
    parts = conditions.each() if plan.splits_guidance else [conditions]
    calls = [_ours(network, part, num_frames) if network else _theirs(unet, part, num_frames) for part in parts]

    def step(sample: Tensor, time: Tensor) -> Tensor:
        made = [call(sample, time) for call in calls]
        return made[0] if len(made) == 1 else torch.cat(made)

    # A graph keeps memory of its own, which a plan that splits has none of to give.
    small = conditions.latents[:, 0].numel() * num_frames <= REPLAYED
    return Replayed(step) if fast and small and conditions.latents.is_cuda and not plan.splits_guidance else step


def _network(pipeline: VideoPipeline, plan: MemoryPlan, unet: Any) -> FastUNet:
    """Our forward of the UNet as it lies by the plan: that of the last video, where it still does."""
    network: FastUNet | None = pipeline.cached_networks.get(plan.cache_key or "")
    if network is None:
        stream_to = pipeline.device if plan.name == "streamed" else None
        network = FastUNet(unet, in_bytes=pipeline.precision == "fp8", stream_to=stream_to)
    if plan.cache_key is not None:
        pipeline.cached_networks[plan.cache_key] = network
    return network


def _ours(network: FastUNet, conditions: Conditions, num_frames: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A call of our own forward."""
    constants = network.constants(conditions.embedding, conditions.time_ids, conditions.latents, num_frames)

    def call(sample: Tensor, time: Tensor) -> Tensor:
        with on_device_of(sample):
            return network(sample, time, constants)

    return _compiled_first(call, "unet", network.kind)


def _theirs(unet: Any, conditions: Conditions, num_frames: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A call of diffusers'."""
    held = conditions.latents[:, None].expand(-1, num_frames, -1, -1, -1)

    def call(sample: Tensor, time: Tensor) -> Tensor:
        v: Tensor = unet(
            torch.cat([sample.expand(len(held), -1, -1, -1, -1), held], dim=2),
            time,
            encoder_hidden_states=conditions.embedding,
            added_time_ids=conditions.time_ids,
            return_dict=False,
        )[0]
        return v

    return call


def decoder_of(engine: Engine, vae: Any) -> Callable[[Tensor], Tensor]:
    """A call of the temporal decoder: unscaled latents of one chunk, [f, c, h, w] → [f, 3, height, width] in −1…1."""
    if engine == "fast":
        decoder = FastDecoder(vae)

        def fast(latents: Tensor) -> Tensor:
            with on_device_of(latents):
                return decoder(latents)

        return _compiled_first(fast, "decoder", tuple(vae.config.block_out_channels))
    return lambda latents: vae.decode(latents, num_frames=len(latents)).sample


# Networks and sizes of which this process has met the kernels. The number of frames decides on hardly any.
_met: set[tuple[Any, ...]] = set()


def _compiled_first(call: Callable[..., Tensor], *kind: Any) -> Callable[..., Tensor]:
    """The same, whose kernels are compiled together before it is made for the first time.

    For that it is made once without them, which takes as long as a call and gives nothing.
    """

    def prepared(*given: Tensor) -> Tensor:
        first = given[0]
        met = (*kind, first.device, first.dtype, first.shape[-3:])
        if met not in _met and has_kernels(first.device, first.dtype):
            from kinema.engine.fast import kernels

            with kernels.compiled_together():
                call(*given)
            _met.add(met)
        return call(*given)

    return prepared


def on_device_of(x: Tensor) -> AbstractContextManager[None]:
    """Where a tensor lies on a GPU, that one is the current one while inside; else nothing changes."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
