"""Check all images of a command before the work starts, without keeping them in memory."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import InvalidImage, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.cli.item_failures import ItemFailures
    from kinema.media.image import ImageFacts, InputImage

STDIN = "-"


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image that was decoded successfully and released; `path` is its file, or a copy of the download or stdin."""

    source: str
    path: Path
    name: str | None
    facts: ImageFacts
    sha256: str

    def open(self) -> InputImage:
        """Decode the image again.

        Raises:
            InvalidImage: the file has changed since the check.
        """
        from kinema.media.image import open_image

        image = replace(open_image(self.path), name=self.name)
        if image.sha256 != self.sha256:
            raise InvalidImage(f"{self.source} has changed since it was checked; run the command again")
        return image


def image_sources(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with folders replaced by the images in them.

    Raises:
        InvalidRequest: a folder has no images, or stdin can't be read or is named twice.
    """
    from kinema.media.image import is_url
    from kinema.media.image_folder import images_in

    if STDIN in arguments:
        if arguments.count(STDIN) > 1:
            raise InvalidRequest("- reads one image from stdin, but was passed twice; remove one", "image")
        if sys.stdin is None or sys.stdin.isatty():
            state = "closed" if sys.stdin is None else "a terminal"
            raise InvalidRequest(f"- reads the image from stdin, which is {state}; redirect a file to it", "image")
    sources: list[str] = []
    for argument in arguments:
        is_folder = argument != STDIN and not is_url(argument) and Path(argument).is_dir()
        sources += map(str, images_in(Path(argument))) if is_folder else [argument]
    return sources


def check_images(sources: Sequence[str], folder: Path, failures: ItemFailures) -> list[CheckedImage]:
    """Decode each image once and release it. Downloads and stdin are stored in `folder`.

    Raises:
        InvalidImage: for the first image that is not usable, if it is the only one or `failures` stops.
    """
    checked: list[CheckedImage] = []
    for index, source in enumerate(sources):
        with failures.collect(source, source) if len(sources) > 1 else nullcontext():
            checked.append(_check_image(source, folder / str(index)))
    return checked


def _check_image(source: str, copy: Path) -> CheckedImage:
    """Decode an image. A download or stdin is stored as `copy`.

    Raises:
        InvalidImage: it is not usable.
    """
    from kinema.media.image import MAX_BYTES, EncodedImage, fetch_image, is_url, open_image

    path = Path(source)
    if source == STDIN or is_url(source):
        if source == STDIN:
            source = "stdin"
            encoded = EncodedImage(sys.stdin.buffer.read(MAX_BYTES + 1), source, source)
            if len(encoded.data) > MAX_BYTES:
                raise InvalidImage(f"stdin has more than {MAX_BYTES / 1e6:g} MB, the maximum; shrink the image")
        else:
            encoded = fetch_image(source)
        image = encoded.decode()
        path = copy
        path.write_bytes(encoded.data)
    else:
        image = open_image(path)
    return CheckedImage(source, path, image.name, image.facts, image.sha256)
