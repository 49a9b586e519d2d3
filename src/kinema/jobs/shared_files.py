"""The queue's files in a store that several servers share; the data folder has working files and copies only."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from kinema.errors import InsufficientDisk, InvalidRequest, QueueUnavailable
from kinema.jobs.bucket_store import BucketStore, is_refusal, remedy_for
from kinema.jobs.file_store import FolderStore, store_unavailable
from kinema.jobs.job import PART_FILES
from kinema.jobs.job_files import JOB_ID, PREVIEW, SIGNED_PREFIX, JobFiles, atomic_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from kinema.jobs.file_store import FileStore, StoredFile

log = logging.getLogger(__name__)

VIDEO = PART_FILES["video"]
ID_NAME = "database-id"
_INPUT = "input"
_LAST_INPUT = "last-input"
# After this time an input image whose job was never stored is deleted. No submission takes so long.
ORPHAN_SECONDS = 86_400.0
# Copies of files of batches are kept for so long after their last use.
COPY_SECONDS = 86_400.0


def open_store(url: str) -> FileStore:
    """Return the store of a URL: s3://BUCKET/PREFIX or file:///FOLDER.

    Raises:
        InvalidRequest: the folder can't be used, or the library for S3 is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return BucketStore(parts.netloc, unquote(parts.path).strip("/"))
    return FolderStore(Path(unquote(parts.path)))


class SharedFiles(JobFiles):
    """The files in a store, below these names.

        jobs/<id>/input        the input image, uploaded or generated
        jobs/<id>/last-input   the image at which the video ends, if there is one
        jobs/<id>/video.mp4    the video, which is there before the job is completed
        jobs/<id>/signed-…     its signed copy, which is made at the first download
        jobs/<id>/preview.jpg  the latest preview of a running job
        files/<id>.jsonl       the requests and results of a batch
        database-id            id of the database that contains these jobs

    Each job has its own copy of its image, so that the deletion of a job needs no lock that all servers share. The
    folder `cache` of the data folder has the same layout as a data folder without a store.

    Attributes:
        url: The store's URL.

    Raises:
        InvalidRequest: the store refuses: the bucket or the credentials are wrong.
        QueueUnavailable: the store does not answer, or the data folder can't be used.
    """

    is_shared = True

    def __init__(self, root: Path, store: FileStore) -> None:
        super().__init__(root, within="cache")
        self.url = store.url
        self.location = f"store {store.url}"
        self.problem: str | None = None
        self._store = store
        self._expected_id: str | None = None  # what the store contains since this process was bound to it
        self._previews = _PreviewSender(store)
        try:
            self.store_id()
        except QueueUnavailable as error:
            reason = str(getattr(error.args[0], "values", {}).get("reason", error))
            message = f"the store {store.url} (KINEMA_STORE) can't be used: {remedy_for(reason)}"
            if is_refusal(reason):
                raise InvalidRequest(message, "store") from None
            raise QueueUnavailable(message) from None

    def close(self) -> None:
        """Stop to send previews."""
        self._previews.close()

    @contextlib.contextmanager
    def _noting_problem(self) -> Iterator[None]:
        try:
            yield
        except QueueUnavailable as error:
            if str(error) != self.problem:
                log.warning("%s: %s", self.location, error)
            self.problem = str(error)
            raise
        self.problem = None

    def check_store(self) -> None:
        """Check that the store answers and is the one of the start, not an empty folder without its mount.

        Raises:
            QueueUnavailable: it is not.
        """
        found = self.store_id()
        if self._expected_id not in (None, found):
            with self._noting_problem():
                raise store_unavailable("it was emptied or replaced")

    # The store's binding

    def store_id(self) -> str | None:
        """Return the id of the database that the store belongs to, or None if it belongs to none yet."""
        with self._noting_problem():
            try:
                return b"".join(self._store.read(ID_NAME)).decode("ascii", "replace").strip() or None
            except FileNotFoundError:
                return None

    def set_store_id(self, database_id: str) -> None:
        """Store the id of the database. If another process was faster, `store_id` returns its id."""
        with self._noting_problem(), contextlib.suppress(FileExistsError):
            self._store.put(ID_NAME, f"{database_id}\n".encode(), new=True)

    def expect_store_id(self, database_id: str) -> None:
        """Note the id that `check_store` expects."""
        self._expected_id = database_id

    def ids_in_store(self) -> set[str]:
        """Return the ids of all jobs that have files in the store."""
        with self._noting_problem():
            return {_job_of(found) or found.name for found in self._store.list("jobs/")}

    # Images

    @contextlib.contextmanager
    def add_images(
        self, job_id: str, image: bytes | None, last_image: bytes | None = None
    ) -> Iterator[tuple[str | None, str | None]]:
        """Store the images of a job and yield their SHA-256; None for no image. Then store the job within the context.

        If storing the job fails or the process dies, a sweep deletes the images after a day.

        Raises:
            QueueUnavailable: the store does not answer, also if there is no image.
        """
        self.check_store()
        for name, data in ((_INPUT, image), (_LAST_INPUT, last_image)):
            if data is not None:
                with self._noting_problem():
                    self._store.put(f"jobs/{job_id}/{name}", data)
        yield _sha256(image), _sha256(last_image)

    def find_image(self, sha256: str, job_id: str | None, *, is_last: bool = False) -> Path | None:
        """Return the copy of a job's image in the cache, which is fetched if necessary; None if it is missing."""
        path, name = self.image(sha256), _LAST_INPUT if is_last else _INPUT
        if not _touch(path) and (job_id is None or not self._fetch(f"jobs/{job_id}/{name}", path, sha256)):
            return None
        return path

    def delete_inputs(self, job_id: str) -> bool:
        """Delete the images of a job from the store; return whether that succeeded."""
        return self._delete(job_id, _INPUT, _LAST_INPUT)

    # Videos

    def publish_video(self, job_id: str) -> None:
        """Upload the video of a job. It is visible to all servers once this returns."""
        self.check_store()
        with self._noting_problem():
            self._store.put(f"jobs/{job_id}/{VIDEO}", self.job(job_id) / VIDEO)

    def find_video(self, job_id: str) -> Path:
        """Return the path of a video in the cache, and fetch it if necessary. The file may not exist."""
        path = self.job(job_id) / VIDEO
        if path.exists():
            _touch(path.parent)
        elif self._store.size(f"jobs/{job_id}/{VIDEO}") is not None:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            self._fetch(f"jobs/{job_id}/{VIDEO}", path)
        return path

    def find_signed(self, job_id: str, name: str) -> Path | None:
        """Return the path of a signed copy in the cache, fetched if the store answers and has it; else None."""
        path = self.job(job_id) / name
        with contextlib.suppress(QueueUnavailable):
            return path if path.exists() or self._fetch(f"jobs/{job_id}/{name}", path) else None
        return None

    def add_signed(self, job_id: str, name: str, data: bytes) -> Path:
        """Store a signed copy here and, if it answers, in the store. If another server was faster, use its copy."""
        try:
            with contextlib.suppress(QueueUnavailable), self._noting_problem():
                self._store.put(f"jobs/{job_id}/{name}", data, new=True)
        except FileExistsError:
            if (path := self.find_signed(job_id, name)) is not None:
                return path
        return super().add_signed(job_id, name, data)

    def video_address(self, job_id: str, name: str, seconds: int) -> str | None:
        """Return a URL from which anyone can read a file of a job for so long, or None.

        None if the store has no URLs or, of signed copies, not this one.
        """
        if name != VIDEO and self._store.size(f"jobs/{job_id}/{name}") is None:
            return None
        return self._store.address(f"jobs/{job_id}/{name}", seconds)

    def _fetch(self, name: str, path: Path, sha256: str | None = None) -> bool:
        """Copy a file of the store into the cache, completely or not at all; return whether it exists."""
        digest = hashlib.sha256()
        with self._noting_problem(), contextlib.suppress(_Unsuitable), atomic_file(path) as partial:
            partial.touch(mode=0o600)
            with partial.open("wb") as file:
                for chunk in self._chunks(name):
                    digest.update(chunk)
                    file.write(chunk)
            if sha256 is not None and digest.hexdigest() != sha256:
                log.warning("%s in the %s is not the image of its job", name, self.location)
                raise _Unsuitable
            return True
        return False

    def _chunks(self, name: str) -> Iterator[bytes]:
        try:
            yield from self._store.read(name)
        except FileNotFoundError:
            raise _Unsuitable from None

    # Files of batches

    def publish_batch_file(self, name: str) -> None:
        """Upload a file of a batch. It is visible to all servers once this returns."""
        self.check_store()
        with self._noting_problem():
            self._store.put(f"files/{name}", self.batch_files / name)

    def find_batch_file(self, name: str) -> Path:
        """Return the path of the copy of a file of a batch, which is fetched if necessary. It may not exist."""
        path = super().find_batch_file(name)
        if not _touch(path):
            path.parent.mkdir(exist_ok=True, mode=0o700)
            self._fetch(f"files/{name}", path)
        return path

    def delete_batch_file(self, name: str) -> None:
        """Delete a file of a batch here and in the store."""
        super().delete_batch_file(name)
        self.check_store()
        with self._noting_problem():
            self._store.delete([f"files/{name}"])

    def list_batch_files(self) -> list[tuple[str, float]]:
        """Return the files of batches in the store. Copies that were not used lately are deleted."""
        for name, used_at in super().list_batch_files():
            if used_at < time.time() - COPY_SECONDS:
                super().delete_batch_file(name)
        with self._noting_problem():
            return [(found.name.removeprefix("files/"), found.modified) for found in self._store.list("files/")]

    # Previews

    def publish_preview(self, job_id: str, data: bytes) -> None:
        """Send a preview to the store soon, unless a newer one comes first. Failures are ignored."""
        self._previews.send(f"jobs/{job_id}/{PREVIEW}", data)

    def find_preview(self, job_id: str) -> bytes | None:
        """Return the latest preview of a job that this or another server runs, or None."""
        if (preview := super().find_preview(job_id)) is not None:
            return preview
        with contextlib.suppress(FileNotFoundError, QueueUnavailable):
            return b"".join(self._store.read(f"jobs/{job_id}/{PREVIEW}"))
        return None

    def delete_preview(self, job_id: str) -> None:
        """Delete the preview of a job."""
        super().delete_preview(job_id)
        self._previews.forget(f"jobs/{job_id}/{PREVIEW}")
        self._delete(job_id, PREVIEW)

    # Deletion

    def delete_job(self, job_id: str) -> bool:
        """Delete video, signed copies and preview of a job here and in the store; return whether that succeeded."""
        super().delete_job(job_id)
        self._previews.forget(f"jobs/{job_id}/{PREVIEW}")
        try:
            with self._noting_problem():
                names = [found.name.rpartition("/")[2] for found in self._store.list(f"jobs/{job_id}/")]
        except QueueUnavailable as error:
            log.warning("files of job %s can't be deleted now: %s", job_id, error, extra={"repeats": True})
            return False
        return self._delete(job_id, VIDEO, PREVIEW, *(name for name in names if name.startswith(SIGNED_PREFIX)))

    def _delete(self, job_id: str, *names: str) -> bool:
        try:
            self.check_store()
            with self._noting_problem():
                self._store.delete([f"jobs/{job_id}/{name}" for name in names])
        except QueueUnavailable as error:
            log.warning("files of job %s can't be deleted now: %s", job_id, error, extra={"repeats": True})
            return False
        return True

    def sweep(self, known_jobs: Collection[str], used_images: Collection[str]) -> list[str]:  # noqa: ARG002
        """Finish interrupted deletions and return the files of the store that the database does not know.

        Deleted are other files of unknown jobs without a video, after a day: such a job was deleted or never stored.
        """
        self.finish_deletions()  # the cache has no files of its own to report
        by_job: dict[str, list[StoredFile]] = {}
        unknown = []
        with self._noting_problem():
            for found in self._store.list("jobs/"):
                if (job_id := _job_of(found)) and job_id not in known_jobs:
                    by_job.setdefault(job_id, []).append(found)
                elif not job_id:
                    unknown.append(found.name)
            oldest = time.time() - ORPHAN_SECONDS
            for files in by_job.values():
                names = {found.name.rpartition("/")[2] for found in files} - {_INPUT, _LAST_INPUT, PREVIEW}
                if any(not name.startswith(SIGNED_PREFIX) for name in names):
                    unknown += [found.name for found in files]
                elif all(found.modified < oldest for found in files):
                    self._store.delete([found.name for found in files])
        return sorted(unknown)

    # The cache

    def trim_cache(
        self, maximum: float, unused_seconds: float, protected: Collection[str], known: Callable[[list[str]], set[str]]
    ) -> None:
        """Delete copies that nobody uses.

        These are all images, the videos of deleted jobs, and the longest unused videos above `maximum` bytes.

        Args:
            maximum: The size of the cache in bytes.
            unused_seconds: Copies that were used since are kept.
            protected: Ids and images of running jobs, whose files are kept.
            known: Returns which ids are those of jobs.
        """
        oldest = time.time() - unused_seconds
        for path in self.images.iterdir():
            if path.name not in protected and _last_use(path) < oldest:
                path.unlink(missing_ok=True)
        folders = sorted((path for path in self.jobs.iterdir() if JOB_ID.fullmatch(path.name)), key=_last_use)
        existing = known([path.name for path in folders])
        total = sum(map(_size, folders))
        for path in folders:
            if path.name in protected or _last_use(path) >= oldest:
                continue
            if path.name not in existing or total > maximum:
                total -= _size(path)
                super().delete_job(path.name)


class _Unsuitable(Exception):
    """A file of the store is missing, or is not the right one."""


class _PreviewSender:
    """A thread that uploads the latest preview of each job. It starts with the first one."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._waiting: dict[str, bytes] = {}
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def send(self, name: str, data: bytes) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._waiting[name] = data
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kinema-previews", daemon=True)
                self._thread.start()
            self._lock.notify()

    def forget(self, name: str) -> None:
        with self._lock:
            self._waiting.pop(name, None)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._waiting.clear()
            self._lock.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._is_closed:
                    self._lock.wait()
                if self._is_closed:
                    return
                name = next(iter(self._waiting))
                data = self._waiting.pop(name)
            try:
                self._store.put(name, data)
            except (QueueUnavailable, InsufficientDisk) as error:
                log.info("a preview was not stored: %s", error)


def _sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def _job_of(found: StoredFile) -> str:
    """Return the id of the job that a file belongs to, or an empty string."""
    parts = found.name.split("/")
    return parts[1] if len(parts) == 3 and parts[0] == "jobs" and JOB_ID.fullmatch(parts[1]) else ""


def _touch(path: Path) -> bool:
    """Note the use of a copy; return whether it exists."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0
