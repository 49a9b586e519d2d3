"""A model's folder, read without any weights library: what it is, which files matter, and whether they are whole.

Everything here is judged from names, JSON and safetensors' headers, so that a wrong folder is refused in
milliseconds, before memory is taken; and no pickle is ever opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kinema.errors import NotAnSvdModel, WeightsDamaged, WeightsMissing
from kinema.models.memory_plan import PARTS, Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

CONFIGS: Mapping[str, str] = {
    "scheduler": "scheduler/scheduler_config.json",
    "feature_extractor": "feature_extractor/preprocessor_config.json",
    **{part: f"{part}/config.json" for part in PARTS},
}
INDEX = "model_index.json"
PIPELINE = "StableVideoDiffusionPipeline"
CLASSES: Mapping[str, str] = {
    "unet": "UNetSpatioTemporalConditionModel",
    "vae": "AutoencoderKLTemporalDecoder",
    "image_encoder": "CLIPVisionModelWithProjection",
    "scheduler": "EulerDiscreteScheduler",
}
STEMS: Mapping[str, str] = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
}
VARIANT = "fp16"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
VAE_LEVELS = range(2, 5)  # every VAE factor that they make divides the 8 of which sizes are multiples
MAX_HEADER = 100 * 2**20  # safetensors' own bound


class Layout(Protocol):
    """A kind of model: how its folder is told from others, and which of its files are read."""

    def check(self, folder: Path, where: str | None = None) -> None:
        """Refuse a folder, by its index, that holds another kind; `where` names it in messages."""

    def needed(self, folder: Path, names: Iterable[str], *, half: bool, where: str) -> list[str]:
        """Of `names`, every file that loading will read; of the folder, only the index has to be there."""

    def stems(self, folder: Path) -> Mapping[str, str]:
        """The parts that have weights, and how the names of their files begin."""


@dataclass(frozen=True)
class Weights:
    """One part's weight files, as names relative to the model's folder: shards, or a single file."""

    files: tuple[str, ...]
    index: str | None
    half: bool


def damaged(path: Path, what: str) -> WeightsDamaged:
    """The refusal of a file, with the remedy. In the hub's cache the file itself must go, not only the link to it."""
    file = path.resolve()
    it = "it" if file == path.absolute() else str(file)
    return WeightsDamaged(f"{path} {what}: delete {it} and fetch the model again (`kinema models pull` does)")


def choose_weights(names: Iterable[str], part: str, *, half: bool, stem: str = "") -> Weights | None:
    """Which of a repository's or folder's files hold a part: the half-precision variant first when `half`.

    `stem` is how their names begin, where the part is none of an SVD's.

    None when no safetensors of it are there. Of shards, those are chosen whose names fit; whether the index names
    others is seen when it is read.
    """
    here = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}
    stem = stem or STEMS[part]
    for wants_half in (half, not half):
        dot = f".{VARIANT}" if wants_half else ""
        if (single := f"{stem}{dot}.safetensors") in here:
            return Weights((f"{part}/{single}",), None, wants_half)
        numbers = r"-\d{5}-of-\d{5}"
        shard = re.compile(rf"{stem}({re.escape(dot)}{numbers}|{numbers}{re.escape(dot)})\.safetensors")
        shards = sorted(f"{part}/{name}" for name in here if shard.fullmatch(name))
        if (index := f"{stem}.safetensors.index{dot}.json") in here:
            return Weights(tuple(shards), f"{part}/{index}", wants_half)
    return None


def needed_files(names: Iterable[str], *, half: bool, where: str) -> list[str]:
    """Every file that loading will read, and no other.

    Raises:
        WeightsMissing: naming what is not there; pickles are never taken in place of safetensors.
    """
    names = list(names)
    wanted = [INDEX, *CONFIGS.values()]
    for part in PARTS:
        weights = choose_weights(names, part, half=half)
        if weights is None:
            raise no_weights(names, part, where)
        wanted += [*weights.files, *([weights.index] if weights.index else [])]
    for name in wanted:
        if name not in names:
            raise WeightsMissing(f"{where} has no {name}; it is incomplete: fetch it again")
    return wanted


def no_weights(
    names: Iterable[str], part: str, where: str, *, stem: str = "", pipeline: str = PIPELINE
) -> WeightsMissing:
    """The refusal of a model that lacks a part's weights, or keeps them as a pickle."""
    pickles = sorted(name for name in names if name.startswith(f"{part}/") and name.endswith(PICKLES))
    if pickles:
        return WeightsMissing(
            f"{where} keeps its {part} as a pickle ({pickles[0]}), which can run any code when opened and is never "
            "opened here. Convert it where you trust it: "
            f"diffusers.{pipeline}.from_pretrained(OLD).save_pretrained(NEW, safe_serialization=True)"
        )
    return WeightsMissing(
        f"{where} has no weights of its {part}: {part}/{stem or STEMS[part]}.safetensors is not there"
    )


def folder_names(folder: Path) -> list[str]:
    """The files of a model's folder, by names relative to it, with forward slashes."""
    return sorted(
        path.relative_to(folder).as_posix()
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.is_file()
    )


def read_json(path: Path) -> dict[str, Any]:
    """A configuration.

    Raises:
        WeightsMissing: when there is no such file.
        WeightsDamaged: when it is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsMissing(f"{path} is not there; the model is incomplete: fetch it again") from None
    except (OSError, ValueError) as error:
        raise damaged(path, f"can't be read ({error})") from None
    if not isinstance(value, dict):
        raise damaged(path, "is no JSON object")
    return value


def check_is_svd(folder: Path, where: str | None = None) -> None:
    """Refuse what is a model, but no Stable Video Diffusion in diffusers' layout; `where` names it in messages.

    Raises:
        NotAnSvdModel: saying what it is instead.
        WeightsMissing: when it is no model at all.
    """
    where = where or str(folder)
    if not (folder / INDEX).is_file():
        for path in sorted(folder.glob("*")):
            if path.suffix in (".safetensors", *PICKLES):
                raise single_file(path)
        raise WeightsMissing(f"{where} has no {INDEX}, so it is no model in diffusers' layout")
    index = read_json(folder / INDEX)
    if index.get("_class_name") != PIPELINE:
        raise NotAnSvdModel(f"{where} is a {index.get('_class_name')}, and Kinema runs {PIPELINE} only")
    for part, name in CLASSES.items():
        entry = index.get(part)
        found = entry[-1] if isinstance(entry, list) and entry else None
        if found != name:
            raise NotAnSvdModel(f"{where} has {found or 'nothing'} for its {part}, where an SVD has {name}")


class SvdLayout:
    """The layout of every Stable Video Diffusion."""

    def check(self, folder: Path, where: str | None = None) -> None:
        """As `check_is_svd`."""
        check_is_svd(folder, where)

    def needed(self, _folder: Path, names: Iterable[str], *, half: bool, where: str) -> list[str]:
        """As `needed_files`."""
        return needed_files(names, half=half, where=where)

    def stems(self, _folder: Path) -> Mapping[str, str]:
        """`STEMS`."""
        return STEMS


SVD = SvdLayout()


def single_file(path: Path) -> NotAnSvdModel:
    """The refusal of a checkpoint in one file."""
    return NotAnSvdModel(
        f"{path} is a checkpoint in one file, and Kinema reads folders in diffusers' layout. Stability AI's are there "
        "in that layout too: --model svd, svd-xt or svd-xt-1.1. Another can be converted with "
        "scripts/convert_svd_to_diffusers.py of diffusers"
    )


def check_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """All configurations, once they are seen to fit each other and the engine.

    Raises:
        NotAnSvdModel: naming the setting that no SVD has.
        WeightsMissing, WeightsDamaged: naming a file.
    """
    configs = {part: read_json(folder / name) for part, name in CONFIGS.items()}
    unet, vae, scheduler = configs["unet"], configs["vae"], configs["scheduler"]
    latent = vae.get("latent_channels")
    facts: list[tuple[str, str, object, object]] = [
        ("unet", "in_channels, twice the VAE's latent_channels,", unet.get("in_channels"), 2 * (latent or 0)),
        ("unet", "out_channels, the VAE's latent_channels,", unet.get("out_channels"), latent),
        (
            "unet",
            "cross_attention_dim, the image encoder's projection_dim,",
            unet.get("cross_attention_dim"),
            configs["image_encoder"].get("projection_dim"),
        ),
        ("scheduler", "_class_name", scheduler.get("_class_name"), CLASSES["scheduler"]),
        ("scheduler", "prediction_type", scheduler.get("prediction_type"), "v_prediction"),
        ("scheduler", "timestep_type", scheduler.get("timestep_type"), "continuous"),
        ("scheduler", "use_karras_sigmas", scheduler.get("use_karras_sigmas"), True),
    ]
    for part, what, found, right in facts:
        if found != right:
            raise NotAnSvdModel(f"{folder / CONFIGS[part]}: {what} is {found!r} and must be {right!r} for an SVD")
    channels = vae.get("block_out_channels")
    if not isinstance(channels, list) or len(channels) not in VAE_LEVELS:
        raise NotAnSvdModel(
            f"{folder / CONFIGS['vae']}: block_out_channels is {channels!r} and must be a list of 2, 3 or 4 numbers, "
            "one for each level (frames 2, 4 or 8 times the latents' size)"
        )
    for name in ("image_mean", "image_std"):
        if len(configs["feature_extractor"].get(name) or ()) != 3:
            raise damaged(folder / CONFIGS["feature_extractor"], f"names no {name} of three numbers")
    return configs


Header = dict[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """The tensors of a safetensors file by name, with their shapes, once its length is seen to fit its header.

    Raises:
        WeightsMissing: when there is no such file, or only Git LFS's pointer to it.
        WeightsDamaged: when it is truncated, or no safetensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= min(MAX_HEADER, size) else b""
    except FileNotFoundError:
        raise WeightsMissing(f"{path} is not there; the model is incomplete: fetch it again") from None
    except OSError as error:
        raise damaged(path, f"can't be read ({error})") from None
    if start == b"version ":
        raise WeightsMissing(f"{path} is Git LFS's pointer, not the weights: run `git lfs pull` in its folder")
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        header = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise damaged(path, f"({size} bytes) is no whole safetensors file") from None
    if (right := 8 + length + end) != size:
        raise damaged(path, f"has {size} bytes where its header says {right}")
    return header


def read_headers(folder: Path, weights: Weights) -> dict[str, Header]:
    """The headers of a part's files, by file; of shards, all that the index names.

    Raises:
        WeightsMissing, WeightsDamaged: naming the file.
    """
    if weights.index is None:
        return {name: read_header(folder / name) for name in weights.files}
    listed = read_json(folder / weights.index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise damaged(folder / weights.index, "maps no tensor to a file")
    parent = weights.index.rpartition("/")[0]
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):  # stays in its folder, and is no pickle
            raise WeightsDamaged(f"{folder / weights.index} names {name}, which is no safetensors file beside it")
    headers = {f"{parent}/{name}": read_header(folder / parent / name) for name in names}
    for tensor, name in listed.items():
        if tensor not in headers[f"{parent}/{name}"]:
            raise damaged(folder / parent / name, f"has no tensor {tensor}, which the index says")
    return headers


def check_tensors(folder: Path, part: Part, headers: Mapping[str, Header], expected: Header) -> None:
    """Refuse files whose tensors are not those of the configuration.

    Raises:
        WeightsDamaged: naming the file and the first tensor that is missing, or of another shape.
    """
    config = folder / CONFIGS[part]
    found = {tensor: (name, shape) for name, header in headers.items() for tensor, shape in header.items()}
    for tensor, shape in expected.items():
        if tensor not in found:
            raise damaged(folder / next(iter(headers)), f"lacks the tensor {tensor}, which {config} asks for")
        name, there = found[tensor]
        if there != shape:
            raise WeightsDamaged(
                f"{folder / name}: the tensor {tensor} is {_by(there)} where {config} asks for {_by(shape)}: the two "
                "are not of one model: fetch both again, from one place"
            )


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def weights_sha256(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over the sorted lines "SHA-256 of the file, two spaces, its relative name".

    The hub's cache keeps a file under its own SHA-256; that name is believed, so that gigabytes need not be read.
    """
    total = hashlib.sha256()
    for name in sorted(names):
        path = (folder / name).resolve()
        if re.fullmatch(r"[0-9a-f]{64}", path.name):
            digest = path.name
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{digest}  {name}\n".encode())
    return total.hexdigest()
