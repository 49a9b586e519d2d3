"""The values that a command passes around: one video to make, and one video made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.cli.checked_images import CheckedImage
    from kinema.media.image import InputImage
    from kinema.media.video import Video
    from kinema.values import VideoRequest


@dataclass(frozen=True, eq=False)
class RenderTask:
    """One video to be made; everything in it is checked."""

    source: str
    """The still as it was named, or the prompt."""
    image: InputImage | None
    """None while it is not drawn yet, or not opened again."""
    request: VideoRequest
    target: Path
    sheet: Path | None = None
    drawn: Path | None = None
    """Where the drawn still is to be kept, if anywhere."""
    place: str = ""
    """"2/3" of several."""
    warnings: tuple[str, ...] = ()
    recorded: VideoRequest | None = None
    """What the recipe is to say was asked, where it is not `request`: a remake's recipe is that of the original."""
    image_seconds: float | None = None
    """How long its still took, once it is drawn."""
    checked: CheckedImage | None = None
    """What the still is to be opened from, where one is given."""

    @property
    def headline(self) -> str:
        """What begins, in one line."""
        request = self.request
        size = f"{request.num_frames} frames of {request.width}×{request.height}"
        return f"{self._named}: {size}, {request.num_inference_steps} steps, seed {request.seed}"

    @property
    def image_headline(self) -> str:
        """The same of the still that is drawn first."""
        request = self.request
        steps = f", {request.image_num_inference_steps} steps" if request.image_num_inference_steps else ""
        return f"{self._named}: a still of {request.width}×{request.height}{steps}, seed {request.seed}"

    @property
    def is_drawn(self) -> bool:
        """Whether its still is drawn from the prompt, rather than given."""
        return self.source == self.request.prompt

    @property
    def _named(self) -> str:
        name = f'"{self.source}"' if self.is_drawn else self.source
        return f"{self.place} {name}" if self.place else name


@dataclass(frozen=True, eq=False)
class RenderedVideo:
    """One video that is there, and how long it took in seconds."""

    job: RenderTask
    video: Video
    path: Path
    sheet: Path | None
    seconds: float
