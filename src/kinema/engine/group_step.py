"""One UNet step on a group of GPUs: guidance is divided first, then the frames.

Two GPUs compute one half of guidance each, which equals the plan `resident_split` bit for bit. Four GPUs, and two
without guidance, also divide the frames (`kinema.engine.fast.frame_shards`); then sums have another order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kinema.engine.engines import engine_for, make_step
from kinema.engine.fast.frame_shards import FrameShards, ShardConnection, split_evenly

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from kinema.engine.conditioning import Conditions
    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import MemoryPlan


@dataclass(frozen=True, slots=True)
class Share:
    """What one process computes: one half of guidance or all, for some frames or all."""

    part: int
    """0 for the unconditional half, or for all; 1 for the conditional half."""
    rank: int
    """Which of the parts of the frames."""
    frames: tuple[int, ...]
    """Numbers of frames of all processes with the same part of guidance."""

    @property
    def own(self) -> slice:
        """The frames of this process."""
        start = sum(self.frames[: self.rank])
        return slice(start, start + self.frames[self.rank])

    def shards(
        self, store: str, name: str, connections: dict[str, ShardConnection], device: torch.device, timeout: float
    ) -> FrameShards | None:
        """Return the division of the frames, None if there is none; connect the processes if they are not yet.

        Args:
            store: Path of the group's file.
            name: Of the connection of all processes of this part.
            connections: The existing connections of this process, by name.
            device: Device of this process.
            timeout: Seconds after which an exchange fails.
        """
        if len(self.frames) == 1:
            return None
        if name not in connections:
            connections[name] = ShardConnection(store, name, self.rank, len(self.frames), device, timeout)
        return FrameShards(connections[name], self.frames)


def shares(parts: int, processes: int, num_frames: int, pixels: int) -> list[Share]:
    """Return what each process computes, the leader first; further processes have nothing to do.

    Args:
        parts: 2 with guidance, else 1.
        processes: Processes of the group.
        num_frames: Of the video.
        pixels: Of a frame at the UNet's lowest resolution; each process must get some of them.
    """
    frames = tuple(split_evenly(num_frames, min(processes // parts, num_frames, pixels)))
    return [Share(part, rank, frames) for part in range(parts) for rank in range(len(frames))]


def make_group_step(
    pipeline: VideoPipeline, plan: MemoryPlan, unet: Any, conditions: Conditions, num_frames: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that calls the UNet for one video in all processes of the group; see `make_step`."""
    group = pipeline.group
    assert group is not None, "the pipeline has peers"
    parts = conditions.each()
    processes = pipeline.gpus if engine_for(pipeline, plan) == "fast" else len(parts)
    scale = 2 ** (len(unet.config.block_out_channels) - 1)
    pixels = math.prod(-(-side // scale) for side in conditions.latents.shape[-2:])
    own, *others = shares(len(parts), min(processes, pipeline.gpus), num_frames, pixels)
    names = [f"{len(own.frames)}-{part}" for part in range(len(parts))]
    is_sharded = len(own.frames) > 1
    peers = list(zip(group.peers, others, strict=False))
    number = next(group.numbers)
    call: Callable[[Tensor, Tensor], Tensor] | None = None

    def step(sample: Tensor, time: Tensor) -> Tensor:
        nonlocal call
        try:
            for peer, share in peers:
                if call is None:
                    conditions = parts[share.part].to("cpu")
                    name = names[share.part]
                    peer.tell("begin", number, plan, conditions, num_frames, share, group.store, name, group.timeout)
                peer.ask("step", number, float(time), tensor=sample[:, share.own])
            if call is None:  # only now, as processes connect when they are asked for their first step
                shards = own.shards(group.store, names[0], group.connections, pipeline.device, group.timeout)
                call = make_step(pipeline, plan, unet, parts[0], num_frames, shards)
            outputs = [call(sample[:, own.own], time)]
            outputs += [peer.answer(sample.device) for peer, _ in peers]
        except Exception as error:
            if is_sharded:  # the others wait for the data of the process that failed
                raise group.close_after(error) from None
            raise
        rows = [torch.cat(outputs[i : i + len(own.frames)], 1) for i in range(0, len(outputs), len(own.frames))]
        return torch.cat(rows)

    return step
