"""Settings of the machine: `KINEMA_*` environment variables override `kinema.toml`, which overrides the defaults."""

from __future__ import annotations

import base64
import re
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
# Parameters and options that have another name than their setting.
_PARAMETERS = {"gpus_per_video": "gpus"}
# Settings that no error message shows and no node of a cluster gets.
SECRETS = frozenset({"api_keys", "c2pa_timestamp_url", "database_url", "webhook_secret"})
# Bytes of a secret of Standard Webhooks.
MIN_SECRET, MAX_SECRET = 24, 64


def _split(value: Any) -> Any:
    """Split a comma-separated string, the form in variables and options, into a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """Convert digits, as in an environment variable, which a Literal does not accept."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _store_url(value: str) -> str:
    """Accept s3://BUCKET, s3://BUCKET/PREFIX and file:///FOLDER; raise ValueError for any other part of a URL."""
    parts = urlsplit(value)
    is_bucket = parts.scheme == "s3" and re.fullmatch(r"[a-z0-9][a-z0-9.-]+[a-z0-9]", parts.netloc)
    is_folder = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
    if not (is_bucket or is_folder) or parts.query or parts.fragment:
        raise ValueError(value)
    return value


def _host_and_port(value: str) -> str:
    """Accept an ASCII host or host:port; raise ValueError for any other part of a URL."""
    parts = urlsplit(f"//{value}")
    is_host_and_port = (
        value.isascii() and parts.netloc == value and parts.username is None and parts.hostname and parts.port != 0
    )
    if not is_host_and_port:
        raise ValueError(value)
    return value


def _webhook_secret(value: SecretStr) -> SecretStr:
    """Accept a secret of Standard Webhooks; raise ValueError for any other."""
    prefix, _, payload = value.get_secret_value().partition("_")
    if prefix != "whsec" or not MIN_SECRET <= len(base64.b64decode(payload, validate=True)) <= MAX_SECRET:
        raise ValueError
    return value


def _http_url(value: SecretStr) -> SecretStr:
    """Accept a URL of http or https, which may contain a password; raise ValueError for any other."""
    if not re.match(r"https?://[^\s/]", value.get_secret_value()):
        raise ValueError
    return value


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], NoDecode, BeforeValidator(_split)]
HostPorts = Annotated[tuple[Annotated[Name, AfterValidator(_host_and_port)], ...], NoDecode, BeforeValidator(_split)]
Secret = Annotated[SecretStr, Field(min_length=1)]
SecretUrl = Annotated[SecretStr, AfterValidator(_http_url)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_webhook_secret)]
Secrets = Annotated[tuple[Secret, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Immutable settings of the machine. Create them with `read_settings`.

    Each description completes "expected …" in an error message.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="KINEMA_", env_ignore_empty=True, toml_file=CONFIG_FILE
    )

    model: str | None = Field(
        default=None, min_length=1, description="a catalog name, hub id or folder; unset: chosen by device."
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto (the first available of cuda, mps, cpu), cuda, cuda:N, mps or cpu.",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        default="auto",
        description="auto (float16 on GPUs, bfloat16 on CPUs that support it, else float32), float16, bfloat16 or "
        "float32.",
    )
    precision: Literal["full", "fp8"] = Field(
        default="full",
        description="full (all matmuls in the dtype), or fp8: the UNet's large matmuls in 8-bit floating point; "
        "faster, slightly less accurate; needs an NVIDIA Hopper GPU (H100, H200).",
    )
    gpus_per_video: Annotated[Literal[1, 2, 4], BeforeValidator(_number)] = Field(
        default=1,
        description="1, 2 or 4 GPUs that share the work of each video.",
    )
    watermark: Literal["on", "off"] | None = Field(
        default=None,
        description="on, to put an invisible watermark into the frames of each video file, by which it can be "
        "recognised as generated after its metadata are lost; or off: it can't be recognised then; unset: on in a "
        "server, off elsewhere.",
    )
    safety: Literal["off", "image", "video"] = Field(
        default="off",
        description="off; image, to have a server refuse pornographic images; or video, to have it check frames of "
        "finished videos too. Both need the extra safety.",
    )
    safety_threshold: float = Field(
        default=0.8,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="a number above 0, up to 1: images with a higher score of the safety check are refused.",
    )
    blocked_words: Path | None = Field(
        default=None,
        description="a text file with a word or phrase per line; a server refuses prompts with one; unset: none.",
    )
    data_dir: Path = Field(
        default=Path("~/.local/share/kinema"), description="a folder for the queue, its images and its videos."
    )
    database_url: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="postgresql://… or sqlite:///PATH; unset: a SQLite file in the data folder.",
    )
    store: Annotated[str, AfterValidator(_store_url)] | None = Field(
        default=None,
        description="s3://BUCKET/PREFIX or file:///FOLDER, where servers share images and videos; unset: they are in "
        "the data folder.",
    )
    cache_gb: float = Field(
        default=10,
        ge=0,
        allow_inf_nan=False,
        description="gigabytes of copies of videos to keep in the data folder, if a store is set.",
    )
    presign_seconds: int = Field(
        default=0,
        ge=0,
        le=604_800,
        description="0, or 1 to 604800 seconds for which clients are redirected to the store to download a video.",
    )
    workers: int | None = Field(
        default=None, ge=1, le=64, description="1 to 64 worker processes; unset: one per GPU, or one without a GPU."
    )
    ray_address: str | None = Field(
        default=None,
        pattern=r"^\S+:\d+$",
        description="HOST:PORT of the head of a Ray cluster, whose GPUs run the jobs; unset: this machine runs them.",
    )
    queue_size: int = Field(default=100, ge=1, le=100_000, description="1 to 100000 waiting jobs.")
    keep_days: float = Field(
        default=30,
        gt=0,
        le=36_500,
        allow_inf_nan=False,
        description="a number of days, up to 36500, until a result expires.",
    )
    min_free_gb: float = Field(
        default=1,
        ge=0,
        allow_inf_nan=False,
        description="gigabytes to keep free on the disks of the data folder and of temporary files.",
    )
    step_timeout: float = Field(
        default=1800,
        gt=0,
        allow_inf_nan=False,
        description="seconds without progress after which a worker process counts as hung.",
    )
    api_keys: Secrets = Field(
        default=(),
        description="comma-separated API keys; every request except health checks must send one, as "
        "`Authorization: Bearer KEY`, as `X-API-Key` or as the password of HTTP Basic authentication "
        "(any user name).",
    )
    key_requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="a number of requests a minute from 1 that each API key may send to the API; unset: no limit.",
    )
    key_waiting_jobs: int | None = Field(
        default=None,
        ge=1,
        description="a number from 1 of waiting jobs that each API key may have; unset: no limit.",
    )
    key_work: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="the maximum work of the unfinished jobs of each API key in millions of pixels × frames × steps; "
        "unset: no limit.",
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="true to accept remote connections even if no API key is set, or false; with API keys, each "
        "request still needs one.",
    )
    hosts: Names = Field(default=(), description="comma-separated Host names to accept in addition to localhost.")
    cors_origins: Names = Field(default=(), description="comma-separated origins to allow by CORS; unset: none.")
    image_hosts: HostPorts = Field(
        default=(),
        description="comma-separated hosts from which the server may fetch images, on ports 80 and 443 or, for "
        "host:port, on that port only; unset: none.",
    )
    webhook_hosts: HostPorts = Field(
        default=(),
        description="comma-separated hosts to which the server may send webhooks, on ports 80 and 443 or, for "
        "host:port, on that port only; unset: none.",
    )
    webhook_secret: WebhookSecret | None = Field(
        default=None,
        description="whsec_ and the base64 of 24 to 64 random bytes, with which webhooks are signed.",
    )
    models: Names = Field(
        default=(),
        description="comma-separated video and text-to-image models to offer in addition to the catalog.",
    )
    max_body_mb: float = Field(
        default=20,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="the maximum size of a request body in megabytes, up to 1000.",
    )
    max_batch_file_mb: float = Field(
        default=200,
        gt=0,
        le=500,
        allow_inf_nan=False,
        description="the maximum size of the file of a batch in megabytes, up to 500.",
    )
    max_connections: int = Field(default=1000, ge=10, le=100_000, description="10 to 100000 simultaneous connections.")
    max_work: float = Field(
        default=2000,
        gt=0,
        allow_inf_nan=False,
        description="the maximum work of one request in millions of pixels × frames × steps.",
    )
    interim_seconds: float = Field(
        default=10,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="seconds, up to 3600, between interim responses that prevent client timeouts; 0 disables them.",
    )
    credentials: Literal["on", "off"] | None = Field(
        default=None,
        description="on or off: whether videos are signed with content credentials (C2PA) on delivery; unset: on for "
        "videos from a server, off for files of the command.",
    )
    c2pa_cert: Path | None = Field(
        default=None,
        description="a PEM file with the certificate that signs content credentials, then those of its authorities; "
        "unset: Kinema makes one in the data folder.",
    )
    c2pa_key: Path | None = Field(
        default=None, description="a PEM file with the private key of c2pa_cert, without a password."
    )
    c2pa_timestamp_url: SecretUrl | None = Field(
        default=None,
        description="the http or https URL of a time-stamp authority (RFC 3161), which is asked for each signature; "
        "unset: none.",
    )
    c2pa_trust: Path | None = Field(
        default=None,
        description="a PEM file with further certificates whose signatures `kinema verify` trusts.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="text or json, the format of the server's log."
    )
    log_prompts: bool = Field(default=False, description="true to write prompts to the server's log, or false.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings passes it
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use arguments, then the environment, then the file; ignore .env files and secrets folders."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def read_settings(**overrides: str | None) -> Settings:
    """Read the settings; `overrides` that are not None take precedence over the environment and the file.

    Raises:
        InvalidRequest: with the setting, where it was set, its value and the allowed values.
    """
    overrides = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # validated by pydantic
    except ValidationError as error:
        raise _first_error(error, overrides) from None
    except (ValueError, OSError) as error:  # TOML that can't be parsed or read
        raise InvalidRequest(f"cannot read {CONFIG_FILE}: {error}") from None


def unknown_variables() -> list[str]:
    """Return a warning for each variable that starts with KINEMA_ and resembles or begins the name of a setting."""
    import difflib
    import os

    known = [f"KINEMA_{name.upper()}" for name in Settings.model_fields]
    found = [name for name in sorted(os.environ) if name.startswith("KINEMA_") and name not in known]
    nearest = {
        name: difflib.get_close_matches(name, known, 1, cutoff=0.85)
        or [setting for setting in known if setting.startswith(f"{name}_")]
        for name in found
    }
    return [f"{name} is not a setting; did you mean {near[0]}?" for name, near in nearest.items() if near]


def _first_error(error: ValidationError, overrides: dict[str, str | None]) -> InvalidRequest:
    """Convert pydantic's first error to an `InvalidRequest` that says where the value was set."""
    import os

    first = error.errors()[0]
    name = str(first["loc"][0])
    variable = f"KINEMA_{name.upper()}"
    set_in_file = name not in overrides and not os.environ.get(variable)
    where = f" in {CONFIG_FILE}" if set_in_file else ""
    shown_name = _PARAMETERS.get(name, name) if name in overrides else name if set_in_file else variable
    if first["type"] == "extra_forbidden":
        return InvalidRequest(
            f"unknown setting {shown_name}{where}; expected one of {', '.join(Settings.model_fields)}", name
        )
    expected = (Settings.model_fields[name].description or "").rstrip(".")
    value = re.sub(r"//[^/]*@", "//…@", repr(first["input"]))  # a password in a URL
    shown = "" if name in SECRETS else f" {value}"
    return InvalidRequest(f"{shown_name}{shown}{where} is invalid; expected {expected}", name)
