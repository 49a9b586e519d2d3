"""A prompt becomes a still, and a still becomes a video: both are generators of steps."""

from kinema.engine.denoised import Denoised
from kinema.engine.image_to_video import generate, to_clip, to_latents
from kinema.engine.previewing import Projection
from kinema.engine.text_to_image import paint, prompt_cautions

__all__ = ["Denoised", "Projection", "generate", "paint", "prompt_cautions", "to_clip", "to_latents"]
