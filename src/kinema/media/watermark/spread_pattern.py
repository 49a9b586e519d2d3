"""The waves of the watermark: which frequencies carry what, and the tile that is their sum."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from kinema.media.watermark.convolutional_code import CODE_BITS, encode_payload

Array = np.ndarray[Any, np.dtype[Any]]

# Anyone can read the watermark with this key, and forge it.
PUBLIC_KEY = b"kinema-mark-1"
TILE = 128
# Frequencies in cycles per tile: lower ones are the image's own, higher ones do not survive compression or half size.
LOWEST, HIGHEST = 7.7, 30.7
# Vertical and horizontal waves of low frequency are in the borders of an image.
_NEAREST_AXIS = 2
_TEMPLATE_SHARE = 0.3
# The tile in integers: its standard deviation, and its largest value.
TILE_SCALE, TILE_LIMIT = 32, 127


@dataclass(frozen=True, slots=True, eq=False)
class Waves:
    """The waves in the order of their use: the first `template` are known, the others carry bits of the code."""

    x: Array
    """Cycles per tile from left to right."""
    y: Array
    """Cycles per tile from top to bottom."""
    phases: Array
    """Complex numbers of magnitude 1."""
    bits: Array
    """Position in the code word, of each wave that carries one."""
    template: int


@cache
def waves() -> Waves:
    """Return the waves of the public key."""
    reach = int(HIGHEST)
    y, x = np.mgrid[-reach : reach + 1, _NEAREST_AXIS : reach + 1]
    length = np.hypot(x, y)
    used = (length >= LOWEST) & (length <= HIGHEST) & (abs(y) >= _NEAREST_AXIS)
    x, y = x[used], y[used]
    numbers = _numbers(len(x))
    order = np.argsort(numbers[0], kind="stable")
    template = int(_TEMPLATE_SHARE * len(x))
    phases = np.exp(2j * np.pi * numbers[1] / 2**32)
    return Waves(x[order], y[order], phases, np.arange(len(x) - template) % CODE_BITS, template)


def _numbers(count: int) -> Array:
    """Return two rows of `count` numbers of 32 bits that follow from the key, on all versions of all libraries."""
    stream = hashlib.shake_256(PUBLIC_KEY).digest(8 * count)
    numbers: Array = np.frombuffer(stream, ">u4").astype(np.int64)
    return numbers.reshape(2, count)


@cache
def tile(payload: int) -> Array:
    """Return the pattern of a payload: int8 [TILE, TILE] with a mean of 0 and a standard deviation of TILE_SCALE."""
    own = waves()
    signs = np.concatenate([np.ones(own.template), encode_payload(payload)[own.bits]])
    spectrum = np.zeros((TILE, TILE), complex)
    spectrum[own.y % TILE, own.x % TILE] = signs * own.phases
    pattern = np.fft.ifft2(spectrum).real
    scaled: Array = np.rint(pattern * (TILE_SCALE / pattern.std()))
    return np.clip(scaled, -TILE_LIMIT, TILE_LIMIT).astype(np.int8)
