"""Output paths: derive them from the options and check them before the work starts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest, VideoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.values import VideoRequest

FIELDS = ("stem", "index", "seed", "motion")
_FIELD = re.compile(r"\{(\w*)\}")


def video_paths(
    output: str | None,
    stems: Sequence[str],
    requests: Sequence[VideoRequest],
    *,
    extension: str = ".mp4",
    suffixes: Sequence[str] = (),
    crf: int | None = None,
) -> list[Path]:
    """Return one writable path per video.

    `make_folders` creates missing folders later; `check_conflicts` checks for existing files.

    Args:
        output: A file, a folder (with a trailing "/", or for several videos), a template, or None for STEM.mp4 in the
            current folder.
        stems: Stems of the input images, in the order of the command line.
        requests: One per video.
        extension: Extension of names that `output` does not specify.
        suffixes: What follows the stem in names that `output` does not specify; by default nothing.
        crf: Quality of the videos, if not the default.

    Raises:
        VideoError: the path cannot be written.
        InvalidRequest: the format does not support the quality.
        InsufficientDisk: the disk is full.
    """
    from kinema.media.video_writer import check_target

    paths = _paths(output, extension, stems, requests, suffixes)
    for path, request in zip(paths, requests, strict=True):
        check_target(_in_existing_folder(path), request.frame_rate, crf)
    return paths


def make_folders(paths: Sequence[Path | None]) -> None:
    """Create the missing parent folders of the paths.

    Raises:
        VideoError: a folder cannot be created.
    """
    for path in filter(None, paths):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VideoError(f"cannot create the folder {path.parent} ({error.strerror}); choose another") from None


def _in_existing_folder(path: Path) -> Path:
    """Return the path with its parent replaced by the nearest existing ancestor."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    return folder / path.name


def png_paths(
    output: str | None,
    stems: Sequence[str],
    requests: Sequence[VideoRequest],
    *,
    kind: str,
    suffixes: Sequence[str] = (),
) -> list[Path | None]:
    """Return one PNG path per video for a contact sheet or an image; None for all if `output` is None.

    Args:
        output: As for `video_paths`.
        stems: As for `video_paths`.
        requests: As for `video_paths`.
        kind: What the file contains, for messages.
        suffixes: As for `video_paths`.

    Raises:
        VideoError: the path cannot be written or does not end in .png.
    """
    if output is None:
        return [None] * len(stems)
    paths = _paths(output, ".png", stems, requests, suffixes)
    for path in paths:
        if path.suffix.lower() != ".png":
            raise VideoError(f"the {kind} {path} must end in .png; use {path.with_suffix('.png')}")
        _check_writable(path, kind)
    return list(paths)


def record_path(output: str | None) -> Path | None:
    """Return the writable path for a benchmark record, or None if `output` is None.

    Raises:
        VideoError: the path cannot be written or does not end in .json.
    """
    if output is None:
        return None
    path = Path(output).expanduser()
    if path.suffix.lower() != ".json":
        raise VideoError(f"the record {path} must end in .json; use {path.with_suffix('.json')}")
    _check_writable(path, "record")
    return path


def _check_writable(path: Path, kind: str) -> None:
    """Check that a file can be created at `path`.

    Raises:
        VideoError: it cannot.
    """
    folder = _in_existing_folder(path).parent
    if not folder.is_dir():
        raise VideoError(f"{folder} is not a folder; choose another")
    if not os.access(folder, os.W_OK):
        raise VideoError(f"{folder} is not writable; choose another folder or change its permissions")
    if path.is_dir():
        raise VideoError(f"{path} is a folder; choose another name for the {kind}")


def check_conflicts(results: Sequence[Path | None], sources: Sequence[str], *, force: bool) -> None:
    """Check that results overwrite neither each other, nor an input, nor, without `force`, an existing file.

    Raises:
        VideoError: for the first conflict.
    """
    used: set[Path] = set()
    inputs = [Path(source) for source in sources if Path(source).exists()]
    for path in filter(None, results):
        absolute = path.absolute()
        if absolute in used:
            raise VideoError(f"{path} is the path of more than one result; add {{index}} to its name")
        used.add(absolute)
        if path.exists() and any(path.samefile(source) for source in inputs):
            raise VideoError(f"{path} is the input and would be overwritten; choose another name")
        if path.is_file() and not force:
            raise VideoError(f"{path} already exists; add --force to overwrite it, or choose another name")


def _paths(
    output: str | None,
    extension: str,
    stems: Sequence[str],
    requests: Sequence[VideoRequest],
    suffixes: Sequence[str],
) -> list[Path]:
    names = [f"{stem}{suffix}{extension}" for stem, suffix in zip(stems, suffixes or [""] * len(stems), strict=True)]
    if output is None:
        return list(map(Path, names))
    if output.startswith("~"):  # shells skip it inside quotes
        output = os.path.expanduser(output)  # noqa: PTH111 - a Path would drop the trailing "/"
    if _FIELD.search(output):
        return [
            _fill(output, {"stem": stem, "index": i, "seed": request.seed, "motion": request.motion_bucket_id})
            for i, (stem, request) in enumerate(zip(stems, requests, strict=True), 1)
        ]
    is_folder = output.endswith(("/", os.sep))
    if len(stems) == 1 and not is_folder:
        return [Path(output)]
    if Path(output).suffix and not Path(output).is_dir():
        raise VideoError(
            f"{output} is one file, but there are {len(stems)} videos; name a folder, or a template such as "
            f"{{stem}}{extension}"
        )
    return [Path(output) / name for name in names]


def _fill(template: str, values: dict[str, object]) -> Path:
    """Return a template with its fields replaced."""

    def value(field: re.Match[str]) -> str:
        if field[1] not in values:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise InvalidRequest(f"unknown field {field[0]} in {template}; expected one of {known}", "output")
        return str(values[field[1]])

    return Path(_FIELD.sub(value, template))
