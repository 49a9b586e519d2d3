"""The output folder of a batch: which files the batch wrote, and atomic writing that keeps all other files."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from kinema.errors import InvalidRequest, VideoError
from kinema.media.video_writer import sync_folder, write_error
from kinema.partial_files import PREFIX, partial_path

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

HIDDEN = ".kinema-batch"
_SCHEMA = """CREATE TABLE IF NOT EXISTS files (
    file TEXT, sha256 TEXT, key TEXT, seconds REAL, PRIMARY KEY (file, sha256)
)"""


class FileState(NamedTuple):
    """A file of the output folder: `own` was written by the batch and is unchanged, `foreign` is any other file."""

    kind: Literal["absent", "own", "foreign"]
    key: str | None = None
    seconds: float | None = None


class BatchFolder:
    """The output folder. Its hidden folder stores the hashes of all files that the batch wrote.

    A file's hash is stored before the file appears. A file counts as finished if both are there and agree.

    Raises:
        InvalidRequest: on entering, if another process writes the same batch.
        VideoError: the folder can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hidden = path / HIDDEN

    def __enter__(self) -> Self:
        try:
            self.hidden.mkdir(parents=True, exist_ok=True)
            self._table = sqlite3.connect(self.hidden / "files.sqlite3", timeout=0)
            try:
                self._table.execute("PRAGMA locking_mode=EXCLUSIVE")  # keeps the lock of the first write until closed
                with self._table:
                    self._table.execute("BEGIN EXCLUSIVE")
                    self._table.execute(_SCHEMA)
                for file in self.hidden.glob(f"{PREFIX}*"):  # of a run that was killed
                    file.unlink()
            except BaseException:
                self._table.close()
                raise
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "") in ("SQLITE_BUSY", "SQLITE_LOCKED"):
                raise InvalidRequest(
                    f"another kinema batch writes to {self.path}; wait for its end, or use another folder", "out"
                ) from None
            raise VideoError(f"{self.hidden} can't be used ({error}); free disk space, or use another folder") from None
        except OSError as error:
            raise write_error(self.hidden, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.close()

    def state(self, file: str) -> FileState:
        """Return the state of a file; reads the whole file if it may be the batch's."""
        path = self.path / file
        if not os.path.lexists(path):
            return FileState("absent")
        rows = {
            sha256: FileState("own", key, seconds)
            for sha256, key, seconds in self._table.execute(
                "SELECT sha256, key, seconds FROM files WHERE file = ?", [file]
            )
        }
        return rows.get(_sha256(path) if rows and path.is_file() else "", FileState("foreign"))

    def find(self, key: str) -> tuple[Path, FileState] | None:
        """Return a finished file with this key, under any name."""
        for (file,) in self._table.execute("SELECT file FROM files WHERE key = ?", [key]).fetchall():
            if (state := self.state(file)).key == key:
                return self.path / file, state
        return None

    def partial_file(self) -> Path:
        """Return a new path in the hidden folder, for `place`."""
        return partial_path(self.hidden / "file")

    def place(self, partial: Path, file: str, key: str, seconds: float | None = None) -> None:
        """Sync a file of the hidden folder and give it its name in the output folder, in one step.

        Raises:
            VideoError: a file that is not of this batch has the name.
            InsufficientDisk: the disk is full.
        """
        target = self.path / file
        try:
            with partial.open("rb+") as written:
                os.fsync(written.fileno())
            if self.state(file).kind == "foreign":
                raise foreign_file(target)
            with self._table:
                row = (file, _sha256(partial), key, seconds)
                self._table.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", row)
            if target.exists():
                partial.replace(target)
            else:
                _rename_to_new(partial, target)
            sync_folder(self.path)
        except OSError as error:
            raise write_error(target, error) from None
        except sqlite3.Error as error:
            raise VideoError(f"{self.hidden} can't be written ({error}); free disk space and try again") from None
        finally:
            partial.unlink(missing_ok=True)

    def write(self, data: bytes, file: str, key: str) -> None:
        """Write a file; see `place`."""
        partial = self.partial_file()
        try:
            partial.write_bytes(data)
        except OSError as error:
            raise write_error(self.path / file, error) from None
        self.place(partial, file, key)

    def copy(self, source: Path) -> Path:
        """Return a partial file with the content of `source`."""
        partial = self.partial_file()
        try:
            shutil.copyfile(source, partial)
        except OSError as error:
            raise write_error(partial, error) from None
        return partial


def foreign_file(path: Path) -> VideoError:
    """Return the error for a file that would be overwritten."""
    return VideoError(f"{path} was not written by this batch, or was changed since; move it, or use another folder")


def _rename_to_new(partial: Path, target: Path) -> None:
    """Rename a file; unlike `Path.replace`, never overwrite a file that appears at the same time."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise foreign_file(target) from None
    except OSError:  # the file system has no hard links
        partial.replace(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
