"""Put the watermark into frames: strong where the image is busy, weak where it is flat.

All values of a frame are integers, so that every machine gives the same bytes, and a frame's watermark depends on no
other frame, so that frames can be watermarked one by one.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from kinema.media.watermark.spread_pattern import TILE, TILE_SCALE, tile

if TYPE_CHECKING:
    from kinema.media.video_reader import Frames

Array = np.ndarray[Any, np.dtype[Any]]

# Strengths, which are standard deviations of the watermark, are in units of 1/32 grey level.
UNITS = 32
# In flat areas and at most. In between, a grey level of local activity adds half of one.
FLATTEST, BUSIEST = 20, 96
# A frame's watermark is weakened until its PSNR is about this, in dB.
MIN_PSNR = 42.5
_SHIFT = (UNITS * TILE_SCALE).bit_length() - 1
_FULL_GAIN = 256
_THREADS = 4  # the number does not change the result


def embed(frames: Frames, payload: int) -> Frames:
    """Return frames with a watermark. frames: uint8 [n, height, width, 3]; payload: an integer of 32 bits."""
    with ThreadPoolExecutor(min(_THREADS, len(frames))) as pool:
        return np.stack(list(pool.map(lambda frame: embed_in_frame(frame, payload), frames)))


def embed_in_frame(frame: Frames, payload: int) -> Frames:
    """Return one frame, uint8 [height, width, 3], with a watermark."""
    channels = [frame[..., i].astype(np.int16) for i in range(3)]
    red, green, blue = channels
    strength = _strength((red + green + green + blue) >> 2)
    delta = strength * _repeated(_weakened(tile(payload), strength), *strength.shape)  # at most 96 × 127
    delta += 1 << (_SHIFT - 1)
    delta >>= _SHIFT
    watermarked = np.empty_like(frame)
    for i, channel in enumerate(channels):
        np.add(channel, delta, out=channel)
        np.clip(channel, 0, 255, out=channel)
        watermarked[..., i] = channel
    return watermarked


def _strength(luma: Array) -> Array:
    """Return the strength of the watermark at each pixel. luma: int16 [height, width] from 0 to 255.

    The local activity is the mean absolute difference from the local mean, which is 0 in a gradient. Windows are about
    8×8 pixels; it is computed from the sums of 2×2.
    """
    height, width = luma.shape
    if height % 2 or width % 2:
        luma = np.pad(luma, ((0, height % 2), (0, width % 2)), "edge")
    rows = luma[::2] + luma[1::2]
    sums = rows[:, ::2] + rows[:, 1::2]
    mean = _smoothed(_smoothed(sums, 0) >> 1, 1)  # 32 times as large
    deviation = np.abs((sums << 5) - mean) >> 4  # in 1/8 grey level
    activity = _smoothed(_smoothed(deviation, 0) >> 3, 1) >> 2  # in 1/32, halved
    return _doubled(np.minimum(activity + FLATTEST, BUSIEST))[:height, :width]


def _doubled(values: Array) -> Array:
    """Return each value as 2×2 pixels; several times as fast as `np.repeat`."""
    height, width = values.shape
    rows = np.empty((height, 2 * width), values.dtype)
    rows[:, ::2] = rows[:, 1::2] = values
    doubled = np.empty((2 * height, 2 * width), values.dtype)
    doubled[::2] = doubled[1::2] = rows
    return doubled


def _smoothed(values: Array, axis: int) -> Array:
    """Return 8 times the mean of 5 neighbours along an axis, with weights of 1, 2, 2, 2, 1."""
    padding = [(0, 0), (0, 0)]
    padding[axis] = (2, 2)
    total = np.moveaxis(np.pad(values, padding, "edge"), axis, 0)
    total = total[:-1] + total[1:]
    total = total[:-2] + total[2:]
    total = total[:-1] + total[1:]
    return np.moveaxis(total, 0, axis)


def _weakened(pattern: Array, strength: Array) -> Array:
    """Return the pattern with the gain that keeps the frame's PSNR, int16 [TILE, TILE]."""
    power = int((strength * strength).sum(dtype=np.int64)) / (UNITS**2 * strength.size)
    limit = 255**2 / 10 ** (MIN_PSNR / 10)
    gain = min(_FULL_GAIN, math.floor(_FULL_GAIN * math.sqrt(limit / power)))
    return (pattern.astype(np.int16) * gain + _FULL_GAIN // 2) >> 8


def _repeated(pattern: Array, height: int, width: int) -> Array:
    """Return the pattern repeated over a frame, [height, width]."""
    return np.tile(pattern, (height // TILE + 1, width // TILE + 1))[:height, :width]
