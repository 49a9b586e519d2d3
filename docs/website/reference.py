"""The generated pages: each is derived from the code that it documents."""

from __future__ import annotations

import inspect
import json
import re
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from checks.public_api import is_stable
from docs.website import http_api
from docs.website.errors_page import errors_page
from docs.website.markdown import table
from pydantic import BaseModel, SecretStr

import kinema
from kinema.errors import KinemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic.fields import FieldInfo


_COMMAND_INTRO = """# The command

Every subcommand of `kinema`, as `--help` prints it. Options that are also settings name their environment variable;
[Settings](settings.md) lists all.
"""
_SETTINGS_INTRO = """# Settings

Settings configure a machine; they apply to the library, the command and the server. An option of the command overrides
the environment variable, which overrides `kinema.toml` in the current folder, which overrides the default. In
`kinema.toml`, names are in lower case without `KINEMA_`, and lists may be arrays. `kinema doctor` shows the active
settings. [The server](../server.md#settings) explains those of the server.
"""
_PYTHON_INTRO = """# Python API

Everything that `import kinema` offers. [What is stable](../stability.md) says how it may change.
"""


def command_page() -> str:
    """Return the page of the command: usage, arguments, options and defaults of every subcommand."""
    import typer

    from kinema.cli import app
    from kinema.cli.exit_codes import EPILOG

    root = typer.main.get_command(app)
    exit_codes = [entry.strip(" .").split(" ", 1) for entry in EPILOG.removeprefix("Exit codes: ").split(" · ")]
    sections = "\n".join(_command(command, name) for name, command in commands(root, "kinema"))
    codes = table(("code", "meaning"), [(f"`{code}`", meaning) for code, meaning in exit_codes])
    return f"{_COMMAND_INTRO}\n{sections}\n## Exit codes\n\n{codes}"


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the full name and the object of a command and of its subcommands."""
    yield name, command
    for child in getattr(command, "commands", {}).values():
        yield from commands(child, f"{name} {child.name}")


def _command(command: Any, name: str) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    text = f"## {name}\n\n```text\n{usage}\n```\n\n{_paragraphs(command.help or '')}\n"
    if subcommands := getattr(command, "commands", {}):
        rows = [
            (f"[`{name} {key}`](#{name.replace(' ', '-')}-{key})", _first_line(sub)) for key, sub in subcommands.items()
        ]
        text += table(("command", "purpose"), rows) + "\n"
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    if arguments:
        text += (
            table(("argument", "meaning"), [(f"`{p.metavar or p.name}`", _plain(p.help or "")) for p in arguments])
            + "\n"
        )
    panels: dict[str, list[tuple[str, ...]]] = {}
    for option in command.params:
        if option.param_type_name == "option" and not option.hidden:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(_option(option))
    for panel, rows in panels.items():
        text += f"**{panel}**\n\n{table(('option', 'meaning'), rows)}\n"
    return text


def _option(option: Any) -> tuple[str, str]:
    """Return names with placeholder, and help with default, of an option."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    placeholder = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    default = "" if option.default in (None, ()) or option.is_flag else f" Default: `{option.default}`."
    return f"`{names}{placeholder}`", _plain(option.help or "") + default


def _first_line(command: Any) -> str:
    return _plain((command.help or "").split("\n\n")[0])


def _plain(text: str) -> str:
    """Return a help text without rich's marks."""
    return re.sub(r"(?<!\\)\[/?[a-z]*\]", "", text).replace("\\[", "[").strip()


def _paragraphs(text: str) -> str:
    """Return a help text as Markdown: a paragraph that is dim is an example command."""
    parts = []
    for paragraph in text.split("\n\n"):
        example = re.fullmatch(r"\[dim\](.*)\[/dim\]", paragraph.strip(), re.DOTALL)
        parts.append(f"```bash\n{_plain(example[1])}\n```" if example else _plain(paragraph))
    return "\n\n".join(parts).replace("```\n\n```bash\n", "") + "\n"


def settings_page() -> str:
    """Return the page of the settings: variable, type, default and meaning."""
    from kinema.settings import Settings

    rows = [
        (f"`KINEMA_{name.upper()}`", _type(field.annotation), _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return f"{_SETTINGS_INTRO}\n{table(('variable', 'type', 'default', 'meaning'), rows)}"


def python_page() -> str:
    """Return the page of the Python API: an entry for each name in `kinema.__all__`, which mkdocstrings expands."""
    functions, values, errors = [], [], []
    for name in kinema.__all__:
        thing = getattr(kinema, name)
        if inspect.isfunction(thing):
            functions.append(f"::: kinema.{name}\n\n")
        elif issubclass(thing, KinemaError):
            errors.append(f"[`{name}`](errors.md#{name.lower()})")
        else:
            values.append(_class_entry(name, thing))
    return (
        f"{_PYTHON_INTRO}\n## Functions\n\n{''.join(functions)}## Values\n\n{''.join(values)}"
        f"## Errors\n\nEvery error is a [`KinemaError`](errors.md). The errors are: {', '.join(errors)}.\n"
    )


def _class_entry(name: str, kind: type) -> str:
    """Return the entry of a class with its public attributes and methods; a table shows the fields of a model."""
    fields = [field for field in getattr(kind, "__annotations__", {}) if field[0] != "_" and is_stable(name, field)]
    others = [
        f"::: kinema.{name}.{attribute}\n    options:\n      heading_level: 4\n\n"
        for attribute in vars(kind)
        if attribute[0] != "_"
        and attribute not in fields
        and is_stable(name, attribute)
        and not attribute.startswith("model_")
    ]
    has_table = issubclass(kind, BaseModel) or "Attributes:" in (kind.__doc__ or "")
    options = {
        "members": [] if has_table else fields,
        "show_if_no_docstring": True,
        "show_signature": False,
        "separate_signature": False,
    }
    lines = "".join(f"      {option}: {json.dumps(value)}\n" for option, value in options.items())
    table_of_fields = _fields(kind) if issubclass(kind, BaseModel) else ""
    return f"::: kinema.{name}\n    options:\n{lines}\n{table_of_fields}{''.join(others)}"


def _fields(model: type[BaseModel]) -> str:
    """Return a table of the fields of a model, and one of each model that it contains and that has no entry."""
    parts = [kind for kind in _models_in(model) if kind.__name__ not in kinema.__all__]
    sections = (
        f"#### {kind.__name__}\n\n{inspect.getdoc(kind)}\n\n{_fields_table(kind)}\n" for kind in dict.fromkeys(parts)
    )
    return f"{_fields_table(model)}\n{''.join(sections)}"


def _models_in(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                yield kind
                yield from _models_in(kind)


def _fields_table(model: type[BaseModel]) -> str:
    rows = [
        (
            f"`{name}`",
            f"`{_annotation(field.annotation)}`",
            _default(field),
            f"{field.description or ''} {_range(field)}",
        )
        for name, field in model.model_fields.items()
    ]
    return table(("field", "type", "default", "meaning"), rows)


def _annotation(annotation: Any) -> str:
    """Return a type as in Python code."""
    if get_origin(annotation) in (Union, types.UnionType, Literal):
        return " | ".join(_annotation(kind) for kind in get_args(annotation))
    if isinstance(annotation, str):  # a choice of a Literal
        return f'"{annotation}"'
    if annotation is types.NoneType or not inspect.isclass(annotation) or get_args(annotation):
        return str(None if annotation is types.NoneType else annotation)
    return annotation.__name__


def _type(annotation: Any) -> str:
    """Return a type as a reader of a configuration writes it."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type(kind) for kind in get_args(annotation) if kind is not types.NoneType)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list"
    names = {str: "text", SecretStr: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, annotation.__name__.lower())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if field.default_factory is not None or value is None or value == ():
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _range(field: FieldInfo) -> str:
    """Return the allowed range of a number as a sentence."""
    bounds = {type(bound).__name__: bound for bound in field.metadata}
    low, high = bounds.get("Ge"), bounds.get("Le")
    if low is None:
        return ""
    return f"{low.ge} to {high.le}." if high else f"At least {low.ge}."


PAGES: dict[str, Callable[[], str]] = {
    "reference/command.md": command_page,
    "reference/settings.md": settings_page,
    "reference/http-api.md": http_api.page,
    "reference/python.md": python_page,
    "reference/errors.md": errors_page,
}
