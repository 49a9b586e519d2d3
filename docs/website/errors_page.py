"""The page of the errors: tree, code, HTTP status, exit code, and what to do."""

from __future__ import annotations

import inspect

from docs.website.markdown import table

from kinema import errors
from kinema.cli.exit_codes import exit_code_for
from kinema.serving.schemas import ERROR_RESPONSES, status_of

_INTRO = """# Errors

The library raises these classes. The HTTP API responds with `{"error": {"code", "message", "param", "type"}}`. The
command prints the message and ends with the exit code; with `--json` it also prints the code. Every message names the
problem and, where there is one, the remedy.
"""
_REMEDIES = {
    "KinemaError": "Catch this class to handle every error that Kinema raises intentionally; print its message.",
    "InvalidRequest": "Correct the parameter or setting `param`. The message has the value and the allowed range.",
    "RequestTooLarge": "Send a smaller image, or raise `KINEMA_MAX_BODY_MB`.",
    "ContentRefused": "Use another image or prompt. The server sets [what it refuses](../how-to/safety-check.md).",
    "InvalidImage": "Use a JPEG, PNG, WebP, HEIC or AVIF that other programs open. The message says what is wrong.",
    "ModelError": "Check the name with `kinema models`.",
    "ModelNotFound": "Check the spelling. `kinema models` lists the names; a hub id has the form `owner/name`.",
    "ModelGated": "Accept the licence on the model's page, then log in with `hf auth login` or set `HF_TOKEN`.",
    "HubUnreachable": "Check the network, or use a downloaded model: `kinema models` shows which are.",
    "ModelIncomplete": "Download the model again: `kinema models pull NAME`. Complete a folder of your own.",
    "ModelCorrupt": "Delete the file that the message names and download the model again.",
    "NotAnSvdModel": "Pass a Stable Video Diffusion model in diffusers' layout as `model`.",
    "NotAnImagePipeline": "Pass a text-to-image pipeline in diffusers' layout as `image_model`.",
    "InsufficientMemory": "Close other programs, or choose fewer frames or a smaller size. See `kinema doctor`.",
    "DeviceLost": "Load the model again. If it persists, check the GPUs with `nvidia-smi`, or use `gpus=1`.",
    "InsufficientDisk": "Free disk space, or write to another disk.",
    "GenerationFailed": 'Try another seed, then `dtype="float32"`. If it persists, the weights may be damaged.',
    "JobError": "See the message.",
    "QueueFull": "Retry after `retry_after` seconds, or raise `KINEMA_QUEUE_SIZE`.",
    "QueueUnavailable": "Wait and retry. The server's log and `/readyz` have the reason.",
    "JobNotFound": "Check the id. The video may have expired or been deleted.",
    "BatchNotFound": "Check the id. Batches expire too, after `KINEMA_KEEP_DAYS`.",
    "FileNotFound": "Upload the file again, or check the id. The file may have expired or been deleted.",
    "JobUnfinished": "Wait until the status is `completed`. If it is `failed`, read the job's `error`.",
    "FileInUse": "Wait until the batch has ended, or cancel it.",
    "IdempotencyKeyReused": "Use a new key for a different request.",
    "ServerUnreachable": "Check the URL and the network, then run the same `kinema batch` again; it continues.",
    "ServerBusy": "Retry after a few seconds (`Retry-After`).",
    "QuotaExceeded": "Retry after `retry_after` seconds, or use another API key.",
    "VideoError": "Check that the path is writable, or that the file is a video made by Kinema.",
    "RecipeError": "Use a file that Kinema wrote and no other program changed, or make a new video.",
    "CredentialsError": "See the message, and [how videos are signed](../how-to/own-certificate.md).",
}

_OTHER_CODES = [
    ("unknown_key", "401", "The API key is missing or unknown."),
    (
        "too_many_wrong_keys",
        "429",
        "Too many wrong API keys came from this client's address; retry after `Retry-After` seconds.",
    ),
    (
        "too_many_requests",
        "429",
        "The API key sent more requests than `KINEMA_KEY_REQUESTS_PER_MINUTE`; retry after `Retry-After` seconds.",
    ),
    ("host_not_allowed", "403", "Add the Host name to `KINEMA_HOSTS`."),
    ("origin_not_allowed", "403", "Add the page's origin to `KINEMA_CORS_ORIGINS`."),
    ("address_not_allowed", "403", "Set `KINEMA_API_KEYS`, so that the server accepts remote connections."),
    ("not_found", "404", "The URL does not exist."),
    ("method_not_allowed", "405", "The URL does not support this method; the header `Allow` lists those it supports."),
    ("range_not_satisfiable", "416", "The `Range` header lies outside the file."),
    ("unavailable", "503", "The server is starting or shutting down; retry after `Retry-After` seconds."),
    ("internal_error", "500", "A defect. Please report it with the lines of the server's log."),
    ("cancelled", "409", "A job was cancelled by a client."),
    ("worker_died", "500", "The worker process died in three attempts. The server's log has the reason."),
    ("worker_hung", "500", "The worker process made no progress for `KINEMA_STEP_TIMEOUT` seconds, in three attempts."),
    (
        "interrupted",
        "500",
        "The server crashed repeatedly during the job, or another server took over; submit it again.",
    ),
]


def public_errors() -> list[type[errors.KinemaError]]:
    """Return every error class, parents first, in the order of the tree."""
    return [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.KinemaError)]


def errors_page() -> str:
    """Return the page of the errors."""
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")[1]
    kinds = public_errors()
    rows = [
        (
            f"[`{kind.__name__}`](#{kind.__name__.lower()})",
            f"`{kind.code}`",
            str(status_of(kind)),
            str(_exit_code(kind)),
        )
        for kind in kinds
    ]
    entries = "".join(
        f"### {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n"
        f"**What to do**: {_REMEDIES[kind.__name__]}\n\n"
        f"`{kind.code}` · HTTP {status_of(kind)} · exit code {_exit_code(kind)} · subclass of "
        f"{', '.join(f'`{base.__name__}`' for base in kind.__bases__)}\n\n"
        for kind in kinds
    )
    statuses = [(str(status), meaning) for status, meaning in ERROR_RESPONSES.items()]
    codes = [(f"`{code}`", status, text) for code, status, text in _OTHER_CODES]
    return (
        f"{_INTRO}\n```text\n{inspect.cleandoc(tree)}\n```\n\n"
        f"{table(('class', 'code', 'HTTP status', 'exit code'), rows)}\n## Classes\n\n{entries}"
        f"## HTTP statuses\n\n{table(('status', 'meaning'), statuses)}\n"
        "## Other codes\n\nCodes of responses and of failed jobs without a class of their own.\n\n"
        f"{table(('code', 'status', 'meaning'), codes)}"
    )


def _exit_code(kind: type[errors.KinemaError]) -> int:
    return exit_code_for(kind.__new__(kind))
