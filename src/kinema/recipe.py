"""The recipe of a finished video: everything that is needed to make it again."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from kinema.values import Engine, Precision, VideoRequest


class ModelIdentity(BaseModel):
    """Name, revision and hash that identify a model's weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(description="Catalog name or hub id; for a local folder, its last path component.")
    revision: str | None = Field(description="Commit of the hub repository; None for a folder.")
    weights_sha256: str = Field(description="SHA-256 over the names and contents of the weight files.")


class ImageGeneration(BaseModel):
    """How the image was generated from the prompt; together with the request it allows to reproduce the image."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelIdentity
    pipeline: str = Field(description="Class of the text-to-image pipeline.")
    dtype: str
    memory_plan: str
    events: tuple[str, ...] = Field(
        default=(), description="Problems during generation and how they were handled, e.g. a retry."
    )


class FileEncoding(BaseModel):
    """How the frames of a video are encoded in its file; the defaults are those of every file without options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crf: int | None = Field(
        default=None, ge=0, le=63, description="Quality of mp4 and webm, lower is better; None is the default."
    )
    boomerang: bool = Field(
        default=False,
        description="Whether the frames play forward and then backward; the first and the last frame are not repeated.",
    )
    from_stored: bool = Field(
        default=False,
        description="Whether the file was encoded from the server's stored mp4, not from the generated frames.",
    )
    watermark: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{8}$",
        description="The invisible watermark of the frames in the file, 32 bits in hexadecimal; None without one.",
    )
    watermarked_before: int = Field(
        default=0,
        ge=0,
        description="The number of first frames that had the watermark already: those of the extended video.",
    )


class Extension(BaseModel):
    """From which video a video was extended; its first frames are those of that video."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames_sha256: str = Field(description="SHA-256 of that video's frames (size and RGB pixels), as decoded.")
    lengths: tuple[int, ...] = Field(
        min_length=1,
        description="Frames that the model had made before each extension; the last is the length of that video.",
    )


# Incremented when a recipe's fields change, so that another version rejects the recipe rather than misreads it.
RECIPE_FORMAT: Final = 2


class Recipe(BaseModel):
    """The request, and the hashes and versions needed to reproduce a video. Contains no private path and no time.

    A video made from an input image also needs that image, of which the recipe has only the hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[2] = Field(default=RECIPE_FORMAT, description="Version of the recipe's fields.")
    kinema: str = Field(description="Version of Kinema.")
    request: VideoRequest
    image_sha256: str = Field(description="SHA-256 of the image's pixels (RGB, upright), before fitting.")
    last_image_sha256: str | None = Field(default=None, description="The same of the last image, if there is one.")
    extension: Extension | None = Field(default=None, description="From which video it was extended, if it was.")
    image_generation: ImageGeneration | None = Field(
        default=None, description="How the image was generated, if the request has a prompt."
    )
    model: ModelIdentity
    finishing_sha256: dict[str, str] = Field(
        default={}, description="SHA-256 of the weights of the networks after decoding, by stage, as `weights_sha256`."
    )
    device: str = Field(description="Device type (cpu, cuda or mps) and name.")
    threads: int | None = Field(
        default=None, description="Number of CPU threads, which affects rounding; None on a GPU."
    )
    cpu: str | None = Field(
        default=None, description="CPU instruction sets used, which affect rounding; None on a GPU."
    )
    dtype: str
    engine: Engine = Field(
        default="reference", description="fast: Kinema's own forward passes; reference: those of diffusers."
    )
    precision: Precision = Field(
        default="full",
        description="full: everything in `dtype`; fp8: the UNet's large matmuls in 8-bit floating point.",
    )
    memory_plan: str
    gpus: int = Field(default=1, description="Number of GPUs that generated the video together.")
    decode_chunk_size: int
    encoding: FileEncoding = Field(default=FileEncoding(), description="How the frames are encoded in the file.")
    events: tuple[str, ...] = Field(
        default=(), description="Problems during generation and how they were handled, e.g. a retry."
    )
    versions: dict[str, str] = Field(description="Versions of the libraries that affect the result.")
