"""The options that set a video: one for each field of `VideoRequest`, so that names, ranges and help exist once."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import tempfile
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from kinema.errors import InvalidRequest
from kinema.models.catalog import CATALOG, IMAGE_MODELS
from kinema.settings import Settings
from kinema.values import TEXT_TO_IMAGE_FIELDS, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic.fields import FieldInfo

    from kinema.cli.report import Report

MODEL_PANEL = (
    "Model and device (set for good by KINEMA_MODEL, KINEMA_DEVICE, KINEMA_DTYPE, KINEMA_PRECISION, or kinema.toml)"
)
OUTPUT_PANEL = "Output"
IMAGE_MODEL_PANEL = "Still drawn from a prompt"

VideoFile = Annotated[str, typer.Argument(metavar="FILE", help="A video made by Kinema, or its folder of PNG files.")]
Model = Annotated[
    str | None,
    typer.Option(
        help=f"{VideoRequest.model_fields['model'].description} "
        "Unset: svd-xt where a GPU has room for it, else pocket.",
        rich_help_panel=MODEL_PANEL,
        show_default=False,
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help=f"{VideoRequest.model_fields['prompt'].description} Again for several videos.",
        rich_help_panel=IMAGE_MODEL_PANEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help=Settings.model_fields["device"].description, rich_help_panel=MODEL_PANEL),
]
Dtype = Annotated[
    str | None,
    typer.Option(help=Settings.model_fields["dtype"].description, rich_help_panel=MODEL_PANEL),
]
Precision = Annotated[
    str | None,
    typer.Option(metavar="full|fp8", help=Settings.model_fields["precision"].description, rich_help_panel=MODEL_PANEL),
]
Json = Annotated[
    bool, typer.Option("--json", help="Write events as JSON lines to stdout.", rich_help_panel=OUTPUT_PANEL)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Tell nothing but the result and errors.", rich_help_panel=OUTPUT_PANEL)
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.", rich_help_panel=OUTPUT_PANEL)]

STDOUT = "-"


def expanded(source: str) -> str:
    """A path whose `~` the shell left alone, as inside quotes; anything else as it is."""
    return os.path.expanduser(source)  # noqa: PTH111 - it may be an address, which a Path would change


@contextlib.contextmanager
def to_stdout(output: str | None, told: Report, *, json: bool) -> Iterator[str | None]:
    """What stands for `output` while inside: for "-" a temporary mp4, whose bytes `told` writes to stdout at the end.

    Raises:
        InvalidRequest: where stdout is a terminal, or has JSON lines already.
    """
    if output != STDOUT:
        yield output
        return
    if json or sys.stdout.isatty():
        taken = "has the JSON lines" if json else "is a terminal"
        raise InvalidRequest(
            f"-o - writes the video to stdout, which {taken}; name a file, or redirect stdout", "output"
        )
    told.writes_video = True
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/video.mp4"


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Put an option for each of a video's settings where the command has `**settings`; None is what is not given."""
    return _with(command, [name for name in VideoRequest.model_fields if name not in {"model", "prompt"}])


def with_video_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The same, without those of a still that is drawn from a prompt."""
    return _with(command, [name for name in VideoRequest.model_fields if name not in {"model", *TEXT_TO_IMAGE_FIELDS}])


def _with(command: Callable[..., None], names: list[str]) -> Callable[..., None]:
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    settings = [_option(name, VideoRequest.model_fields[name]) for name in names]
    command.__signature__ = signature.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]
    return command


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The command's parameter of one setting. Its range is told here, and checked by `VideoRequest` alone."""
    told = ". ".join(filter(None, [_range(field), _defaults(name, field)]))
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{field.description} [dim]{told}{'.' if told else ''}[/dim]",
        rich_help_panel=IMAGE_MODEL_PANEL if name in TEXT_TO_IMAGE_FIELDS else "Video",
        metavar=_metavar(field),
        parser=str if str in get_args(field.annotation) else _number,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Any, option])


def _number(text: str) -> int | float | str:
    """A number where it is one; what is none, `VideoRequest` refuses in the words it has for all."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _metavar(field: FieldInfo) -> str:
    """What stands for a setting's value: INT, FLOAT, or its choices."""
    choices = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    kinds = [value for kind in choices for value in get_args(kind) or (kind,)]  # a Literal's own
    return "|".join(kind if isinstance(kind, str) else kind.__name__.upper() for kind in kinds)


def _range(field: FieldInfo) -> str:
    """The range of a setting as a person reads it."""
    bounds = {type(bound).__name__: bound for bound in field.metadata}
    low, high = bounds.get("Ge"), bounds.get("Le")
    if low is None:
        return ""
    return f"At least {low.ge}" if high is None else f"{low.ge} to {high.le}"


def _defaults(name: str, field: FieldInfo) -> str:
    """The default of a setting, and which models of the catalog have another."""
    if name in TEXT_TO_IMAGE_FIELDS:
        own = {entry.name: entry.defaults[name] for entry in IMAGE_MODELS.values() if name in entry.defaults}
        return f"Default {', '.join(f'{image_model}: {value}' for image_model, value in own.items())}" if own else ""
    if field.default_factory is not None or field.default is None:
        return ""
    others: dict[Any, list[str]] = {}
    for entry in CATALOG.values():
        if (value := entry.defaults.get(name, field.default)) != field.default:
            others.setdefault(value, []).append(entry.name)
    told = "; ".join(f"{', '.join(models)}: {value}" for value, models in others.items())
    return f"Default {field.default}" + (f" ({told})" if told else "")
