"""A thread pool with a bounded queue and round-robin scheduling of callers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from kinema.errors import ServerBusy
from kinema.messages import Message
from kinema.serving.decode_process import ClientGone
from kinema.serving.rate_limits import CALLER

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

T = TypeVar("T")


class BoundedPool:
    """`threads` threads and a queue of at most `waiting` requests, half of it per caller.

    A free thread goes to the caller whose last turn is longest ago. A caller with many requests delays another one
    by at most one turn.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._executor = ThreadPoolExecutor(threads, f"kinema-{name}")
        self._max_requests, self._max_waiting = threads + waiting, waiting
        self._free = threads
        self._turns: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by caller, next one first

    async def run(self, work: Callable[[Callable[[], bool]], T], request: Request | None = None) -> T:
        """Call `work` in a thread, with a function that returns whether the work is cancelled.

        Raises:
            ServerBusy: the queue is full.
            ClientGone: the client of `request`, whose body must have been read, disconnected.
        """
        cancelled = Event()
        caller = "" if request is None else request.scope.get(CALLER, "")
        result = asyncio.ensure_future(self._run_in_turn(work, cancelled, caller))
        awaited: set[asyncio.Future[Any]] = {result}
        if request is not None:
            awaited.add(asyncio.ensure_future(client_gone(request)))
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ClientGone
            return result.result()
        finally:
            cancelled.set()
            for future in awaited:
                future.cancel()  # work that has not started never starts

    async def _run_in_turn(self, work: Callable[[Callable[[], bool]], T], cancelled: Event, caller: str) -> T:
        await self._acquire(caller)
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(self._release)

        future = self._executor.submit(work, cancelled.is_set)
        future.add_done_callback(release)  # the thread of cancelled work is free only after the work has stopped
        return await asyncio.wrap_future(future)

    async def _acquire(self, caller: str) -> None:
        """Wait for a free thread.

        Raises:
            ServerBusy: the queue is full, or this caller's half of it.
        """
        if self._free:
            self._free -= 1
            return
        own = len(self._turns.get(caller, ()))
        if sum(map(len, self._turns.values())) >= self._max_waiting or own >= max(1, self._max_waiting // 2):
            raise ServerBusy(
                Message(
                    "server_busy",
                    "the maximum of {count} requests of this kind is reached; try again in a few seconds",
                    count=self._max_requests,
                )
            )
        turn = asyncio.get_running_loop().create_future()
        self._turns.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was assigned a thread just before
                self._release()
            else:
                self._remove(caller, turn)
            raise

    def _remove(self, caller: str, turn: asyncio.Future[None]) -> None:
        turns = self._turns.get(caller)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._turns[caller]

    def _release(self) -> None:
        """Assign a free thread to the next caller."""
        if not self._turns:
            self._free += 1
            return
        caller, turns = self._turns.popitem(last=False)
        turn = turns.popleft()
        if turns:
            self._turns[caller] = turns  # last in line
        if turn.cancelled():  # and not removed yet
            self._release()
        else:
            turn.set_result(None)


async def client_gone(request: Request) -> None:
    """Return when the client disconnects. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
