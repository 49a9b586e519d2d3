"""A file response that is not interrupted if the file is deleted: the file is opened before the response starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from starlette.responses import FileResponse

from kinema.errors import JobNotFound

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Receive, Scope, Send


class OpenedFile(FileResponse):
    """Starlette's `FileResponse`, but a file that is deleted after this is created is still sent completely.

    Raises:
        JobNotFound: the file does not exist.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise JobNotFound(f"video {path.parent.name!r} was deleted") from None
        descriptor = self._file.fileno()
        super().__init__(f"/dev/fd/{descriptor}", stat_result=os.fstat(descriptor), **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, then close it."""
        with self._file:
            await super().__call__(scope, receive, send)
