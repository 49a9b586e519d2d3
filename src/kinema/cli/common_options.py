"""The options that `kinema generate` and `kinema batch` share, defined once.

Those of one command alone: a batch makes mp4 files that a later run compares with its own, so it has no `--crf`,
`--boomerang`, `--force` or templates, and always a contact sheet; it never stops at a failed item (`--on-error`); its
prompts are in manifests, and `--seeds` derives the first seed from the image, so that each run has the same.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, get_type_hints

from kinema.cli.credentials_option import Credentials, on_off
from kinema.cli.options import (
    Device,
    Dtype,
    Gpus,
    Json,
    LastImage,
    Model,
    Precision,
    Quiet,
    Seconds,
    with_all_parameters,
)
from kinema.cli.variation_options import Watermark  # noqa: TC001 - likewise
from kinema.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """Values of the options; None is the setting or the default of the model."""

    last_image: LastImage = None
    seconds: Seconds = None
    credentials: Credentials = None
    watermark: Watermark = None
    json: Json = False
    quiet: Quiet = False
    model: Model = None
    device: Device = None
    dtype: Dtype = None
    precision: Precision = None
    gpus: Gpus = None

    def settings(self) -> Settings:
        """Return the settings with these options in place of their variables.

        Raises:
            InvalidRequest: a setting is invalid.
        """
        return read_settings(
            model=self.model,
            device=self.device,
            dtype=self.dtype,
            precision=self.precision,
            gpus_per_video=self.gpus,
            credentials=on_off(self.credentials),
            watermark=on_off(self.watermark),
        )


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options as `options`, and `size` and each field of `VideoRequest` as `**parameters`."""
    names = [field.name for field in fields(CommonOptions)]

    @wraps(command)
    def with_options(*arguments: Any, **values: Any) -> None:
        command(*arguments, options=CommonOptions(**{name: values.pop(name) for name in names}), **values)

    hints = get_type_hints(CommonOptions, include_extras=True)
    signature = inspect.signature(command, eval_str=True)
    *own, rest = (parameter for parameter in signature.parameters.values() if parameter.name != "options")
    common = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(CommonOptions)
    ]
    with_options.__signature__ = signature.replace(parameters=[*own, *common, rest])  # type: ignore[attr-defined]
    return with_all_parameters(with_options)
