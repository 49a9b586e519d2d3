"""Check all images of a command before the work starts, without keeping them in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import InvalidImage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.media.image import ImageFacts, InputImage


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image that was decoded successfully and released; `path` is its file, or a copy of the download."""

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


def check_images(sources: Sequence[str], folder: Path) -> list[CheckedImage]:
    """Decode each image once and release it. Downloads are stored in `folder`.

    Raises:
        InvalidImage: for the first image that is not usable.
    """
    from kinema.media.image import fetch_image, is_url, open_image

    checked = []
    for index, source in enumerate(sources):
        path = Path(source)
        if is_url(source):
            fetched = fetch_image(source)
            path = folder / str(index)
            path.write_bytes(fetched.data)
            image = fetched.decode()
        else:
            image = open_image(path)
        checked.append(CheckedImage(source, path, image.name, image.facts, image.sha256))
        del image  # before the next one is decoded
    return checked
