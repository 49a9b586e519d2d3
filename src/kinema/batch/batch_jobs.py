"""Who makes the videos of a batch: the protocol of a queue or a server, and the loop that runs the items through it."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kinema.batch.batch_folder import foreign_file
from kinema.batch.batch_items import Outcome
from kinema.errors import IdempotencyKeyReused, InvalidImage, InvalidRequest, JobNotFound, KinemaError, VideoError
from kinema.jobs.job import Failure
from kinema.media.image import read_image_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from kinema.batch.batch_folder import BatchFolder, FileState
    from kinema.batch.batch_items import BatchItem
    from kinema.values import VideoRequest

# Errors of one item; others, such as a full disk, would fail every item and end the run.
_ITEM_ERRORS = (InvalidRequest, InvalidImage, IdempotencyKeyReused, JobNotFound, VideoError)


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A job that is completed or failed; `seconds` is the time of its stages."""

    id: str
    seconds: float | None
    error: Failure | None


class Busy(Exception):
    """The server accepts no call now; repeat it after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class BatchJobs(Protocol):
    """A queue that makes videos. Jobs survive the process; an item's key finds its job again."""

    window: int
    """How many jobs to submit at most before the first is finished."""
    file_options: tuple[str, ...]
    """What it does to the files beside the requests, such as "watermark"; files of a run with others are replaced."""

    def complete(self, parameters: Mapping[str, Any], image_size: tuple[int, int] | None = None) -> VideoRequest:
        """Return the complete request for given parameters, with the defaults of its models.

        `image_size` is the upright size of the image; None for a prompt or if the image is not readable.
        """

    def open(self, keys: Collection[str]) -> AbstractContextManager[object]:
        """Run jobs within the context; those of earlier runs with other keys are not needed any more."""

    def submit(self, item: BatchItem, image: bytes | None, last_image: bytes | None) -> str:
        """Submit an item unless its job exists, and return the job's id. A failed job is tried again.

        Raises:
            Busy: no more jobs are accepted at the moment.
        """

    def finished(self, job_ids: Collection[str]) -> Sequence[FinishedJob]:
        """Wait up to a second; return jobs that are finished, until `forget` is called for them."""

    def problems(self) -> Sequence[str]:
        """Return why there is no progress at the moment, each reason once."""

    def save(self, job_id: str, path: Path) -> None:
        """Write a completed job's video to a new file.

        Raises:
            Busy: the transfer failed; try again.
        """

    def forget(self, job_id: str) -> None:
        """Forget a finished job whose video is saved, or that failed."""


def run_items(items: Sequence[BatchItem], folder: BatchFolder, jobs: BatchJobs) -> Iterator[Outcome | str]:
    """Make the videos that are missing; yield the outcome of each item as soon as it is known, and warnings as text.

    Items with the same key share a job. To stop, close the generator; a later run continues.
    """
    waiting: deque[list[BatchItem]] = deque()
    by_key: dict[str, list[BatchItem]] = defaultdict(list)
    for item in items:
        state = folder.state(item.file)
        if state.key == item.key:
            yield _completed(item, state.seconds, is_earlier=True)
        elif state.kind == "foreign":
            yield _failed(item, foreign_file(folder.path / item.file))
        else:
            by_key[item.key].append(item)
    for key, group in by_key.items():
        if (found := folder.find(key)) is None:
            waiting.append(group)
        else:
            yield from _copy_earlier(group, *found, folder)
    if waiting:
        with jobs.open({group[0].key for group in waiting}):
            yield from _run_jobs(waiting, folder, jobs)


def _copy_earlier(group: list[BatchItem], path: Path, state: FileState, folder: BatchFolder) -> Iterator[Outcome]:
    """Copy a video that an earlier run made under another name."""
    for item in group:
        try:
            folder.place(folder.copy(path), item.file, item.key, state.seconds)
            yield _completed(item, state.seconds, is_earlier=True)
        except VideoError as error:
            yield _failed(item, error)


def _run_jobs(waiting: deque[list[BatchItem]], folder: BatchFolder, jobs: BatchJobs) -> Iterator[Outcome | str]:
    running: dict[str, list[BatchItem]] = {}
    not_before = 0.0  # time of the next submission
    while waiting or running:
        while waiting and len(running) < jobs.window and time.monotonic() >= not_before:
            try:
                item = waiting[0][0]
                image = _checked_image(item.image, item.image_sha256)
                last_image = _checked_image(item.last_image, item.last_image_sha256)
                running[jobs.submit(item, image, last_image)] = waiting[0]
                waiting.popleft()
            except Busy as busy:
                not_before = time.monotonic() + busy.seconds
            except _ITEM_ERRORS as error:
                yield from (_failed(item, error) for item in waiting.popleft())
        finished = jobs.finished(running)
        yield from jobs.problems()
        for job in finished:
            try:
                outcomes = [_outcome(item, job, folder, jobs) for item in running[job.id]]
            except Busy:
                continue  # it is returned again
            del running[job.id]
            if any(outcome.status == "completed" for outcome in outcomes) or job.error is not None:
                jobs.forget(job.id)
            yield from outcomes


def _outcome(item: BatchItem, job: FinishedJob, folder: BatchFolder, jobs: BatchJobs) -> Outcome:
    if job.error is not None:
        return Outcome(item.source, item.name, item.request.seed, "failed", error=job.error)
    partial = folder.partial_file()
    try:
        jobs.save(job.id, partial)
        folder.place(partial, item.file, item.key, job.seconds)
    except _ITEM_ERRORS as error:
        return _failed(item, error)
    finally:
        partial.unlink(missing_ok=True)
    return _completed(item, job.seconds)


def _checked_image(path: Path | None, sha256: str | None) -> bytes | None:
    """Read and decode an item's image, if it has one; return the bytes of its file.

    Raises:
        InvalidImage: it is not usable, or has changed since its hash was computed.
    """
    if path is None:
        return None
    encoded = read_image_file(path)
    if hashlib.sha256(encoded.data).hexdigest() != sha256:
        raise InvalidImage(f"{path} has changed since the start; run the command again")
    encoded.decode()
    return encoded.data


def _completed(item: BatchItem, seconds: float | None, *, is_earlier: bool = False) -> Outcome:
    return Outcome(item.source, item.name, item.request.seed, "completed", item.file, seconds, is_earlier=is_earlier)


def _failed(item: BatchItem, error: KinemaError) -> Outcome:
    return Outcome(item.source, item.name, item.request.seed, "failed", error=Failure(error.code, str(error)))
