"""Read the watermark from frames, also after cropping and scaling.

The details of all frames are added up, since all have the same watermark. At each scale that is tried, the template
gives the position of the tile by phase correlation, and the signs of the other waves at that position give the payload.

The score is the correlation with all waves of the watermark that was read, in standard deviations. A wave adds
|q| cos φ to it. In frames without a watermark, the phases φ have nothing to do with the key; then the Chernoff bound
exp(−score²/2) holds for each payload at each position and scale, whatever the frames show. The sum over all of them
bounds the chance that frames without a watermark give such a score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kinema.media.watermark.convolutional_code import CODE_BITS, PAYLOAD_BITS, decode_payload
from kinema.media.watermark.spread_pattern import HIGHEST, TILE, waves

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kinema.media.video_reader import Frames

Array = np.ndarray[Any, np.dtype[Any]]

# At most one in a million videos without a watermark is taken for one with a watermark.
MAX_CHANCE = 1e-6
# Scales of the video relative to the frames that were watermarked. First, those that are usual.
SMALLEST, LARGEST = 0.4, 2.2
_USUAL_SCALES = (1.0, 0.5, 2.0, 0.75, 2 / 3, 1.5, 4 / 3, 1.25, 0.8)
# With this score at a usual scale, no other scale is tried.
_CLEAR_SCORE = 14.0
# All scales are tried with so many pixels of the middle; the best of them are refined with the whole frame.
_SEARCH_PIXELS = 512
_REFINED = 6
_REACH = int(HIGHEST)
_POSITIONS = 2 * TILE  # half pixels, in each direction
# The width of windows is 5. Details are relative to their local mean plus so many grey levels, and at most the limit.
_NOISE, _DETAIL_LIMIT = 0.8, 3.0
_TAPER = 8  # pixels at the borders


@dataclass(frozen=True, slots=True)
class Watermark:
    """A watermark found in frames."""

    payload: int
    """Its 32 bits."""
    score: float
    """Its strength in standard deviations."""
    chance: float
    """Upper bound of the probability that frames without a watermark give this score."""
    scale: float
    """Size of the frames relative to those that were watermarked."""

    @property
    def confidence(self) -> float:
        """One less the chance."""
        return 1 - self.chance


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """The best watermark at one scale; `score` in standard deviations."""

    scale: float
    score: float
    payload: int


def detect(frames: Iterable[Frames]) -> Watermark | None:
    """Return the watermark of a video, or None. frames: uint8 [height, width, 3], of one size.

    Memory is bounded by the size of a frame. Frames of 1024×576 take about 20 ms each; without a watermark, seconds
    follow.
    """
    watermark = strongest(frames)
    return watermark if watermark is not None and watermark.chance <= MAX_CHANCE else None


def strongest(frames: Iterable[Frames]) -> Watermark | None:
    """Return what is most like a watermark, also in frames without one; None without frames. Frames as in `detect`."""
    details = _details(frames)
    if details is None:
        return None
    readings = [_read(details, _USUAL_SCALES[0])]
    if readings[0].score < _CLEAR_SCORE:
        readings += [_read(details, scale) for scale in _USUAL_SCALES[1:]]
    tried = len(readings)
    if max(reading.score for reading in readings) < _CLEAR_SCORE:
        scales = _search_scales(details)
        refined = _refined(details, scales)
        readings += refined
        tried += len(scales) + len(refined)
    best = max(readings, key=lambda reading: reading.score)
    return Watermark(best.payload, best.score, _chance(best.score, tried * _POSITIONS**2), best.scale)


def _chance(score: float, tried: int) -> float:
    """Return the bound of the probability of a score, if so many places and all payloads were tried."""
    return math.exp(min(0.0, math.log(tried) + PAYLOAD_BITS * math.log(2) - max(score, 0) ** 2 / 2))


def _details(frames: Iterable[Frames]) -> Array | None:
    """Return the sum of the frames' details, float32 [height, width]; None without frames."""
    total: Array | None = None
    detail: Array
    for frame in frames:
        red, green, blue = (frame[..., i].astype(np.float32) for i in range(3))
        luma = (red + 2 * green + blue) / 4
        detail = luma - _mean_of_5x5(luma)
        detail /= _mean_of_5x5(np.abs(detail)) + _NOISE
        np.clip(detail, -_DETAIL_LIMIT, _DETAIL_LIMIT, out=detail)
        total = detail if total is None else np.add(total, detail, out=total)
    if total is None:
        return None
    height, width = total.shape
    total *= _taper(height)[:, None] * _taper(width)
    return total


def _mean_of_5x5(values: Array) -> Array:
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (2, 2)
        padded = np.moveaxis(np.pad(values, padding, "edge"), axis, 0)
        total = padded[2:-2] + padded[:-4]
        for i in (1, 3):
            total += padded[i : i - 4]
        total += padded[4:]
        values = np.moveaxis(total, 0, axis)
    return values / np.float32(25)


def _taper(length: int) -> Array:
    """Return weights that fall to 0 at both ends."""
    positions: Array = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(positions, positions[::-1]).clip(max=_TAPER) / _TAPER


def _read(details: Array, scale: float) -> _Reading:
    """Return the best watermark at a scale."""
    values, used = _wave_values(details, scale), waves()
    _, y, x = _template_peak(values, _POSITIONS)
    turned = (values * np.exp(2j * np.pi / _POSITIONS * (used.x * x + used.y * y))).real
    code = np.bincount(used.bits, turned[used.template :], CODE_BITS)
    payload, correlation = decode_payload(code)
    score = (turned[: used.template].sum() + correlation) / _deviation(values)
    return _Reading(scale, float(score), payload)


def _wave_values(details: Array, scale: float) -> Array:
    """Return the frames' part of each wave, relative to the parts of neighbouring waves and to the key's phase."""
    height, width = details.shape
    used, period = waves(), TILE * scale
    across = _turns(np.outer(np.arange(_REACH + 1), np.arange(width)) / period)
    down = _turns(np.outer(np.arange(-_REACH, _REACH + 1), np.arange(height)) / period)
    rows = details @ np.concatenate([across.real, across.imag]).T  # real, which takes half the time
    spectrum = down @ (rows[:, : _REACH + 1] + 1j * rows[:, _REACH + 1 :])
    power = _mean_of_5x5(np.abs(spectrum) ** 2)
    spectrum /= np.sqrt(power + np.float32(1e-9))
    values: Array = spectrum[used.y + _REACH, used.x] * used.phases.conj()
    return values


def _turns(parts: Array) -> Array:
    """Return exp(−2πi parts), complex64."""
    angles = (parts % 1 * (-2 * np.pi)).astype(np.float32)
    turns = np.empty(parts.shape, np.complex64)
    turns.real, turns.imag = np.cos(angles), np.sin(angles)
    return turns


def _template_peak(values: Array, positions: int) -> tuple[float, int, int]:
    """Return the highest correlation with the template, in standard deviations, and its position, row and column."""
    used = waves()
    known = slice(used.template)
    half = np.zeros((positions, _REACH + 1), np.complex64)  # its other half has the conjugates
    half[used.y[known] % positions, used.x[known]] = values[known]
    correlation = np.fft.irfft(np.fft.ifft(half, axis=0), positions, axis=1)
    row, column = divmod(int(correlation.argmax()), positions)
    score = float(correlation[row, column]) * positions**2 / 2 / _deviation(values[known])
    return score, row, column


def _deviation(values: Array) -> float:
    """Return the standard deviation of the sum of the real parts for random phases."""
    return math.sqrt(float((np.abs(values) ** 2).sum()) / 2 + 1e-9)


def _search_scales(details: Array) -> list[tuple[float, float]]:
    """Return all scales, each with the height of the template's peak in the middle of the frame."""
    middle = details
    for axis in (0, 1):
        start = max(0, (details.shape[axis] - _SEARCH_PIXELS) // 2)
        middle = middle.take(range(start, min(details.shape[axis], start + _SEARCH_PIXELS)), axis)
    step = _step(middle)
    count = math.ceil(math.log(LARGEST / SMALLEST) / step) + 1
    scales = [SMALLEST * math.exp(i * step) for i in range(count)]
    return [(scale, _template_peak(_wave_values(middle, scale), TILE)[0]) for scale in scales]


def _step(details: Array) -> float:
    """Return the relative step of scales at which most waves keep their phases from border to border."""
    return 4 / float(max(details.shape))


def _refined(details: Array, scales: list[tuple[float, float]]) -> list[_Reading]:
    """Return readings with the whole frame at and around the scales of the highest peaks."""
    best = sorted(scales, key=lambda scale: -scale[1])[:_REFINED]
    coarse, fine = math.log(scales[1][0] / scales[0][0]), _step(details) / 2
    reach = round(coarse / fine / 2)
    return [_read(details, scale * math.exp(i * fine)) for scale, _ in best for i in range(-reach, reach + 1)]
