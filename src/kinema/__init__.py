"""Kinema: a still image, or a sentence, becomes a short video with Stable Video Diffusion, on your own hardware.

    import kinema
    clip = kinema.generate("rocket.png", seed=42)  # or kinema.generate(prompt="a red balloon at sunset")
    clip.save("rocket.mp4")

Names are loaded when they are first used, so that importing takes no time and does nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinema.errors import KinemaError as KinemaError
    from kinema.library import KinemaWarning as KinemaWarning
    from kinema.library import generate as generate
    from kinema.library import load as load
    from kinema.library import load_painter as load_painter
    from kinema.library import stream as stream
    from kinema.media.clip import Clip as Clip
    from kinema.media.still import open_still as open_still
    from kinema.media.video import read_recipe as read_recipe
    from kinema.values import Recipe as Recipe
    from kinema.values import Step as Step
    from kinema.values import VideoRequest as VideoRequest

_HOMES = {
    "Clip": "kinema.media.clip",
    "KinemaError": "kinema.errors",
    "KinemaWarning": "kinema.library",
    "Recipe": "kinema.values",
    "Step": "kinema.values",
    "VideoRequest": "kinema.values",
    "generate": "kinema.library",
    "load": "kinema.library",
    "load_painter": "kinema.library",
    "open_still": "kinema.media.still",
    "read_recipe": "kinema.media.video",
    "stream": "kinema.library",
}

__all__ = [
    "Clip",
    "KinemaError",
    "KinemaWarning",
    "Recipe",
    "Step",
    "VideoRequest",
    "generate",
    "load",
    "load_painter",
    "open_still",
    "read_recipe",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'kinema' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
