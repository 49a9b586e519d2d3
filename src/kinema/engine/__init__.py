"""Text to image and image to video, both as generators of steps."""

from kinema.engine.checkpoint import Checkpoint
from kinema.engine.image_to_video import PreparedImages, generate, prepare_images, to_latents, to_video
from kinema.engine.preview import Projection
from kinema.engine.text_to_image import generate_image, prompt_warnings

__all__ = [
    "Checkpoint",
    "PreparedImages",
    "Projection",
    "generate",
    "generate_image",
    "prepare_images",
    "prompt_warnings",
    "to_latents",
    "to_video",
]
