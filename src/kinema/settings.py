"""What a machine's owner sets once: `KINEMA_*` in the environment, over `kinema.toml`, over the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from kinema.errors import InvalidRequest

CONFIG_FILE = Path("kinema.toml")


def _parted(value: Any) -> Any:
    """One string with commas, as variables and flags bring it, as a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _place(value: str) -> str:
    """A host, or a host and a port, and nothing else of an address; in ASCII, as DNS has it."""
    parts = urlsplit(f"//{value}")
    plain = value.isascii() and parts.netloc == value and parts.username is None
    if not plain or not parts.hostname or parts.port == 0:
        raise ValueError(value)
    return value


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_parted)]
Places = Annotated[tuple[Annotated[Name, AfterValidator(_place)], ...], NoDecode, BeforeValidator(_parted)]
Secret = Annotated[SecretStr, Field(min_length=1)]
Secrets = Annotated[tuple[Secret, ...], NoDecode, BeforeValidator(_parted)]


class Settings(BaseSettings):
    """Settings of this machine, never changed after they are read; make them by `read_settings`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="KINEMA_", env_ignore_empty=True, toml_file=CONFIG_FILE
    )

    model: str | None = Field(
        default=None, min_length=1, description="a catalog name, hub id or folder; unset, the device decides."
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cuda, cuda:N, mps or cpu."
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        default="auto",
        description="auto (float16 on GPUs, bfloat16 on CPUs with it, else float32), float16, bfloat16 or float32.",
    )
    precision: Literal["full", "fp8"] = Field(
        default="full",
        description="full, or fp8: the UNet's large products in numbers of one byte, quicker and not exact, on NVIDIA "
        "Hopper GPUs (H100, H200).",
    )
    data_dir: Path = Field(
        default=Path("~/.local/share/kinema"), description="a folder for the queue, its stills and its videos."
    )
    database_url: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="postgresql://…, or sqlite:///… with a path; unset, an SQLite file in the data folder.",
    )
    workers: int | None = Field(
        default=None, ge=1, le=64, description="1 to 64 processes that generate; unset, one for each GPU, or one."
    )
    queue_size: int = Field(default=100, ge=1, le=100_000, description="1 to 100000 jobs that may wait.")
    keep_days: float = Field(
        default=30, gt=0, le=36_500, allow_inf_nan=False, description="days, up to 36500, until a result expires."
    )
    min_free_gb: float = Field(
        default=1,
        ge=0,
        allow_inf_nan=False,
        description="gigabytes that must stay free on the disks of the data folder and of temporary files.",
    )
    step_timeout: float = Field(
        default=1800, gt=0, allow_inf_nan=False, description="seconds without a step after which a worker hangs."
    )
    api_keys: Secrets = Field(
        default=(), description="keys, parted by commas, one of which every request to the server must bring."
    )
    open: bool = Field(
        default=False, description="true to let the server answer other machines although no key is asked for."
    )
    hosts: Names = Field(
        default=(), description="names, parted by commas, by which the server may be called beside localhost."
    )
    cors_origins: Names = Field(
        default=(), description="origins, parted by commas, whose pages may call the server; unset, none may."
    )
    image_hosts: Places = Field(
        default=(),
        description="comma-separated hosts from which the server may fetch images, at ports 80 and 443; host:port is "
        "that port alone; unset, none.",
    )
    models: Names = Field(
        default=(),
        description="models and painters, parted by commas, that the server offers beside the catalog's.",
    )
    max_body_mb: float = Field(
        default=20, gt=0, le=1000, allow_inf_nan=False, description="megabytes, up to 1000, that a request may have."
    )
    max_connections: int = Field(
        default=1000, ge=10, le=100_000, description="10 to 100000 connections that the server may have open at once."
    )
    max_work: float = Field(
        default=2000,
        gt=0,
        allow_inf_nan=False,
        description="millions of pixels × frames × steps that one request may ask of the server.",
    )
    interim_seconds: float = Field(
        default=10,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds, up to 3600, between the interim responses that keep waiting clients from giving up; "
        "0 sends none.",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="text or json, for the server's log.")
    log_prompts: bool = Field(default=False, description="true to have prompts in the server's log.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings passes it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags over environment over file: no .env and no secrets folder is looked for."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def read_settings(**given: str | None) -> Settings:
    """The settings of this moment; what is given, and is not None, wins over the environment and the file.

    Raises:
        InvalidRequest: naming the setting, where it was set, and what would be right.
    """
    flags = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**flags)  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        raise _fault(error, flags) from None
    except (ValueError, OSError) as error:  # TOML that can't be parsed, or read
        raise InvalidRequest(f"{CONFIG_FILE} can't be read: {error}") from None


def _fault(error: ValidationError, flags: dict[str, str]) -> InvalidRequest:
    """The first fault, under the name by which the value was set."""
    import os

    first = error.errors()[0]
    name = str(first["loc"][0])
    variable = f"KINEMA_{name.upper()}"
    source = name if name in flags else variable if os.environ.get(variable) else f"{name} in {CONFIG_FILE}"
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"{source} is no setting; the settings are {', '.join(Settings.model_fields)}", name)
    allowed = Settings.model_fields[name].description
    return InvalidRequest(f"{source} can't be {first['input']!r}; it can be {allowed}", name)
