"""The images of one command: all are checked before the work, and none is kept until its turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import InvalidStill

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.media.still import Still, StillFacts


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image that was decoded once and let go; `path` is its file, or a copy of what its address answered."""

    source: str
    path: Path
    name: str | None
    facts: StillFacts
    sha256: str

    def open(self) -> Still:
        """The image again.

        Raises:
            InvalidStill: it is not the one that was checked.
        """
        from kinema.media.still import open_still

        still = replace(open_still(self.path), name=self.name)
        if still.sha256 != self.sha256:
            raise InvalidStill(f"{self.source} has changed since it was checked; run the command again for it")
        return still


def check_images(sources: Sequence[str], folder: Path) -> list[CheckedImage]:
    """Decode each image and let it go. What addresses answer is kept in `folder`.

    Raises:
        InvalidStill: naming the first that is no usable image.
    """
    from kinema.media.still import fetch_still, is_address, open_still

    checked = []
    for place, source in enumerate(sources):
        path = Path(source)
        if is_address(source):
            fetched = fetch_still(source)
            path = folder / str(place)
            path.write_bytes(fetched.data)
            still = fetched.decoded()
        else:
            still = open_still(path)
        checked.append(CheckedImage(source, path, still.name, still.facts, still.sha256))
        del still  # before the next one is decoded
    return checked
