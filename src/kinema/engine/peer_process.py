"""A peer of a group of GPUs: a process that loads a model on one device and computes what its leader asks for.

`kinema.models.gpu_group.Peer` starts it as `python -m kinema.engine.peer_process SOCKET INCOMING OUTGOING PARENT`. The
leader sends ("load", options), ("begin", number, plan, conditions, num_frames, share, store, name, timeout), ("step",
number, time) with a sample, and ("decode", plan, dtype) with latents. All but "begin" are answered by ("done",), with a
tensor if there is a result, or by ("error", error).
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

from kinema.engine.decoding import decode_chunk
from kinema.engine.engines import engine_for, make_decoder, make_step
from kinema.models.devices import release_cache
from kinema.models.gpu_group import Channel, SharedTensor
from kinema.models.loading import load
from kinema.models.offload import place
from kinema.models.out_of_memory import is_out_of_memory
from kinema.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.engine.conditioning import Conditions
    from kinema.engine.fast.frame_shards import ShardConnection
    from kinema.engine.group_step import Share
    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.values import Engine

PR_SET_PDEATHSIG = 1  # of Linux's prctl
MAX_BEGUN = 2  # a video between two images has the conditions of both


def main() -> None:
    """Answer questions until the leader closes the socket or ends."""
    descriptor, incoming, outgoing, parent = map(int, sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):  # the leader decides when its peers end
        signal.signal(number, signal.SIG_IGN)
    _end_with(parent)
    channel = Channel(Connection(descriptor), SharedTensor(outgoing), SharedTensor(incoming))
    _, options = channel.receive("cpu")
    peer: PeerModel | None = None
    message: tuple[Any, ...] = ("load", options)
    with suppress(OSError, EOFError), torch.no_grad():  # the leader ended
        while True:
            try:
                result = None
                if message[0] == "load":
                    peer = PeerModel(**message[1])
                elif peer is not None:
                    result = peer.compute(*message)
                answer: tuple[Any, ...] = ("done",)
            except Exception as error:  # noqa: BLE001 - the leader raises it
                result, answer = None, ("error", portable(error))
                release_cache(torch.device(message[1]["device"] if peer is None else peer.pipeline.device))
            if message[0] != "begin":
                channel.send(*answer, tensor=result)
            if answer[0] == "error" and peer is not None and peer.is_sharded:
                break  # the end of this process also ends the others' wait for its data
            del result
            message = channel.receive("cpu" if peer is None else peer.pipeline.device)
    os._exit(0)  # the end of a process that has CUDA graphs with exchanges would wait for the other processes


@dataclass
class Begun:
    """What the steps of a video, or of one of its two ends, need; their function is made in the first."""

    plan: MemoryPlan
    conditions: Conditions
    num_frames: int
    share: Share
    store: str
    name: str
    timeout: float
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None


class PeerModel:
    """The model on this process's device, and the video that is being denoised."""

    def __init__(self, model: str, device: str, dtype: str, precision: str, engine: Engine, threads: int) -> None:
        torch.set_num_threads(threads)  # the order of sums on a CPU depends on it
        settings = read_settings(device=device, dtype=dtype, precision=precision, gpus_per_video="1")
        self.pipeline: VideoPipeline = load(model, engine=engine, settings=settings)
        self._connections: dict[str, ShardConnection] = {}
        self._begun: dict[int, Begun] = {}

    @property
    def is_sharded(self) -> bool:
        """Whether it exchanges data with other processes in each step."""
        return any(len(each.share.frames) > 1 for each in self._begun.values())

    def compute(self, kind: str, *arguments: Any) -> torch.Tensor | None:
        """Return the result of a message."""
        if kind == "begin":
            number, *rest = arguments
            self._begun[number] = Begun(*rest)
            if len(self._begun) > MAX_BEGUN:
                del self._begun[min(self._begun)]
            return None
        return self._predict(*arguments) if kind == "step" else self._decode(*arguments)

    def _predict(self, number: int, noise_time: float, sample: torch.Tensor) -> torch.Tensor:
        """Return the UNet's v-prediction for the sample."""
        begun, device = self._begun[number], self.pipeline.device
        if begun.step is None:
            shards = begun.share.shards(begun.store, begun.name, self._connections, device, begun.timeout)
            conditions = begun.conditions.to(device)
            with place(self.pipeline, begun.plan) as placed, placed.on_device("unet") as unet:  # and it stays there
                begun.step = make_step(self.pipeline, begun.plan, unet, conditions, begun.num_frames, shards)
        return begun.step(sample, torch.tensor(noise_time, dtype=torch.float32, device=sample.device))

    def _decode(self, plan: MemoryPlan, dtype: torch.dtype, latents: torch.Tensor) -> torch.Tensor:
        """Return the frames of a chunk."""
        self._begun.clear()
        with place(self.pipeline, plan) as placed, placed.on_device("vae", dtype) as vae:
            return decode_chunk(make_decoder(engine_for(self.pipeline, plan), vae), latents)


def portable(error: Exception) -> Exception:
    """Return an error that can be sent to the leader, and that it recognises."""
    if is_out_of_memory(error):
        return MemoryError(str(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own object
    except Exception:  # noqa: BLE001 - whatever its class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error.with_traceback(None)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, also if it hangs or is stopped then."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


if __name__ == "__main__":
    main()
