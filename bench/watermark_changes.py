"""What is done to watermarked videos in bench/watermark.py: frames in, frames out, uint8 [n, height, width, 3]."""

import io
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from kinema.media.video_encoders import encoder_for

Change = Callable[[np.ndarray], np.ndarray]
FPS = 7


def encoded(codec: str, crf: int, **options: str) -> Change:
    """Encode with a codec of FFmpeg, and decode."""

    def change(frames: np.ndarray) -> np.ndarray:
        frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        file = io.BytesIO()
        with av.open(file, "w", format="webm" if "vpx" in codec else "mp4") as container:
            stream = container.add_stream(codec, rate=FPS, options={"crf": str(crf), **options})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for i, frame in enumerate(frames):
                image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                image.pts, image.time_base = i, Fraction(1, FPS)
                container.mux(stream.encode(image))
            container.mux(stream.encode())
        return _decoded(file.getvalue())

    return change


def as_mp4(frames: np.ndarray) -> np.ndarray:
    """Encode as Kinema does, and decode."""
    return _decoded(_file(frames, ".mp4"))


def as_gif(frames: np.ndarray) -> np.ndarray:
    """Convert to a gif of 256 colours as Kinema does."""
    with Image.open(io.BytesIO(_file(frames, ".gif"))) as image:
        found = []
        for i in range(image.n_frames):
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")))
    return np.stack(found)


def _file(frames: np.ndarray, suffix: str) -> bytes:
    encoder = encoder_for(suffix, FPS)
    for frame in frames:
        encoder.add(np.ascontiguousarray(frame))
    return encoder.result(None)


def _decoded(file: bytes) -> np.ndarray:
    with av.open(io.BytesIO(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def scaled(factor: float) -> Change:
    """Scale by a factor."""
    return lambda frames: resized(frames, round(frames.shape[2] * factor), round(frames.shape[1] * factor))


def resized(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale to a size."""
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC)) for x in frames])


def cropped(share: float) -> Change:
    """Keep a share of width and height, not from the middle."""

    def change(frames: np.ndarray) -> np.ndarray:
        height, width = (int(length * share) // 2 * 2 for length in frames.shape[1:3])
        top, left = int((frames.shape[1] - height) * 0.61), int((frames.shape[2] - width) * 0.37)
        return frames[:, top : top + height, left : left + width]

    return change


def at_own_size(change: Change) -> Change:
    """Scale back to the size before the change."""
    return lambda frames: resized(change(frames), frames.shape[2], frames.shape[1])


def at_24_fps(frames: np.ndarray) -> np.ndarray:
    """Repeat frames."""
    return frames[np.arange(len(frames) * 24 // FPS) * FPS // 24]


def one_second(frames: np.ndarray) -> np.ndarray:
    """Keep a second that does not begin at the first frame."""
    return frames[3 : 3 + FPS]


def brighter(frames: np.ndarray) -> np.ndarray:
    """Increase brightness and contrast."""
    return np.clip(frames * 1.15 + 8, 0, 255).astype(np.uint8)


def both(*changes: Change) -> Change:
    """Apply changes one after the other."""

    def change(frames: np.ndarray) -> np.ndarray:
        for one in changes:
            frames = one(frames)
        return frames

    return change


h264 = {crf: encoded("libx264", crf) for crf in (18, 23, 28, 32, 35)}
# All but the first are done to the decoded mp4 that Kinema wrote. True: the watermark must survive.
CHANGES: dict[str, tuple[Change, bool]] = {
    "Kinema's mp4 (crf 18)": (lambda frames: frames, True),
    "H.264 crf 18": (h264[18], True),
    "H.264 crf 23": (h264[23], True),
    "H.264 crf 28": (h264[28], True),
    "H.264 crf 32": (h264[32], True),
    "H.264 crf 35": (h264[35], False),
    "HEVC crf 28": (encoded("libx265", 28, **{"x265-params": "log-level=none"}), True),
    "VP9 crf 33": (encoded("libvpx-vp9", 33, b="0", deadline="good", **{"cpu-used": "4"}), True),
    "half size and back": (at_own_size(scaled(0.5)), True),
    "half size": (scaled(0.5), False),
    "half size, H.264 crf 28": (both(scaled(0.5), h264[28]), False),
    "1.37 times the size": (scaled(1.37), False),
    "90% crop": (cropped(0.9), True),
    "90% crop, scaled back": (at_own_size(cropped(0.9)), False),
    "90% crop, H.264 crf 28": (both(cropped(0.9), h264[28]), False),
    "50% crop": (cropped(0.5), False),
    "7 to 24 frames/s, H.264 crf 23": (both(at_24_fps, h264[23]), True),
    "1 second, H.264 crf 23": (both(one_second, h264[23]), True),
    "1 second, H.264 crf 28": (both(one_second, h264[28]), False),
    "gif of 256 colours": (as_gif, True),
    "brighter, more contrast": (brighter, False),
    "mirrored": (lambda frames: frames[:, :, ::-1], False),
    "rotated by 1°": (lambda x: np.stack([np.asarray(Image.fromarray(f).rotate(1, 2)) for f in x]), False),
    "stretched by 5%": (lambda frames: resized(frames, round(frames.shape[2] * 1.05), frames.shape[1]), False),
}
