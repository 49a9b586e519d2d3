"""The number of frames of a video of a given duration."""

from __future__ import annotations

from kinema.errors import InvalidRequest
from kinema.messages import Message
from kinema.values import MAX_FRAMES, VideoRequest


def frames_in(seconds: object, rate: object, factor: object = 1, most: int = MAX_FRAMES) -> int:
    """Return the number of frames to generate for a video of this duration.

    Args:
        seconds: The duration, a number or text.
        rate: Frames per second, a number or text. If `VideoRequest` would reject it, the result is 1.
        factor: `interpolate`, if the rate is that of the interpolated frames; likewise.
        most: The largest number of frames.

    Raises:
        InvalidRequest: the duration is not a number, or gives fewer than 1 or more than `most` frames.
    """
    try:
        request = VideoRequest.checked(playback_fps=rate, interpolate=factor)
        per_second = request.generated_rate
    except InvalidRequest:
        return 1
    longest = most / per_second
    try:
        duration = float(str(seconds))
    except ValueError:
        message = Message("seconds_wanted", "seconds {value!r} is not a number; use one such as 2", value=seconds)
        raise InvalidRequest(message, "seconds") from None
    if not 0 <= duration <= longest + 1 or not 1 <= (frames := round(duration * per_second)) <= most:
        message = Message(
            "seconds_out_of_range",
            "seconds {value!r} is out of range; at {rate:g} frames per second, use {least:.2g} to {longest:.3g} "
            "seconds ({most} frames)",
            value=seconds,
            rate=per_second,
            least=1 / per_second,
            longest=longest,
            most=most,
        )
        raise InvalidRequest(message, "seconds")
    return frames
