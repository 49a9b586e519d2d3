"""A job's life as server-sent events: followed once, and told to all who watch it."""

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

ALIVE_SECONDS = 15.0  # so that nothing between here and the client takes silence for the end
TELL_SECONDS = 1.0  # steps of one stage that come quicker are not all told


class _Watcher:
    """What one stream has not sent yet: of each kind only the latest."""

    def __init__(self, latest: dict[str, str]) -> None:
        self._due = dict(latest)
        self._news = asyncio.Event()
        self._ended = False
        if self._due:
            self._news.set()

    def tell(self, kind: str, text: str) -> None:
        self._due[kind] = text
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    @property
    def over(self) -> bool:
        """Whether there is nothing more to send, nor ever will be."""
        return self._ended and not self._due

    async def news(self) -> str:
        """All that is due, as soon as there is any; a comment where there is none for long."""
        try:
            async with asyncio.timeout(ALIVE_SECONDS):
                await self._news.wait()
        except TimeoutError:
            return ": still here\n\n"
        self._news.clear()
        text, self._due = "".join(self._due.values()), {}
        return text


class _Channel:
    """One job, followed for all who watch it."""

    def __init__(self, state: ServerState, job_id: str) -> None:
        self.watchers: set[_Watcher] = set()
        self._latest: dict[str, str] = {}
        self._state = state
        self._job_id = job_id
        self._task = asyncio.create_task(self._follow())

    def join(self) -> _Watcher:
        watcher = _Watcher(self._latest)
        self.watchers.add(watcher)
        if self._task.done():
            watcher.end()
        return watcher

    def close(self) -> None:
        self._task.cancel()

    async def _follow(self) -> None:
        try:
            ended = await self._tell_changes()
            if not self._state.stopping.is_set():
                self._tell("end", f"event: {'done' if ended else 'deleted'}\ndata: {{}}\n\n")
        except KinemaError:
            pass  # the stream ends, and whoever connects again is told why
        finally:
            for watcher in self.watchers:
                watcher.end()

    async def _tell_changes(self) -> bool:
        """Tell what changes, until the job is finished (True) or gone."""
        before: Job | None = None
        told = 0.0
        async for job in self._state.watch(self._job_id):
            turn = before is None or (job.status, job.stage) != (before.status, before.stage)
            if turn or job.finished or time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                self._tell("video", f"event: video\ndata: {json.dumps(video_of(job))}\n\n")
            if job.previews > (0 if before is None else before.previews) and not job.finished:
                await self._tell_preview()
            before = job
            if job.finished:
                return True
        return False

    async def _tell_preview(self) -> None:
        data = await asyncio.to_thread(self._state.queue.preview, self._job_id)
        if data is not None:
            url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
            self._tell("preview", f"event: preview\ndata: {url}\n\n")

    def _tell(self, kind: str, text: str) -> None:
        self._latest[kind] = text
        for watcher in self.watchers:
            watcher.tell(kind, text)


class Events:
    """All streams of one server."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}

    async def stream(self, state: ServerState, job_id: str) -> AsyncIterator[str]:
        """Events `video`, each with the video object; `preview`, a data: URL, where there is another; at last `done`.

        Where the server ends, the stream ends without `done`; whoever connects again is told how it stands.
        """
        channel = self._channels.get(job_id)
        if channel is None:
            channel = self._channels[job_id] = _Channel(state, job_id)
        watcher = channel.join()
        try:
            yield "retry: 1000\n\n"
            while not watcher.over:
                yield await watcher.news()
        finally:
            channel.watchers.discard(watcher)
            if not channel.watchers:
                channel.close()
                if self._channels.get(job_id) is channel:
                    del self._channels[job_id]
