"""Read the sources of a batch (images, folders, manifests) and plan one item per video."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kinema.errors import InvalidImage, InvalidRequest, KinemaError
from kinema.jobs.job import Failure
from kinema.library import about_last_image, check_last_image
from kinema.media.image import fetch_image, is_url, plain_name, read_image_file
from kinema.media.image_folder import images_in
from kinema.models.video_size import expand_size
from kinema.values import RANDOM_SEED, TEXT_TO_IMAGE_FIELDS, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MANIFEST_EXTENSION = ".jsonl"
SUMMARY_FILES = ("summary.json", "summary.csv", "contact-sheet.png")
MAX_NAME = 100
_EXAMPLE = '{"image": "rocket.jpg", "seed": 42}'


class Completion(Protocol):
    """Completes the request of an item, as `BatchJobs.complete` does."""

    def __call__(self, parameters: Mapping[str, Any], image_size: tuple[int, int] | None = None, /) -> VideoRequest:
        """Return the request."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One video of a batch.

    Attributes:
        source: The image's path or the prompt, as in the summary.
        name: Name of the output file without its extension.
        key: SHA-256 of the image file or prompt, of the file of the last image, of the complete request, and of the
            options of its file.
        image_sha256: SHA-256 of the image file, None for a prompt.
        last_image: The image at which the video ends, if there is one.
        last_image_sha256: The same of its file.
    """

    source: str
    name: str
    request: VideoRequest
    key: str
    image: Path | None
    image_sha256: str | None
    last_image: Path | None = None
    last_image_sha256: str | None = None

    @property
    def file(self) -> str:
        """Name of the output file."""
        return f"{self.name}.mp4"

    @property
    def pending(self) -> Outcome:
        """The outcome before the video is made."""
        return Outcome(self.source, self.name, self.request.seed, "pending")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state of one item at the end of a run. `seconds` is the time of its generation, if known."""

    source: str
    name: str
    seed: int | None
    status: Literal["completed", "failed", "pending"]
    file: str | None = None
    seconds: float | None = None
    error: Failure | None = None
    is_earlier: bool = False
    """Whether the video was finished by an earlier run."""


@dataclass(frozen=True, slots=True)
class _Source:
    """An image or a prompt with its own parameters; `line` names the manifest's line in messages."""

    image: Path | None
    prompt: str | None = None
    name: str | None = None
    line: str = ""
    last_image: Path | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The image's path or the prompt."""
        return str(self.image) if self.prompt is None else self.prompt


def plan_items(
    sources: Sequence[str],
    parameters: Mapping[str, Any],
    complete: Completion,
    *,
    seeds: int,
    out: Path,
    last_image: Path | None = None,
    file_options: Sequence[str] = (),
) -> tuple[list[BatchItem], list[Outcome]]:
    """Return the items of a batch in order, and the failures of sources that give none.

    Args:
        sources: Paths of images, folders and .jsonl manifests.
        parameters: Parameters of all items, or `seconds`; a manifest's line may replace them.
        complete: See `BatchJobs.complete`.
        seeds: Number of videos per source.
        out: The output folder, whose contact sheet is not a source.
        last_image: Where the videos end, from `last_image_path`; a manifest's line may replace it.
        file_options: See `BatchJobs.file_options`.

    Raises:
        InvalidRequest: a folder has no images, or a manifest is not JSON Lines.
    """
    items: dict[str, BatchItem] = {}  # by name, without case: some file systems do not distinguish it
    failures: list[Outcome] = []
    for source in _read_sources(sources, out):
        if isinstance(source, Outcome):
            failures.append(source)
            continue
        try:
            own = source if source.last_image else replace(source, last_image=last_image)
            planned = list(_items_of(own, parameters, complete, seeds, file_options))
        except KinemaError as error:
            failures.append(_failed(source.text, source.name, error, source.line))
            continue
        for item in planned:
            other = items.setdefault(item.name.casefold(), item)
            if other is not item and other.key != item.key:
                conflict = InvalidRequest(
                    f"{item.file} is already the output of {other.source!r}; rename the image, or set a name in a "
                    "manifest"
                )
                failures.append(_failed(item.source, item.name, conflict, source.line, item.request.seed))
    return list(items.values()), failures


def _items_of(
    source: _Source,
    parameters: Mapping[str, Any],
    complete: Completion,
    seeds: int,
    file_options: Sequence[str],
) -> Iterator[BatchItem]:
    given = _merged(parameters, source.parameters)
    size = None
    if source.image is None:
        content = str(source.prompt).encode("utf-8", "surrogatepass")
        given["prompt"] = source.prompt
        stem = plain_name(str(source.prompt), 60)
    else:
        encoded = read_image_file(source.image)
        content = encoded.data
        given = {name: value for name, value in given.items() if _applies_to_image(name, source)}
        stem = plain_name(source.image.stem, MAX_NAME)
        if not {"width", "height"} <= given.keys():
            with suppress(InvalidImage):  # an invalid image fails when its turn comes, and the others are made
                size = encoded.read_size()
    sha256 = hashlib.sha256(content)
    if given.get("seed", RANDOM_SEED) in (RANDOM_SEED, str(RANDOM_SEED)):
        given["seed"] = int.from_bytes(sha256.digest()[:4])
    first = complete(given, size)
    last_sha256 = None
    if source.last_image is not None:
        check_last_image(first)
        last_sha256 = hashlib.sha256(_read_last_image(source.last_image)).hexdigest()
    for seed in range(first.seed, first.seed + seeds):
        request = first.changed(seed=seed)
        hashes = [sha256.hexdigest(), *([] if last_sha256 is None else [last_sha256])]
        identity = json.dumps([*hashes, request.model_dump(mode="json"), *file_options], sort_keys=True)
        yield BatchItem(
            source.text,
            (source.name or stem or "video") + (f"-seed{seed}" if seeds > 1 else ""),
            request,
            hashlib.sha256(identity.encode()).hexdigest(),
            source.image,
            None if source.image is None else sha256.hexdigest(),
            source.last_image,
            last_sha256,
        )


def _merged(parameters: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of all items, replaced by an item's own; its length replaces theirs in either form."""
    length = {"seconds", "num_frames"}
    given = {
        name: value
        for name, value in parameters.items()
        if value is not None and not (name in length and length & own.keys())
    }
    return given | {name: value for name, value in own.items() if value is not None}


def last_image_path(source: str, downloads: Path) -> Path:
    """Return the path of the image at which all videos end; the image of a URL is downloaded.

    Args:
        source: A path, or an http(s) URL.
        downloads: Folder for the downloaded file.

    Raises:
        InvalidImage: it can't be read or decoded.
    """
    path = Path(source)
    try:
        encoded = fetch_image(source) if is_url(source) else read_image_file(path)
        encoded.decode()
    except InvalidImage as error:
        raise InvalidImage(about_last_image(str(error)), "last_image") from None
    if is_url(source):
        path = downloads / "last-image"
        path.write_bytes(encoded.data)
    return path


def _read_last_image(path: Path) -> bytes:
    """Return the bytes of the file of a last image.

    Raises:
        InvalidImage: it can't be read.
    """
    try:
        return read_image_file(path).data
    except InvalidImage as error:
        raise InvalidImage(about_last_image(str(error)), "last_image") from None


def _applies_to_image(name: str, source: _Source) -> bool:
    """Return whether a parameter is used for an image: those of all items may be for the prompts of a manifest."""
    return name not in TEXT_TO_IMAGE_FIELDS or name in source.parameters


def _read_sources(sources: Sequence[str], out: Path) -> Iterator[_Source | Outcome]:
    for text in sources:
        path = Path(text)
        if is_url(text):
            yield _failed(text, None, _url_error(text), "")
        elif path.suffix.lower() == MANIFEST_EXTENSION:
            yield from _read_manifest(path)
        elif path.is_dir():
            images = images_in(path)
            if out.is_dir() and path.samefile(out):
                images = [file for file in images if file.name not in SUMMARY_FILES]
            if not images:
                raise InvalidRequest(f"the folder {path} has only the files of a batch; use another")
            yield from map(_Source, images)
        else:
            yield _Source(path)


def _read_manifest(path: Path) -> Iterator[_Source | Outcome]:
    """Yield the source of each line, or the failure of an invalid line.

    Raises:
        InvalidRequest: the file can't be read, or no line is a JSON object.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise InvalidRequest(f"the manifest {path} can't be read ({error.strerror}); check its name") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"the manifest {path} is not UTF-8 text; save it as UTF-8") from None
    parsed = [(number, line.strip(), _parse(line)) for number, line in enumerate(lines, 1) if line.strip()]
    if not any(isinstance(value, dict) for _, _, value in parsed):
        first = f"line {parsed[0][0]} is {parsed[0][1][:60]!r}" if parsed else "it is empty"
        raise InvalidRequest(f"{path} is not JSON Lines: {first}; write one object per line, such as {_EXAMPLE}")
    for number, text, value in parsed:
        line = f"line {number} of {path.name}: "
        try:
            yield _line_source(value, text, line, path.parent)
        except InvalidRequest as error:
            yield _failed(f"{path}:{number}", None, error, line)


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _line_source(value: Any, text: str, line: str, folder: Path) -> _Source:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{text[:60]!r} is not a JSON object; write one such as {_EXAMPLE}")
    parameters = {name: given for name, given in value.items() if given is not None}
    image, last_image, prompt, name = (parameters.pop(key, None) for key in ("image", "last_image", "prompt", "name"))
    if (image is None) == (prompt is None):
        both = "both image and prompt are" if image is not None else "neither image nor prompt is"
        raise InvalidRequest(f"{both} given; give one of them, such as {_EXAMPLE}")
    for key, path in (("image", image), ("last_image", last_image)):
        if path is not None and (not isinstance(path, str) or not path or "\0" in path):
            raise InvalidRequest(f"{key} {path!r} is not a path; write one such as {_EXAMPLE}")
        if path is not None and is_url(path):
            raise _url_error(path)
    if name is not None and (not isinstance(name, str) or plain_name(name, MAX_NAME) != name):
        raise InvalidRequest(
            f"name {name!r} can't be a file name; use up to {MAX_NAME} letters, digits and any of _ - . inside it"
        )
    parameters = expand_size(parameters)
    # Checks types and ranges, and names unknown fields; the defaults of the models follow later.
    checked = {key: value for key, value in parameters.items() if key != "seconds"}  # its range depends on the model
    VideoRequest.checked(**{**({} if prompt is None else {"prompt": prompt}), **checked})
    paths = [None if path is None else folder / Path(path).expanduser() for path in (image, last_image)]
    return _Source(paths[0], prompt, name, line, paths[1], parameters)


def _url_error(url: str) -> InvalidRequest:
    return InvalidRequest(f"{url} is a URL; download the image and use its path")


def _failed(source: str, name: str | None, error: KinemaError, line: str, seed: int | None = None) -> Outcome:
    failure = Failure(error.code, f"{line}{error}")
    return Outcome(source, name or source, seed, "failed", error=failure)
