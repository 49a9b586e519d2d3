"""Our own forward of SVD's UNet and temporal decoder: diffusers' weights and results, less work and fewer copies.

docs/performance-internals.md explains what is computed differently and why, docs/kernels.md the Hopper kernels.
"""

from kinema.engine.fast.decoder import FastDecoder
from kinema.engine.fast.unet import FastUNet, VideoConstants

__all__ = ["FastDecoder", "FastUNet", "VideoConstants"]
