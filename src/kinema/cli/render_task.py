"""The values that a command passes around: one video to render, and one rendered video."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kinema.recipe import FileEncoding

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.cli.checked_images import CheckedImage
    from kinema.media.credentials.signing_keys import SigningKeys
    from kinema.media.image import InputImage
    from kinema.media.source_video import SourceVideo
    from kinema.media.video import Video
    from kinema.values import VideoRequest


@dataclass(frozen=True, eq=False)
class RenderTask:
    """One video to render; all values are validated."""

    source: str
    """Path or URL of the image, or the prompt."""
    image: InputImage | None
    """None before the image is generated or reopened."""
    request: VideoRequest
    output_path: Path
    contact_sheet_path: Path | None = None
    image_path: Path | None = None
    """Where to save the generated image."""
    position: str = ""
    """"2/3" for the second of three videos."""
    warnings: tuple[str, ...] = ()
    recipe_request: VideoRequest | None = None
    """The request to record in the recipe, if not `request`: a remake records the original request."""
    image_seconds: float | None = None
    """Duration of the text-to-image stage."""
    checked_image: CheckedImage | None = None
    """The input image to reopen."""
    last_image: InputImage | None = None
    """Where the video ends."""
    source_video: SourceVideo | None = None
    """The video to extend."""
    encoding: FileEncoding = field(default_factory=FileEncoding)
    """Quality and order of the frames in the file, and the watermark of a remake."""
    watermark: bool = False
    """Whether the frames of the file get the watermark of the request."""
    keys: SigningKeys | None = None
    """What signs the file; None to write it without content credentials."""
    is_of_sheet: bool = False
    """Whether the videos of an image differ in their motion, which messages then name."""

    @property
    def name(self) -> str:
        """What messages call the video: its source and seed."""
        return f"{self.source}, {self._variation}"

    @property
    def headline(self) -> str:
        """One line for the start of the video."""
        request = self.request
        size = f"{request.output_frames} frames of {'×'.join(map(str, request.output_size))}"
        return f"{self._title}: {size}, {request.num_inference_steps} steps, {self._variation}"

    @property
    def image_headline(self) -> str:
        """One line for the start of the text-to-image stage."""
        request = self.request
        steps = f", {request.image_num_inference_steps} steps" if request.image_num_inference_steps else ""
        return f"{self._title}: image of {request.width}×{request.height}{steps}, seed {request.seed}"

    @property
    def is_from_prompt(self) -> bool:
        """Whether the image is generated from a prompt."""
        return self.source == self.request.prompt

    @property
    def _variation(self) -> str:
        """What distinguishes the video from others of the same image."""
        motion = f"motion {self.request.motion_bucket_id}, " if self.is_of_sheet else ""
        return f"{motion}seed {self.request.seed}"

    @property
    def _title(self) -> str:
        title = f'"{self.source}"' if self.is_from_prompt else self.source
        return f"{self.position} {title}" if self.position else title


@dataclass(frozen=True, eq=False)
class RenderedVideo:
    """One finished video; `seconds` includes the text-to-image stage."""

    task: RenderTask
    video: Video
    path: Path
    contact_sheet_path: Path | None
    seconds: float
