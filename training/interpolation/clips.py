"""The films on which the network is evaluated. None is used in training, which only sees photographs.

`vtest.avi` (pedestrians before a camera that stands still) and `tree.avi` (a moving camera, noise, changing exposure)
are in Debian's package opencv-doc, in `examples/data`. `world.mp4` (the turning earth) and `a.mp4` (drawn text) are in
the wheel of gradio, in `media_assets/videos`; its `b.mp4` is a part of `world.mp4`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

CLIPS = ("vtest.avi", "tree.avi", "world.mp4", "a.mp4")
LARGEST = 768  # wider films are halved


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a film, uint8 [height, width, 3]."""
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            width, height = frame.width, frame.height
            while width > LARGEST:
                width, height = width // 2, height // 2
            yield frame.reformat(width, height, format="rgb24", interpolation="AREA").to_ndarray()


def read_triplets(path: Path, most: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield a frame, the following one and the one after it: every second frame, but at most `most`, evenly spread.

    A frame whose neighbours are equal is left out, since nothing moves there.
    """
    count = sum(1 for _ in read_frames(path))
    chosen = list(range(1, count - 1, 2))
    chosen = {chosen[i * len(chosen) // most] for i in range(most)} if len(chosen) > most else set(chosen)
    last: list[np.ndarray] = []
    for i, frame in enumerate(read_frames(path)):
        last = [*last[-2:], frame]
        if i - 1 in chosen and np.abs(last[0].astype(int) - last[2]).mean() > 0.05:
            yield last[0], last[1], last[2]
