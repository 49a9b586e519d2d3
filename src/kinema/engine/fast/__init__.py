"""Our own forward of SVD's UNet and temporal decoder: diffusers' weights and results, less work and fewer copies."""

from kinema.engine.fast.decoder import FastDecoder
from kinema.engine.fast.unet import ClipConstants, FastUNet

__all__ = ["ClipConstants", "FastDecoder", "FastUNet"]
