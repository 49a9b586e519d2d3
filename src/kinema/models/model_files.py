"""Checks of a model's folder: the kind of model, the files that are needed, and whether they are complete.

The checks read only file names, JSON and safetensors headers: a wrong folder is rejected in milliseconds, before memory
is allocated. Pickles are never opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kinema.errors import ModelCorrupt, ModelIncomplete, NotAnSvdModel
from kinema.models.memory_plan import COMPONENTS, Component

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

CONFIGS: Mapping[str, str] = {
    "scheduler": "scheduler/scheduler_config.json",
    "feature_extractor": "feature_extractor/preprocessor_config.json",
    **{component: f"{component}/config.json" for component in COMPONENTS},
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
SVD_CHANNELS = (320, 640, 1280, 1280)  # of the UNet's levels in every published SVD
VARIANT = "fp16"
REMEDY = "use an unmodified SVD, or another model"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
VAE_LEVELS = range(2, 5)  # their VAE factors 2, 4 and 8 divide 8, of which all sizes are multiples
MAX_HEADER = 100 * 2**20  # the limit of safetensors itself


class Layout(Protocol):
    """A kind of model: how its folder is recognised, and which of its files are read."""

    def check(self, folder: Path, where: str | None = None) -> None:
        """Reject a folder whose index describes another kind of model; `where` names it in messages."""

    def needed(self, folder: Path, names: Iterable[str], *, half: bool, where: str) -> list[str]:
        """Return those of `names` that loading reads; of the folder itself, only the index must exist."""

    def stems(self, folder: Path) -> Mapping[str, str]:
        """Return the components that have weights, with the common prefix of their file names."""


@dataclass(frozen=True)
class Weights:
    """The weight files of one component, relative to the model's folder: shards or a single file."""

    files: tuple[str, ...]
    index: str | None
    half: bool


def damaged(path: Path, what: str) -> ModelCorrupt:
    """Return the error for a damaged file. For a link in the hub's cache it names the target, which must be deleted."""
    file = path.resolve()
    it = "it" if file == path.absolute() else str(file)
    return ModelCorrupt(f"{path} {what}; delete {it} and download the model again (`kinema models pull`)")


def choose_weights(names: Iterable[str], component: str, *, half: bool, stem: str = "") -> Weights | None:
    """Select the files of a repository or folder that hold a component; prefer the half-precision variant if `half`.

    `stem` is the prefix of the file names, for a component that an SVD does not have. Shards are selected by name;
    reading the index later finds any others. Returns None if the component has no safetensors files.
    """
    available = {name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")}
    stem = stem or STEMS[component]
    for is_half in (half, not half):
        dot = f".{VARIANT}" if is_half else ""
        if (single := f"{stem}{dot}.safetensors") in available:
            return Weights((f"{component}/{single}",), None, is_half)
        numbers = r"-\d{5}-of-\d{5}"
        shard = re.compile(rf"{stem}({re.escape(dot)}{numbers}|{numbers}{re.escape(dot)})\.safetensors")
        shards = sorted(f"{component}/{name}" for name in available if shard.fullmatch(name))
        if (index := f"{stem}.safetensors.index{dot}.json") in available:
            return Weights(tuple(shards), f"{component}/{index}", is_half)
    return None


def needed_files(names: Iterable[str], *, half: bool, where: str) -> list[str]:
    """Return exactly the files that loading reads.

    Raises:
        ModelIncomplete: if a file is missing; names it. Pickles never replace safetensors.
    """
    names = list(names)
    wanted = [INDEX, *CONFIGS.values()]
    for component in COMPONENTS:
        weights = choose_weights(names, component, half=half)
        if weights is None:
            raise no_weights(names, component, where)
        wanted += [*weights.files, *([weights.index] if weights.index else [])]
    for name in wanted:
        if name not in names:
            raise ModelIncomplete(f"{where} has no {name}; it is incomplete, download it again")
    return wanted


def no_weights(
    names: Iterable[str], component: str, where: str, *, stem: str = "", pipeline: str = PIPELINE
) -> ModelIncomplete:
    """Return the error for a model without a component's weights, or with those as a pickle or under another name."""
    names = list(names)
    pickles = sorted(name for name in names if name.startswith(f"{component}/") and name.endswith(PICKLES))
    if pickles:
        return ModelIncomplete(
            f"{where} stores its {component} as a pickle ({pickles[0]}). Kinema never opens pickles, because they can "
            "run any code. If you trust it, convert it: "
            f"diffusers.{pipeline}.from_pretrained(OLD).save_pretrained(NEW, safe_serialization=True)"
        )
    others = sorted(name for name in names if name.startswith(f"{component}/") and name.endswith(".safetensors"))
    remedy = f"rename {others[0]} if that is it" if others else "download the model again, or choose another"
    return ModelIncomplete(
        f"{where} has no weights for its {component}: {component}/{stem or STEMS[component]}.safetensors is missing; "
        f"{remedy}"
    )


def folder_names(folder: Path) -> list[str]:
    """Return the files of a model's folder as relative names with forward slashes."""
    return sorted(
        path.relative_to(folder).as_posix()
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.is_file()
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ModelIncomplete: if the file does not exist.
        ModelCorrupt: if it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelIncomplete(f"{path} is missing; the model is incomplete, download it again") from None
    except (OSError, ValueError) as error:
        raise damaged(path, f"can't be read ({error})") from None
    if not isinstance(value, dict):
        raise damaged(path, "is not a JSON object")
    return value


def class_name(index: Mapping[str, Any], where: str) -> str:
    """Return the class of the pipeline that a model's index describes.

    Raises:
        ModelIncomplete: if the index does not name it.
    """
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ModelIncomplete(
            f"{where}: its {INDEX} has no _class_name, so it is not a model in diffusers' layout; download it again"
        )
    return name


def check_is_svd(folder: Path, where: str | None = None) -> None:
    """Reject a model that is not a Stable Video Diffusion in diffusers' layout; `where` names it in messages.

    Raises:
        NotAnSvdModel: if it is another kind of model; names that kind.
        ModelIncomplete: if it is not a model.
    """
    where = where or str(folder)
    if not (folder / INDEX).is_file():
        for path in sorted(folder.glob("*")):
            if path.suffix in (".safetensors", *PICKLES):
                raise single_file(path)
        raise ModelIncomplete(f"{where} has no {INDEX}, so it is not a model in diffusers' layout")
    index = read_json(folder / INDEX)
    if (pipeline := class_name(index, where)) != PIPELINE:
        raise NotAnSvdModel(f"{where} is a {pipeline}; Kinema supports only {PIPELINE}")
    for component, name in CLASSES.items():
        entry = index.get(component)
        actual = entry[-1] if isinstance(entry, list) and entry else None
        if actual != name:
            raise NotAnSvdModel(
                f"{where}: expected {name} as {component} of an SVD, got {actual or 'nothing'}; {REMEDY}"
            )


class SvdLayout:
    """The layout of Stable Video Diffusion models."""

    def check(self, folder: Path, where: str | None = None) -> None:
        """See `check_is_svd`."""
        check_is_svd(folder, where)

    def needed(self, _folder: Path, names: Iterable[str], *, half: bool, where: str) -> list[str]:
        """See `needed_files`."""
        return needed_files(names, half=half, where=where)

    def stems(self, _folder: Path) -> Mapping[str, str]:
        """Return `STEMS`."""
        return STEMS


SVD = SvdLayout()


def single_file(path: Path) -> NotAnSvdModel:
    """Return the error for a single-file checkpoint."""
    return NotAnSvdModel(
        f"{path} is a single-file checkpoint, but Kinema loads folders in diffusers' layout. Stability AI's models are "
        "available in that layout: --model svd, svd-xt or svd-xt-1.1. Convert other models with diffusers' "
        "scripts/convert_svd_to_diffusers.py"
    )


def check_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read all configurations, and check that they match each other and the engine.

    Raises:
        NotAnSvdModel: naming the field with a value that no SVD has.
        ModelIncomplete, ModelCorrupt: naming a file.
    """
    configs = {component: read_json(folder / name) for component, name in CONFIGS.items()}
    unet, vae, scheduler = configs["unet"], configs["vae"], configs["scheduler"]
    latent = vae.get("latent_channels")
    checks: list[tuple[str, str, object, object]] = [
        ("unet", "in_channels (twice the VAE's latent_channels)", unet.get("in_channels"), 2 * (latent or 0)),
        ("unet", "out_channels (the VAE's latent_channels)", unet.get("out_channels"), latent),
        (
            "unet",
            "cross_attention_dim, which must equal the image encoder's projection_dim,",
            unet.get("cross_attention_dim"),
            configs["image_encoder"].get("projection_dim"),
        ),
        ("scheduler", "_class_name", scheduler.get("_class_name"), CLASSES["scheduler"]),
        ("scheduler", "prediction_type", scheduler.get("prediction_type"), "v_prediction"),
        ("scheduler", "timestep_type", scheduler.get("timestep_type"), "continuous"),
        ("scheduler", "use_karras_sigmas", scheduler.get("use_karras_sigmas"), True),
    ]
    for component, name, actual, expected in checks:
        if actual != expected:
            raise NotAnSvdModel(f"{folder / CONFIGS[component]}: {name} is {actual!r}, expected {expected!r}; {REMEDY}")
    channels = vae.get("block_out_channels")
    if not isinstance(channels, list) or len(channels) not in VAE_LEVELS:
        raise NotAnSvdModel(
            f"{folder / CONFIGS['vae']}: block_out_channels is {channels!r}; expected a list of 2, 3 or 4 numbers, one "
            f"per level (frames are 2, 4 or 8 times the size of the latents); {REMEDY}"
        )
    for name in ("image_mean", "image_std"):
        if len(configs["feature_extractor"].get(name) or ()) != 3:
            raise damaged(folder / CONFIGS["feature_extractor"], f"has no {name} of three numbers")
    return configs


Header = dict[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """Return the shape of each tensor in a safetensors file, and check the file's length against its header.

    Raises:
        ModelIncomplete: if the file does not exist or is a Git LFS pointer.
        ModelCorrupt: if it is truncated or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if length <= min(MAX_HEADER, size) else b""
    except FileNotFoundError:
        raise ModelIncomplete(f"{path} is missing; the model is incomplete, download it again") from None
    except OSError as error:
        raise damaged(path, f"can't be read ({error})") from None
    if start == b"version ":
        raise ModelIncomplete(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        header = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise damaged(path, f"({size} bytes) is not a complete safetensors file") from None
    if (expected := 8 + length + end) != size:
        raise damaged(path, f"has {size} bytes, but its header gives {expected}")
    return header


def read_headers(folder: Path, weights: Weights) -> dict[str, Header]:
    """Return the headers of a component's files by file name; for shards, of all files that the index lists.

    Raises:
        ModelIncomplete, ModelCorrupt: naming the file.
    """
    if weights.index is None:
        return {name: read_header(folder / name) for name in weights.files}
    listed = read_json(folder / weights.index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise damaged(folder / weights.index, "maps no tensor to a file")
    parent = weights.index.rpartition("/")[0]
    names = sorted({str(name) for name in listed.values()})
    for name in names:
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):  # in this folder, and not a pickle
            raise ModelCorrupt(
                f"{folder / weights.index} lists {name}, which is not a safetensors file in the same folder"
            )
    headers = {f"{parent}/{name}": read_header(folder / parent / name) for name in names}
    for tensor, name in listed.items():
        if tensor not in headers[f"{parent}/{name}"]:
            raise damaged(folder / parent / name, f"lacks the tensor {tensor}, which the index lists")
    return headers


def check_tensors(folder: Path, component: Component, headers: Mapping[str, Header], expected: Header) -> None:
    """Check the tensors of a component's files against its configuration.

    Raises:
        ModelCorrupt: naming the file and the first tensor that is missing or has another shape.
    """
    config = folder / CONFIGS[component]
    stored = {tensor: (name, shape) for name, header in headers.items() for tensor, shape in header.items()}
    for tensor, shape in expected.items():
        if tensor not in stored:
            raise damaged(folder / next(iter(headers)), f"lacks the tensor {tensor}, which {config} requires")
        name, actual = stored[tensor]
        if actual != shape:
            raise ModelCorrupt(
                f"{folder / name}: the tensor {tensor} is {_shape_text(actual)}, but {config} requires "
                f"{_shape_text(shape)}; the files are of different models, download both again from one source"
            )


def _shape_text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def weights_sha256(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 over sorted lines of "SHA-256 of the file, two spaces, relative name".

    The hub's cache names a file after its SHA-256. That name is used, so the file is not read.
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
