"""The images in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

IMAGE_EXTENSIONS = (".avif", ".heic", ".heif", ".hif", ".jpeg", ".jpg", ".png", ".webp")


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder by their extensions, sorted by name, without hidden ones and those in sub-folders.

    Raises:
        InvalidRequest: there are none, or the folder can't be read.
    """
    try:
        images = [
            file
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in IMAGE_EXTENSIONS and not file.name.startswith(".") and file.is_file()
        ]
    except OSError as error:
        raise InvalidRequest(f"the folder {folder} can't be read ({error.strerror}); check its permissions") from None
    if not images:
        raise InvalidRequest(f"the folder {folder} has no images ({', '.join(IMAGE_EXTENSIONS)}); use another")
    return images
