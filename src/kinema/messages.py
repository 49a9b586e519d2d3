"""Messages to users with their code and values, from which the page builds translations."""

from __future__ import annotations

from typing import Any


class Message(str):
    """A message in English: `english` with its placeholders filled by `values`. `code` identifies it.

    Values may be messages themselves. Those called `name` or `other` are names of parameters.
    """

    __slots__ = ("code", "english", "values")

    code: str
    values: dict[str, Any]
    english: str

    def __new__(cls, code: str, english: str, /, **values: Any) -> Message:
        """Fill the placeholders of `english`, as `str.format` does."""
        message = super().__new__(cls, english.format(**values))
        message.code, message.values, message.english = code, values, english
        return message

    def replaced(self, **values: Any) -> Message:
        """Return the message with other values."""
        return type(self)(self.code, self.english, **{**self.values, **values})

    def __getnewargs_ex__(self) -> tuple[tuple[str, str], dict[str, Any]]:  # pickle: errors pass between processes
        return (self.code, self.english), self.values
