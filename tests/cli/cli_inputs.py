"""Inputs of the command's tests."""

import numpy as np
from PIL import Image

SMALL = ["--width=64", "--height=64", "--num-inference-steps=2", "--num-frames=2", "--seed=7"]


def write_image(path, seed=0):
    """Write a random smooth image of 96×64 in the format of the extension."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC).save(path)
    return path
