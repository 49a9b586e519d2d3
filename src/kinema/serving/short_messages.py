"""Limit the length of what messages repeat of a request, for messages that are stored."""

from __future__ import annotations

import re

MAX_VALUE = 80  # characters
MAX_MESSAGE = 800
_QUOTED = re.compile(r"""(['"])((?:\\.|(?!\1)[^\\]){81,})\1""", re.DOTALL)
_WORD = re.compile(r"[^\s'\"]{161,}")


def shorten(message: str) -> str:
    """Return a message with each long value cut to MAX_VALUE characters, and at most about MAX_MESSAGE in total.

    A value is what is in quotes, or a very long word. Of a message that is still too long, the middle is left out,
    because the remedy is at its end.
    """
    if len(message) <= MAX_VALUE:
        return message
    message = _QUOTED.sub(lambda match: f"{match[1]}{match[2][:MAX_VALUE]}…{match[1]}", message)
    message = _WORD.sub(lambda match: f"{match[0][:MAX_VALUE]}…", message)
    if len(message) <= MAX_MESSAGE:
        return message
    return f"{message[: MAX_VALUE * 2]} … {message[-MAX_MESSAGE + MAX_VALUE * 2 :]}"


def shorten_name(name: str | None) -> str | None:
    """Return the name of a parameter, which may be any text of a request, cut to MAX_VALUE characters."""
    return name if name is None else name[:MAX_VALUE]
