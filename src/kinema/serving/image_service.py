"""The server's processes that decode images and encode videos, and the thread pools for uploads, URLs and files."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from kinema.media.image import ImageFacts, inspect_image
from kinema.media.safety_check import inspect_safely
from kinema.serving.bounded_pool import BoundedPool
from kinema.serving.decode_process import IDLE_MB, MEMORY_MB, DecodeProcess

if TYPE_CHECKING:
    from collections.abc import Callable

CACHE_SIZE = 1000
LARGE_BYTES = 2_000_000
ENCODER_MB = 1000
# Memory of the network of the safety check, which stays loaded.
SAFETY_MB = 250


class ImageService:
    """The image service of a server. Separate pools keep slow or large requests from delaying others.

    Args:
        safety_threshold: Score of the safety check above which images are refused; None: they are not checked.
    """

    def __init__(self, safety_threshold: float | None = None) -> None:
        self._safety_threshold = safety_threshold
        extra_mb = 0 if safety_threshold is None else SAFETY_MB
        self.process = DecodeProcess(MEMORY_MB + extra_mb, IDLE_MB + extra_mb)
        self.encoder = DecodeProcess(ENCODER_MB)  # its own: encoding a video would delay every upload
        self.verifier = DecodeProcess(ENCODER_MB)  # its own: it reads any files
        self.addresses = BoundedPool("addresses", threads=2, waiting=30)
        self.images = BoundedPool("images", threads=2, waiting=60)
        self.encodings = BoundedPool("encodings", threads=1, waiting=10)
        self.verifications = BoundedPool("verifications", threads=1, waiting=10)
        self._uploads = BoundedPool("uploads", threads=4, waiting=60)
        self._large_uploads = BoundedPool("large-uploads", threads=1, waiting=30)
        self._cache: OrderedDict[bytes, ImageFacts] = OrderedDict()
        self._lock = Lock()

    def uploads(self, size: int) -> BoundedPool:
        """Return the pool for a body of `size` bytes. Large bodies are handled one at a time, to limit memory."""
        return self._large_uploads if size > LARGE_BYTES else self._uploads

    def inspect(self, data: bytes, gone: Callable[[], bool]) -> ImageFacts:
        """Call `inspect_image`, or `inspect_safely`, in the decode process; cache the result.

        Raises:
            InvalidImage: as `inspect_image`, or a limit of the process was exceeded.
            ContentRefused: the safety check refuses the image.
            ClientGone: `gone()` returned true.
        """
        sha256 = hashlib.sha256(data).digest()
        with self._lock:
            if (facts := self._cache.get(sha256)) is not None:
                self._cache.move_to_end(sha256)
                return facts
        threshold = self._safety_threshold
        if threshold is None:
            facts = self.process.run(inspect_image, data, gone=gone)
        else:
            facts = self.process.run(inspect_safely, data, threshold, gone=gone)
        with self._lock:
            self._cache[sha256] = facts
            while len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        return facts

    def close(self) -> None:
        """Kill the processes."""
        self.process.close()
        self.encoder.close()
        self.verifier.close()
