"""The queue's files on disk: images by content hash, and the output files of each job. All writes are atomic.

Only the server's user can read them. Kinema deletes only files that it wrote.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from typing import TYPE_CHECKING

from kinema.errors import InsufficientDisk, QueueUnavailable
from kinema.jobs.job import PART_FILES
from kinema.messages import Message
from kinema.partial_files import PATTERN as PARTIAL_FILE
from kinema.partial_files import PREFIX as PARTIAL_PREFIX
from kinema.partial_files import partial_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from typing import IO

log = logging.getLogger(__name__)

GIGABYTE = 1_000_000_000
PREVIEW = "preview.jpg"
# Of the names of signed copies of videos, which can be made again.
SIGNED_PREFIX = "signed-"
# Prefix of the marker of an image whose job is not stored yet.
_PENDING_PREFIX = ".pending-"
JOB_ID = re.compile(r"video_[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PENDING_IMAGE = re.compile(re.escape(_PENDING_PREFIX) + r"[0-9a-f]{64}")
_DELETED = re.compile(r"\.deleted-[0-9a-f]{8}-video_[0-9a-f]{32}")
# Names that Kinema or the file system creates at the top of a data folder.
_TOP_LEVEL = re.compile(
    r"images|jobs|cache|credentials|files|drafts|gradio|trash|\.lock|\.scheduler|database-id|jobs\.sqlite3([.-].*)?|lost\+found"
    r"|\.part-.*"
)


class JobFiles:
    """The files in one data folder.

        images/<sha256>           input images, uploaded or generated
        jobs/<id>/video.mp4 …     output files, and latents while a job runs
        files/                    files of batches (`kinema.jobs.batch_files`)
        drafts/, gradio/          used by the web page: uploaded images, and Gradio's own files
        database-id               id of the database that contains these jobs

    Raises:
        QueueUnavailable: the folder can't be created or written to.

    Attributes:
        is_shared: Whether the files are in a store that other servers use (`kinema.jobs.shared_files`).
        location: Where the files are, for messages.
        problem: Why the store can't be used at the moment, or None.

    Args:
        root: The data folder.
        within: The folder in it that contains `images` and `jobs`.
    """

    is_shared = False

    def __init__(self, root: Path, within: str = "") -> None:
        self.root = root.expanduser().resolve()  # of a symbolic link, the target becomes private
        self.location = f"data folder {self.root}"
        self.problem: str | None = None
        self.images = self.root / within / "images"
        self.jobs = self.root / within / "jobs"
        self.drafts = self.root / "drafts"
        self.gradio = self.root / "gradio"
        self.id_file = self.root / "database-id"
        # Locked by the process that runs the jobs of this folder; contains the folder's own id.
        self.scheduler_lock = self.root / ".scheduler"
        self._lock = self.root / ".lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.images, self.jobs):
                folder.parent.mkdir(exist_ok=True, mode=0o700)
                folder.mkdir(exist_ok=True, mode=0o700)
            for lock in (self._lock, self.scheduler_lock):
                lock.touch(mode=0o600)
        except OSError as error:
            raise QueueUnavailable(
                f"the data folder {self.root} can't be used ({error.strerror}); "
                "set KINEMA_DATA_DIR to a folder that can be written to"
            ) from None

    @property
    def batch_files(self) -> Path:
        """The folder of the files of batches, or of copies of them. It may not exist."""
        return self.images.with_name("files")

    def publish_batch_file(self, name: str) -> None:
        """Make a new file in `batch_files` available to all servers."""

    def find_batch_file(self, name: str) -> Path:
        """Return the path of a file of a batch, which may not exist."""
        return self.batch_files / name

    def delete_batch_file(self, name: str) -> None:
        """Delete a file of a batch if it exists."""
        (self.batch_files / name).unlink(missing_ok=True)

    def list_batch_files(self) -> list[tuple[str, float]]:
        """Return the name of each file of a batch, and when it was written, in seconds since 1970."""
        if not self.batch_files.is_dir():
            return []
        return [(path.name, path.stat().st_mtime) for path in self.batch_files.iterdir()]

    def close(self) -> None:
        """Stop background work."""

    def check_store(self) -> None:
        """Check that the store answers, if the files are in one.

        Raises:
            QueueUnavailable: it does not.
        """

    def make_private(self) -> None:
        """Remove other users' access to all files that Kinema wrote here, including those of earlier versions.

        A folder that also contains other files keeps its mode. For a symbolic link, this applies to its target.
        """
        own = [self.id_file, self._lock, self.scheduler_lock]
        for folder in (self.images, self.jobs, self.drafts, self.gradio):
            if folder.is_dir():
                own += _own_files(folder)
                if not folder.is_symlink() or _has_only_own_files(folder):
                    own.append(folder.resolve())
        if all(_TOP_LEVEL.fullmatch(path.name) for path in self.root.iterdir()):
            own.append(self.root)
        failed = [path for path in own if not make_private(path)]
        if failed:
            log.warning(
                "%d files in the data folder %s belong to another user and remain readable by other users, for "
                "example %s; change their owner to the server's user (chown)",
                len(failed),
                self.root,
                failed[0],
            )

    def database_id(self) -> str | None:
        """Return the id of the database that this folder belongs to, or None if it belongs to none yet."""
        try:
            return self.id_file.read_text(encoding="utf-8", errors="replace").strip() or None
        except FileNotFoundError:
            return None

    def set_database_id(self, database_id: str) -> None:
        """Store the id of the database that this folder belongs to."""
        write_atomically(self.id_file, f"{database_id}\n".encode())

    def folder_id(self) -> str:
        """Return the random id of this folder, which is created at the first call.

        Raises:
            QueueUnavailable: the folder can't be used.
        """
        with self.deletion_lock():
            try:
                if found := self.scheduler_lock.read_text(encoding="utf-8", errors="replace"):
                    return found
                created = secrets.token_hex(16)
                self.scheduler_lock.write_text(created, encoding="utf-8")
            except OSError as error:
                raise _folder_unusable(error) from None
        return created

    def stored_ids(self) -> set[str]:
        """Return the ids of all jobs that have a folder, and the hashes of all images."""
        jobs = {path.name for path in self.jobs.iterdir() if JOB_ID.fullmatch(path.name)}
        return jobs | {path.name for path in self.images.iterdir() if _SHA256.fullmatch(path.name)}

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(self._lock.open("rb"))
            except OSError as error:
                raise _folder_unusable(error) from None
            fcntl.flock(lock, kind)
            yield

    def has_scheduler(self) -> bool:
        """Return whether any process, including this one, runs the jobs of this folder.

        Raises:
            QueueUnavailable: the folder is missing.
        """
        try:
            return is_locked(self.scheduler_lock)
        except OSError as error:
            raise _folder_unusable(error) from None

    def deletion_lock(self) -> contextlib.AbstractContextManager[None]:
        """Exclude all other threads and processes from adding or deleting images."""
        return self._locked(fcntl.LOCK_EX)

    @contextlib.contextmanager
    def add_images(
        self,
        job_id: str,  # noqa: ARG002 - a store needs it
        image: bytes | None,
        last_image: bytes | None = None,
    ) -> Iterator[tuple[str | None, str | None]]:
        """Store the images of a job and yield their SHA-256; None for no image. Store the job within the context.

        No image is deleted within the context. If storing the job fails or the process dies, the next sweep deletes
        the images.
        """
        with self._locked(fcntl.LOCK_SH):
            hashes = [None if data is None else self._add_pending(data) for data in (image, last_image)]
            yield hashes[0], hashes[1]
            for sha256 in filter(None, hashes):
                self._pending(sha256).unlink(missing_ok=True)

    def _add_pending(self, data: bytes) -> str:
        """Store an image that the next sweep deletes unless a job has it or its marker is deleted; return its hash."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.image(sha256)
        try:
            with disk_errors(path):
                self._pending(sha256).touch(mode=0o600)
            if not path.exists():
                write_atomically(path, data)
        except OSError as error:
            raise _folder_unusable(error) from None
        return sha256

    def _pending(self, sha256: str) -> Path:
        return self.images / f"{_PENDING_PREFIX}{sha256}"

    def check_free_space(self, reserve_gb: float) -> None:
        """Check that at least `reserve_gb` gigabytes are free.

        Raises:
            InsufficientDisk: less is free.
            QueueUnavailable: the folder is missing.
        """
        try:
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise _folder_unusable(error) from None
        if free < reserve_gb * GIGABYTE:
            raise InsufficientDisk(
                Message(
                    "little_room",
                    "{free:.1f} GB is free in {folder}, but {reserve:g} GB must stay free (KINEMA_MIN_FREE_GB); "
                    "delete videos or free disk space",
                    free=free / GIGABYTE,
                    folder=self.root,
                    reserve=reserve_gb,
                )
            )

    def image(self, sha256: str) -> Path:
        """Return the path of the image with this hash. The file may not exist."""
        return self.images / sha256

    def find_image(
        self,
        sha256: str,
        job_id: str | None,  # noqa: ARG002 - a store needs it
        *,
        is_last: bool = False,  # noqa: ARG002 - the same
    ) -> Path | None:
        """Return the path of the image of a job, or of its last image, or None if it is missing."""
        path = self.image(sha256)
        return path if path.exists() else None

    def publish_video(self, job_id: str) -> None:
        """Make a job's video available to all servers, before the job is completed."""

    def find_video(self, job_id: str) -> Path:
        """Return the path of a completed job's video. The file may not exist."""
        return self.job(job_id) / PART_FILES["video"]

    def find_signed(self, job_id: str, name: str) -> Path | None:
        """Return the path of a signed copy of a job's video, or None."""
        path = self.job(job_id) / name
        return path if path.exists() else None

    def add_signed(self, job_id: str, name: str, data: bytes) -> Path:
        """Store a signed copy of a job's video, and return its path. One that exists already is kept."""
        path = self.job(job_id) / name
        write_once(path, data)
        return path

    def video_address(self, job_id: str, name: str, seconds: int) -> str | None:  # noqa: ARG002 - a store needs them
        """Return a URL from which anyone can read a job's video, or its signed copy, for so long, or None."""
        return None

    def publish_preview(self, job_id: str, data: bytes) -> None:
        """Make a preview, which is in the job's folder, available to all servers."""

    def find_preview(self, job_id: str) -> bytes | None:
        """Return the latest preview of a running job, or None."""
        try:
            return (self.job(job_id) / PREVIEW).read_bytes()
        except FileNotFoundError:
            return None

    def delete_preview(self, job_id: str) -> None:
        """Delete the preview of a job."""
        (self.job(job_id) / PREVIEW).unlink(missing_ok=True)

    def delete_inputs(self, job_id: str) -> bool:  # noqa: ARG002 - a store needs it
        """Delete the job's own copies of its images, if it has any; return whether that succeeded."""
        return True

    def delete_image(self, sha256: str) -> None:
        """Delete an image that no job needs."""
        self.image(sha256).unlink(missing_ok=True)

    def job(self, job_id: str) -> Path:
        """Return the folder of a job. It exists from the start of its work."""
        if not JOB_ID.fullmatch(job_id):
            raise ValueError(f"{job_id!r} is not a job id")
        return self.jobs / job_id

    def delete_job(self, job_id: str) -> bool:
        """Delete a job's folder. It is renamed first, so that a running worker process can't add files to it.

        Returns:
            Whether all files are deleted; a store may be away.
        """
        folder = self.job(job_id)
        renamed = self.jobs / f".deleted-{secrets.token_hex(4)}-{job_id}"
        try:
            folder.rename(renamed)
        except FileNotFoundError:
            return True
        except OSError:  # the disk is full
            renamed = folder
        shutil.rmtree(renamed, ignore_errors=True)
        return True

    def finish_deletions(self) -> None:
        """Delete folders of deleted jobs that a crash left."""
        for path in self.jobs.iterdir():
            if _DELETED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def sweep(self, known_jobs: Collection[str], used_images: Collection[str]) -> list[str]:
        """Finish interrupted deletions and return the entries of `jobs` and `images` that the database does not know.

        Hold `deletion_lock`. Deleted are only files that Kinema marked: folders of deleted jobs, partial files, and
        images whose job was never stored. Unknown entries are kept.

        Args:
            known_jobs: The ids of all jobs.
            used_images: The hashes of all images that they need.
        """
        for path in self.images.glob(f"{_PENDING_PREFIX}*"):
            sha256 = path.name.removeprefix(_PENDING_PREFIX)
            if _SHA256.fullmatch(sha256):
                if sha256 not in used_images:
                    self.delete_image(sha256)
                path.unlink(missing_ok=True)
        for path in self.images.iterdir():
            if PARTIAL_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        self.finish_deletions()
        unknown = [path for path in self.jobs.iterdir() if path.name not in known_jobs]
        unknown += [path for path in self.images.iterdir() if path.name not in used_images]
        return sorted(str(path.relative_to(self.root)) for path in unknown)


def try_lock(file: IO[bytes], kind: int) -> bool:
    """Lock an open file without waiting; return whether it succeeded."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Return whether any process holds an exclusive lock on a file. A missing file is not locked."""
    try:
        with path.open("rb") as file:
            return not try_lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def make_private(path: Path) -> bool:
    """Remove other users' access to a file or folder, if it exists; return False if that is not permitted."""
    try:
        mode = path.lstat().st_mode
        if mode & 0o077 and not stat.S_ISLNK(mode) and not mode & stat.S_ISVTX:
            path.chmod(stat.S_IMODE(mode) & 0o700)
    except FileNotFoundError:
        pass
    except PermissionError:
        return False
    return True


def _has_only_own_files(folder: Path) -> bool:
    """Return whether the target of a symbolic link belongs to this user and contains only files of Kinema."""
    return folder.stat().st_uid == os.geteuid() and all(_is_own_name(path.name) for path in folder.iterdir())


def _is_own_name(name: str) -> bool:
    """Return whether Kinema creates files with this name below the data folder."""
    return any(pattern.fullmatch(name) for pattern in (JOB_ID, _SHA256, PARTIAL_FILE, _DELETED, _PENDING_IMAGE))


def _own_files(folder: Path) -> Iterator[Path]:
    """Yield the files and folders that Kinema wrote in a folder, recognized by name."""
    for path in folder.iterdir():
        if _is_own_name(path.name):
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from path.iterdir()


def _folder_unusable(error: OSError) -> QueueUnavailable:
    return QueueUnavailable(
        Message("no_folder", "the server's data folder can't be used: {reason}", reason=error.strerror)
    )


def delete_partial_files(folder: Path) -> None:
    """Delete files whose writer died before it finished."""
    for path in folder.glob(f"{PARTIAL_PREFIX}*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the extension of `path`. At the end, sync the file and rename it to `path`.

    Raises:
        InsufficientDisk: the disk is full.
    """
    partial = partial_path(path, f"-{path.name}")
    try:
        with disk_errors(path):
            yield partial
            partial.chmod(0o600)
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise InsufficientDisk, which names the file, in place of the OSError of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientDisk(
                Message(
                    "disk_full",
                    "the disk is full: {file} can't be written in {folder}; delete videos or free disk space, then try "
                    "again",
                    file=path.name,
                    folder=path.parent,
                )
            ) from None
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, even if the power fails."""
    with atomic_file(path) as partial:
        partial.touch(mode=0o600)
        partial.write_bytes(data)


def write_once(path: Path, data: bytes) -> None:
    """Write a file completely or not at all. One that exists is kept, so that all who read it get the same bytes."""
    partial = partial_path(path, f"-{path.name}")
    try:
        with disk_errors(path):
            partial.touch(mode=0o600)
            partial.write_bytes(data)
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(partial)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
