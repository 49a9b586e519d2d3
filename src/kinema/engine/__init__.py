"""A prompt becomes a still, and a still becomes a video: both are generators of steps."""

from kinema.engine.image_to_video import generate
from kinema.engine.text_to_image import paint, prompt_cautions

__all__ = ["generate", "paint", "prompt_cautions"]
