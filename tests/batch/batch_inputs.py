"""Inputs and results of the batch's tests."""

from typing import NamedTuple

import numpy as np
from PIL import Image

QUICK = ["--model", "pocket", "--motion-bucket-id", "1"]


class CommandResult(NamedTuple):
    code: int
    out: str
    err: str


def write_image(path, seed):
    """Write a random image of 64×48."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    return path
