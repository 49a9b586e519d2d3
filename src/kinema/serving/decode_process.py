"""A child process with limits on memory and time, in which the server decodes what clients sent.

An image of a few kilobytes can ask for seconds of a core and hundreds of megabytes, and a thread that decodes it can't
be stopped. The process can: it is killed at its limits, and when the client has gone. One image is decoded at a time.
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
# 40 megapixels as WebP take 480 MB, more than any other kind.
MEMORY_MB = 560
CPU_SECONDS = 10
# By the clock, where a machine has much else to do.
PATIENCE = 6
# Memory that the process still holds between two images; beyond that another one takes its place.
IDLE_MB = 200
LISTEN_SECONDS = 0.1


class ClientGone(Exception):
    """Who asked is no longer there, so the work was given up."""


def _never() -> bool:
    return False


class DecodeProcess:
    """Runs functions in the child process, one call at a time in the order of asking; started when it is needed."""

    def __init__(self) -> None:
        self._turns: deque[object] = deque()
        self._change = Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None
        self._closed = False

    def run(
        self,
        function: Callable[..., T],
        *given: object,
        gone: Callable[[], bool] = _never,
        cpu_seconds: int = CPU_SECONDS,
    ) -> T:
        """Call a function that can be imported, with arguments that can be pickled; give what it returns.

        `gone` is asked often whether the answer is still wanted. Blocks the calling thread.

        Raises:
            InvalidImage: it took too long or too much memory.
            ClientGone: as `gone` said.
            KinemaError: as the function raised it.
        """
        with self._turn(gone):
            link = self._started()
            try:
                link.send((function, given, cpu_seconds))
                deadline = time.monotonic() + PATIENCE * cpu_seconds
                while not link.poll(LISTEN_SECONDS):
                    if gone():
                        self._end()
                        raise ClientGone
                    if time.monotonic() > deadline:
                        self._end()
                        raise InvalidImage(_too_slow(cpu_seconds))
                kind, answer, stays = link.recv()
            except (EOFError, OSError):
                raise InvalidImage(self._cause_of_death(cpu_seconds)) from None
            if not stays:
                self._end()
        if kind == "done":
            return cast("T", answer)
        if kind == "refused":
            raise cast("KinemaError", answer)
        raise RuntimeError(f"the decode process failed:\n{answer}")

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        process = self._process
        return None if process is None else process.pid

    def close(self) -> None:
        """End the process, whatever it does."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def _turn(self, gone: Callable[[], bool]) -> Iterator[None]:
        """Wait until all who came before are done."""
        mine = object()
        with self._change:
            self._turns.append(mine)
        try:
            with self._change:
                while self._turns[0] is not mine:
                    self._change.wait(LISTEN_SECONDS)
                    if gone():
                        raise ClientGone
            yield
        finally:
            with self._change:
                self._turns.remove(mine)
                self._change.notify_all()

    def _started(self) -> Connection:
        """The link to the process, which is started where there is none."""
        if self._link is not None and self._process is not None and self._process.poll() is None:
            return self._link
        self._end()
        if self._closed:
            raise ClientGone
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",  # each of its threads sets memory aside
        }
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", "kinema.serving.decode_process", str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the server prints is its own
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._link = Connection(ours.detach())
        return self._link

    def _end(self) -> None:
        """Kill the process; the next call starts another one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._link is not None:
            self._link.close()
        self._process = self._link = None

    def _cause_of_death(self, cpu_seconds: int) -> Message:
        """Why the process ended in the midst of its work."""
        if self._closed:
            raise ClientGone from None
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(1)
        self._end()
        if code == -signal.SIGXCPU:
            return _too_slow(cpu_seconds)
        return Message("image_undecodable", "the image can't be decoded here; save it again as PNG, or shrink it")


def _too_slow(cpu_seconds: int) -> Message:
    return Message(
        "image_too_slow",
        "the image takes more than {seconds} seconds to decode; shrink it, or save it again as PNG",
        seconds=cpu_seconds,
    )


def main() -> None:
    """Answer calls until the server says no more, or is gone."""
    link = Connection(int(sys.argv[1]))
    with contextlib.suppress(OSError):  # where memory runs out, this process goes before the server
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
    # What ends the server is the server's to judge: Ctrl-C and a service manager signal all processes at once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):
        _limit(resource.RLIMIT_DATA, _status("VmData") + MEMORY_MB * MEGABYTE)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, given, cpu_seconds = link.recv()
            spent = time.process_time()
            _limit(resource.RLIMIT_CPU, int(spent + cpu_seconds) + 1)
            kind, answer = _answered(function, given)
            function = given = None
            link.send((kind, answer, _status("VmRSS") < IDLE_MB * MEGABYTE))
            answer = None


def _answered(function: Callable[..., object], given: tuple[object, ...]) -> tuple[str, object]:
    try:
        return "done", function(*given)
    except KinemaError as error:
        return "refused", error
    except MemoryError:
        return "refused", InvalidImage(out_of_memory("the image"))
    except Exception:  # noqa: BLE001 - a defect, told to who waits
        return "broken", traceback.format_exc()


def _limit(what: int, value: int) -> None:
    """Set a limit of this process; its hard limit stays, so that it can be raised for the next image."""
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(ValueError):  # macOS knows some of them by name alone
        resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _status(name: str) -> int:
    """A figure of this process in bytes, as Linux tells it; 0 elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
