"""The images of one command: all are checked before the work, and none is kept until its turn."""

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
    """An image that was decoded once and let go; `path` is its file, or a copy of what its address answered."""

    source: str
    path: Path
    name: str | None
    facts: ImageFacts
    sha256: str

    def open(self) -> InputImage:
        """The image again.

        Raises:
            InvalidImage: it is not the one that was checked.
        """
        from kinema.media.image import open_image

        image = replace(open_image(self.path), name=self.name)
        if image.sha256 != self.sha256:
            raise InvalidImage(f"{self.source} has changed since it was checked; run the command again for it")
        return image


def check_images(sources: Sequence[str], folder: Path) -> list[CheckedImage]:
    """Decode each image and let it go. What addresses answer is kept in `folder`.

    Raises:
        InvalidImage: naming the first that is no usable image.
    """
    from kinema.media.image import fetch_image, is_url, open_image

    checked = []
    for place, source in enumerate(sources):
        path = Path(source)
        if is_url(source):
            fetched = fetch_image(source)
            path = folder / str(place)
            path.write_bytes(fetched.data)
            image = fetched.decode()
        else:
            image = open_image(path)
        checked.append(CheckedImage(source, path, image.name, image.facts, image.sha256))
        del image  # before the next one is decoded
    return checked
