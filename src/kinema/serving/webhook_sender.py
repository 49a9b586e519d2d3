"""Sends webhooks when jobs and batches have ended, signed as Standard Webhooks (https://www.standardwebhooks.com).

A webhook is sent again after a growing pause until it is delivered, with the same `webhook-id`: a receiver may get it
more than once. Only the process that runs the queue's jobs sends, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kinema.errors import BatchNotFound, InvalidRequest, JobNotFound, KinemaError
from kinema.jobs.supervisor import Supervisor
from kinema.serving.batch_schemas import batch_of
from kinema.serving.schemas import video_of
from kinema.serving.webhook_urls import check_webhook_url
from kinema.version import own_version

if TYPE_CHECKING:
    import httpx

    from kinema.jobs import Queue
    from kinema.jobs.webhook_table import DueWebhook
    from kinema.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
ORPHAN_SECONDS = 60.0
# Of one attempt, including the name's resolution and the response's header.
TIMEOUT_SECONDS = 15.0
MAX_SENDING = 16
MAX_PER_HOST = 4
# 5 s, 20 s, 80 s, … up to 6 hours: about 14 hours in all.
FIRST_PAUSE_SECONDS = 5.0
PAUSE_FACTOR = 4
MAX_PAUSE_SECONDS = 6 * 3600.0
MAX_ATTEMPTS = 9
GONE = 410  # the receiver wants no more


class WebhookSender:
    """Sends the webhooks of a queue: at most MAX_SENDING at a time, and MAX_PER_HOST to each host."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self._settings = settings
        self._queue = queue
        self._table = queue.webhooks
        self._supervisor = Supervisor("kinema-webhooks", lambda: asyncio.run(self._send_all()), _report)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None
        self._last_cleaning = time.monotonic()

    def start(self) -> None:
        """Start to send, if the server has a secret to sign with."""
        if self._settings.webhook_secret is not None:
            self._supervisor.start()

    def close(self) -> None:
        """Stop. Webhooks that are being sent are sent again after the next start."""
        self._supervisor.stopping.set()
        self.wake()
        self._supervisor.join()

    def wake(self) -> None:
        """Look for ended jobs now. Thread-safe."""
        loop, changed = self._loop, self._changed
        if loop is not None and changed is not None and not loop.is_closed():
            loop.call_soon_threadsafe(changed.set)

    async def _send_all(self) -> None:
        """Send webhooks as they become due, until the sender is closed."""
        import httpx

        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        headers = {"User-Agent": f"kinema/{own_version()}", "Content-Type": "application/json"}
        sending: dict[str, asyncio.Task[None]] = {}
        sent: set[str] = set()  # while the due webhooks were read: they may be among those
        hosts: Counter[str] = Counter()
        async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=False) as client:

            async def send(webhook: DueWebhook) -> None:
                hosts[webhook.host] += 1
                try:
                    await self._send(client, webhook)
                except Exception as error:  # noqa: BLE001 - it is logged, and the webhook is sent again
                    _report(error, POLL_SECONDS)
                finally:
                    hosts[webhook.host] -= 1
                    del sending[webhook.id]
                    sent.add(webhook.id)
                    self.wake()

            try:
                while not self._supervisor.stopping.is_set():
                    sent.clear()
                    for webhook in await asyncio.to_thread(self._due):
                        is_free = len(sending) < MAX_SENDING and hosts[webhook.host] < MAX_PER_HOST
                        if is_free and webhook.id not in sending and webhook.id not in sent:
                            sending[webhook.id] = asyncio.create_task(send(webhook))
                            await asyncio.sleep(0)  # it counts its host
                    await self._wait()
            finally:
                for task in list(sending.values()):
                    task.cancel()
                await asyncio.gather(*sending.values(), return_exceptions=True)

    async def _wait(self) -> None:
        assert self._changed is not None, "set by _send_all"
        try:
            await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)
        except TimeoutError:
            return
        self._changed.clear()

    def _due(self) -> list[DueWebhook]:
        if not self._queue.ready:
            return []
        if time.monotonic() - self._last_cleaning > ORPHAN_SECONDS:
            self._last_cleaning = time.monotonic()
            self._table.remove_orphans()
        return self._table.due(MAX_PER_HOST, 2 * MAX_SENDING)

    async def _send(self, client: httpx.AsyncClient, webhook: DueWebhook) -> None:
        """Make one attempt, and store its result."""
        try:
            body = await asyncio.to_thread(self._body, webhook)
        except (JobNotFound, BatchNotFound):  # deleted in the meantime
            await asyncio.to_thread(self._table.remove, webhook.id)
            return
        except InvalidRequest as error:  # the settings have changed
            log.warning("webhook %s of %s is given up: %s", webhook.id, webhook.owner, error)
            await asyncio.to_thread(self._table.remove, webhook.id)
            return
        problem, is_final = await self._post(client, webhook, body)
        if problem is None:
            log.info("webhook %s of %s is delivered", webhook.id, webhook.owner)
            await asyncio.to_thread(self._table.remove, webhook.id)
        elif is_final or webhook.attempts + 1 >= MAX_ATTEMPTS:
            log.warning(
                "webhook %s of %s is given up after %d attempts: %s responded with %s",
                webhook.id, webhook.owner, webhook.attempts + 1, webhook.host, problem,
            )  # fmt: skip
            await asyncio.to_thread(self._table.remove, webhook.id)
        else:
            pause = pause_after(webhook.attempts)
            log.info(
                "webhook %s of %s: %s responded with %s; next attempt in %.0f seconds",
                webhook.id, webhook.owner, webhook.host, problem, pause,
            )  # fmt: skip
            await asyncio.to_thread(self._table.postpone, webhook.id, pause)

    def _body(self, webhook: DueWebhook) -> str:
        """Return the message about a job or batch.

        Raises:
            JobNotFound, BatchNotFound: it was deleted.
            InvalidRequest: the URL is not allowed any more.
        """
        check_webhook_url(self._settings, webhook.url)
        data: dict[str, Any]
        if webhook.owner.startswith("batch_"):
            batch = self._queue.batches.get(webhook.owner)
            event, ended_at, data = f"batch.{batch.status}", batch.times[batch.status], batch_of(batch)
        else:
            job = self._queue.get(webhook.owner)
            event, ended_at, data = f"video.{job.status}", job.completed_at or job.created_at, video_of(job)
        timestamp = datetime.fromtimestamp(ended_at, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"type": event, "timestamp": timestamp, "data": data}, separators=(",", ":"))

    async def _post(self, client: httpx.AsyncClient, webhook: DueWebhook, body: str) -> tuple[str | None, bool]:
        """Send a message; return the problem, or None, and whether it is final."""
        import httpx
        from standardwebhooks import Webhook

        assert self._settings.webhook_secret is not None, "checked by start"
        now = datetime.now(UTC)
        headers = {
            "webhook-id": webhook.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self._settings.webhook_secret.get_secret_value()).sign(webhook.id, now, body),
        }
        try:
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                client.stream("POST", webhook.url, content=body, headers=headers) as response,
            ):
                problem = None if response.is_success else f"status {response.status_code}"
                return problem, response.status_code == GONE
        except (TimeoutError, httpx.TimeoutException):
            return f"nothing within {TIMEOUT_SECONDS:g} seconds", False
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # ValueError: an invalid DNS name
            return f"an error ({type(error).__name__})", False


def pause_after(attempts: int) -> float:
    """Return the seconds until the next attempt, with jitter, after so many failed attempts before the latest one."""
    pause: float = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * PAUSE_FACTOR**attempts)
    return pause * random.uniform(0.8, 1.2)  # noqa: S311 - not used for security


def _report(error: Exception, pause: float) -> None:
    if isinstance(error, KinemaError | OSError):
        log.warning("webhooks wait: %s; next attempt in %.1f seconds", error, pause, extra={"repeats": True})
    else:
        log.error("internal error while sending webhooks; next attempt in %.1f seconds", pause, exc_info=error)
