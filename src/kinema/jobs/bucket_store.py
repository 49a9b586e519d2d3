"""A store in a bucket of S3 or of a server with the same interface, through the library obstore.

Endpoint, region and credentials are those of the standard AWS_* variables. obstore reads them.
"""

from __future__ import annotations

import contextlib
import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.extras import install_remedy
from kinema.jobs.file_store import StoredFile, store_unavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

# Without a connection a request fails after about ten seconds, without a response after twenty: callers wait for it.
_CONNECT_SECONDS = 3
_RESPONSE_SECONDS = 20  # also to upload a part
_REQUEST_SECONDS = 120
_RETRIES = 2
_PARTS_AT_ONCE = 2  # of 5 MB
_RETRY_SECONDS = 10
_MEDIA_TYPES = {"mp4": "video/mp4", "jpg": "image/jpeg"}
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
NO_ANSWER = "no answer"
_REMEDIES = {
    "NoSuchBucket": "the bucket does not exist; create it, or correct KINEMA_STORE",
    "InvalidAccessKeyId": "the access key is unknown; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "SignatureDoesNotMatch": "the secret key is wrong; set AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "access is denied; let the credentials list the bucket and read, write and delete objects",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    NO_ANSWER: "it does not answer; check AWS_ENDPOINT_URL and the network",
}


class BucketStore:
    """The objects of a bucket whose keys start with a prefix. Objects of more than 5 MB are uploaded in parts.

    A part of an upload that never ends is invisible, and is deleted if the process lives; a rule of the bucket should
    delete the others ("abort incomplete multipart uploads").

    Raises:
        InvalidRequest: the bucket's name is missing, or obstore is not installed.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        if not bucket:
            raise InvalidRequest("KINEMA_STORE has no bucket; expected s3://BUCKET or s3://BUCKET/PREFIX", "store")
        try:
            from obstore.store import S3Store
        except ImportError:
            raise InvalidRequest(
                f"KINEMA_STORE is s3://{bucket}, and the library obstore is not installed; " + install_remedy("s3"),
                "store",
            ) from None
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        is_plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": is_plain,
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "read_timeout": timedelta(seconds=_RESPONSE_SECONDS),
                "timeout": timedelta(seconds=_REQUEST_SECONDS),
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
        )

    def put(self, name: str, content: bytes | Path, *, new: bool = False) -> None:
        """Upload an object; it is visible once the upload is complete."""
        import obstore

        attributes: dict[Any, str] = {}
        if media_type := _MEDIA_TYPES.get(name.rpartition(".")[2]):
            attributes["Content-Type"] = media_type
        if name.endswith(".mp4"):  # the name of a file that a browser downloads by a presigned URL
            attributes["Content-Disposition"] = f'attachment; filename="{name.split("/")[-2]}.mp4"'
        mode: Any = "create" if new else "overwrite"
        with self._errors():
            try:
                obstore.put(
                    self._store, name, content, attributes=attributes, mode=mode, max_concurrency=_PARTS_AT_ONCE
                )
            except obstore.exceptions.AlreadyExistsError as error:
                raise FileExistsError(name) from error

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a range in chunks."""
        import obstore

        if end is not None and end <= start:
            return
        with self._errors():
            options: Any = None
            if start or end is not None:
                options = {"range": {"offset": start} if end is None else (start, end)}
            for chunk in obstore.get(self._store, name, options=options).stream():
                yield bytes(chunk)

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None."""
        import obstore

        with self._errors():
            try:
                return int(obstore.head(self._store, name)["size"])
            except FileNotFoundError:
                return None  # also if the bucket is missing: the answer to HEAD does not say which

    def delete(self, names: Collection[str]) -> None:
        """Delete objects by one request."""
        import obstore

        with self._errors(), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, list(names))

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """Yield the objects below a prefix, a page per request."""
        import obstore

        with self._errors():
            for page in obstore.list(self._store, prefix.rstrip("/") or None):
                for found in page:
                    yield StoredFile(found["path"], found["size"], found["last_modified"].timestamp())

    def address(self, name: str, seconds: int) -> str | None:
        """Return a presigned URL, which needs no request."""
        import obstore

        with self._errors():
            return obstore.sign(self._store, "GET", name, timedelta(seconds=seconds))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the errors of obstore, whose texts contain addresses."""
        from obstore import exceptions

        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise store_unavailable(reason_of(error)) from None
            raise FileNotFoundError(f"the store {self.url} has no such object") from None
        except (exceptions.BaseError, OSError) as error:
            if isinstance(error, FileExistsError):
                raise
            raise store_unavailable(reason_of(error)) from None


def reason_of(error: Exception) -> str:
    """Return S3's error code, an HTTP status or "no answer"; nothing else of the error, which contains addresses."""
    text = str(error)
    if code := _CODE.search(text):
        return code[1]
    status = _STATUS.search(text)
    return f"HTTP {status[1]}" if status else NO_ANSWER


def is_refusal(reason: str) -> bool:
    """Return whether the same request would fail again until somebody changes settings, bucket or permissions."""
    return reason != NO_ANSWER and (reason in _REMEDIES or reason.startswith("HTTP 4"))


def remedy_for(reason: str) -> str:
    """Return what is wrong and what to do about it, for the reason of a failed request."""
    return _REMEDIES.get(reason, f"{reason}; check KINEMA_STORE and the AWS_* variables")
