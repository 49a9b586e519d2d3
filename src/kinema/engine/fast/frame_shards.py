"""Division of a video's frames between processes, and the exchange that operations along time need.

Each process has some frames, with all their pixels. For an operation along time, the processes exchange pixels, so that
each has some pixels of all frames; afterwards they exchange back. Everything else is computed frame by frame. So does
DeepSpeed-Ulysses (Jacobs et al. 2023), with tokens and heads in place of frames and pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import torch

from kinema.errors import DeviceLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from kinema.engine.fast.cuda_graph import GraphedCallable

ABORT_SECONDS = 10  # after which the connection is left as it is


def split_evenly(count: int, parts: int) -> list[int]:
    """Return the sizes of `parts` parts of `count`, the larger ones first: 25 in 2 → 13, 12."""
    return [count // parts + (i < count % parts) for i in range(parts)]


class ShardConnection:
    """A connection of the processes of one video, by NCCL on GPUs and by Gloo elsewhere.

    Args:
        store: Path of a file that all processes open, for their addresses.
        name: Of the connection; one file serves several.
        rank: This process's number, from 0.
        size: Number of processes.
        device: Device of this process.
        timeout: Seconds after which an exchange fails; NCCL waits twice as long.
    """

    def __init__(self, store: str, name: str, rank: int, size: int, device: torch.device, timeout: float) -> None:
        self.rank = rank
        self._timeout = timeout
        self.compiled: set[tuple[Any, ...]] = set()
        """What `kinema.engine.engines` has compiled with these processes."""
        self._group = _process_group(store, name, rank, size, device, timeout)
        self._abort, self._aborted = Event(), Event()
        # Started now: at the end of the process, when abort may be called, no thread can be.
        Thread(target=_abort_after, args=(self._abort, self._group, self._aborted), daemon=True).start()
        self._graph: tuple[tuple[Any, ...], GraphedCallable] | None = None

    def exchange(self, sent: Tensor, *, sends: Sequence[int], receives: Sequence[int]) -> Tensor:
        """Send a part of flat bytes to each process, and return the parts that they send, in order.

        Raises:
            DeviceLost: a process has ended, or does not answer in time.
        """
        received = sent.new_empty(sum(receives))
        try:
            self._group.alltoall_base(received, sent, list(receives), list(sends)).wait()
        except RuntimeError as error:
            raise DeviceLost(
                "another process of the group of GPUs ended, or did not exchange data within "
                f"{self._timeout:g} seconds; load the model again"
            ) from error
        return received

    def graph(self, key: tuple[Any, ...], make: Callable[[], GraphedCallable]) -> GraphedCallable:
        """Return the graph of the exchanges of the last video if it was made with an equal key, else a new one."""
        if self._graph is None or self._graph[0] != key:
            self._close_graph()
            self._graph = key, make()
        return self._graph[1]

    def abort(self) -> None:
        """End exchanges that wait for another process, and close the connection."""
        # Each waits for the other: NCCL for the end of graphs with its exchanges, a running graph for their end.
        self._abort.set()
        self._close_graph()
        self._aborted.wait(ABORT_SECONDS)

    def _close_graph(self) -> None:
        if self._graph is not None:
            self._graph[1].close()
            self._graph = None


def _abort_after(event: Event, group: Any, done: Event) -> None:
    event.wait()
    try:
        group.abort()
    finally:
        done.set()


def _process_group(store: str, name: str, rank: int, size: int, device: torch.device, timeout: float) -> Any:
    """Return torch's ProcessGroupNCCL or ProcessGroupGloo, not as its global group."""
    from torch import distributed

    file = distributed.PrefixStore(name, distributed.FileStore(store))  # type: ignore[attr-defined]
    file.set_timeout(timedelta(seconds=timeout))
    # torch has no public way to set these options.
    if device.type == "cuda":
        options = distributed.ProcessGroupNCCL.Options()
        # At its timeout NCCL's watchdog ends this process; the leader of the group notices a hung process before.
        options._timeout = timedelta(seconds=2 * timeout)  # noqa: SLF001
        return distributed.ProcessGroupNCCL(file, rank, size, options)
    gloo: Any = distributed.ProcessGroupGloo
    choices = gloo._Options()  # noqa: SLF001
    choices._devices = [gloo.create_device(hostname="127.0.0.1")]  # noqa: SLF001
    choices._timeout = timedelta(seconds=timeout)  # noqa: SLF001
    return gloo(file, rank, size, choices)


@dataclass(frozen=True, slots=True, eq=False)
class FrameShards:
    """This process's part of a video's frames.

    All methods exchange data with the other processes, which must call the same methods in the same order.
    """

    connection: ShardConnection
    frames: tuple[int, ...]
    """Number of frames of each process, in the order of the video."""

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.connection.rank

    @property
    def own(self) -> slice:
        """The frames of this process."""
        stop = list(accumulate(self.frames))[self.rank]
        return slice(stop - self.frames[self.rank], stop)

    def to_pixels(self, video: Tensor) -> Tensor:
        """Return some pixels of all frames, [1, all frames, 1, own pixels, c], from [1, own frames, h, w, c]."""
        _, frames, height, width, channels = video.shape
        data = video.view(frames, height * width, channels).view(torch.uint8)
        pixels = split_evenly(height * width, len(self.frames))
        sent = torch.cat([part.reshape(-1) for part in torch.split(data, pixels, 1)])
        received = self.exchange(
            sent,
            sends=[frames * count * data.shape[2] for count in pixels],
            receives=[count * pixels[self.rank] * data.shape[2] for count in self.frames],
        )
        return received.view(video.dtype).view(1, -1, 1, pixels[self.rank], channels)

    def to_frames(self, video: Tensor, out: Tensor) -> Tensor:
        """Write the own frames into `out`, [1, own frames, h, w, c], from [1, all frames, 1, own pixels, c]."""
        _, frames, height, width, channels = out.shape
        size = channels * video.element_size()
        pixels = split_evenly(height * width, len(self.frames))
        counts = [frames * count * size for count in pixels]
        received = self.exchange(
            video.reshape(-1).view(torch.uint8),
            sends=[count * pixels[self.rank] * size for count in self.frames],
            receives=counts,
        )
        parts = [part.view(frames, -1, size) for part in torch.split(received, counts)]
        torch.cat(parts, 1, out=out.view(frames, height * width, channels).view(torch.uint8))
        return out

    def gather(self, x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Concatenate a contiguous tensor of each process along the first dimension; `sizes` if they differ there."""
        sizes = [len(x)] * len(self.frames) if sizes is None else sizes
        row = x[0].numel() * x.element_size()
        received = self.exchange(
            x.reshape(-1).view(torch.uint8).repeat(len(sizes)),
            sends=[len(x) * row] * len(sizes),
            receives=[size * row for size in sizes],
        )
        return received.view(x.dtype).view(-1, *x.shape[1:])

    def exchange(self, sent: Tensor, *, sends: Sequence[int], receives: Sequence[int]) -> Tensor:
        """Send a part of flat bytes to each process, and return the parts that they send; see `ShardConnection`."""
        return self.connection.exchange(sent, sends=sends, receives=receives)
