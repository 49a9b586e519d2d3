"""Make the videos of a batch on a server, through its API /v1/videos."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import httpx

from kinema.batch.batch_jobs import Busy, FinishedJob
from kinema.errors import (
    ContentRefused,
    InsufficientDisk,
    InvalidImage,
    InvalidRequest,
    JobNotFound,
    ServerUnreachable,
)
from kinema.jobs.job import Failure
from kinema.media.video_writer import write_error
from kinema.models.catalog import for_image_model, request_for
from kinema.models.video_size import follow_image
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from kinema.batch.batch_items import BatchItem
    from kinema.values import VideoRequest

WINDOW = 16
# Seconds without any answer after which the run ends.
GIVE_UP_SECONDS = 300.0
MAX_PAUSE = 30.0
_TIMEOUT = httpx.Timeout(60, connect=10)
_MODEL_FIELDS = ("id", "kind", "default", "defaults")
_RETRIED = (429, 502, 503, 504)


class ServerJobs:
    """Makes videos on the server at `url`.

    A full queue is retried without limit; a server that does not answer, for `GIVE_UP_SECONDS`.

    Raises:
        InvalidRequest: the URL or the API key is invalid, or the server rejects a request.
        ServerUnreachable: the server does not answer.
    """

    window = WINDOW
    file_options: tuple[str, ...] = ()  # the server decides

    def __init__(self, url: str, api_key: str | None, model: str | None) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InvalidRequest(
                f"server {url!r} is not a URL ({error}); use one such as http://gpu:3000", "server"
            ) from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidRequest(f"server {url!r} is not an http(s) URL; use one such as http://gpu:3000", "server")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidRequest("the API key contains a character that no HTTP header has; check it", "api_key")
        self._url = str(parsed.copy_with(username=None, password=None)).rstrip("/")
        headers = {"User-Agent": f"kinema/{own_version()} httpx/{httpx.__version__}"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT)
        self._given_model = model
        self._last_answer: float | None = None
        self._pause = 0.0
        self._due: dict[str, float] = {}  # when to ask for each running job again
        self._finished: dict[str, FinishedJob] = {}
        self._problem: str | None = None
        self._reported: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @cached_property
    def _models(self) -> list[dict[str, Any]]:
        """The models that the server offers."""
        response = None
        while response is None:
            try:
                response = self._call("GET", "/v1/models")
            except Busy as busy:
                time.sleep(busy.seconds)
        try:
            return [{name: entry[name] for name in _MODEL_FIELDS} for entry in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            raise self._no_kinema() from None

    def complete(self, parameters: Mapping[str, Any], image_size: tuple[int, int] | None = None) -> VideoRequest:
        """Return the request with the server's model and its defaults.

        Without `image_model`, the server chooses the text-to-image model.
        """
        default = next((entry["id"] for entry in self._models if entry["default"]), None)
        given = {"model": self._given_model or default, **parameters}
        defaults = self._entry("model", given["model"])["defaults"]
        request = request_for(defaults=defaults, **given)
        if image_size is not None:
            request = follow_image(request, image_size, given, defaults)
        if request.image_model is None:
            return request
        return for_image_model(
            request, request.image_model, self._entry("image_model", request.image_model)["defaults"]
        )

    def _entry(self, parameter: str, name: str) -> dict[str, Any]:
        kinds = ("video" if parameter == "model" else "image_model", None)
        offered = {entry["id"]: entry for entry in self._models if entry["kind"] in kinds}
        if name not in offered:
            names = ", ".join(offered)
            raise InvalidRequest(f"{parameter} {name!r} is not offered by the server; use one of {names}", parameter)
        return offered[name]

    def open(self, keys: Collection[str]) -> AbstractContextManager[object]:  # noqa: ARG002 - jobs of others stay
        """Do nothing: the server runs."""
        return nullcontext()

    def submit(self, item: BatchItem, image: bytes | None, last_image: bytes | None) -> str:
        """Submit an item, or find its job by its key; delete a failed job and submit the item again.

        Raises:
            InvalidRequest, InvalidImage: the server rejects the item.
            Busy: the queue is full, or the server does not answer.
        """
        video = self._submit(item, image, last_image)
        if video["status"] == "failed":
            self._call("DELETE", f"/v1/videos/{video['id']}")
            video = self._submit(item, image, last_image)
        self._add(video)
        return str(video["id"])

    def _submit(self, item: BatchItem, image: bytes | None, last_image: bytes | None) -> dict[str, Any]:
        headers = {"Idempotency-Key": item.key}
        fields = {name: str(value) for name, value in item.request.model_dump(exclude_none=True).items()}
        body: dict[str, Any] = {"data": fields | {"title": item.name}}
        images = {"input_reference": image, "last_image": last_image}
        if files := {name: (item.name, data) for name, data in images.items() if data is not None}:
            body["files"] = files
        return self._video(self._call("POST", "/v1/videos", headers=headers, **body))

    def finished(self, job_ids: Collection[str]) -> list[FinishedJob]:
        """Ask for the jobs that are due; return those that are finished."""
        waiting = [job_id for job_id in job_ids if job_id not in self._finished]
        next_due = min((self._due[job_id] for job_id in waiting), default=math.inf)
        if len(waiting) == len(job_ids):
            time.sleep(min(1.0, max(0.0, next_due - time.monotonic())))
        for job_id in waiting:
            if self._due[job_id] <= time.monotonic():
                try:
                    self._add(self._video(self._call("GET", f"/v1/videos/{job_id}")))
                except Busy as busy:
                    time.sleep(min(busy.seconds, 1.0))
                    break
                except JobNotFound:
                    failure = Failure(JobNotFound.code, "the job was deleted on the server; run the command again")
                    self._finished[job_id] = FinishedJob(job_id, None, failure)
        return [self._finished[job_id] for job_id in job_ids if job_id in self._finished]

    def problems(self) -> list[str]:
        """Return why the server does not answer, once."""
        before, self._reported = self._reported, self._problem
        return [self._problem] if self._problem is not None and self._problem != before else []

    def save(self, job_id: str, path: Path) -> None:
        """Download a completed job's video to a new file."""

        def download(response: httpx.Response) -> None:
            try:
                with path.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            except OSError as error:
                raise write_error(path, error) from None

        self._call("GET", f"/v1/videos/{job_id}/content", read=download)

    def forget(self, job_id: str) -> None:
        """Forget a finished job; it stays on the server until it expires."""
        self._finished.pop(job_id, None)
        self._due.pop(job_id, None)

    def _add(self, video: dict[str, Any]) -> None:
        """Store the state of a job."""
        job_id = str(video["id"])
        self._due[job_id] = time.monotonic() + video["poll_after"]
        if video["status"] in ("completed", "failed"):
            error = video["error"]
            failure = None if error is None else Failure(error["code"], error["message"])
            seconds = sum(video["stage_durations"].values()) or None
            self._finished[job_id] = FinishedJob(job_id, seconds, failure)

    def _video(self, response: httpx.Response) -> dict[str, Any]:
        try:
            video: dict[str, Any] = response.json()
            video["poll_after"] = int(response.headers.get("openai-poll-after-ms", 1000)) / 1000
            _ = video["id"], video["status"], video["error"], video["stage_durations"]
        except (ValueError, LookupError, TypeError):
            raise self._no_kinema() from None
        return video

    def _call(
        self, method: str, path: str, *, read: Callable[[httpx.Response], None] | None = None, **options: Any
    ) -> httpx.Response:
        """Send a request; return the response, after `read` has read its body.

        Raises:
            Busy: the server does not answer now, or its queue is full.
            ServerUnreachable: it has not answered at all, or not for `GIVE_UP_SECONDS`.
            KinemaError: the server rejects the request.
        """
        try:
            with self._client.stream(method, path, **options) as response:
                if response.is_success and read is not None:
                    read(response)
                else:
                    response.read()
        except httpx.HTTPError as error:
            raise self._not_answered(str(error) or type(error).__name__, is_first=self._last_answer is None) from None
        if response.status_code in _RETRIED and response.status_code != 429:
            raise self._not_answered(_message(response), after=response.headers.get("Retry-After"))
        self._last_answer = time.monotonic()
        if response.status_code == 429:
            self._problem = None
            raise Busy(_seconds(response.headers.get("Retry-After"), 5.0))
        self._pause, self._problem = 0.0, None
        if not response.is_success:
            raise self._error(response)
        return response

    def _not_answered(
        self, reason: str, *, is_first: bool = False, after: str | None = None
    ) -> Busy | ServerUnreachable:
        """Return when to try again, or the error that ends the run."""
        now = time.monotonic()
        if is_first or now - (self._last_answer or now) > GIVE_UP_SECONDS:
            return ServerUnreachable(
                f"the server {self._url} does not answer ({reason}); check the URL and the server, then run the same "
                "command again"
            )
        self._last_answer = self._last_answer or now
        self._problem = f"the server {self._url} does not answer ({reason}); trying again"
        self._pause = min(MAX_PAUSE, max(1.0, 2 * self._pause))
        return Busy(_seconds(after, self._pause))

    def _error(self, response: httpx.Response) -> Exception:
        """Return the error for a rejected request."""
        try:
            error = response.json()["error"]
            code, message, param = error["code"], error["message"], error.get("param")
        except (ValueError, LookupError, TypeError):
            return self._no_kinema(f" (status {response.status_code})")
        if response.status_code in (401, 403):
            return InvalidRequest(f"the server rejects the request: {message}; see --api-key", "api_key")
        if response.status_code == 404:
            return JobNotFound(message)
        if response.status_code == 507:
            return InsufficientDisk(f"the server has not enough disk space or memory: {message}")
        kind = {InvalidImage.code: InvalidImage, ContentRefused.code: ContentRefused}.get(code, InvalidRequest)
        return kind(message, param)

    def _no_kinema(self, detail: str = "") -> InvalidRequest:
        return InvalidRequest(f"{self._url} does not answer as a Kinema server{detail}; check --server", "server")


def _message(response: httpx.Response) -> str:
    """Return the message of an error response."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"status {response.status_code}"


def _seconds(header: str | None, default: float) -> float:
    """Return the seconds of a Retry-After header, at most `MAX_PAUSE`."""
    try:
        return min(MAX_PAUSE, max(0.5, float(header or default)))
    except ValueError:  # a date
        return default
