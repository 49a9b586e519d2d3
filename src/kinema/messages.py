"""What is said to people, kept with what it was made of, so that a face may say it in another language."""

from __future__ import annotations

from typing import Any


class Message(str):
    """A sentence in English, ready to be read; `code` names it, `values` fill in `english`.

    Values may be sentences too. Those called `name` or `other` are names of settings.
    """

    __slots__ = ("code", "english", "values")

    code: str
    values: dict[str, Any]
    english: str

    def __new__(cls, code: str, english: str, /, **values: Any) -> Message:
        """The English with its `{}` filled in, as by `str.format`."""
        message = super().__new__(cls, english.format(**values))
        message.code, message.values, message.english = code, values, english
        return message

    def replaced(self, **values: Any) -> Message:
        """The same sentence with other values."""
        return type(self)(self.code, self.english, **{**self.values, **values})

    def __getnewargs_ex__(self) -> tuple[tuple[str, str], dict[str, Any]]:  # errors travel between processes
        return (self.code, self.english), self.values
