"""A job's life as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import TYPE_CHECKING

from kinema.errors import JobNotFound
from kinema.serving.wire import video_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kinema.jobs import Job
    from kinema.serving.hosting import Host

ALIVE_SECONDS = 15.0  # so that nothing between here and the client takes silence for the end


class Events:
    """All streams of one server. Those who watch the same job share the text of its latest state."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[Job, str]] = {}
        self._previews: dict[str, tuple[int, str]] = {}
        self._watching: dict[str, int] = {}

    async def stream(self, host: Host, job_id: str) -> AsyncIterator[str]:
        """Events `video`, each with the video object; `preview`, a data: URL, where there is another; at last `done`.

        Where the server ends, the stream ends without `done`; whoever connects again is told how it stands.
        """
        self._watching[job_id] = self._watching.get(job_id, 0) + 1
        seen = 0
        changes = host.watch(job_id).__aiter__()
        following = asyncio.ensure_future(anext(changes, None))
        try:
            yield "retry: 1000\n\n"
            while True:
                done, _ = await asyncio.wait({following}, timeout=ALIVE_SECONDS)
                if not done:
                    yield ": still here\n\n"
                    continue
                job = following.result()
                if job is None:
                    if not host.stopping.is_set():
                        yield "event: deleted\ndata: {}\n\n"
                    return
                yield self._told(job)
                if job.previews > seen and not job.finished:
                    seen = job.previews
                    yield await self._preview(host, job)
                if job.finished:
                    yield "event: done\ndata: {}\n\n"
                    return
                following = asyncio.ensure_future(anext(changes, None))
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, JobNotFound):
                await following
            await changes.aclose()  # type: ignore[attr-defined]  # it is a generator
            self._forget(job_id)

    def _told(self, job: Job) -> str:
        latest = self._latest.get(job.id)
        if latest is None or latest[0] is not job:
            latest = (job, f"event: video\ndata: {json.dumps(video_of(job))}\n\n")
            self._latest[job.id] = latest
        return latest[1]

    async def _preview(self, host: Host, job: Job) -> str:
        latest = self._previews.get(job.id)
        if latest is None or latest[0] != job.previews:
            try:
                data = await asyncio.to_thread(host.queue.preview, job.id)
            except JobNotFound:
                data = None
            told = "" if data is None else f"event: preview\ndata: {_data_url(data)}\n\n"
            latest = self._previews[job.id] = (job.previews, told)
        return latest[1]

    def _forget(self, job_id: str) -> None:
        self._watching[job_id] -= 1
        if not self._watching[job_id]:
            del self._watching[job_id]
            self._latest.pop(job_id, None)
            self._previews.pop(job_id, None)


def _data_url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
