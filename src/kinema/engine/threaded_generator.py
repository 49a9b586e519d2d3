"""Work whose loop is someone else's, made into a generator: a thread does it, a step for each that is asked for."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kinema.models import hub

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Stopped(BaseException):
    """Raised in the thread where the work reports, once no one asks for more; no `except Exception` holds it."""


def threaded_generator(work: Callable[[Callable[[Item], None]], Result]) -> Generator[Item, None, Result]:
    """Run `work(report)`, yield each item that it reports, and return its result.

    The work waits within `report` until the next item is asked for, so it is never ahead of who iterates. To stop
    iterating ends it at its next report; the generator is closed when the work has come to an end, not before.

    Raises:
        Whatever the work raised.
    """
    asked: SimpleQueue[Literal["more", "stop"]] = SimpleQueue()
    told: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def report(item: Item) -> None:
        told.put(("item", item))
        if asked.get() == "stop":
            raise _Stopped

    def run() -> None:
        try:
            if asked.get() == "more":
                told.put(("result", work(report)))
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the work is waited for
            told.put(("error", error))

    thread = threading.Thread(target=run, name="kinema-threaded_generator", daemon=True)
    thread.start()
    try:
        while True:
            with hub.quiet():  # the libraries' own notices, and only while they work
                asked.put("more")
                kind, value = told.get()
            if kind == "result":
                result: Result = value
                return result
            if kind == "error":
                raise value
            yield value
    finally:
        value = None  # an error would hold this frame, and this frame the error, and both all tensors of the work
        asked.put("stop")
        thread.join()
