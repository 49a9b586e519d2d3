"""How a run ends: its exit codes, and the signals that stop it."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

from kinema.errors import GenerationFailed, InsufficientDisk, InsufficientMemory, KinemaError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

EPILOG = (
    "Exit codes: 0 done · 2 usage, or a bad still, setting, file or recipe · "
    "3 weights can't be had or used · 4 out of memory · 5 refused: no room on the disk, or the model gave no video · "
    "7 remade, but the frames differ · 70 a defect of Kinema · 130 interrupted (143 by SIGTERM) · "
    "141 stdout was closed."
)

DIFFERS = 7
READER_GONE = 141  # as a shell tells of a command that SIGPIPE ended, which has another number or none elsewhere
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is unknown to Windows
# The first that fits counts.
_CODES: tuple[tuple[type[KinemaError], int], ...] = (
    (WeightsError, 3),
    (InsufficientMemory, 4),
    (InsufficientDisk, 5),
    (GenerationFailed, 5),
    (KinemaError, 2),
)


def code_of(error: KinemaError) -> int:
    """The exit code of an error."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


class Interrupted(SystemExit):
    """A signal asked the run to stop; raised wherever it is, so that every `with` on the way cleans up."""

    code: int


@contextlib.contextmanager
def stopping_cleanly() -> Iterator[None]:
    """While inside, signals that end a process unwind it first; one that is ignored (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in wanted}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(128 + number)
