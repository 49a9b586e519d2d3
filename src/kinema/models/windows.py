"""The frames that the video model predicts together: windows of a longer video, both directions between two images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.values import VideoRequest


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive frames of a video that the model predicts at once, from `start` to before `end`."""

    start: int
    end: int
    number: int
    """From 0, of all windows of the video."""

    @property
    def is_reversed(self) -> bool:
        """Whether the image is at its end, and the model predicts it backward in time."""
        return self.number % 2 == 1


def windows(num_frames: int, at_once: int) -> tuple[Window, ...]:
    """Divide a video into windows of `at_once` frames, which may go on beyond its end; one window if it is not longer.

    They alternate: the first leaves the image, the second returns to it, and so on. Where one leaves and the next
    returns, they overlap by half; where they meet at the image, by that frame. The video turns in the middle of the
    overlap, where it slows down. Nothing slows it down at its end, so it ends no further from the image than in the
    middle of a window that leaves.
    """
    if num_frames <= at_once:
        return (Window(0, num_frames, 0),)
    return extended_windows((num_frames,), at_once)


def extended_windows(lengths: Sequence[int], at_once: int) -> tuple[Window, ...]:
    """Divide a video that was extended into windows of `at_once` frames, which may go on beyond its end.

    The window at the end of a video that is extended goes on. If it is complete and leaves the image, the one that
    returns overlaps it by a quarter, not by half: its frames are held, and with fewer of them their distance from the
    image fits that of the new frames better.

    Args:
        lengths: The number of frames before each extension, then that of the whole video.
        at_once: Frames of a window.
    """
    found = [Window(0, at_once, 0)]
    for before, length in pairwise((0, *lengths)):
        while found[-1].end - _beyond_middle(found[-1], length, at_once) < length:
            end, returns = found[-1].end, len(found) % 2 == 1
            overlap = at_once // 4 + 1 if end == before else at_once // 2
            start = end - min(at_once - 1, max(1, overlap) if returns else 1)
            found.append(Window(start, start + at_once, len(found)))
    return tuple(found)


def _beyond_middle(window: Window, length: int, at_once: int) -> int:
    """Return how many frames at the end of a window are too far from the image for a long video to end in them."""
    return 0 if window.is_reversed or length <= at_once else (at_once - 1) // 2


def check_two_ends(request: VideoRequest, at_once: int | None, *, has_last_image: bool) -> None:
    """Check that a loop, or a video with a last image, has enough frames, and not more than the model makes at once.

    Args:
        request: Any request; one for a loop or with a last image is checked.
        at_once: The frames that its model makes at once; None if that is not known yet.
        has_last_image: Whether the video ends at an image.

    Raises:
        InvalidRequest: it has too few or too many frames, or is a loop with a last image.
    """
    frames, model = request.num_frames, request.model
    if has_last_image and request.loop:
        message = Message(
            "loop_with_last_image", "a loop ends at its first image; remove last_image, or set loop to false"
        )
        raise InvalidRequest(message, "last_image")
    if request.loop and frames == 1:
        message = Message("loop_too_short", "a loop of 1 frame does not move; use num_frames 2 or more")
        raise InvalidRequest(message, "num_frames")
    if has_last_image and frames == 1:
        message = Message("last_image_too_short", "num_frames 1 has no last frame for last_image; use at least 2")
        raise InvalidRequest(message, "num_frames")
    if at_once is None or frames <= at_once:
        return
    if request.loop:
        message = Message(
            "loop_too_long",
            "{frames} frames are too many for a loop; use at most {most}, which {model} makes at once",
            frames=frames,
            model=model,
            most=at_once,
        )
        raise InvalidRequest(message, "num_frames")
    if has_last_image:
        message = Message(
            "last_image_too_long",
            "{frames} frames are too many for a video with a last image; use at most {most}, which {model} makes at "
            "once",
            frames=frames,
            model=model,
            most=at_once,
        )
        raise InvalidRequest(message, "num_frames")


def predicted_frames(request: VideoRequest, at_once: int | None, *, has_last_image: bool) -> int:
    """Return the frames that the model predicts in each denoising step.

    Where windows overlap, frames count for each; between two images, for both directions, and a loop has one frame
    more, which repeats its first.

    Args:
        request: The request.
        at_once: The frames that its model makes at once; None if that is not known.
        has_last_image: Whether the video ends at an image.
    """
    frames = request.num_frames
    if request.loop:
        return 2 * (frames + 1)
    if has_last_image:
        return 2 * frames
    return sum(window.end - window.start for window in windows(frames, at_once or frames))
