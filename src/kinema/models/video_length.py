"""The number of frames of a video of a given duration."""

from __future__ import annotations

from kinema.errors import InvalidRequest
from kinema.messages import Message
from kinema.values import MAX_FRAMES, VideoRequest


def frames_in(seconds: object, rate: object) -> int:
    """Return the number of frames of a video of this duration at its playback frame rate.

    Args:
        seconds: The duration, a number or text.
        rate: Frames per second, a number or text. If `VideoRequest` would reject it, the result is 1.

    Raises:
        InvalidRequest: the duration is not a number, or gives fewer than 1 or more than MAX_FRAMES frames.
    """
    try:
        per_second = VideoRequest.checked(playback_fps=rate).frame_rate
    except InvalidRequest:
        return 1
    longest = MAX_FRAMES / per_second
    try:
        duration = float(str(seconds))
    except ValueError:
        message = Message("seconds_wanted", "seconds {value!r} is not a number; use one such as 2", value=seconds)
        raise InvalidRequest(message, "seconds") from None
    if not 0 <= duration <= longest + 1 or not 1 <= (frames := round(duration * per_second)) <= MAX_FRAMES:
        message = Message(
            "seconds_out_of_range",
            "seconds {value!r} is out of range; at {rate:g} frames per second, use {least:.2g} to {longest:.3g} "
            "seconds ({most} frames)",
            value=seconds,
            rate=per_second,
            least=1 / per_second,
            longest=longest,
            most=MAX_FRAMES,
        )
        raise InvalidRequest(message, "seconds")
    return frames
