"""What a file says about itself, and what of it can be believed: content credentials, watermark and recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kinema.errors import RecipeError, VideoError
from kinema.media.credentials.c2pa_library import media_type
from kinema.media.credentials.credential_check import CredentialCheck, check_credentials
from kinema.media.video_reader import each_frame, probe_size, read_recipe
from kinema.media.video_writer import sidecar_path
from kinema.media.watermark import detect, payload_of
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kinema.media.video_reader import Frames
    from kinema.recipe import Recipe

# A file is hashed as a whole, but only some frames are decoded, and no larger ones.
MAX_BYTES = 2_000_000_000
MAX_SIDECAR = 20_000_000
MAX_FRAME_PIXELS = 4096 * 2304
MAX_PIXELS = 100 * 1024 * 576
MIN_FRAMES, MAX_FRAMES = 8, 2000

Verdict = Literal["authentic", "tampered", "likely", "unknown"]


class FoundWatermark(BaseModel):
    """The invisible watermark of a video."""

    model_config = ConfigDict(frozen=True)

    payload: str = Field(description="Its 32 bits, as 8 hexadecimal digits.")
    confidence: float = Field(description="1 less the chance that it is found in a video without one.")
    matches_recipe: bool | None = Field(description="Whether it is that of the recipe; null without a recipe.")


class Verification(BaseModel):
    """What was found in a file."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict = Field(
        description="authentic: unchanged since a trusted signer signed it. tampered: changed since it was signed. "
        "likely: there are signs of Kinema, but nothing proves them. unknown: there are none, which proves nothing."
    )
    credentials: CredentialCheck
    watermark: FoundWatermark | None
    frames_read: int = Field(description="The number of frames that were decoded to look for the watermark.")
    recipe: dict[str, Any] | None = Field(description="The recipe in the signed claim, else that in the file.")
    recipe_is_signed: bool


def verify_file(path: Path, sidecar: Path | None = None, anchors: str = "") -> Verification:
    """Check a video file. Call it in a process with limits: the file may come from anybody.

    Args:
        path: An mp4, webm, gif, webp or png.
        sidecar: The `.c2pa` file of a webm; None for the one beside it, if there is one.
        anchors: Trusted certificates as PEM.

    Raises:
        VideoError: it is no video, or too large, or the `.c2pa` file is none.
        CredentialsError: c2pa-python is not installed.
    """
    check_size(path)
    beside = _sidecar(path, sidecar)
    with path.open("rb") as file:
        credentials = check_credentials(file, beside, anchors)
    frames = _Frames(path)
    recipe, watermark = None, None
    try:
        _check_frame(path)
        recipe, watermark = _recipe(path), detect(frames)
    except VideoError:  # what was changed can't be decoded, but the credentials say that it was changed
        if credentials.signer is None:
            raise
    is_signed = credentials.recipe is not None and credentials.state in ("trusted", "valid")
    return Verification(
        verdict=_verdict(credentials, has_signs=watermark is not None or recipe is not None),
        credentials=credentials,
        watermark=None
        if watermark is None
        else FoundWatermark(
            payload=f"{watermark.payload:08x}",
            confidence=watermark.confidence,
            matches_recipe=None if recipe is None else _payload(recipe) == f"{watermark.payload:08x}",
        ),
        frames_read=frames.count,
        recipe=credentials.recipe if is_signed else None if recipe is None else recipe.model_dump(mode="json"),
        recipe_is_signed=is_signed,
    )


def _sidecar(path: Path, sidecar: Path | None) -> bytes | None:
    """Return the content of the `.c2pa` file, if the video's format can't contain credentials and there is one.

    Raises:
        VideoError: it contains none.
    """
    with path.open("rb") as file:
        if media_type(file.read(16)) is not None:
            return None
    found = sidecar or sidecar_path(path)
    if found == path or not found.is_file():
        return None
    content = found.read_bytes()[:MAX_SIDECAR]
    if content[4:8] != b"jumb":  # the box of C2PA's manifests
        raise VideoError(
            Message("no_sidecar", "{path}: its .c2pa file has no content credentials; get it again", path=path)
        )
    return content


def check_size(path: Path) -> None:
    """Check that a file exists and is not too large to be verified.

    Raises:
        VideoError: it does not, or it is.
    """
    try:
        if path.is_dir():
            raise VideoError(f"{path} is a folder; verify a file")
        if path.exists() and not path.is_file():  # a pipe would block
            raise VideoError(f"{path} is not a regular file; save the video as a file and verify that")
        size = path.stat().st_size
    except OSError as error:
        raise VideoError(f"{path} can't be read ({error.strerror}); check the name and the folder") from None
    if size > MAX_BYTES:
        raise VideoError(
            Message(
                "video_too_large",
                "{path} has {size:.1f} GB; files of up to {most:g} GB can be verified: check a shorter part, in which "
                "the watermark can be found, but not the credentials",
                path=path,
                size=size / 1e9,
                most=MAX_BYTES / 1e9,
            )
        )


def _check_frame(path: Path) -> None:
    width, height = probe_size(path)
    if width * height > MAX_FRAME_PIXELS:
        raise VideoError(
            Message(
                "frames_too_large",
                "{path} has frames of {width}×{height}; up to {most:.1f} megapixels can be verified: check a copy with "
                "smaller frames, in which the watermark can be found, but not the credentials",
                path=path,
                width=width,
                height=height,
                most=MAX_FRAME_PIXELS / 1e6,
            )
        )


def _verdict(credentials: CredentialCheck, *, has_signs: bool) -> Verdict:
    if credentials.state == "trusted":
        return "authentic"
    if credentials.state == "tampered":
        return "tampered"
    return "likely" if has_signs or credentials.generated else "unknown"


def _recipe(path: Path) -> Recipe | None:
    try:
        return read_recipe(path)
    except RecipeError:
        return None


def _payload(recipe: Recipe) -> str:
    """Return the payload that a recipe names, else the one that its video would get."""
    payload = payload_of(recipe.request, recipe.image_sha256, recipe.last_image_sha256)
    return recipe.encoding.watermark or f"{payload:08x}"


class _Frames:
    """The first frames of a video, of one size; `count` is the number of those read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0

    def __iter__(self) -> Iterator[Frames]:
        size: tuple[int, ...] | None = None
        for frame in each_frame(self._path, MAX_FRAME_PIXELS):
            size = size or frame.shape
            most = min(MAX_FRAMES, max(MIN_FRAMES, MAX_PIXELS // (size[0] * size[1])))
            if frame.shape != size or self.count >= most:
                return
            self.count += 1
            yield frame
