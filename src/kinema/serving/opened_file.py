"""A file response that is not interrupted if the file is deleted: the file is opened before the response starts."""

from __future__ import annotations

import os
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from starlette.responses import FileResponse

from kinema.errors import JobNotFound, KinemaError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from starlette.types import Receive, Scope, Send


class OpenedFile(FileResponse):
    """Starlette's `FileResponse`, but a file that is deleted after this is created is still sent completely.

    Args:
        path: The file.
        headers: Further headers.
        modified_at: When the content was made, in seconds since 1970; None: the time of the file. A copy of a file of a
            store has a later time.
        missing: The error if the file does not exist; None: that the video in whose folder it is was deleted.
        options: Those of `FileResponse`.

    Raises:
        KinemaError: `missing`.
    """

    def __init__(
        self,
        path: Path,
        *,
        headers: Mapping[str, str] | None = None,
        modified_at: float | None = None,
        missing: KinemaError | None = None,
        **options: Any,
    ) -> None:
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise missing or JobNotFound(f"video {path.parent.name!r} was deleted") from None
        descriptor = self._file.fileno()
        if modified_at is not None:
            headers = {**(headers or {}), "Last-Modified": formatdate(modified_at, usegmt=True)}
        super().__init__(f"/dev/fd/{descriptor}", headers=headers, stat_result=os.fstat(descriptor), **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, then close it."""
        with self._file:
            await super().__call__(scope, receive, send)
