"""The values that travel between the floors: what is asked, how it goes, and how it was made."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from kinema.errors import InvalidRequest
from kinema.messages import Message

if TYPE_CHECKING:
    import numpy as np
    import torch

Fit = Literal["crop", "pad", "stretch"]
Scheduler = Literal["euler", "euler_ancestral", "ddim", "dpm_solver", "pndm", "unipc"]
Engine = Literal["fast", "reference"]
Precision = Literal["full", "fp8"]
Stage = Literal["text_to_image", "encode", "denoise", "decode"]

MAX_SEED = 2**53 - 1  # the largest integer that JavaScript keeps exactly
RANDOM_SEED = -1
# The settings of a still that is drawn from a prompt; None in all of them where a still is given.
TEXT_TO_IMAGE_FIELDS = (
    "prompt",
    "negative_prompt",
    "image_model",
    "image_guidance_scale",
    "image_num_inference_steps",
    "scheduler",
)


def draw_seed(given: Any = None) -> Any:
    """The given seed, or for None and −1 a random one: 0 to 2³²−1, short enough to be written down."""
    is_random = given is None or (given.strip() if isinstance(given, str) else given) in (RANDOM_SEED, "-1")
    return secrets.randbelow(2**32) if is_random else given


class VideoRequest(BaseModel):
    """What is asked of Stable Video Diffusion, and of the painter where a prompt stands for the still.

    Every setting is checked once, and never changed afterwards.

    The defaults are those of `svd-xt`; `kinema.models.catalog.request_for` puts another model's own beneath
    the parameters that are given, and `for_image_model` an image model's. Names are those of diffusers' pipelines;
    parameters of the image model start with `image_` where they would collide.

    Raises:
        InvalidRequest: from `VideoRequest.checked`, naming the first setting that is out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default="svd-xt",
        min_length=1,
        description="Catalog name (see `kinema models`), hub id, or folder in diffusers' layout.",
    )
    seed: Annotated[int, BeforeValidator(draw_seed)] = Field(
        default_factory=draw_seed,
        ge=0,
        le=MAX_SEED,
        description="Start of the noise: same seed, still, settings and machine give the same video. "
        "-1, or not given: a random one, which is always returned.",
        json_schema_extra={"minimum": RANDOM_SEED},
    )
    width: int = Field(default=1024, ge=64, le=2048, description="Width in pixels, a multiple of 8.")
    height: int = Field(default=576, ge=64, le=2048, description="Height in pixels, a multiple of 8.")
    num_frames: int = Field(default=25, ge=1, le=128, description="Frames to generate.")
    num_inference_steps: int = Field(
        default=25, ge=1, le=200, description="Denoising steps: more is slower and usually cleaner."
    )
    fps: int = Field(
        default=7,
        ge=1,
        le=120,
        description="Frames per second that the model is told; also the playback rate unless playback_fps is given.",
    )
    playback_fps: int | None = Field(
        default=None, ge=1, le=120, description="Frames per second of the file, if other than fps."
    )
    motion_bucket_id: int = Field(
        default=127, ge=0, le=1023, description="How much moves: 0 is almost still, 255 the most seen in training."
    )
    noise_aug_strength: float = Field(
        default=0.02,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Noise added to the still before encoding: more frees the video from the still.",
    )
    min_guidance_scale: float = Field(
        default=1.0, ge=1, le=30, allow_inf_nan=False, description="Guidance at the first frame; 1 is none."
    )
    max_guidance_scale: float = Field(
        default=3.0, ge=1, le=30, allow_inf_nan=False, description="Guidance at the last frame; 1 is none."
    )
    decode_chunk_size: int | None = Field(
        default=None,
        ge=1,
        description="Frames decoded together: fewer need less memory and may flicker. "
        "Chosen from the memory that is free when not given.",
    )
    fit: Fit = Field(
        default="crop",
        description="How the still meets the size: crop cuts evenly, pad adds black bars, stretch distorts.",
    )
    prompt: str | None = Field(
        default=None,
        max_length=10_000,
        description="A sentence from which a still is drawn, where none is given; the seed drives both halves.",
    )
    negative_prompt: str | None = Field(
        default=None, max_length=10_000, description="What the drawn still should not show."
    )
    image_model: str | None = Field(
        default=None,
        min_length=1,
        description="The painter that draws the still: catalog name, hub id, or folder of a text-to-image pipeline.",
    )
    image_guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=50,
        allow_inf_nan=False,
        description="How strictly the painter follows the prompt; up to 1 is no guidance.",
    )
    image_num_inference_steps: int | None = Field(
        default=None, ge=1, le=200, description="Denoising steps of the painter."
    )
    scheduler: Scheduler | None = Field(
        default=None, description="The painter's sampler; its own when neither given nor in the catalog."
    )

    @field_validator("width", "height")
    @classmethod
    def _multiple_of_8(cls, value: int, info: Any) -> int:
        if value % 8:
            below = value // 8 * 8
            raise ValueError(
                Message(
                    "no_multiple_of_8",
                    "{name} {value} is not a multiple of 8; {below} and {above} are",
                    name=info.field_name,
                    value=value,
                    below=below,
                    above=below + 8,
                )
            )
        return value

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError(
                Message("empty_prompt", "prompt {value!r} is empty; say what the still is to show", value=value)
            )
        return value

    @field_validator(*TEXT_TO_IMAGE_FIELDS[1:])
    @classmethod
    def _has_a_prompt(cls, value: Any, info: Any) -> Any:
        if value is not None and info.data.get("prompt", "") is None:
            raise ValueError(
                Message(
                    "without_prompt",
                    "{name} {value!r} is of a still that is drawn: drop it, or give a prompt",
                    name=info.field_name,
                    value=value,
                )
            )
        return value

    @classmethod
    def checked(cls, **settings: Any) -> VideoRequest:
        """A request from settings that came from outside.

        Raises:
            InvalidRequest: naming the first setting that is wrong, its value and what would be right.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise _first_fault(error) from None

    def changed(self, **settings: Any) -> VideoRequest:
        """This request with other settings, checked again."""
        return VideoRequest.checked(**(self.model_dump() | settings))

    @property
    def frame_rate(self) -> int:
        """Frames per second of the resulting file."""
        return self.fps if self.playback_fps is None else self.playback_fps

    @property
    def guided(self) -> bool:
        """Whether any frame's guidance differs from 1, so that an unconditional pass is needed."""
        last = self.min_guidance_scale if self.num_frames == 1 else self.max_guidance_scale
        return not (self.min_guidance_scale == 1.0 and last == 1.0)


def _first_fault(error: ValidationError) -> InvalidRequest:
    """The first fault pydantic found, in words that name the setting, its value and the remedy."""
    fault = error.errors()[0]
    name = str(fault["loc"][0])
    value = fault["input"]
    match fault["type"]:
        case "value_error":
            said = fault["ctx"]["error"].args[0]
        case "extra_forbidden":
            known = ", ".join(VideoRequest.model_fields)
            said = Message(
                "no_setting", "there is no setting {name!r}; the settings are {known}", name=name, known=known
            )
        case "string_too_long":
            said = too_long(name, len(value), fault["ctx"]["max_length"])
        case "greater_than_equal" | "less_than_equal":
            said = Message(
                "out_of_range",
                "{name} {value!r} is out of range: {range}",
                name=name,
                value=value,
                range=_range_of(name),
            )
        case kind:
            message = fault["msg"][:1].lower() + fault["msg"][1:]
            said = Message(
                "not_usable",
                "{name} {value!r} is not usable: {wanted}",
                name=name,
                value=value,
                wanted=_wanted(name, kind, message),
            )
    return InvalidRequest(said, name)


def too_long(name: str, length: int, longest: int) -> Message:
    """The refusal of a text that has more characters than are read."""
    return Message(
        "too_long",
        "{name} has {length} characters and at most {longest} are read",
        name=name,
        length=length,
        longest=longest,
    )


def _wanted(name: str, kind: str, message: str) -> Message:
    """What a setting takes in place of a value of the wrong kind; `message` is pydantic's."""
    match kind:
        case "literal_error":
            choices = {"fit": get_args(Fit), "scheduler": get_args(Scheduler)}[name]
            return Message("one_of_wanted", "{message}", message=message, choices=", ".join(choices))
        case "string_type" | "string_too_short":
            return Message("text_wanted", "{message}", message=message)
        case "finite_number" | "float_type" | "float_parsing":
            return Message("number_wanted", "{message}", message=message)
        case _ if kind.startswith("int_"):
            return Message("whole_number_wanted", "{message}", message=message)
    return Message("other_wanted", "{message}", message=message)


def _range_of(name: str) -> Message:
    """The allowed range of a setting, as a person reads it."""
    bounds = {type(m).__name__: m for m in VideoRequest.model_fields[name].metadata}
    low, high = bounds["Ge"].ge, bounds.get("Le")
    if name == "seed":
        return Message("seed_wanted", "0 to {high}, or {random} for a random one", high=MAX_SEED, random=RANDOM_SEED)
    if high is None:
        return Message("at_least", "at least {low}", low=low)
    return Message("from_to", "{low} to {high}", low=low, high=high.le)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One piece of progress: `step` of `total` in `stage` is done.

    `latents` ([1, num_frames, channels, height/f, width/f], f the VAE's factor: 8 in every published SVD) come with
    denoising steps, and with painting steps as those of one frame, where the painter has such latents; `clean`, with
    denoising steps, is the model's estimate of the latents without noise, which shows the scene from the first step
    on; `frames` (uint8
    [n, height, width, 3], those just decoded) with decoding steps. Where a video had to be decoded again,
    a decoding step with `start` 0 tells that the frames before it no longer hold.
    """

    stage: Stage
    step: int
    total: int
    latents: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    frames: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    start: int = 0


class ModelIdentity(BaseModel):
    """Which weights made a video: enough to tell whether others are the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(description="Catalog name or hub id; a local folder gives only its last part.")
    revision: str | None = Field(description="Commit of the hub repository, or None for a folder.")
    weights_sha256: str = Field(description="SHA-256 over the names and contents of the weight files.")


class ImageGeneration(BaseModel):
    """How a still was drawn from a prompt; with the request's settings, its seed and this it can be drawn again."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelIdentity
    pipeline: str = Field(description="Class of the text-to-image pipeline.")
    dtype: str
    memory_plan: str
    events: tuple[str, ...] = Field(default=(), description="What did not go as planned, and what was done about it.")


# Raised whenever a recipe's fields change, so that another version says what it is rather than misread it.
RECIPE_FORMAT: Final = 2


class Recipe(BaseModel):
    """How a video was made, so that it can be made again. It holds no private path and no time of day."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[2] = Field(default=RECIPE_FORMAT, description="Version of the recipe's fields.")
    kinema: str = Field(description="Version of Kinema.")
    request: VideoRequest
    image_sha256: str = Field(description="SHA-256 of the still's pixels (RGB, upright), before it was fitted.")
    image_generation: ImageGeneration | None = Field(
        default=None, description="How the still was drawn, where a prompt was given."
    )
    model: ModelIdentity
    device: str = Field(description="Kind of device: cpu, cuda or mps, and its name.")
    threads: int | None = Field(
        default=None, description="Threads that the CPU computed with, on which rounding depends; None on a GPU."
    )
    cpu: str | None = Field(
        default=None, description="Instruction sets that the CPU computed with, likewise; None on a GPU."
    )
    dtype: str
    engine: Engine = Field(default="reference", description="Whose forward computed: ours (fast) or diffusers' own.")
    precision: Precision = Field(
        default="full", description="full: all in the dtype; fp8: the UNet's large products in numbers of one byte."
    )
    memory_plan: str
    decode_chunk_size: int
    events: tuple[str, ...] = Field(default=(), description="What did not go as planned, and what was done about it.")
    versions: dict[str, str] = Field(description="Versions of the libraries that take part in the arithmetic.")
