"""Where the server checks and decodes images, and fetches them: one process, and pools that no other work waits for."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from kinema.media.image import ImageFacts, inspect_image
from kinema.serving.bounded_pool import BoundedPool
from kinema.serving.decode_process import DecodeProcess

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN_IMAGES = 1000
LARGE_BYTES = 2_000_000


class ImageService:
    """One server's. The pools differ in what a request that waits for long, or holds much, may delay."""

    def __init__(self) -> None:
        self.process = DecodeProcess()
        self.addresses = BoundedPool("addresses", threads=2, waiting=30)
        self.images = BoundedPool("images", threads=2, waiting=60)
        self._uploads = BoundedPool("uploads", threads=4, waiting=60)
        self._large_uploads = BoundedPool("large-uploads", threads=1, waiting=30)
        self._known: OrderedDict[bytes, ImageFacts] = OrderedDict()
        self._lock = Lock()

    def uploads(self, size: int) -> BoundedPool:
        """The pool for a body of so many bytes: what does not fit in memory many times is handled one by one."""
        return self._large_uploads if size > LARGE_BYTES else self._uploads

    def inspect(self, data: bytes, gone: Callable[[], bool]) -> ImageFacts:
        """As `inspect_image`, in the process; what was found is remembered.

        Raises:
            InvalidImage: as `inspect_image`, or as the process's limits have it.
            ClientGone: as `gone` said.
        """
        sha256 = hashlib.sha256(data).digest()
        with self._lock:
            if (known := self._known.get(sha256)) is not None:
                self._known.move_to_end(sha256)
                return known
        facts = self.process.run(inspect_image, data, gone=gone)
        with self._lock:
            self._known[sha256] = facts
            while len(self._known) > KNOWN_IMAGES:
                self._known.popitem(last=False)
        return facts

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.close()
