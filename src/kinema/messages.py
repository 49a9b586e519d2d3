"""Messages to users with their code and values, from which the page builds translations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


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


def printable(text: str, most: int = 200) -> str:
    """Return text that comes from a file, for a terminal: shortened, and with � for characters that are not printable.

    Among these are those that move the cursor, and those that change the order of others.
    """
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)


def rejected_value(name: str, details: Mapping[str, Any]) -> Message:
    """Return the error message for a value outside of `VideoRequest`, in place of pydantic's text.

    Args:
        name: What messages call the field or option.
        details: One of the `errors()` of pydantic's ValidationError.
    """
    value, limits = details.get("input"), details.get("ctx", {})
    match details["type"]:
        case "int_type" | "int_parsing" | "int_from_float":
            message = Message("no_integer", "{name} {value!r} is not an integer", name=name, value=value)
        case "float_type" | "float_parsing":
            message = Message("no_number", "{name} {value!r} is not a number", name=name, value=value)
        case "bool_type" | "bool_parsing":
            message = Message("no_boolean", "{name} {value!r} is invalid; use true or false", name=name, value=value)
        case "greater_than_equal":
            least = limits["ge"]
            message = Message(
                "too_low", "{name} {value} is too low; use at least {least}", name=name, value=value, least=least
            )
        case "less_than_equal":
            most = limits["le"]
            message = Message(
                "too_high", "{name} {value} is too high; use at most {most}", name=name, value=value, most=most
            )
        case "missing":
            message = Message("field_missing", "{name} is missing; send it", name=name)
        case "literal_error":
            choices = limits["expected"]
            message = Message(
                "no_choice", "{name} {value!r} is invalid; use {choices}", name=name, value=value, choices=choices
            )
        case kind:
            # A value_error is of a check that is not pydantic's own, such as that of a choice on the command line.
            problem = str(limits["error"]) if kind == "value_error" else details["msg"]
            problem = problem[:1].lower() + problem[1:].rstrip(".")
            message = Message(
                "rejected_value", "{name} {value!r} is invalid: {problem}", name=name, value=value, problem=problem
            )
    return message
