"""What clients read of an error: what they can mend in full, what is the server's own in general.

Messages about models, files and the database name folders, addresses and statements. Those stand in the log alone.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidImage
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kinema.errors import KinemaError
    from kinema.jobs import Failure

_IN_THE_LOG = Message("in_the_log", "the server's log says why")
_FOLDER = Message("data_folder", "the data folder")
# In place of a message that is not a `Sentence`, by the error's code.
_GENERAL: Mapping[str, str] = {
    "kinema_error": "something went wrong on the server; its log says what",
    "internal_error": "an internal error; the server's log has the details",
    "weights_error": "the model can't be used; take another model, or see the server's log",
    "model_not_found": "the model was not found; take another model, or see the server's log",
    "hub_unreachable": "the model is not downloaded, and the hub can't be reached; try again later, or take a model "
    "that is downloaded",
    "weights_missing": "files of the model are missing; download it again, or take another model",
    "weights_damaged": "files of the model are damaged; download it again, or take another model",
    "not_an_svd_model": "the model is not a Stable Video Diffusion model; take another model",
    "not_an_image_pipeline": "the model is not a text-to-image model that can be used here; take another image_model",
    "insufficient_disk": "the server's disk is full; delete videos, or make room, and try again",
    "job_error": "the queue can't do this; the server's log says why",
    "queue_unavailable": "the queue is not available; try again later",
    "server_busy": "the server has as much to do as it can; try again in a few seconds",
    "video_error": "the video's file can't be read or written; make the video again",
    "recipe_error": "the video's file holds no recipe that can be read",
    "worker_died": "the worker process ended unexpectedly, again and again, most often for lack of memory; ask for a "
    "smaller size or fewer frames",
}
_GENERAL_OF_JOBS = {**_GENERAL, "invalid_image": "the image can't be read any more; give it again"}


def refusal_message(error: KinemaError) -> str:
    """What a client reads where an error answers its request."""
    message = error.args[0] if error.args else ""
    if isinstance(message, Message):
        # What is wrong with an image is the client's to know: it is of the bytes that it sent.
        return message if isinstance(error, InvalidImage) else _public(message)
    return _GENERAL.get(error.code, str(error))


def failure_message(failure: Failure) -> str:
    """What a client reads of a job that failed."""
    return _GENERAL_OF_JOBS.get(failure.code, failure.message)


def _public(message: Message) -> Message:
    """The same without folders and without a library's words."""
    private: dict[str, Any] = {
        name: _FOLDER if isinstance(value, PurePath) else _IN_THE_LOG
        for name, value in message.values.items()
        if isinstance(value, PurePath) or name == "reason"
    }
    return message.replaced(**private)
