"""`Video`: the frames of a finished video with frame rate and recipe; contact sheets."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from kinema.errors import InvalidRequest
from kinema.media.encoding_steps import KeptWatermark, file_encoding, with_kept_watermark, with_watermark
from kinema.media.video_writer import Frames, check_frames, encode_video, save_video

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from pathlib import Path

    from kinema.recipe import Recipe

SHEET_WIDTH = 2048
SHEET_GAP = 4


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """A finished video: `frames` uint8 [num_frames, height, width, 3] in sRGB, frame rate `fps`, and its `recipe`.

    `fps` is an int if it is whole; 29.97… stands for 30000/1001 exactly.
    `image` is the RGB input image, which was generated if the request had a prompt. `image_files` are the files of the
    input images, as far as there are any, for content credentials. `kept_watermark` is the invisible watermark that the
    first frames have already, if the video was extended from a watermarked one.
    """

    frames: Frames
    fps: float
    recipe: Recipe
    image: Image.Image | None = None
    image_files: tuple[bytes, ...] = ()
    kept_watermark: KeptWatermark | None = None

    def __post_init__(self) -> None:
        check_frames(self.frames)

    @property
    def seed(self) -> int:
        """The seed of the request."""
        return self.recipe.request.seed

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        crf: int | None = None,
        boomerang: bool = False,
        credentials: bool = False,
        watermark: bool = False,
    ) -> Path:
        """Write .mp4, .webm, .gif or .webp by the path's extension, or a PNG folder without one; return the path.

        Args:
            path: The file or folder.
            crf: Quality of mp4 (1 to 51, default 18) or webm (0 to 63, default 20): lower is better and larger.
            boomerang: Play the frames forward and then backward; first and last are not repeated.
            credentials: Sign the file with content credentials, which say that and how it was generated. Those of a
                webm are in a file beside it, with the extension .c2pa. The bytes of a signed file differ each time.
            watermark: Put an invisible watermark into the frames of the file, by which it can be recognised as
                generated (see docs/trust.md). A video that was extended from a watermarked one gets the same watermark
                in its new frames, also without this option.

        Raises:
            InvalidRequest: if the format does not have this crf, or can't be signed.
            VideoError, InsufficientDisk: if the file can't be written.
            CredentialsError: if the file can't be signed.
        """
        encoding = file_encoding(crf=crf, boomerang=boomerang)
        if self.kept_watermark is not None:
            encoding = with_kept_watermark(encoding, self.kept_watermark)
        elif watermark:
            recipe = self.recipe
            encoding = with_watermark(encoding, recipe.request, recipe.image_sha256, recipe.last_image_sha256)
        signer = None
        if credentials:
            from kinema.media.credentials.file_signer import FileSigner
            from kinema.media.credentials.signing_keys import signing_keys
            from kinema.settings import read_settings

            signer = FileSigner(signing_keys(read_settings()), self.image_files)
        return save_video(self.frames, path, self.fps, self.recipe, encoding=encoding, signer=signer)

    def contact_sheet(self, columns: int | None = None) -> Image.Image:
        """Return one image with all frames, row by row, at most 2048 pixels wide; by default about square in frames.

        Raises:
            InvalidRequest: if `columns` is not from 1 to the number of frames.
        """
        return make_contact_sheet(self.frames, len(self.frames), columns)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"<Video {width}×{height}, {count} frames at {self.fps:g}/s, seed {self.seed}>"

    def _repr_html_(self) -> str:
        """Return an HTML video element for notebooks."""
        data = base64.b64encode(encode_video(self.frames, ".mp4", self.fps, self.recipe)).decode()
        return (
            f'<video width="{self.frames.shape[2]}" style="max-width: 100%" autoplay loop muted playsinline controls '
            f'aria-label="Generated video, seed {self.seed}" src="data:video/mp4;base64,{data}"></video>'
        )


def make_contact_sheet(frames: Iterable[Frames], count: int, columns: int | None = None) -> Image.Image:
    """Return a contact sheet of `count` frames of one size, each uint8 [height, width, 3]; see `Video.contact_sheet`.

    Raises:
        InvalidRequest: see `Video.contact_sheet`.
    """
    columns = math.ceil(count**0.5) if columns is None else columns
    if not 1 <= columns <= count:
        raise InvalidRequest(f"columns {columns} is out of range: 1 to {count}", "columns")
    sheet: Image.Image | None = None
    w = h = 0
    for i, frame in enumerate(frames):
        if sheet is None:
            height, width, _ = frame.shape
            scale = min(1.0, (SHEET_WIDTH - SHEET_GAP * (columns + 1)) / (columns * width))
            w, h = max(1, int(width * scale)), max(1, round(height * scale))
            rows = math.ceil(count / columns)
            sheet = Image.new("RGB", (columns * (w + SHEET_GAP) + SHEET_GAP, rows * (h + SHEET_GAP) + SHEET_GAP))
        tile = Image.fromarray(frame).resize((w, h), Image.Resampling.LANCZOS)
        sheet.paste(tile, (SHEET_GAP + i % columns * (w + SHEET_GAP), SHEET_GAP + i // columns * (h + SHEET_GAP)))
    assert sheet is not None, "at least one column implies at least one frame"
    return sheet
