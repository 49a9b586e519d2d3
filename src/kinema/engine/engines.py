"""Selection of the implementation: Kinema's own (`kinema.engine.fast`), or diffusers' as reference and fallback."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from kinema.engine.fast import FastDecoder, FastUNet
from kinema.engine.fast.cuda_graph import GraphedCallable
from kinema.engine.fast.hardware import capabilities
from kinema.engine.fast.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from kinema.engine.conditioning import Conditions
    from kinema.engine.fast import VideoConstants
    from kinema.engine.fast.frame_shards import FrameShards
    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.values import Engine, Precision


# Maximum number of latent pixels for which a step is a CUDA graph. Above it the GPU always has queued work, and
# recording the graph takes longer than it saves.
MAX_GRAPH_PIXELS = 2**17


def engine_for(pipeline: VideoPipeline, plan: MemoryPlan) -> Engine:
    """Return the engine of the pipeline; sequential offload supports only diffusers' forward ("reference")."""
    return "reference" if plan.name == "sequential_offload" else pipeline.engine


def precision_for(pipeline: VideoPipeline, plan: MemoryPlan) -> Precision:
    """Return the precision of the pipeline; diffusers' forward always runs in "full"."""
    return pipeline.precision if engine_for(pipeline, plan) == "fast" else "full"


def make_step(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    unet: Any,
    conditions: Conditions,
    num_frames: int,
    shards: FrameShards | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that calls the UNet for one video, in this process; `group_step` does so in several.

    Args:
        pipeline: Gives the engine, and caches the fast UNet for the next video if the plan keeps it on the device.
        plan: Gives the UNet's placement, and whether the conditions run one after the other.
        unet: On its device; it must not move while the function is used.
        conditions: Of one video; with a batch size of two under guidance.
        num_frames: Of the video.
        shards: Divides the frames between processes; fast engine only.

    Returns:
        A function (scaled noisy latents [1, f, c, h, w], time) → v for each condition, [1 or 2, f, c, h, w]. On a GPU
        the fast engine's output is overwritten by the next call.
    """
    fast = engine_for(pipeline, plan) == "fast"
    network = _network(pipeline, plan, unet) if fast else None
    parts = conditions.each() if plan.splits_guidance else [conditions]
    calls = [
        _fast_call(network, part, num_frames, shards) if network else _diffusers_call(unet, part, num_frames)
        for part in parts
    ]

    def step(sample: Tensor, time: Tensor) -> Tensor:
        outputs = [call(sample, time) for call in calls]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    # A graph reserves its own memory; a plan that splits guidance has none to spare.
    small = conditions.latents[:, 0].numel() * num_frames <= MAX_GRAPH_PIXELS
    graphed = fast and small and conditions.latents.is_cuda and not plan.splits_guidance and shards is None
    return GraphedCallable(step) if graphed else step


def _network(pipeline: VideoPipeline, plan: MemoryPlan, unet: Any) -> FastUNet:
    """Return the fast UNet for the plan: the cached one of the last video, or a new one."""
    network: FastUNet | None = pipeline.cached_networks.get(plan.cache_key or "")
    if network is None:
        stream_to = pipeline.device if plan.name == "streamed" else None
        network = FastUNet(unet, fp8=pipeline.precision == "fp8", stream_to=stream_to)
    if plan.cache_key is not None:
        pipeline.cached_networks[plan.cache_key] = network
    return network


def _fast_call(
    network: FastUNet, conditions: Conditions, num_frames: int, shards: FrameShards | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that calls the fast UNet; with shards on GPUs, as a CUDA graph."""
    constants = network.constants(conditions.embedding, conditions.time_ids, conditions.latents, num_frames, shards)

    def call(sample: Tensor, time: Tensor, constants: VideoConstants = constants) -> Tensor:
        with on_device_of(sample):
            return network(sample, time, constants)

    # Compiling runs the exchanges of shards too, so all their processes must do it in the same step: in the first one
    # after they were connected, even if one of them has compiled in an earlier group.
    compiled = _compiled if shards is None else shards.connection.compiled
    prepared = _compiled_first(call, "unet", network.kind, shards and shards.frames, compiled=compiled)
    if shards is None or not conditions.latents.is_cuda:
        return prepared
    # A divided step launches as many kernels in half the time, and the GPU would wait for the CPU. Steps of further
    # videos replay the same graph: memory for it is in the plan of a group.
    key = (network, shards.frames, *(tensor.shape for tensor in tensors_of(constants)))
    graph = shards.connection.graph(key, lambda: GraphedCallable(prepared, constants))

    def replay(sample: Tensor, time: Tensor) -> Tensor:
        graph.use(constants)  # a video between two images alternates between those of both
        return graph(sample, time)

    return replay


def _diffusers_call(unet: Any, conditions: Conditions, num_frames: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that calls diffusers' UNet."""
    image_latents = conditions.latents[:, None].expand(-1, num_frames, -1, -1, -1)

    def call(sample: Tensor, time: Tensor) -> Tensor:
        v: Tensor = unet(
            torch.cat([sample.expand(len(image_latents), -1, -1, -1, -1), image_latents], dim=2),
            time,
            encoder_hidden_states=conditions.embedding,
            added_time_ids=conditions.time_ids,
            return_dict=False,
        )[0]
        return v

    return call


def make_decoder(engine: Engine, vae: Any) -> Callable[[Tensor], Tensor]:
    """Return the decoder function: unscaled latents of a chunk, [f, c, h, w] → [f, 3, height, width] in −1…1."""
    if engine == "fast":
        decoder = FastDecoder(vae)

        def fast(latents: Tensor) -> Tensor:
            with on_device_of(latents):
                return decoder(latents)

        return _compiled_first(fast, "decoder", tuple(vae.config.block_out_channels))
    return lambda latents: vae.decode(latents, num_frames=len(latents)).sample


# Networks and sizes whose kernels are compiled in this process. Hardly any kernel depends on the number of frames.
_compiled: set[tuple[Any, ...]] = set()


def _compiled_first(
    call: Callable[..., Tensor], *kind: Any, compiled: set[tuple[Any, ...]] = _compiled
) -> Callable[..., Tensor]:
    """Return a function that compiles all kernels in parallel before its first call, and notes that in `compiled`.

    Compilation runs `call` once without launching the kernels, which takes as long as a normal call.
    """

    def prepared(*args: Tensor) -> Tensor:
        first = args[0]
        key = (*kind, first.device, first.dtype, first.shape[-3:])
        if key not in compiled and capabilities(first.device).triton and first.dtype.itemsize == 2:
            from kinema.engine.fast.kernels.launch import compiled_together

            with compiled_together():
                call(*args)
            compiled.add(key)
        return call(*args)

    return prepared


def on_device_of(x: Tensor) -> AbstractContextManager[None]:
    """Return a context in which the tensor's GPU is the current CUDA device; for a CPU tensor, nothing changes."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
