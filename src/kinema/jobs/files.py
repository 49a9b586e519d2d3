"""What the queue keeps on disk: stills by their content, each job's products; a file is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from typing import TYPE_CHECKING

from kinema.errors import InsufficientDisk, QueueUnavailable
from kinema.sentences import Sentence

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

GIGABYTE = 1_000_000_000
# What is half-written hides behind this, beside where it will be.
ASIDE = ".part-"
_JOB_ID = re.compile(r"[a-z]+_[0-9a-f]{32}")


class Files:
    """The files in one data folder.

        stills/<sha256>           as they were given or drawn
        jobs/<id>/video.mp4 …     what was made, and latents while it is
        trash/                    what is being deleted

    Raises:
        QueueUnavailable: where the folder can't be made or written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.stills = self.root / "stills"
        self.jobs = self.root / "jobs"
        self.trash = self.root / "trash"
        try:
            for folder in (self.stills, self.jobs, self.trash):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / ".lock").touch()
        except OSError as error:
            raise QueueUnavailable(
                f"the data folder {self.root} can't be used ({error.strerror}); set KINEMA_DATA_DIR to one that can"
            ) from None

    @contextlib.contextmanager
    def deleting(self) -> Iterator[None]:
        """Alone, of all threads and processes, in deciding which stills are needed."""
        with (self.root / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def adding(self) -> Iterator[None]:
        """While no one decides so: a still is added here, and the job that needs it."""
        with (self.root / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def check_room(self, reserve_gb: float) -> None:
        """Refuse new work while less than the reserve is free.

        Raises:
            InsufficientDisk: with what is free and what must be.
        """
        free = shutil.disk_usage(self.root).free
        if free < reserve_gb * GIGABYTE:
            raise InsufficientDisk(
                Sentence(
                    "little_room",
                    "{free:.1f} GB are free in {folder}, and {reserve:g} must stay free (KINEMA_MIN_FREE_GB): "
                    "delete videos, or make room",
                    free=free / GIGABYTE,
                    folder=self.root,
                    reserve=reserve_gb,
                )
            )

    def add_still(self, data: bytes) -> str:
        """Keep a still's bytes; give their SHA-256, by which they are found again."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.still(sha256)
        if path.exists():
            os.utime(path)  # wanted again: its time to expire starts anew
        else:
            write(path, data)
        return sha256

    def still(self, sha256: str) -> Path:
        """Where a still with this hash lies, if it is there."""
        return self.stills / sha256

    def drop_still(self, sha256: str) -> None:
        """Delete a still that no job needs."""
        self.still(sha256).unlink(missing_ok=True)

    def job(self, job_id: str) -> Path:
        """A job's folder, which is there once its work began."""
        if not _JOB_ID.fullmatch(job_id):
            raise ValueError(f"{job_id!r} is no job's id")
        return self.jobs / job_id

    def drop_job(self, job_id: str) -> None:
        """Delete all that a job made: at once out of sight, then from the disk."""
        gone = self.trash / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            self.job(job_id).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self, known: Collection[str], wanted: Collection[str], keep_seconds: float) -> None:
        """Clear what a crash or a deletion left: jobs that are not known, and old stills that no job wants."""
        for gone in self.trash.iterdir():
            shutil.rmtree(gone, ignore_errors=True)
        for folder in self.jobs.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        oldest = time.time() - keep_seconds
        for path in self.stills.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name not in wanted and path.stat().st_mtime < oldest:
                    path.unlink()


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
        yield aside
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientDisk(
                Sentence(
                    "disk_full",
                    "the disk is full: {file} can't be written in {folder}",
                    file=path.name,
                    folder=path.parent,
                )
            ) from None
        raise
    finally:
        aside.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write bytes to a file that is there whole or not at all, also after a power cut."""
    with appearing(path) as aside:
        aside.write_bytes(data)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
