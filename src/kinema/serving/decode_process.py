"""A child process with limits on memory and CPU time, in which the server decodes images from clients.

Decoding an image of a few kilobytes can take seconds of CPU time and hundreds of megabytes, and a thread can't be
stopped. The process is killed at its limits and when the client disconnects. It decodes one image at a time.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, TypeVar, cast

from kinema.errors import InvalidImage, KinemaError
from kinema.media.image import out_of_memory
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

MEGABYTE = 1 << 20
# A progressive JPEG in CMYK with 65 megapixels takes 530 MB, an AVIF with alpha and 40 megapixels 520, a HEIC
# in 10 bits with 65 megapixels 490, a WebP with 40 megapixels 480.
MEMORY_MB = 560
# Decoders of HEIC and AVIF start a thread for each core of the machine, and each reserves memory.
DECODER_THREADS = 2
CPU_SECONDS = 10
# The wall-clock limit is the CPU limit times this factor, for a busy machine.
WALL_CLOCK_FACTOR = 6
# A process that has more resident memory after an image is replaced.
IDLE_MB = 200
POLL_SECONDS = 0.1


class ClientGone(Exception):
    """The client disconnected, so the work was cancelled."""


def _never() -> bool:
    return False


class DecodeProcess:
    """Runs functions in a child process, one call at a time in order; starts the process when needed."""

    def __init__(self, memory_mb: int = MEMORY_MB, idle_mb: int = IDLE_MB) -> None:
        self._memory_mb = memory_mb
        self._idle_mb = idle_mb
        self._turns: deque[object] = deque()
        self._change = Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closed = False

    def run(
        self,
        function: Callable[..., T],
        *arguments: object,
        gone: Callable[[], bool] = _never,
        cpu_seconds: int = CPU_SECONDS,
    ) -> T:
        """Call an importable function with picklable arguments; return its result. Blocks the calling thread.

        `gone` is polled; the call is cancelled when it returns true.

        Raises:
            InvalidImage: the call exceeded its time or memory limit.
            ClientGone: `gone()` returned true.
            KinemaError: raised by the function.
        """
        with self._turn(gone):
            connection = self._ensure_started()
            try:
                connection.send((function, arguments, cpu_seconds))
                deadline = time.monotonic() + WALL_CLOCK_FACTOR * cpu_seconds
                while not connection.poll(POLL_SECONDS):
                    if gone():
                        self._end()
                        raise ClientGone
                    if time.monotonic() > deadline:
                        self._end()
                        raise InvalidImage(_too_slow(cpu_seconds))
                kind, result, is_reusable = connection.recv()
            except (EOFError, OSError):
                raise InvalidImage(self._cause_of_death(cpu_seconds)) from None
            if not is_reusable:
                self._end()
        if kind == "done":
            return cast("T", result)
        if kind == "refused":
            raise cast("KinemaError", result)
        raise RuntimeError(f"the decode process failed:\n{result}")

    @property
    def pid(self) -> int | None:
        """The id of the process, or None."""
        process = self._process
        return None if process is None else process.pid

    def close(self) -> None:
        """Kill the process."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def _turn(self, gone: Callable[[], bool]) -> Iterator[None]:
        """Wait until all earlier calls are done."""
        turn = object()
        with self._change:
            self._turns.append(turn)
        try:
            with self._change:
                while self._turns[0] is not turn:
                    self._change.wait(POLL_SECONDS)
                    if gone():
                        raise ClientGone
            yield
        finally:
            with self._change:
                self._turns.remove(turn)
                self._change.notify_all()

    def _ensure_started(self) -> Connection:
        """Return the connection to the process; start it if it is not running."""
        if self._connection is not None and self._process is not None and self._process.poll() is None:
            return self._connection
        self._end()
        if self._closed:
            raise ClientGone
        parent_end, child_end = socket.socketpair()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",  # each of its threads reserves memory
            # glibc keeps freed blocks of up to 32 MB and an arena per thread, and they count for the limit.
            "MALLOC_MMAP_THRESHOLD_": str(MEGABYTE),
            "MALLOC_ARENA_MAX": "2",
        }
        with child_end:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "kinema.serving.decode_process",
                    str(child_end.fileno()),
                    str(self._memory_mb),
                    str(self._idle_mb),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout is the server's
                pass_fds=[child_end.fileno()],
                start_new_session=True,
            )
        self._connection = Connection(parent_end.detach())
        return self._connection

    def _end(self) -> None:
        """Kill the process; the next call starts another one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _cause_of_death(self, cpu_seconds: int) -> Message:
        """Return the message for a process that ended during a call."""
        if self._closed:
            raise ClientGone from None
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(1)
        self._end()
        if code == -signal.SIGXCPU:
            return _too_slow(cpu_seconds)
        return Message(
            "image_undecodable", "the image can't be decoded by this server; save it again as PNG, or shrink it"
        )


def _too_slow(cpu_seconds: int) -> Message:
    return Message(
        "image_too_slow",
        "the image takes more than {seconds} seconds to decode; shrink it, or save it again as PNG",
        seconds=cpu_seconds,
    )


def main() -> None:
    """Process calls until the server closes the connection."""
    descriptor, memory_mb, idle_mb = map(int, sys.argv[1:])
    connection = Connection(descriptor)
    with contextlib.suppress(OSError):  # the OOM killer ends this process before the server
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
    # Ctrl-C and service managers signal all processes; the server ends this one when it shuts down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    _limit_decoder_threads()
    with contextlib.suppress(OSError):
        _limit(resource.RLIMIT_DATA, _read_status("VmData") + memory_mb * MEGABYTE)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, arguments, cpu_seconds = connection.recv()
            spent = time.process_time()
            _limit(resource.RLIMIT_CPU, int(spent + cpu_seconds) + 1)
            kind, result = _call(function, arguments)
            function = arguments = None
            connection.send((kind, result, _read_status("VmRSS") < idle_mb * MEGABYTE))
            result = None


def _call(function: Callable[..., object], arguments: tuple[object, ...]) -> tuple[str, object]:
    try:
        return "done", function(*arguments)
    except KinemaError as error:
        return "refused", error
    except MemoryError:
        return "refused", InvalidImage(out_of_memory("the image"))
    except Exception:  # noqa: BLE001 - an internal error, raised again in the server
        return "broken", traceback.format_exc()


def _limit_decoder_threads() -> None:
    """Set the number of threads of this process's image decoders."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = DECODER_THREADS
    with contextlib.suppress(ImportError):
        from pi_heif import options

        options.DECODE_THREADS = DECODER_THREADS


def _limit(what: int, value: int) -> None:
    """Set a soft limit of this process; the hard limit is unchanged, so the next call can raise it."""
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(ValueError):  # macOS does not support all of them
        resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _read_status(name: str) -> int:
    """Return a value of /proc/self/status in bytes; 0 without Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
