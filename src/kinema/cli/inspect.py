"""`kinema inspect`: show the recipe of a video."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated

import typer

from kinema.cli.options import VideoFile, expanded
from kinema.messages import printable

MAX_VALUE = 20_000  # characters; the longest prompt fits

if TYPE_CHECKING:
    from kinema.recipe import Extension, FileEncoding, ModelIdentity


def inspect(
    file: VideoFile,
    *,
    json: Annotated[bool, typer.Option("--json", help="Write the recipe to stdout as JSON.")] = False,
) -> None:
    """Show the recipe in a video file: how the video was made."""
    from kinema.media.video_writer import read_recipe

    recipe = read_recipe(expanded(file))
    facts = recipe.model_dump(mode="json")
    if json:
        print(json_text.dumps(facts, indent=2))  # noqa: T201 - the result
        return
    request, image_generation = recipe.request, recipe.image_generation
    lines: dict[str, object] = {
        **_model_lines("model", "weights", recipe.model),
        **(_model_lines("image model", "image model's weights", image_generation.model) if image_generation else {}),
        **{f"weights of {stage}": f"SHA-256 {digest}" for stage, digest in recipe.finishing_sha256.items()},
        "image": f"SHA-256 {recipe.image_sha256} (of the pixels)",
        **({"last image": f"SHA-256 {recipe.last_image_sha256}"} if recipe.last_image_sha256 else {}),
        **_extension_line(recipe.extension),
        **{name: value for name, value in request if name not in {"model", "image_model"} and value is not None},
        "device": f"{recipe.device}, {recipe.dtype}, {recipe.engine} engine"
        + (f", {recipe.precision}" if recipe.precision != "full" else "")
        + (f", {recipe.threads} CPU thread{'s' if recipe.threads != 1 else ''}" if recipe.threads else "")
        + (f" ({recipe.cpu})" if recipe.cpu else ""),
        "memory plan": f"{recipe.memory_plan}, {recipe.decode_chunk_size} frames decoded at once"
        + (f", {recipe.gpus} GPUs" if recipe.gpus > 1 else ""),
        **_encoding_line(recipe.encoding),
        "made by": ", ".join([f"kinema {recipe.kinema}", *(f"{k} {v}" for k, v in recipe.versions.items())]),
    }
    events = [*(image_generation.events if image_generation else ()), *recipe.events]
    lines |= {"event" if i == 0 else f"event {i + 1}": event for i, event in enumerate(events)}
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {printable(str(value), MAX_VALUE)}")  # noqa: T201 - the result


def _extension_line(extension: Extension | None) -> dict[str, object]:
    """Return a labelled line for a video that was extended."""
    if extension is None:
        return {}
    return {"extended from": f"{extension.lengths[-1]} frames, SHA-256 {extension.frames_sha256} (of their pixels)"}


def _encoding_line(encoding: FileEncoding) -> dict[str, object]:
    """Return a labelled line for an encoding that is not the default."""
    parts = [
        *([] if encoding.crf is None else [f"crf {encoding.crf}"]),
        *(["boomerang (frames forward, then backward)"] if encoding.boomerang else []),
        *(["encoded again from a server's mp4"] if encoding.from_stored else []),
        *([] if encoding.watermark is None else [f"invisible watermark {encoding.watermark}"]),
    ]
    return {"file": ", ".join(parts)} if parts else {}


def _model_lines(name_label: str, weights_label: str, identity: ModelIdentity) -> dict[str, object]:
    """Return two labelled lines for a model: name with revision, and hash of the weights."""
    revision = f" at {identity.revision}" if identity.revision else ""
    return {name_label: f"{identity.name}{revision}", weights_label: f"SHA-256 {identity.weights_sha256}"}
