"""Calls of the public API as mypy must see them; `make check` reads this file, and nothing runs it.

mypy rejects a comment `type: ignore` that it does not need, so each call with one is known to be an error.
"""

from __future__ import annotations

import kinema


def wrong_keyword() -> None:
    """A misspelt parameter is an error."""
    kinema.generate("x.png", motion_bucket=1)  # type: ignore[call-arg]


def wrong_types() -> None:
    """A value of another type, or outside a list of values, is an error."""
    kinema.generate("x.png", fps="fast")  # type: ignore[arg-type]
    kinema.stream("x.png", fit="zoom")  # type: ignore[arg-type]


def right_calls() -> list[str]:
    """Parameters, methods, events and errors have types."""
    kinema.generate("x.png", motion_bucket_id=180, fit="pad", engine="fast").save("x.mp4")
    return [event.stage for event in kinema.stream("x.png") if not isinstance(event, kinema.Video)]


def public_error() -> None:
    """Errors are classes of the package."""
    raise kinema.ModelGated
