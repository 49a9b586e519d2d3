"""Kinema turns an image or a text prompt into a short video with Stable Video Diffusion, on your own hardware.

    import kinema
    video = kinema.generate("rocket.png", seed=42)  # or kinema.generate(prompt="a red balloon at sunset")
    video.save("rocket.mp4")

Everything in `__all__` is public; docs/stability.md says how it may change. Names are imported on first use, so that
`import kinema` is fast and has no side effects.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinema.errors import BatchNotFound as BatchNotFound
    from kinema.errors import ContentRefused as ContentRefused
    from kinema.errors import CredentialsError as CredentialsError
    from kinema.errors import DeviceLost as DeviceLost
    from kinema.errors import FileInUse as FileInUse
    from kinema.errors import FileNotFound as FileNotFound
    from kinema.errors import GenerationFailed as GenerationFailed
    from kinema.errors import HubUnreachable as HubUnreachable
    from kinema.errors import IdempotencyKeyReused as IdempotencyKeyReused
    from kinema.errors import InsufficientDisk as InsufficientDisk
    from kinema.errors import InsufficientMemory as InsufficientMemory
    from kinema.errors import InvalidImage as InvalidImage
    from kinema.errors import InvalidRequest as InvalidRequest
    from kinema.errors import JobError as JobError
    from kinema.errors import JobNotFound as JobNotFound
    from kinema.errors import JobUnfinished as JobUnfinished
    from kinema.errors import KinemaError as KinemaError
    from kinema.errors import ModelCorrupt as ModelCorrupt
    from kinema.errors import ModelError as ModelError
    from kinema.errors import ModelGated as ModelGated
    from kinema.errors import ModelIncomplete as ModelIncomplete
    from kinema.errors import ModelNotFound as ModelNotFound
    from kinema.errors import NotAnImagePipeline as NotAnImagePipeline
    from kinema.errors import NotAnSvdModel as NotAnSvdModel
    from kinema.errors import QueueFull as QueueFull
    from kinema.errors import QueueUnavailable as QueueUnavailable
    from kinema.errors import QuotaExceeded as QuotaExceeded
    from kinema.errors import RecipeError as RecipeError
    from kinema.errors import RequestTooLarge as RequestTooLarge
    from kinema.errors import ServerBusy as ServerBusy
    from kinema.errors import ServerUnreachable as ServerUnreachable
    from kinema.errors import VideoError as VideoError
    from kinema.extension import extend as extend
    from kinema.library import KinemaWarning as KinemaWarning
    from kinema.library import generate as generate
    from kinema.library import load as load
    from kinema.library import load_image_pipeline as load_image_pipeline
    from kinema.library import stream as stream
    from kinema.media.image import InputImage as InputImage
    from kinema.media.image import open_image as open_image
    from kinema.media.video import Video as Video
    from kinema.media.video_reader import read_frames as read_frames
    from kinema.media.video_reader import read_recipe as read_recipe
    from kinema.models.image_pipeline import ImagePipeline as ImagePipeline
    from kinema.models.loading import VideoPipeline as VideoPipeline
    from kinema.recipe import Recipe as Recipe
    from kinema.steps import Restart as Restart
    from kinema.steps import Step as Step
    from kinema.values import VideoRequest as VideoRequest

_MODULES = {
    "BatchNotFound": "kinema.errors",
    "ContentRefused": "kinema.errors",
    "CredentialsError": "kinema.errors",
    "DeviceLost": "kinema.errors",
    "FileInUse": "kinema.errors",
    "FileNotFound": "kinema.errors",
    "GenerationFailed": "kinema.errors",
    "HubUnreachable": "kinema.errors",
    "IdempotencyKeyReused": "kinema.errors",
    "ImagePipeline": "kinema.models.image_pipeline",
    "InputImage": "kinema.media.image",
    "InsufficientDisk": "kinema.errors",
    "InsufficientMemory": "kinema.errors",
    "InvalidImage": "kinema.errors",
    "InvalidRequest": "kinema.errors",
    "JobError": "kinema.errors",
    "JobNotFound": "kinema.errors",
    "JobUnfinished": "kinema.errors",
    "KinemaError": "kinema.errors",
    "KinemaWarning": "kinema.library",
    "ModelCorrupt": "kinema.errors",
    "ModelError": "kinema.errors",
    "ModelGated": "kinema.errors",
    "ModelIncomplete": "kinema.errors",
    "ModelNotFound": "kinema.errors",
    "NotAnImagePipeline": "kinema.errors",
    "NotAnSvdModel": "kinema.errors",
    "QueueFull": "kinema.errors",
    "QueueUnavailable": "kinema.errors",
    "QuotaExceeded": "kinema.errors",
    "Recipe": "kinema.recipe",
    "RecipeError": "kinema.errors",
    "RequestTooLarge": "kinema.errors",
    "Restart": "kinema.steps",
    "ServerBusy": "kinema.errors",
    "ServerUnreachable": "kinema.errors",
    "Step": "kinema.steps",
    "Video": "kinema.media.video",
    "VideoError": "kinema.errors",
    "VideoPipeline": "kinema.models.loading",
    "VideoRequest": "kinema.values",
    "extend": "kinema.extension",
    "generate": "kinema.library",
    "load": "kinema.library",
    "load_image_pipeline": "kinema.library",
    "open_image": "kinema.media.image",
    "read_frames": "kinema.media.video_reader",
    "read_recipe": "kinema.media.video_reader",
    "stream": "kinema.library",
}

__all__ = [
    "BatchNotFound",
    "ContentRefused",
    "CredentialsError",
    "DeviceLost",
    "FileInUse",
    "FileNotFound",
    "GenerationFailed",
    "HubUnreachable",
    "IdempotencyKeyReused",
    "ImagePipeline",
    "InputImage",
    "InsufficientDisk",
    "InsufficientMemory",
    "InvalidImage",
    "InvalidRequest",
    "JobError",
    "JobNotFound",
    "JobUnfinished",
    "KinemaError",
    "KinemaWarning",
    "ModelCorrupt",
    "ModelError",
    "ModelGated",
    "ModelIncomplete",
    "ModelNotFound",
    "NotAnImagePipeline",
    "NotAnSvdModel",
    "QueueFull",
    "QueueUnavailable",
    "QuotaExceeded",
    "Recipe",
    "RecipeError",
    "RequestTooLarge",
    "Restart",
    "ServerBusy",
    "ServerUnreachable",
    "Step",
    "Video",
    "VideoError",
    "VideoPipeline",
    "VideoRequest",
    "extend",
    "generate",
    "load",
    "load_image_pipeline",
    "open_image",
    "read_frames",
    "read_recipe",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'kinema' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
