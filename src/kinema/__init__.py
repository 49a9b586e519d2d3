"""Kinema turns an image or a text prompt into a short video with Stable Video Diffusion, on your own hardware.

    import kinema
    video = kinema.generate("rocket.png", seed=42)  # or kinema.generate(prompt="a red balloon at sunset")
    video.save("rocket.mp4")

Names are imported on first use, so that `import kinema` is fast and has no side effects.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinema.errors import KinemaError as KinemaError
    from kinema.library import KinemaWarning as KinemaWarning
    from kinema.library import generate as generate
    from kinema.library import load as load
    from kinema.library import load_image_pipeline as load_image_pipeline
    from kinema.library import stream as stream
    from kinema.media.image import open_image as open_image
    from kinema.media.video import Video as Video
    from kinema.media.video_writer import read_recipe as read_recipe
    from kinema.values import Recipe as Recipe
    from kinema.values import Step as Step
    from kinema.values import VideoRequest as VideoRequest

_MODULES = {
    "KinemaError": "kinema.errors",
    "KinemaWarning": "kinema.library",
    "Recipe": "kinema.values",
    "Step": "kinema.values",
    "Video": "kinema.media.video",
    "VideoRequest": "kinema.values",
    "generate": "kinema.library",
    "load": "kinema.library",
    "load_image_pipeline": "kinema.library",
    "open_image": "kinema.media.image",
    "read_recipe": "kinema.media.video_writer",
    "stream": "kinema.library",
}

__all__ = [
    "KinemaError",
    "KinemaWarning",
    "Recipe",
    "Step",
    "Video",
    "VideoRequest",
    "generate",
    "load",
    "load_image_pipeline",
    "open_image",
    "read_recipe",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'kinema' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
