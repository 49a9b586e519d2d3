"""The bounded thread pool: queue limit, turns of callers and disconnecting clients."""

import asyncio
import threading

import pytest

from kinema.errors import ServerBusy
from kinema.serving.bounded_pool import BoundedPool
from kinema.serving.decode_process import ClientGone
from kinema.serving.rate_limits import CALLER


class Client:
    """A request whose body was read; `leave` closes its connection."""

    def __init__(self, caller="someone"):
        self.scope = {CALLER: caller}
        self._left = asyncio.Event()
        self.leave = self._left.set

    async def receive(self):
        await self._left.wait()
        return {"type": "http.disconnect"}


def test_work_runs_in_thread_and_caller_gets_its_error():
    async def run():
        pool = BoundedPool("test", threads=1, waiting=0)
        assert await pool.run(lambda _: threading.current_thread()) is not threading.main_thread()
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda _: 1 / 0)

    asyncio.run(run())


def test_full_pool_raises_server_busy_until_a_thread_is_free():
    async def run():
        pool, free = BoundedPool("test", threads=1, waiting=1), threading.Event()
        calls = [asyncio.ensure_future(pool.run(lambda _: free.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ServerBusy, match="2 requests"):
            await pool.run(lambda _: None)
        free.set()
        assert await asyncio.gather(*calls) == [True, True]
        assert await pool.run(lambda _: "done") == "done"

    asyncio.run(run())


def test_disconnect_stops_running_work_and_skips_waiting_work():
    async def run():
        pool, begun, stopped, started = BoundedPool("test", 1, 1), threading.Event(), threading.Event(), []
        clients = [Client(), Client()]

        def work(gone):
            begun.set()
            while not gone():
                stopped.wait(0.01)
            stopped.set()

        running = asyncio.ensure_future(pool.run(work, clients[0]))
        waiting = asyncio.ensure_future(pool.run(started.append, clients[1]))
        await asyncio.to_thread(begun.wait)
        for client in reversed(clients):
            client.leave()
        for each in (running, waiting):
            with pytest.raises(ClientGone):
                await each
        assert await asyncio.to_thread(stopped.wait, 10)
        assert await pool.run(lambda _: "free again") == "free again"
        assert started == []

    asyncio.run(run())


def test_callers_take_turns_and_each_gets_half_of_the_queue():
    async def run():
        pool, free, order = BoundedPool("test", threads=1, waiting=6), threading.Event(), []
        running = [asyncio.ensure_future(pool.run(lambda _: free.wait(10)))]
        await asyncio.sleep(0.01)
        running += [
            asyncio.ensure_future(pool.run(lambda _, who=caller: order.append(who), Client(caller)))
            for caller in ("much", "much", "much", "little")
        ]
        await asyncio.sleep(0.01)
        with pytest.raises(ServerBusy):
            await pool.run(lambda _: None, Client("much"))
        free.set()
        await asyncio.gather(*running)
        assert order == ["much", "little", "much", "much"]

    asyncio.run(run())


def test_disconnect_while_waiting_frees_the_place():
    async def run():
        pool, free = BoundedPool("test", threads=1, waiting=1), threading.Event()
        calls = asyncio.ensure_future(pool.run(lambda _: free.wait(10)))
        await asyncio.sleep(0.01)
        client = Client()
        waiting = asyncio.ensure_future(pool.run(lambda _: None, client))
        await asyncio.sleep(0.01)
        client.leave()
        with pytest.raises(ClientGone):
            await waiting
        next_one = asyncio.ensure_future(pool.run(lambda _: "done"))
        await asyncio.sleep(0.01)
        free.set()
        assert await next_one == "done"
        assert await calls

    asyncio.run(run())
