"""Threads for one kind of work: a bounded number of requests waits for them, and callers take turns."""

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
    """`threads` threads, and at most `waiting` requests that wait for one of them, half of them of one caller.

    A thread that is free goes to the caller that has waited longest since its last turn, so that who sends much delays
    who sends little by one turn.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._executor = ThreadPoolExecutor(threads, f"kinema-{name}")
        self._most, self._waiting = threads + waiting, waiting
        self._free = threads
        self._turns: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by caller, the next one's first

    async def run(self, work: Callable[[Callable[[], bool]], T], request: Request | None = None) -> T:
        """Do the work in a thread; it is told how to ask whether the answer is still wanted.

        Raises:
            ServerBusy: as many requests wait as may.
            ClientGone: the client of `request`, whose body must have been read, closed its connection.
        """
        gone = Event()
        caller = "" if request is None else request.scope.get(CALLER, "")
        answer = asyncio.ensure_future(self._in_turn(work, gone, caller))
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

    async def _in_turn(self, work: Callable[[Callable[[], bool]], T], gone: Event, caller: str) -> T:
        await self._turn(caller)
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(self._release)

        running = self._executor.submit(work, gone.is_set)
        running.add_done_callback(release)  # a thread whose client is gone is free only once its work has stopped
        return await asyncio.wrap_future(running)

    async def _turn(self, caller: str) -> None:
        """Wait for a free thread.

        Raises:
            ServerBusy: as many requests wait as may, of all callers or of this one.
        """
        if self._free:
            self._free -= 1
            return
        mine = len(self._turns.get(caller, ()))
        if sum(map(len, self._turns.values())) >= self._waiting or mine >= max(1, self._waiting // 2):
            raise ServerBusy(
                Message(
                    "server_busy",
                    "{count} requests of this kind are being handled, which is the most; try again in a few seconds",
                    count=self._most,
                )
            )
        turn = asyncio.get_running_loop().create_future()
        self._turns.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given just before
                self._release()
            else:
                self._forget(caller, turn)
            raise

    def _forget(self, caller: str, turn: asyncio.Future[None]) -> None:
        turns = self._turns.get(caller)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._turns[caller]

    def _release(self) -> None:
        """Give a thread that is free to the next caller."""
        if not self._turns:
            self._free += 1
            return
        caller, turns = self._turns.popitem(last=False)
        turn = turns.popleft()
        if turns:
            self._turns[caller] = turns  # behind all others
        if turn.cancelled():  # and not forgotten yet
            self._release()
        else:
            turn.set_result(None)


async def client_gone(request: Request) -> None:
    """Return when the client of a request whose body was read is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
