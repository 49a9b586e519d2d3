"""Threads for one kind of work: a bounded number of requests waits for them, and one whose client goes is given up."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from kinema.errors import ServerBusy
from kinema.sentences import Sentence
from kinema.serving.decode_process import ClientGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

T = TypeVar("T")


class BoundedPool:
    """`threads` threads, and at most `waiting` requests that wait for one of them."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._executor = ThreadPoolExecutor(threads, f"kinema-{name}")
        self._most = threads + waiting
        self._pending: set[Future[Any]] = set()

    async def run(self, work: Callable[[Callable[[], bool]], T], request: Request | None = None) -> T:
        """Do the work in a thread; it is told how to ask whether the answer is still wanted.

        Raises:
            ServerBusy: as many requests wait as may.
            ClientGone: the client of `request`, whose body must have been read, closed its connection.
        """
        if len(self._pending) >= self._most:
            raise ServerBusy(
                Sentence(
                    "server_busy",
                    "{count} requests of this kind are being handled, which is the most; try again in a few seconds",
                    count=self._most,
                )
            )
        gone = Event()
        running = self._executor.submit(work, gone.is_set)
        self._pending.add(running)
        running.add_done_callback(self._pending.discard)
        answer = asyncio.wrap_future(running)
        awaited: set[asyncio.Future[Any]] = {answer}
        if request is not None:
            awaited.add(asyncio.ensure_future(client_gone(request)))
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientGone
            return answer.result()
        finally:
            gone.set()
            for each in awaited:
                each.cancel()  # work that no thread has begun never begins


async def client_gone(request: Request) -> None:
    """Return when the client of a request whose body was read is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
