"""The changes of a job as server-sent events: one subscription to the queue per job, any number of streams."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import TYPE_CHECKING

from kinema.errors import KinemaError
from kinema.serving.schemas import video_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kinema.jobs import Job
    from kinema.serving.lifespan import ServerState

KEEP_ALIVE_SECONDS = 15.0  # interval of keep-alive comments, which prevent time-outs in proxies
PUBLISH_SECONDS = 1.0  # the minimum interval between two steps of a stage


class _Subscriber:
    """One stream: its unsent events, of which it keeps only the latest of each kind."""

    def __init__(self, latest: dict[str, str]) -> None:
        self._pending = dict(latest)
        self._changed = asyncio.Event()
        self._ended = False
        if self._pending:
            self._changed.set()

    def publish(self, kind: str, text: str) -> None:
        self._pending[kind] = text
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    @property
    def is_done(self) -> bool:
        """Whether all events are sent and no more will follow."""
        return self._ended and not self._pending

    async def receive(self) -> str:
        """Wait for events and return all pending ones; return a comment if there are none for KEEP_ALIVE_SECONDS."""
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            return ": keep-alive\n\n"
        self._changed.clear()
        text, self._pending = "".join(self._pending.values()), {}
        return text


class _Channel:
    """One job's subscription, shared by all its streams."""

    def __init__(self, state: ServerState, job_id: str) -> None:
        self.subscribers: set[_Subscriber] = set()
        self._latest: dict[str, str] = {}
        self._state = state
        self._job_id = job_id
        self._task = asyncio.create_task(self._follow())

    def subscribe(self) -> _Subscriber:
        subscriber = _Subscriber(self._latest)
        self.subscribers.add(subscriber)
        if self._task.done():
            subscriber.end()
        return subscriber

    def close(self) -> None:
        self._task.cancel()

    async def _follow(self) -> None:
        try:
            is_finished = await self._publish_changes()
            if not self._state.stopping.is_set():
                self._publish("end", f"event: {'done' if is_finished else 'deleted'}\ndata: {{}}\n\n")
        except KinemaError:
            pass  # the stream ends; a new request gets the error response
        finally:
            for subscriber in self.subscribers:
                subscriber.end()

    async def _publish_changes(self) -> bool:
        """Publish changes until the job is finished (return True) or deleted (return False)."""
        before: Job | None = None
        published = 0.0
        async for job in self._state.subscribe(self._job_id):
            is_new_stage = before is None or (job.status, job.stage) != (before.status, before.stage)
            if is_new_stage or job.finished or time.monotonic() - published >= PUBLISH_SECONDS:
                published = time.monotonic()
                self._publish("video", f"event: video\ndata: {json.dumps(video_of(job))}\n\n")
            if job.previews > (0 if before is None else before.previews) and not job.finished:
                await self._publish_preview()
            before = job
            if job.finished:
                return True
        return False

    async def _publish_preview(self) -> None:
        data = await asyncio.to_thread(self._state.queue.preview, self._job_id)
        if data is not None:
            url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
            self._publish("preview", f"event: preview\ndata: {url}\n\n")

    def _publish(self, kind: str, text: str) -> None:
        self._latest[kind] = text
        for subscriber in self.subscribers:
            subscriber.publish(kind, text)


class Events:
    """All event streams of a server."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}

    async def stream(self, state: ServerState, job_id: str) -> AsyncIterator[str]:
        """Stream a job: `video` (the video object), `preview` (a data: URL), and finally `done` or `deleted`.

        On shutdown the stream ends without `done`; a client that reconnects gets the current state.
        """
        channel = self._channels.get(job_id)
        if channel is None:
            channel = self._channels[job_id] = _Channel(state, job_id)
        subscriber = channel.subscribe()
        try:
            yield "retry: 1000\n\n"
            while not subscriber.is_done:
                yield await subscriber.receive()
        finally:
            channel.subscribers.discard(subscriber)
            if not channel.subscribers:
                channel.close()
                if self._channels.get(job_id) is channel:
                    del self._channels[job_id]
