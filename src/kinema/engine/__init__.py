"""Stable Video Diffusion as a generator of steps."""

from kinema.engine.image_to_video import generate

__all__ = ["generate"]
