"""A group of GPUs that generate one video together: one more process per further GPU, each with the same model.

The process that loaded the pipeline leads. It sends each peer small messages through a socket, and tensors through
memory that both processes map. A step exchanges a few megabytes, which takes far less time than the step.
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import weakref
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Thread
from typing import TYPE_CHECKING, Any

from kinema.errors import DeviceLost, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from kinema.settings import Settings

PEER = "kinema.engine.peer_process"
START_SECONDS = 600.0  # to import torch and to read the weights


def devices_of(first: torch.device, settings: Settings) -> list[str]:
    """Return the devices of a group: the first and, of its kind, those that follow it.

    On a CPU, which has to be requested by name, all processes share it: of use for tests only.

    Raises:
        InvalidRequest: the machine has fewer GPUs.
    """
    import torch

    count = settings.gpus_per_video
    if count > 1 and first.type == "cpu" and settings.device == "cpu" and hasattr(os, "memfd_create"):
        return ["cpu"] * count
    start = first.index or 0
    found = torch.cuda.device_count() - start if first.type == "cuda" else 0
    if count > max(found, 1):
        here = f"from {first} on" if start else "on this machine"
        raise InvalidRequest(
            f"gpus is {count}, but the number of CUDA GPUs {here} is {found}; use gpus {2 if found > 1 else 1}", "gpus"
        )
    return [str(first), *(f"cuda:{start + i}" for i in range(1, count))]


class SharedTensor:
    """Memory for one tensor at a time, mapped by two processes through a file descriptor; it grows as needed."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory: mmap.mmap | None = None
        self._registered: int | None = None

    @classmethod
    def create(cls) -> SharedTensor:
        """Create memory; the other process opens it by the inherited descriptor."""
        return cls(os.memfd_create("kinema"))

    def write(self, tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
        """Copy a tensor of any device into the memory; return what `read` needs."""
        self._view(tensor.dtype, tuple(tensor.shape), tensor.device).copy_(tensor)
        return tensor.dtype, tuple(tensor.shape)

    def read(self, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device | str) -> torch.Tensor:
        """Copy the tensor to a device."""
        import torch

        device = torch.device(device)
        return self._view(dtype, shape, device).to(device, copy=True)

    def close(self) -> None:
        """Close the descriptor; the memory is freed when both processes have done so."""
        self._unmap()
        os.close(self.descriptor)

    def _view(self, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Return the memory as a tensor; for copies from and to a GPU it is pinned, so that the CPU copies nothing."""
        import torch

        count = torch.Size(shape).numel()
        size = max(count * dtype.itemsize, 1)
        if self._memory is None or len(self._memory) < size:
            self._unmap()
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, size)
            self._memory = mmap.mmap(self.descriptor, size)
        if device.type == "cuda" and self._registered is None:
            address = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
            registered = torch.cuda.cudart().cudaHostRegister(address, len(self._memory), 0)  # type: ignore[no-untyped-call]
            torch.cuda.check_error(registered)
            self._registered = address
        return torch.frombuffer(self._memory, dtype=dtype, count=count).view(shape)

    def _unmap(self) -> None:
        if self._registered is not None:
            import torch

            torch.cuda.cudart().cudaHostUnregister(self._registered)  # type: ignore[no-untyped-call]
        self._memory = self._registered = None


class Channel:
    """One end of the connection between the leader and a peer."""

    def __init__(self, connection: Connection, outgoing: SharedTensor, incoming: SharedTensor) -> None:
        self._connection, self._outgoing, self._incoming = connection, outgoing, incoming

    def send(self, *message: Any, tensor: torch.Tensor | None = None) -> None:
        """Send a message, and the content of a tensor. The other side must have read the tensor sent before.

        Raises:
            OSError: the other process has ended.
        """
        written = None if tensor is None else self._outgoing.write(tensor)
        # Not Connection.send, which torch extends to share the memory of tensors.
        self._connection.send_bytes(pickle.dumps((message, written)))

    def receive(self, device: torch.device | str) -> tuple[Any, ...]:
        """Return a message; a tensor that came with it is its last element, on this device.

        Raises:
            OSError, EOFError: the other process has ended.
        """
        message: tuple[Any, ...]
        message, written = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our own process
        if written is None:
            return message
        dtype, shape = written
        return (*message, self._incoming.read(dtype, shape, device))

    def is_ready(self, seconds: float) -> bool:
        """Wait for a message; return whether there is one, or the other process has ended."""
        return self._connection.poll(seconds)

    def close(self) -> None:
        """Close the connection, which the other process notices, and the memory."""
        self._connection.close()
        self._outgoing.close()
        self._incoming.close()


class Peer:
    """A process of the group, as the leader sees it. It answers one question at a time.

    Args:
        device: Its device.
        timeout: Seconds without an answer after which it counts as hung.
        store: Descriptor of the group's file, which it inherits.
    """

    def __init__(self, device: str, timeout: float, store: int) -> None:
        self.device, self._timeout = device, timeout
        ours, theirs = socket.socketpair()
        memories = SharedTensor.create(), SharedTensor.create()
        descriptors = theirs.fileno(), memories[0].descriptor, memories[1].descriptor
        with theirs:
            self._process = _start(
                [sys.executable, "-P", "-m", PEER, *map(str, descriptors), str(os.getpid())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout belongs to the leader
                pass_fds=(*descriptors, store),
                start_new_session=True,  # Ctrl-C reaches the leader, which decides
            )
        self._channel = Channel(Connection(ours.detach()), *memories)
        self._unanswered = False
        self.close = weakref.finalize(self, _end, self._process, self._channel, os.getpid())
        """End the process; also called at the end of this process, and when nothing references the peer."""

    @property
    def has_answered(self) -> bool:
        """Whether an answer can be read without waiting."""
        return self._unanswered and self.close.alive and self._channel.is_ready(0)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def tell(self, *message: Any) -> None:
        """Send a message that needs no answer; wait for the answer to the last question before, and ignore it.

        Raises:
            DeviceLost: see `answer`.
        """
        self._send(message, None)

    def ask(self, *message: Any, tensor: torch.Tensor | None = None) -> None:
        """Send a question; wait for the answer to the one before, and ignore it, if nobody has read it.

        Raises:
            DeviceLost: see `answer`.
        """
        self._send(message, tensor)
        self._unanswered = True

    def _send(self, message: tuple[Any, ...], tensor: torch.Tensor | None) -> None:
        if self._unanswered:  # the leader was cancelled or met an error before it read the answer
            with suppress(Exception):
                self.answer("cpu")
        try:
            self._channel.send(*message, tensor=tensor)
        except OSError:
            raise self._lost() from None

    def answer(self, device: torch.device | str = "cpu", seconds: float | None = None) -> Any:
        """Return the answer to the last question: a tensor on `device`, or None.

        Raises:
            DeviceLost: the process has ended, or does not answer in time; then it is killed.
            Exception: the error that the process met.
        """
        seconds = seconds or self._timeout
        try:
            if not self._channel.is_ready(seconds):
                raise self._lost(f"did not answer within {seconds:g} seconds")
            kind, *content = self._channel.receive(device)
        except (OSError, EOFError):
            raise self._lost() from None
        self._unanswered = False
        if kind == "error":
            raise content[0]
        return content[0] if content else None

    def _lost(self, problem: str | None = None) -> DeviceLost:
        # Not closed: unpinning memory waits for the GPU, whose work may wait for the lost process until it is aborted.
        self._process.kill()
        self._process.wait()
        self._unanswered = False
        code = self._process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return DeviceLost(f"the process for {self.device} {problem or f'ended ({how})'}; load the model again")


def _start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process from a thread that lives as long: with that thread, the kernel kills the process (`prctl`)."""
    started: Future[subprocess.Popen[bytes]] = Future()

    def run() -> None:
        try:
            process = subprocess.Popen(command, **options)  # noqa: S603 - our own interpreter and module
        except Exception as error:  # noqa: BLE001 - raised by Future.result
            started.set_exception(error)
        else:
            started.set_result(process)
            process.wait()

    Thread(target=run, name="kinema-peer", daemon=True).start()
    return started.result()


def _end(process: subprocess.Popen[bytes], channel: Channel, leader: int) -> None:
    if os.getpid() != leader:  # a fork of it
        return
    channel.close()
    process.kill()
    process.wait()


def _abort(connections: dict[str, Any], leader: int) -> None:
    """End exchanges that wait for a process; a process with open connections does not end."""
    if os.getpid() != leader:  # a fork of it
        return
    for connection in connections.values():
        connection.abort()
    connections.clear()


class GpuGroup:
    """The peers of a pipeline, and the connections between the processes.

    Args:
        devices: The devices of the peers.
        timeout: Seconds without an answer after which a process counts as hung.
        options: Arguments of `kinema.models.loading.load` for the peers.
    """

    def __init__(self, devices: Sequence[str], timeout: float, **options: Any) -> None:
        import torch

        self.timeout = timeout
        self.connections: dict[str, Any] = {}
        """Connections that exchange tensors, by their name; see `kinema.engine.group_step`."""
        self.numbers = itertools.count()
        """Identify the conditions that the peers have, see there."""
        store = os.memfd_create("kinema-group")
        self.store = f"/proc/self/fd/{store}"
        """Path of a file in memory, the same in all processes, where they find each other's addresses."""
        self._close_store = weakref.finalize(self, os.close, store)
        self.peers = tuple(Peer(device, timeout, store) for device in devices)
        for peer in self.peers:
            peer.ask("load", options | {"device": peer.device, "threads": torch.get_num_threads()})
        self._abort = weakref.finalize(self, _abort, self.connections, os.getpid())  # also at the end of this process

    def wait_until_loaded(self) -> None:
        """Wait until all peers have loaded the model.

        Raises:
            DeviceLost: a process ended.
            KinemaError: see `kinema.models.loading.load`.
        """
        for peer in self.peers:
            peer.answer(seconds=START_SECONDS)

    def close(self) -> None:
        """End the peers."""
        self._abort()
        for peer in self.peers:
            peer.close()
        self._close_store()

    def close_after(self, error: Exception) -> Exception:
        """End the peers after an error that leaves them waiting for each other; return the error that is the cause."""
        for peer in self.peers:
            if isinstance(error, DeviceLost) and peer.has_answered:
                try:
                    peer.answer()
                except Exception as answered:  # noqa: BLE001 - the caller raises it
                    error = answered
        self.close()
        return error
