"""A file as an answer that a deletion can't cut off: it is opened before anything of the answer is sent."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from starlette.responses import FileResponse

from kinema.errors import JobNotFound

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Receive, Scope, Send


class OpenedFile(FileResponse):
    """As Starlette's `FileResponse`, but what is deleted after this was made is still sent whole.

    Raises:
        JobNotFound: where the file is gone already.
    """

    def __init__(self, path: Path, **more: Any) -> None:
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise JobNotFound(f"there is no video of {path.parent.name} any more; it was deleted") from None
        descriptor = self._file.fileno()
        super().__init__(f"/dev/fd/{descriptor}", stat_result=os.fstat(descriptor), **more)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and close it however that ends."""
        with self._file:
            await super().__call__(scope, receive, send)
