"""Error messages for clients: the full message for errors in the request, a general one for errors of the server.

Messages about models, files and the database contain paths, URLs and SQL statements. Only the log contains those.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidImage, VideoError
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kinema.errors import KinemaError
    from kinema.jobs import Failure

_IN_THE_LOG = Message("in_the_log", "see the server's log")
_FOLDER = Message("data_folder", "the data folder")
# By error code: replaces a message that is a plain string rather than a `Message`.
_GENERAL: Mapping[str, str] = {
    "kinema_error": "the server failed; see its log",
    "internal_error": "internal error; see the server's log",
    "model_error": "the model can't be used; choose another model, or see the server's log",
    "model_not_found": "the model was not found; choose another model, or see the server's log",
    "hub_unreachable": "the model is not downloaded and the hub can't be reached; try again later, or choose a "
    "downloaded model",
    "model_incomplete": "files of the model are missing; download it again, or choose another model",
    "model_corrupt": "files of the model are damaged; download it again, or choose another model",
    "not_an_svd_model": "the model is not a Stable Video Diffusion model; choose another model",
    "not_an_image_pipeline": "the model is not a supported text-to-image model; choose another image_model",
    "device_lost": "a GPU of the server can't be reached any more; try again later, or see the server's log",
    "insufficient_disk": "the server's disk is full; delete videos or free disk space, then try again",
    "job_error": "the queue can't do this; see the server's log",
    "queue_unavailable": "the queue is not available; try again later",
    "server_unreachable": "another server can't be reached; try again later",
    "server_busy": "the server is busy; try again in a few seconds",
    "video_error": "the video file can't be read or written; generate the video again",
    "recipe_error": "the video file contains no readable recipe",
    "credentials_error": "content credentials can't be signed or checked; see the server's log",
    "worker_died": "the worker process ended unexpectedly several times, most often because memory ran out; choose a "
    "smaller size or fewer frames",
}
_GENERAL_OF_JOBS = {**_GENERAL, "invalid_image": "the image can no longer be read; send it again"}


def error_message(error: KinemaError) -> str:
    """Return the message of an error response."""
    message = error.args[0] if error.args else ""
    if isinstance(message, Message) and not isinstance(error, VideoError):  # which is about a file of the server
        # The reason concerns only the bytes that the client sent.
        return message if isinstance(error, InvalidImage) else _public(message)
    return _GENERAL.get(error.code, str(error))


def failure_message(failure: Failure) -> str:
    """Return the message of a failed job."""
    return _GENERAL_OF_JOBS.get(failure.code, failure.message)


def _public(message: Message) -> Message:
    """Return the message without paths and without the text of a library's exception."""
    private: dict[str, Any] = {
        name: _FOLDER if isinstance(value, PurePath) else _IN_THE_LOG
        for name, value in message.values.items()
        if isinstance(value, PurePath) or name == "reason"
    }
    return message.replaced(**private)
