"""Conversion of a function with a callback into a generator, by means of a thread."""

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
    """Raised by `report` in the thread when the generator is closed; `except Exception` does not catch it."""


def threaded_generator(work: Callable[[Callable[[Item], None]], Result]) -> Generator[Item, None, Result]:
    """Run `work(report)` in a thread, yield each reported item, and return the result.

    `report` blocks until the next item is requested, so the work is never ahead of the caller. Closing the generator
    ends the work at its next report, and waits for it.

    Raises:
        Any exception of the work.
    """
    requests: SimpleQueue[Literal["more", "stop"]] = SimpleQueue()
    responses: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def report(item: Item) -> None:
        responses.put(("item", item))
        if requests.get() == "stop":
            raise _Stopped

    def run() -> None:
        try:
            if requests.get() == "more":
                responses.put(("result", work(report)))
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the generator
            responses.put(("error", error))

    thread = threading.Thread(target=run, name="kinema-threaded_generator", daemon=True)
    thread.start()
    try:
        while True:
            with hub.quiet():  # suppress the libraries' messages, only while they run
                requests.put("more")
                kind, value = responses.get()
            if kind == "result":
                result: Result = value
                return result
            if kind == "error":
                raise value
            yield value
    finally:
        value = None  # otherwise an error and this frame reference each other and keep all tensors of the work
        requests.put("stop")
        thread.join()
