"""The request of a video and its typed keywords, which all layers share."""

from __future__ import annotations

import difflib
import secrets
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
)

from kinema.errors import InvalidRequest
from kinema.frame_rate import MAX_RATE_DENOMINATOR, RATE_ROUNDING, exact_rate, parse_fraction, rate_number
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

Fit = Literal["crop", "pad", "stretch"]
Scheduler = Literal["euler", "euler_ancestral", "ddim", "dpm_solver", "pndm", "unipc"]
Engine = Literal["fast", "reference"]
Precision = Literal["full", "fp8"]

MAX_SEED = 2**53 - 1  # the largest integer that JavaScript keeps exactly
RANDOM_SEED = -1
MAX_FRAMES = 128
# Further inputs that the library, the command, manifests and the HTTP API take under these names.
OTHER_INPUTS = ("size", "seconds", "last_image")
MAX_UPSCALED_PIXELS = 4096 * 2304  # of a frame: the largest that decoders of H.264 level 5.1 play
# Parameters of the text-to-image half; all None for a request with an image.
TEXT_TO_IMAGE_FIELDS = (
    "prompt",
    "negative_prompt",
    "image_model",
    "image_guidance_scale",
    "image_num_inference_steps",
    "scheduler",
)


def draw_seed(seed: Any = None) -> Any:
    """Return `seed`, or a random seed from 0 to 2³²−1 for None and −1."""
    is_random = seed is None or (seed.strip() if isinstance(seed, str) else seed) in (RANDOM_SEED, "-1")
    return secrets.randbelow(2**32) if is_random else seed


class VideoRequest(BaseModel):
    """Parameters of one video, immutable and validated on construction.

    The defaults are those of `svd-xt`; `kinema.models.catalog.request_for` applies the defaults of another model, and
    `for_image_model` those of a text-to-image model. Names follow diffusers' pipelines; parameters of the
    text-to-image model start with `image_` where they would collide.

    Raises:
        pydantic.ValidationError: from the constructor, with all invalid parameters.
        InvalidRequest: from `VideoRequest.checked`, for the first invalid parameter.
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
        description=f"Random seed, 0 to {MAX_SEED}. {RANDOM_SEED} or unset: a random one, which is reported. The same "
        "seed, image, parameters, model, machine and number of CPU threads give the same video.",
        json_schema_extra={"minimum": RANDOM_SEED},
    )
    width: int = Field(
        default=1024, ge=64, le=2048, description="Width in pixels, a multiple of 8. Unset: follows the image."
    )
    height: int = Field(
        default=576, ge=64, le=2048, description="Height in pixels, a multiple of 8. Unset: follows the image."
    )
    num_frames: int = Field(
        default=25,
        ge=1,
        le=MAX_FRAMES,
        description="Frames to generate; more than the model makes at once are made in windows that overlap.",
    )
    num_inference_steps: int = Field(
        default=25, ge=1, le=200, description="Denoising steps: more are slower and usually give a cleaner video."
    )
    fps: int = Field(
        default=7,
        ge=1,
        le=120,
        description="Frame rate that conditions the model; also the playback rate unless playback_fps is set.",
    )
    playback_fps: Annotated[float | None, BeforeValidator(parse_fraction)] = Field(
        default=None,
        ge=1,
        le=120,
        description="Playback frame rate of the file, if different from fps: a number such as 24 or 23.976, or a "
        "fraction such as 30000/1001, which is stored exactly.",
    )
    motion_bucket_id: int = Field(
        default=127,
        ge=0,
        le=1023,
        description="Amount of motion: 0 is almost none, 255 is the highest value in training.",
    )
    noise_aug_strength: float = Field(
        default=0.02,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Noise added to the image before encoding: higher values let the video deviate more from it.",
    )
    min_guidance_scale: float = Field(
        default=1.0,
        ge=1,
        le=30,
        allow_inf_nan=False,
        description="Guidance scale of the first frame; it changes linearly to that of the last. "
        "Guidance is off if both are 1.",
    )
    max_guidance_scale: float = Field(
        default=3.0,
        ge=1,
        le=30,
        allow_inf_nan=False,
        description="Guidance scale of the last frame. Guidance is off if both are 1.",
    )
    decode_chunk_size: int | None = Field(
        default=None,
        ge=1,
        description="Frames decoded at once: fewer need less memory but, with SVD, may flicker. "
        "Unset: chosen to fit the free memory.",
    )
    fit: Fit = Field(
        default="crop",
        description="How the image is fitted to width × height: crop cuts the edges, pad adds black bars, stretch "
        "changes the aspect ratio.",
    )
    crop_position: float = Field(
        default=0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="With fit crop, which part of the image is kept: 0 is its left or top end, 0.5 the centre, "
        "1 its right or bottom end.",
    )
    loop: bool = Field(
        default=False,
        description="Lead the video back to its first frame, so that it can play in a loop. Denoising takes "
        "twice as long.",
    )
    interpolate: int = Field(
        default=1,
        ge=1,
        le=4,
        description="Smoother motion: a small network adds frames between those of the model, for 2 or 4 times as many "
        "frames. The frame rate rises as much, unless playback_fps is set. 1 adds none.",
        json_schema_extra={"enum": [1, 2, 4]},
    )
    upscale: int = Field(
        default=1,
        ge=1,
        le=2,
        description="Larger frames: 2 doubles width and height of the finished frames by a small network, which needs "
        "the extra upscale; 1 leaves them as they are.",
    )
    prompt: str | None = Field(
        default=None,
        max_length=10_000,
        description="Text from which to generate the image, in place of an input image; the seed applies to both "
        "models.",
    )
    negative_prompt: str | None = Field(
        default=None, max_length=10_000, description="What the generated image should not show."
    )
    image_model: str | None = Field(
        default=None,
        min_length=1,
        description="Text-to-image model: catalog name, hub id, or folder of a diffusers text-to-image pipeline. "
        "Unset: sd-2.1-base if a CUDA device has enough memory (without sequential offload), and it is downloaded or "
        "the hub can be reached; else pocket-t2i, which is also the default at 288×160.",
    )
    image_guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=50,
        allow_inf_nan=False,
        description="Guidance scale of the text-to-image model; at 1 or below, classifier-free guidance is "
        "off, except in guidance-distilled models (Flux), which take any value as an input.",
    )
    image_num_inference_steps: int | None = Field(
        default=None, ge=1, le=200, description="Denoising steps of the text-to-image model."
    )
    scheduler: Scheduler | None = Field(
        default=None,
        description="Scheduler of the text-to-image model. Unset: the model's own scheduler; for Stable "
        "Diffusion models whose own is pndm or ddim, euler.",
    )

    @field_validator("width", "height")
    @classmethod
    def _multiple_of_8(cls, value: int, info: Any) -> int:
        if value % 8:
            below = value // 8 * 8
            raise ValueError(
                Message(
                    "no_multiple_of_8",
                    "{name} {value} is not a multiple of 8; use {below} or {above}",
                    name=info.field_name,
                    value=value,
                    below=below,
                    above=below + 8,
                )
            )
        return value

    @field_validator("interpolate")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value not in (1, 2, 4):
            raise ValueError(
                Message(
                    "interpolate_choice",
                    "{name} {value} is not available; use 1, 2 or 4",
                    name="interpolate",
                    value=value,
                )
            )
        return value

    @field_validator("upscale")
    @classmethod
    def _limit_upscaled_size(cls, value: int, info: Any) -> int:
        width, height = info.data.get("width", 64), info.data.get("height", 64)
        if value > 1 and width * height * value**2 > MAX_UPSCALED_PIXELS:
            raise ValueError(
                Message(
                    "upscaled_too_large",
                    "upscale {value} of {width}×{height} gives more than {most} megapixels; use a smaller width and "
                    "height, or upscale 1",
                    value=value,
                    width=width,
                    height=height,
                    most=round(MAX_UPSCALED_PIXELS / 1_000_000, 1),
                )
            )
        return value

    @field_validator("playback_fps")
    @classmethod
    def _exact_rate(cls, value: float | None) -> float | None:
        if value is None:
            return None
        rate = exact_rate(value)
        if abs(rate - Fraction(value)) > RATE_ROUNDING:
            raise ValueError(
                Message(
                    "inexact_rate",
                    "{name} {value} can't be stored exactly; use up to three decimals, or a fraction such as {example} "
                    "with a denominator of at most {largest}",
                    name="playback_fps",
                    value=value,
                    example="30000/1001",
                    largest=MAX_RATE_DENOMINATOR,
                )
            )
        return rate_number(rate)

    @field_serializer("playback_fps")
    def _whole_rate_as_integer(self, value: float | None) -> Any:
        return value  # the type float would turn 24 into 24.0

    @field_validator("prompt")
    @classmethod
    def _reject_blank_prompt(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError(Message("empty_prompt", "prompt is empty; describe the image"))
        return value

    @field_validator(*TEXT_TO_IMAGE_FIELDS[1:])
    @classmethod
    def _require_prompt(cls, value: Any, info: Any) -> Any:
        if value is not None and info.data.get("prompt", "") is None:
            raise ValueError(
                Message(
                    "without_prompt",
                    "{name} only applies with a prompt; remove it or add a prompt",
                    name=info.field_name,
                    value=value,
                )
            )
        return value

    @classmethod
    def checked(cls, **parameters: Any) -> VideoRequest:
        """Validate untrusted parameters and return the request.

        Raises:
            InvalidRequest: with the name and value of the first invalid parameter and the allowed values.
        """
        try:
            return cls(**parameters)
        except ValidationError as error:
            raise _first_error(error) from None

    def changed(self, **parameters: Any) -> VideoRequest:
        """Return a validated copy with other parameters."""
        return VideoRequest.checked(**(self.model_dump() | parameters))

    @property
    def frame_rate(self) -> float:
        """Playback frame rate of the file, in frames per second: an int if it is whole; see `exact_rate`."""
        return self.fps * self.interpolate if self.playback_fps is None else self.playback_fps

    @property
    def generated_rate(self) -> float:
        """Frames of the model, without those between, per second of the file."""
        return self.frame_rate if self.interpolate == 1 else self.frame_rate / self.interpolate

    @property
    def output_frames(self) -> int:
        """Frames of the file: those of the model, and those between them; a loop also has some after the last."""
        between = self.num_frames - (not self.loop)
        return self.num_frames + between * (self.interpolate - 1)

    @property
    def duration(self) -> float:
        """Playback time of the file in seconds."""
        return self.output_frames / self.frame_rate

    @property
    def finishing(self) -> tuple[str, ...]:
        """Stages after decoding, in order; most requests have none."""
        factors = {"interpolate": self.interpolate, "upscale": self.upscale}
        return tuple(name for name, factor in factors.items() if factor > 1)

    @property
    def output_size(self) -> tuple[int, int]:
        """Width and height of the file's frames."""
        return self.width * self.upscale, self.height * self.upscale

    @property
    def work(self) -> float:
        """Millions of pixels × frames × steps, of a plain video; `kinema.models.workload` counts that of any."""
        return self.width * self.height * self.num_frames * self.num_inference_steps / 1_000_000

    @property
    def guided(self) -> bool:
        """Whether any frame has a guidance scale other than 1, which needs an unconditional pass."""
        last = self.min_guidance_scale if self.num_frames == 1 else self.max_guidance_scale
        return not (self.min_guidance_scale == 1.0 and last == 1.0)


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a video, in millions of pixels × predicted frames × steps of its model.

    Attributes:
        denoise: Work of the video model.
        finishing: The same of each stage after decoding, as the work of the model, without guidance, that has as many
            operations.
    """

    denoise: float
    finishing: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The work of all stages, which limits apply to."""
        return self.denoise + sum(self.finishing.values())


class VideoParameters(TypedDict, total=False):
    """The keywords of `kinema.generate` that are fields of `VideoRequest`, and `size`; None is the default."""

    seed: int | None
    size: str | tuple[int, int] | None
    width: int | None
    height: int | None
    num_frames: int | None
    seconds: float | None
    num_inference_steps: int | None
    fps: int | None
    playback_fps: float | None
    motion_bucket_id: int | None
    noise_aug_strength: float | None
    min_guidance_scale: float | None
    max_guidance_scale: float | None
    decode_chunk_size: int | None
    fit: Fit | None
    crop_position: float | None
    loop: bool | None
    interpolate: int | None
    upscale: int | None
    negative_prompt: str | None
    image_guidance_scale: float | None
    image_num_inference_steps: int | None
    scheduler: Scheduler | None


def _first_error(error: ValidationError) -> InvalidRequest:
    """Convert pydantic's first error to an `InvalidRequest` with parameter, value and remedy."""
    details = error.errors()[0]
    name = str(details["loc"][0])
    value = details["input"]
    match details["type"]:
        case "value_error":
            message = details["ctx"]["error"].args[0]
        case "extra_forbidden":
            names = [*VideoRequest.model_fields, *OTHER_INPUTS]
            known = ", ".join(names)
            message = Message(
                "no_setting", "unknown parameter {name!r}; expected one of {known}", name=name, known=known
            )
            for nearest in difflib.get_close_matches(name, names, 1):
                message = Message(
                    "similar_setting", "unknown parameter {name!r}; did you mean {nearest}?", name=name, nearest=nearest
                )
        case "string_too_long":
            message = too_long(name, len(value), details["ctx"]["max_length"])
        case "greater_than_equal" | "less_than_equal" | "finite_number" | "int_parsing_size":
            message = Message(
                "out_of_range",
                "{name} {value!r} is out of range: {range}",
                name=name,
                value=value,
                range=_range_of(name),
            )
        case "float_type" | "float_parsing":
            message = Message(
                "not_a_number",
                "{name} {value!r} is not a number; use {range}",
                name=name,
                value=value,
                range=_range_of(name),
            )
        case "bool_parsing" | "bool_type":
            message = Message("not_a_boolean", "{name} {value!r} is invalid; use true or false", name=name, value=value)
        case "int_type" | "int_parsing" | "int_from_float":
            message = Message(
                "not_an_integer",
                "{name} {value!r} is not an integer; use {range}",
                name=name,
                value=value,
                range=_range_of(name),
            )
        case kind:
            reason = details["msg"][:1].lower() + details["msg"][1:]
            message = Message(
                "not_usable",
                "{name} {value!r} is invalid: {wanted}",
                name=name,
                value=value,
                wanted=_expected(name, kind, reason),
            )
    return InvalidRequest(message, name)


def too_long(name: str, length: int, longest: int) -> Message:
    """Return the error message for a text of more than `longest` characters."""
    return Message(
        "too_long",
        "{name} has {length} characters; at most {longest} are allowed",
        name=name,
        length=length,
        longest=longest,
    )


def _expected(name: str, kind: str, message: str) -> Message:
    """Return what a parameter accepts; `kind` and `message` are pydantic's error type and text."""
    match kind:
        case "literal_error":
            choices = {"fit": get_args(Fit), "scheduler": get_args(Scheduler)}[name]
            return Message("one_of_wanted", "use one of {choices}", choices=", ".join(choices))
        case "string_type" | "string_too_short":
            return Message("text_wanted", "{message}", message=message)
    return Message("other_wanted", "{message}", message=message)


def _range_of(name: str) -> Message:
    """Return the allowed range of a parameter as text."""
    bounds = {type(m).__name__: m for m in VideoRequest.model_fields[name].metadata}
    low, high = bounds["Ge"].ge, bounds.get("Le")
    if name == "seed":
        return Message("seed_wanted", "0 to {high}, or {random} for a random one", high=MAX_SEED, random=RANDOM_SEED)
    if high is None:
        return Message("at_least", "at least {low}", low=low)
    return Message("from_to", "{low} to {high}", low=low, high=high.le)
