"""Exit codes, and the signals that stop a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

from kinema.errors import (
    DeviceLost,
    GenerationFailed,
    InsufficientDisk,
    InsufficientMemory,
    KinemaError,
    ModelError,
    ServerUnreachable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

EPILOG = (
    "Exit codes: 0 success · 2 invalid usage, image, parameter, setting, file or recipe · "
    "3 model unavailable or invalid · 4 out of memory, or a GPU's process ended · "
    "5 disk full, or the model's output is invalid · "
    "6 some of several videos failed, or the server of a batch does not answer · "
    "7 frames differ (`remake` only) · 8 changed since it was signed, 9 not proven (`verify` only) · "
    "70 internal error (please report it) · "
    "130 interrupted (143 by SIGTERM, 129 by SIGHUP) · 141 stdout was closed."
)

BATCH_INCOMPLETE = 6
FRAMES_DIFFER = 7
TAMPERED, NOT_PROVEN = 8, 9
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
STDOUT_CLOSED = 141  # 128 + 13, as a shell reports SIGPIPE on Linux; a constant because Windows has no SIGPIPE
_STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
# The first matching class counts.
_EXIT_CODES: tuple[tuple[type[KinemaError], int], ...] = (
    (ModelError, 3),
    (InsufficientMemory, 4),
    (DeviceLost, 4),
    (InsufficientDisk, 5),
    (GenerationFailed, 5),
    (ServerUnreachable, BATCH_INCOMPLETE),
    (KinemaError, 2),
)


def exit_code_for(error: KinemaError) -> int:
    """Return the exit code of an error."""
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


class Interrupted(SystemExit):
    """Raised by a signal handler, so that context managers clean up before the process exits."""

    code: int


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise `Interrupted` on SIGINT, SIGTERM and SIGHUP inside the block; keep ignored signals (nohup) ignored.

    A library that is interrupted, such as an import, may turn it into an error of its own, which then does not count.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise Interrupted(128 + number)

    numbers = [getattr(signal, name) for name in _STOP_SIGNALS if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    except Exception as error:
        if received:
            raise Interrupted(128 + received[0]) from error
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
