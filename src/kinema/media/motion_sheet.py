"""A sheet that compares videos of one image: a row per motion bucket, a column per seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from kinema.media.video import SHEET_WIDTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.media.video_reader import Frames

BRIGHTNESS = 4


class MotionSheet:
    """A sheet of at most 2048 pixels in width, to which videos of one size are added; only their tiles are kept.

    Each tile shows the last frame and, beside it, its difference from the first frame, four times brighter. Motions
    and seeds without a video stay black.
    """

    def __init__(self, motions: Sequence[int], seeds: Sequence[int]) -> None:
        self._motions, self._seeds = list(motions), list(seeds)
        self._sheet: Image.Image | None = None
        self._tile_size = 0, 0

    @property
    def image(self) -> Image.Image | None:
        """The sheet; None before the first video."""
        return self._sheet

    def add(self, motion: int, seed: int, frames: Frames) -> None:
        """Draw the tile of a video. frames: uint8 [n, height, width, 3]."""
        if self._sheet is None:
            _, height, width, _ = frames.shape
            scale = min(1.0, SHEET_WIDTH / (2 * width * len(self._seeds)))
            self._tile_size = max(1, math.floor(2 * width * scale)), max(1, round(height * scale))
            size = self._tile_size[0] * len(self._seeds), self._tile_size[1] * len(self._motions)
            self._sheet = Image.new("RGB", size)
        w, h = self._tile_size
        tile, change = _tile(frames)
        corner = self._seeds.index(seed) * w, self._motions.index(motion) * h
        self._sheet.paste(tile.resize((w, h), Image.Resampling.LANCZOS), corner)
        label = f"motion {motion}, seed {seed}: change {change:.1f}/255"
        at = corner[0] + 4, corner[1] + 4
        ImageDraw.Draw(self._sheet).text(at, label, "white", stroke_width=1, stroke_fill="black")


def _tile(frames: Frames) -> tuple[Image.Image, float]:
    """Return the last frame beside its brightened difference from the first, and the mean difference (0 to 255)."""
    difference = np.abs(frames[-1].astype(np.float32) - frames[0]).mean(axis=2, keepdims=True)
    brightened = (difference * BRIGHTNESS).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    return Image.fromarray(np.hstack([frames[-1], brightened])), float(difference.mean())
