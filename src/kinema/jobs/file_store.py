"""Where servers share files: a small interface, and its implementation by a folder.

A store contains whole files only: a file appears under its name when it is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kinema.errors import InvalidRequest, QueueUnavailable
from kinema.jobs.job_files import atomic_file
from kinema.messages import Message
from kinema.partial_files import PATTERN as PARTIAL_FILE
from kinema.partial_files import partial_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a store: its name, its size in bytes, and when it was written, in seconds since 1970."""

    name: str
    size: int
    modified: float


class FileStore(Protocol):
    """Files by name; names have parts separated by "/". All methods are thread-safe.

    Attributes:
        url: What KINEMA_STORE says.

    Raises:
        QueueUnavailable: by every method, if the store does not answer or refuses.
        InsufficientDisk: by `put`, if the disk is full.
    """

    url: str

    def put(self, name: str, content: bytes | Path, *, new: bool = False) -> None:
        """Store bytes or the content of a file under a name, replacing what is there, completely or not at all.

        Raises:
            FileExistsError: `new` is true and the name is taken.
        """

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `end`, which is the end of the file by default.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none with this name."""

    def delete(self, names: Collection[str]) -> None:
        """Delete files; names without a file are ignored."""

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """Yield the files whose names start with `prefix`, which ends in "/" or is empty."""

    def address(self, name: str, seconds: int) -> str | None:
        """Return a URL from which anyone can read the file for so long, or None if the store has no URLs."""


class FolderStore:
    """A folder, such as one that several servers mount."""

    def __init__(self, root: Path) -> None:
        self.url = root.as_uri()
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InvalidRequest(
                f"the store {self.url} can't be used ({error.strerror}); set KINEMA_STORE to a folder that can be "
                "written to",
                "store",
            ) from None

    def put(self, name: str, content: bytes | Path, *, new: bool = False) -> None:
        """Write a hidden file, sync it and rename it."""
        path = self._root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if new:
                self._claim(path, content)
                return
            with atomic_file(path) as partial:
                _write(partial, content)
        except FileExistsError:
            raise
        except OSError as error:
            raise _unavailable(error) from None

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a range."""
        try:
            yield from _chunks(self._root / name, start, end)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unavailable(error) from None

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None."""
        try:
            return (self._root / name).stat().st_size
        except FileNotFoundError:
            self._check_root()
            return None
        except OSError as error:
            raise _unavailable(error) from None

    def delete(self, names: Collection[str]) -> None:
        """Delete files, and their folder if it is empty then."""
        for name in names:
            path = self._root / name
            try:
                path.unlink(missing_ok=True)
                if path.parent != self._root and path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()
            except OSError as error:
                raise _unavailable(error) from None

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """Yield the files below a folder."""
        for path in sorted((self._root / prefix).rglob("*")):
            if PARTIAL_FILE.fullmatch(path.name):
                continue
            try:
                if path.is_file():
                    found = path.stat()
                    yield StoredFile(path.relative_to(self._root).as_posix(), found.st_size, found.st_mtime)
            except FileNotFoundError:
                continue

    def address(self, name: str, seconds: int) -> str | None:  # noqa: ARG002 - the interface has them
        """Return None: the files of a folder have no URLs."""
        return None

    def _claim(self, path: Path, content: bytes | Path) -> None:
        partial = partial_path(path)
        try:
            with atomic_file(partial) as written:
                _write(written, content)
            path.hardlink_to(partial)  # fails if the name is taken
        finally:
            partial.unlink(missing_ok=True)

    def _check_root(self) -> None:
        """Tell a missing file from a folder that is not mounted."""
        if not self._root.is_dir():
            raise store_unavailable("the folder is missing")


def store_unavailable(reason: str) -> QueueUnavailable:
    """Return the error of a store that does not answer. `reason` contains no URL and no key."""
    return QueueUnavailable(
        Message(
            "store_unavailable",
            "the store of the server's images and videos can't be used ({reason}); try again when it is back",
            reason=reason,
        )
    )


def _write(path: Path, content: bytes | Path) -> None:
    path.touch(mode=0o600)
    with path.open("wb") as file:
        for chunk in [content] if isinstance(content, bytes) else _chunks(content, 0, None):
            file.write(chunk)


def _unavailable(error: OSError) -> QueueUnavailable:
    return store_unavailable(error.strerror or type(error).__name__)


def _chunks(path: Path, start: int, end: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        left = CHUNK if end is None else end - start
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            yield chunk
            left -= 0 if end is None else len(chunk)
