"""What the queue stores on disk: images by their content, each job's products; a file is there whole or not at all.

Everything is readable by the server's user alone, and only what Kinema itself wrote is ever deleted.
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
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from typing import IO

log = logging.getLogger(__name__)

GIGABYTE = 1_000_000_000
# What is half-written hides behind this, beside where it will be.
ASIDE = ".part-"
# Stands beside an image until the job that needs it is recorded.
_PENDING = ".pending-"
_JOB_ID = re.compile(r"video_[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ASIDE = re.compile(re.escape(ASIDE) + r"[0-9a-f]{8}-.+")
_PENDING_IMAGE = re.compile(re.escape(_PENDING) + r"[0-9a-f]{64}")
_DELETED = re.compile(r"\.deleted-[0-9a-f]{8}-video_[0-9a-f]{32}")
# All that Kinema keeps at the top of a data folder, and what a file system puts there.
_OWN = re.compile(
    r"images|jobs|drafts|gradio|trash|\.lock|\.runner|database-id|jobs\.sqlite3([.-].*)?|lost\+found|\.part-.*"
)


class JobFiles:
    """The files in one data folder.

        images/<sha256>           input images, given or generated
        jobs/<id>/video.mp4 …     products, and latents while a job runs
        drafts/, gradio/          the page's: images that were given, and Gradio's own files
        database-id               the id of the database that knows these jobs

    Raises:
        QueueUnavailable: where the folder can't be made or written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()  # where it is a link, the folder itself is closed to others
        self.images = self.root / "images"
        self.jobs = self.root / "jobs"
        self.drafts = self.root / "drafts"
        self.gradio = self.root / "gradio"
        self.id_file = self.root / "database-id"
        self.runner = self.root / ".runner"  # locked by the process that runs the jobs here
        self._lock = self.root / ".lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.images, self.jobs):
                folder.mkdir(exist_ok=True, mode=0o700)
            for lock in (self._lock, self.runner):
                lock.touch(mode=0o600)
        except OSError as error:
            raise QueueUnavailable(
                f"the data folder {self.root} can't be used ({error.strerror}); set KINEMA_DATA_DIR to one that can"
            ) from None

    def make_private(self) -> None:
        """Take the access of other users away from all that Kinema wrote here, also from what was there before.

        A folder that also holds other things keeps its own mode: it is not Kinema's alone. Where one of Kinema's is a
        link, that holds for the folder it leads to.
        """
        ours = [self.id_file, self._lock, self.runner]
        for folder in (self.images, self.jobs, self.drafts, self.gradio):
            if folder.is_dir():
                ours += _below(folder)
                if not folder.is_symlink() or _may_close(folder):
                    ours.append(folder.resolve())
        if all(_OWN.fullmatch(path.name) for path in self.root.iterdir()):
            ours.append(self.root)
        refused = [path for path in ours if not make_private(path)]
        if refused:
            log.warning(
                "%d files of the data folder %s belong to another user and stay readable to others, %s for one; "
                "give them to the user of the server (chown)",
                len(refused),
                self.root,
                refused[0],
            )

    def database_id(self) -> str | None:
        """The id of the database that this folder belongs to, None where it belongs to none yet."""
        try:
            return self.id_file.read_text(encoding="utf-8", errors="replace").strip() or None
        except FileNotFoundError:
            return None

    def set_database_id(self, database_id: str) -> None:
        """Bind this folder to a database."""
        write(self.id_file, f"{database_id}\n".encode())

    def held(self) -> set[str]:
        """The ids of all jobs that have a folder here, and the hashes of all images."""
        jobs = {path.name for path in self.jobs.iterdir() if _JOB_ID.fullmatch(path.name)}
        return jobs | {path.name for path in self.images.iterdir() if _SHA256.fullmatch(path.name)}

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            try:
                lock = held.enter_context(self._lock.open("rb"))
            except OSError as error:
                raise _gone(error) from None
            fcntl.flock(lock, kind)
            yield

    def has_runner(self) -> bool:
        """Whether any process, this one or another, runs the jobs in this folder.

        Raises:
            QueueUnavailable: where the folder is gone.
        """
        try:
            return is_locked(self.runner)
        except OSError as error:
            raise _gone(error) from None

    def deleting(self) -> contextlib.AbstractContextManager[None]:
        """Alone, of all threads and processes, in deciding which images are needed."""
        return self._locked(fcntl.LOCK_EX)

    @contextlib.contextmanager
    def adding(self, data: bytes | None) -> Iterator[str | None]:
        """Store an image, and give its SHA-256, while the job that needs it is recorded and no one deletes.

        Where recording fails, or everything dies before it, the next sweep deletes the image again.
        """
        with self._locked(fcntl.LOCK_SH):
            if data is None:
                yield None
                return
            sha256 = hashlib.sha256(data).hexdigest()
            path, pending = self.image(sha256), self.images / f"{_PENDING}{sha256}"
            try:
                with disk_errors(path):
                    pending.touch(mode=0o600)
                if not path.exists():
                    write(path, data)
            except OSError as error:
                raise _gone(error) from None
            yield sha256
            pending.unlink(missing_ok=True)

    def check_room(self, reserve_gb: float) -> None:
        """Refuse new work while less than the reserve is free.

        Raises:
            InsufficientDisk: with what is free and what must be.
            QueueUnavailable: where the folder is gone.
        """
        try:
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise _gone(error) from None
        if free < reserve_gb * GIGABYTE:
            raise InsufficientDisk(
                Message(
                    "little_room",
                    "{free:.1f} GB are free in {folder}, and {reserve:g} must stay free (KINEMA_MIN_FREE_GB): "
                    "delete videos, or make room",
                    free=free / GIGABYTE,
                    folder=self.root,
                    reserve=reserve_gb,
                )
            )

    def image(self, sha256: str) -> Path:
        """Where an image with this hash is stored, if it is there."""
        return self.images / sha256

    def drop_image(self, sha256: str) -> None:
        """Delete an image that no job needs."""
        self.image(sha256).unlink(missing_ok=True)

    def job(self, job_id: str) -> Path:
        """A job's folder, which is there once its work began."""
        if not _JOB_ID.fullmatch(job_id):
            raise ValueError(f"{job_id!r} is no job's id")
        return self.jobs / job_id

    def drop_job(self, job_id: str) -> None:
        """Delete all that a job made: first out of sight, so that nothing more can appear in it, then from the disk."""
        folder = self.job(job_id)
        gone = self.jobs / f".deleted-{secrets.token_hex(4)}-{job_id}"
        try:
            folder.rename(gone)
        except FileNotFoundError:
            return
        except OSError:  # no room for another name
            gone = folder
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self, known: Collection[str], wanted: Collection[str]) -> list[str]:
        """Finish what a crash interrupted; return what is in `jobs` and `images` but in no record. Needs `deleting`.

        Deleted is only what Kinema itself marked to be: jobs' folders that were being deleted, half-written files, and
        images whose job was never recorded. Everything else is kept, whoever put it there.

        known: the ids of all jobs; wanted: the hashes of all images that they need.
        """
        for path in self.images.glob(f"{_PENDING}*"):
            sha256 = path.name.removeprefix(_PENDING)
            if _SHA256.fullmatch(sha256):
                if sha256 not in wanted:
                    self.drop_image(sha256)
                path.unlink(missing_ok=True)
        for path in self.images.iterdir():
            if _ASIDE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        for path in self.jobs.iterdir():
            if _DELETED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        unknown = [path for path in self.jobs.iterdir() if path.name not in known]
        unknown += [path for path in self.images.iterdir() if path.name not in wanted]
        return sorted(str(path.relative_to(self.root)) for path in unknown)


def try_lock(file: IO[bytes], kind: int) -> bool:
    """Lock an open file unless another holds it; whether that could be done."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether any process holds an exclusive lock on a file; one that is not there is not locked."""
    try:
        with path.open("rb") as file:
            return not try_lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def make_private(path: Path) -> bool:
    """Take the access of other users away from a file or folder, if it is there; whether that could be done."""
    try:
        mode = path.lstat().st_mode
        if mode & 0o077 and not stat.S_ISLNK(mode) and not mode & stat.S_ISVTX:
            path.chmod(stat.S_IMODE(mode) & 0o700)
    except FileNotFoundError:
        pass
    except PermissionError:
        return False
    return True


def _may_close(folder: Path) -> bool:
    """Whether the folder that a link leads to is this user's, and holds nothing but what Kinema wrote."""
    return folder.stat().st_uid == os.geteuid() and all(_is_written(path.name) for path in folder.iterdir())


def _is_written(name: str) -> bool:
    """Whether Kinema names what it writes in a folder of its own like this."""
    return any(known.fullmatch(name) for known in (_JOB_ID, _SHA256, _ASIDE, _DELETED, _PENDING_IMAGE))


def _below(folder: Path) -> Iterator[Path]:
    """What Kinema wrote in a folder of its own, by its names; of what has another name nothing."""
    for path in folder.iterdir():
        if _is_written(path.name):
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from path.iterdir()


def _gone(error: OSError) -> QueueUnavailable:
    return QueueUnavailable(
        Message("no_folder", "the server's data folder can't be used: {reason}", reason=error.strerror)
    )


def clear_asides(folder: Path) -> None:
    """Remove what was half-written in a folder when its writer died."""
    for path in folder.glob(f"{ASIDE}*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A path to write to, with `path`'s ending; what lies there at the end is synced and renamed to `path`.

    Raises:
        InsufficientDisk: where the disk is full.
    """
    aside = path.with_name(f"{ASIDE}{secrets.token_hex(4)}-{path.name}")
    try:
        with disk_errors(path):
            yield aside
            aside.chmod(0o600)
            _sync(aside)
            aside.replace(path)
            _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say of a full disk which file could not be written.

    Raises:
        InsufficientDisk: where the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientDisk(
                Message(
                    "disk_full",
                    "the disk is full: {file} can't be written in {folder}",
                    file=path.name,
                    folder=path.parent,
                )
            ) from None
        raise


def write(path: Path, data: bytes) -> None:
    """Write bytes to a file that is there whole or not at all, also after a power cut."""
    with appearing(path) as aside:
        aside.touch(mode=0o600)
        aside.write_bytes(data)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
