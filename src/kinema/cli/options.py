"""Command-line options that several commands share, and one option for each field of `VideoRequest`."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
import tempfile
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from kinema.errors import InvalidRequest
from kinema.models.catalog import CATALOG, IMAGE_MODELS
from kinema.models.video_size import fitting_size
from kinema.settings import Settings
from kinema.values import TEXT_TO_IMAGE_FIELDS, Scheduler, VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic.fields import FieldInfo

    from kinema.cli.report import Report

MODEL_PANEL = "Model and device"
OUTPUT_PANEL = "Output"
IMAGE_MODEL_PANEL = "Prompt"
VIDEO_PANEL = "Video"


def _setting_help(name: str, text: str | None = None) -> str:
    """Return the help of an option that overrides a setting, with its environment variable."""
    return f"{text or Settings.model_fields[name].description} [dim]Env: KINEMA_{name.upper()}.[/dim]"


VideoFile = Annotated[str, typer.Argument(metavar="FILE", help="A video made by Kinema, or its folder of PNG files.")]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help=_setting_help(
            "model",
            f"{VideoRequest.model_fields['model'].description} "
            "Unset: svd-xt if a CUDA device has enough memory (without sequential offload), and it is downloaded or "
            "the hub can be reached; else pocket.",
        ),
        rich_help_panel=MODEL_PANEL,
        show_default=False,
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help=f"{VideoRequest.model_fields['prompt'].description} Repeat for several videos.",
        rich_help_panel=IMAGE_MODEL_PANEL,
    ),
]
LastImage = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGE",
        help="Image at which the video ends: path or http(s) URL. Denoising takes twice as long.",
        rich_help_panel=VIDEO_PANEL,
    ),
]
Seconds = Annotated[
    str | None,
    typer.Option(metavar="FLOAT", help="Duration of the video; determines --num-frames.", rich_help_panel=VIDEO_PANEL),
]
Device = Annotated[
    str | None, typer.Option(metavar="DEVICE", help=_setting_help("device"), rich_help_panel=MODEL_PANEL)
]
Dtype = Annotated[str | None, typer.Option(metavar="DTYPE", help=_setting_help("dtype"), rich_help_panel=MODEL_PANEL)]
Precision = Annotated[
    str | None, typer.Option(metavar="full|fp8", help=_setting_help("precision"), rich_help_panel=MODEL_PANEL)
]
Gpus = Annotated[
    str | None, typer.Option(metavar="1|2|4", help=_setting_help("gpus_per_video"), rich_help_panel=MODEL_PANEL)
]
Json = Annotated[
    bool, typer.Option("--json", help="Write events to stdout as JSON lines.", rich_help_panel=OUTPUT_PANEL)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the result and errors.", rich_help_panel=OUTPUT_PANEL)
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.", rich_help_panel=OUTPUT_PANEL)]

STDOUT = "-"


class _PlainHelp:
    """Mixin for commands: the help joins the lines of a paragraph and shows no type for flags and arguments."""

    def __init__(self, *arguments: Any, help: str | None = None, **options: Any) -> None:  # noqa: A002 - typer's name
        if help is not None:
            help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(help))  # noqa: A001 - likewise
        super().__init__(*arguments, help=help, **options)  # type: ignore[call-arg]  # of the command class

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters with the type column of flags and arguments left empty."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the command class
        for parameter in parameters:
            if isinstance(parameter, TyperArgument) or parameter.is_flag:
                parameter.display_type_rich = lambda ctx: None  # noqa: ARG005 - typer passes it by name
        return parameters


class Command(_PlainHelp, TyperCommand):
    """A command of Kinema."""


class CommandGroup(_PlainHelp, TyperGroup):
    """A group of Kinema's commands."""


def expanded(source: str) -> str:
    """Return a path with `~` expanded, which shells skip inside quotes; leave URLs unchanged."""
    return os.path.expanduser(source)  # noqa: PTH111 - a Path would change a URL


@contextlib.contextmanager
def to_stdout(output: str | None, report: Report, *, json: bool) -> Iterator[str | None]:
    """Yield the path for `output`: for "-" a temporary mp4, which `report` copies to stdout when it is finished.

    Raises:
        InvalidRequest: stdout is a terminal, or is used by --json.
    """
    if output != STDOUT:
        yield output
        return
    if json or sys.stdout.isatty():
        reason = "is used by --json" if json else "is a terminal"
        raise InvalidRequest(
            f"-o - writes the video to stdout, which {reason}; name a file or redirect stdout", "output"
        )
    report.writes_video = True
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/video.mp4"


def with_all_parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Replace `**parameters` of a command by `size` and one option per field of `VideoRequest`, None by default."""
    return _with(command, [name for name in VideoRequest.model_fields if name not in {"model", "prompt"}])


def with_video_parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Replace `**parameters` by `size` and one option per field of `VideoRequest` that diffusers also has."""
    without = {"model", "loop", "interpolate", "upscale", *TEXT_TO_IMAGE_FIELDS}
    return _with(command, [name for name in VideoRequest.model_fields if name not in without])


def _with(command: Callable[..., None], names: list[str]) -> Callable[..., None]:
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [_option(name, VideoRequest.model_fields[name]) for name in names]
    options.insert(names.index("width"), _size_option())
    command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return command


def _size_option() -> inspect.Parameter:
    """Return the option `--size`, which commands pass to `expand_size`."""
    text = (
        "Width and height in one, such as 576x1024. Unset: the model's size for landscape images and prompts, the same "
        "upright for portrait images, a square for images from 4:5 to 5:4."
    )
    sizes = "; ".join(f"{name}: {_fitting_sizes(name)}" for name in ("svd-xt", "pocket"))
    option = typer.Option("--size", help=f"{text} [dim]{sizes}.[/dim]", rich_help_panel=VIDEO_PANEL, metavar="WxH")
    return inspect.Parameter(
        "size", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _fitting_sizes(model: str) -> str:
    """Return the sizes of a model's videos of landscape, portrait and square images, comma-separated."""
    own = CATALOG[model].native_size
    assert own is not None, "every model of the catalog has one"
    return ", ".join("{}x{}".format(*fitting_size(image, own)) for image in ((16, 9), (9, 16), (1, 1)))


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the option for a request field. The help shows the range; `VideoRequest` validates it."""
    description, defaults = str(field.description), _defaults(name, field)
    if name == "decode_chunk_size":  # most models have no default
        models = defaults.removeprefix("Default ")
        description, defaults = description.replace("Unset: ", f"Unset: {models}; for other models, "), ""
    if field.annotation is bool:
        flag = typer.Option(f"--{name.replace('_', '-')}", help=description, rich_help_panel=VIDEO_PANEL)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, flag])
    if name in ("width", "height"):  # the defaults are in the help of --size
        defaults = ""
    limits = ". ".join(filter(None, [_choices(name), _range(name, field), defaults]))
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{_with_flags(description)} [dim]{limits}{'.' if limits else ''}[/dim]",
        rich_help_panel=IMAGE_MODEL_PANEL if name in TEXT_TO_IMAGE_FIELDS else VIDEO_PANEL,
        metavar=_metavar(name, field),
        parser=str if str in get_args(field.annotation) else _number,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Any, option])


def _with_flags(text: str) -> str:
    """Return a field's description with the flags in place of the names of other fields."""
    names = re.compile(r"\b(\w+_\w+|fps)\b")
    return names.sub(lambda m: f"--{m[0].replace('_', '-')}" if m[0] in VideoRequest.model_fields else m[0], text)


def _number(text: str) -> int | float | str:
    """Parse a number; return anything else unchanged, for `VideoRequest` to reject."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _metavar(name: str, field: FieldInfo) -> str:
    """Return the placeholder for a value in the help: INT, FLOAT, TEXT, MODEL or the choices."""
    if name == "image_model":
        return "MODEL"
    if name == "scheduler":  # too many choices for this column
        return "NAME"
    types = [type_ for type_ in get_args(field.annotation) or (field.annotation,) if type_ is not NoneType]
    # get_args of a Literal: its values
    choices = [choice for type_ in types for choice in get_args(type_) or (type_,)]
    return "|".join(choice if isinstance(choice, str) else _PLACEHOLDERS[choice] for choice in choices)


_PLACEHOLDERS = {int: "INT", float: "FLOAT", str: "TEXT"}


def _choices(name: str) -> str:
    """Return the choices of a field as text, if the placeholder does not show them."""
    return f"One of {', '.join(get_args(Scheduler))}" if name == "scheduler" else ""


def _range(name: str, field: FieldInfo) -> str:
    """Return the allowed range of a field as text, if its description does not have it."""
    bounds = {type(bound).__name__: bound for bound in field.metadata}
    low, high = bounds.get("Ge"), bounds.get("Le")
    if low is None or name == "seed":
        return ""
    return f"At least {low.ge}" if high is None else f"{low.ge} to {high.le}"


def _defaults(name: str, field: FieldInfo) -> str:
    """Return the default of a field as text, with the models that have another default."""
    others: dict[Any, list[str]] = {}
    for entry in (*CATALOG.values(), *IMAGE_MODELS.values()):
        if (value := entry.defaults.get(name, field.default)) != field.default:
            others.setdefault(value, []).append(entry.name)
    if field.default is None:
        values = ", ".join(f"{value} for {' and '.join(models)}" for value, models in others.items())
        return f"Default {values}" if values else ""
    if field.default_factory is not None:
        return ""
    exceptions = "; ".join(f"{', '.join(models)}: {value}" for value, models in others.items())
    return f"Default {field.default}" + (f" ({exceptions})" if exceptions else "")
