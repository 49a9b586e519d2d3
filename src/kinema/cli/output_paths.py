"""Where results go: a name for each still's video and contact sheet, refused before the work if it can't be had."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest, VideoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.values import VideoRequest

FIELDS = ("stem", "index", "seed")
_FIELD = re.compile(r"\{(\w*)\}")


def video_paths(
    output: str | None, stems: Sequence[str], requests: Sequence[VideoRequest], *, ending: str = ".mp4"
) -> list[Path]:
    """A path for each still's video, where it can be written.

    Folders that are missing are made when the work begins (`make_folders`); `keep_apart` sees to what exists.

    Args:
        output: A file, a folder (ending in "/", or for several stills), a template, or None for STEM.mp4 here.
        stems: Names of the stills, in the order of the command line.
        requests: One for each still.
        ending: Of the names that `output` leaves open.

    Raises:
        VideoError: naming the path and what would be right.
        InsufficientDisk: when there is no room.
    """
    from kinema.media.video_writer import check_target

    paths = _named(output, ending, stems, requests)
    for path, request in zip(paths, requests, strict=True):
        check_target(_in_existing_folder(path), request.frame_rate)
    return paths


def make_folders(paths: Sequence[Path | None]) -> None:
    """Make the folders in which results are to appear, where they are missing.

    Raises:
        VideoError: naming the folder that can't be made.
    """
    for path in filter(None, paths):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VideoError(f"the folder {path.parent} can't be made ({error.strerror}); choose another") from None


def _in_existing_folder(path: Path) -> Path:
    """The path itself, or its name in the nearest folder above it that exists, where the missing ones will be made."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    return folder / path.name


def sheet_paths(
    output: str | None,
    stems: Sequence[str],
    requests: Sequence[VideoRequest],
    *,
    what: str = "contact sheet",
) -> list[Path | None]:
    """A path for each video's contact sheet or drawn still, named as videos are; None for all where none is asked for.

    Args:
        output: As for `video_paths`, a PNG.
        stems: Likewise.
        requests: Likewise.
        what: What will lie there, as messages name it.

    Raises:
        VideoError: naming the path and what would be right.
    """
    if output is None:
        return [None] * len(stems)
    paths = _named(output, ".png", stems, requests)
    for path in paths:
        if path.suffix.lower() != ".png":
            raise VideoError(f"the {what} {path} must end in .png; name it {path.with_suffix('.png')}")
        _check_place(path, what)
    return list(paths)


def record_path(output: str | None) -> Path | None:
    """Where a benchmark's record can be written; None where none is asked for.

    Raises:
        VideoError: naming the path and what would be right.
    """
    if output is None:
        return None
    path = Path(output).expanduser()
    if path.suffix.lower() != ".json":
        raise VideoError(f"the record {path} must end in .json; name it {path.with_suffix('.json')}")
    _check_place(path, "record")
    return path


def _check_place(path: Path, what: str) -> None:
    """Refuse a place where no file can appear.

    Raises:
        VideoError: naming the path and what would be right.
    """
    folder = _in_existing_folder(path).parent
    if not folder.is_dir():
        raise VideoError(f"{folder} is not a folder; choose another")
    if not os.access(folder, os.W_OK):
        raise VideoError(f"{folder} can't be written to; choose another folder, or its permissions")
    if path.is_dir():
        raise VideoError(f"{path} is a folder; choose another name for the {what}")


def keep_apart(results: Sequence[Path | None], sources: Sequence[str], *, force: bool) -> None:
    """Refuse results that would replace one another, what they are made from, or, without `force`, any file.

    Raises:
        VideoError: naming the path.
    """
    seen: set[Path] = set()
    inputs = [Path(source) for source in sources if Path(source).exists()]
    for path in filter(None, results):
        place = path.absolute()
        if place in seen:
            raise VideoError(f"{path} would hold more than one result; tell them apart by {{index}} in its name")
        seen.add(place)
        if path.exists() and any(path.samefile(source) for source in inputs):
            raise VideoError(f"{path} is what the video is made from, and would be lost; choose another name")
        if path.is_file() and not force:
            raise VideoError(f"{path} already exists; add --force to overwrite it, or choose another name")


def _named(output: str | None, ending: str, stems: Sequence[str], requests: Sequence[VideoRequest]) -> list[Path]:
    if output is None:
        return [Path(f"{stem}{ending}") for stem in stems]
    if output.startswith("~"):  # the shell leaves it alone inside quotes
        output = os.path.expanduser(output)  # noqa: PTH111 - a Path would lose the "/" at its end
    if _FIELD.search(output):
        return [
            _filled(output, {"stem": stem, "index": i, "seed": request.seed})
            for i, (stem, request) in enumerate(zip(stems, requests, strict=True), 1)
        ]
    is_folder = output.endswith(("/", os.sep))
    if len(stems) == 1 and not is_folder:
        return [Path(output)]
    if Path(output).suffix and not Path(output).is_dir():
        raise VideoError(
            f"{output} is one file, and there are {len(stems)} stills; name a folder, or a template such as "
            f"{{stem}}{ending}"
        )
    return [Path(output) / f"{stem}{ending}" for stem in stems]


def _filled(template: str, values: dict[str, object]) -> Path:
    """A template with its fields filled in."""

    def value(field: re.Match[str]) -> str:
        if field[1] not in values:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise InvalidRequest(f"{field[0]} in {template} can't be filled in; {known} can", "output")
        return str(values[field[1]])

    return Path(_FIELD.sub(value, template))
