"""So that `bentoml serve service:StableDiffusionVideo` works from here."""

from kinema.serving.service import StableDiffusionVideo

__all__ = ["StableDiffusionVideo"]
