"""`kinema remake`: makes a video again from its recipe and compares the frames."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinema.cli.exit_codes import DIFFERS
from kinema.cli.options import OUTPUT_PANEL, Force, Json, Quiet, VideoFile, expanded, to_stdout
from kinema.cli.report import report
from kinema.errors import RecipeError
from kinema.models.catalog import CATALOG, IMAGE_MODELS
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kinema.cli.render_task import RenderTask
    from kinema.cli.report import Report
    from kinema.media.image import InputImage
    from kinema.media.video import Video
    from kinema.media.video_writer import Frames
    from kinema.models.catalog import CatalogEntry
    from kinema.settings import Settings
    from kinema.values import ModelIdentity, Recipe


def remake(
    file: VideoFile,
    *,
    image: Annotated[
        str | None,
        typer.Option(
            help="The picture that the video was made from: a path or http(s) address. Of a video that was made from a "
            "prompt it is drawn again, unless it was kept and is given."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Where the new video goes; - writes an mp4 to stdout. Unset: STEM-remade with the same ending, in the "
            "current folder.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Where the weights are, when the recipe can't tell (of a folder it keeps only the last part).",
        ),
    ] = None,
    image_model: Annotated[
        str | None, typer.Option(help="Where the painter's weights are, when the recipe can't tell.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on although the still or the weights are not those of the recipe.")
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a video again from its recipe, and say whether the frames are identical. What was a still has to be given.

    It runs with the recipe's number of CPU threads, on which rounding depends. The exit code is 0 when the frames are
    identical and 7 when they differ; the message then names what is not as in the recipe: device, dtype, threads,
    memory plan, library versions. Still and weights are checked first.
    """
    from kinema.cli.render import load, make
    from kinema.media.video_writer import read_recipe

    file, image = expanded(file), None if image is None else expanded(image)
    with report(json_lines=json, quiet=quiet) as told, to_stdout(output, told, json=json) as target:
        recipe = read_recipe(file)
        opened = _image_of(recipe, image, told, anyway=anyway)
        name = model or _model_of(recipe.model, CATALOG, "--model")
        machine = _machine(recipe, told)
        job = _job(file, image, opened, recipe, name, target, force=force)
        with _threads(recipe.threads):
            if opened is None:
                job = _drawn_again(job, recipe, image_model, machine, told, anyway=anyway)
            pipeline = load(name, machine, told)
            pipeline.engine = recipe.engine
            found = pipeline.identity.weights_sha256
            _same("model", name, found, recipe.model.weights_sha256, told, anyway=anyway)
            _tell_versions(recipe, told)
            made = make(pipeline, job, told)
        if not _compared(Path(file), recipe, made.video, made.path, told):
            raise typer.Exit(DIFFERS)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many CPU threads; None leaves their number as it is."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _same(what: str, given: str, found: str, wanted: str, told: Report, *, anyway: bool) -> None:
    """Refuse a still or weights other than the recipe's, or only say so."""
    if found == wanted:
        return
    fault = f"the {what} {given} is not the one of the recipe (SHA-256 {found[:12]}…, not {wanted[:12]}…)"
    if not anyway:
        raise RecipeError(f"{fault}; give the original one, or --anyway to go on with this")
    told.tell("warning", fault)


def _image_of(recipe: Recipe, given: str | None, told: Report, *, anyway: bool) -> InputImage | None:
    """The still that was given, or None where it is to be drawn again.

    Raises:
        RecipeError: where it is needed and not given, or is another.
    """
    from kinema.media.image import open_image

    if given is None:
        if recipe.image_generation is None:
            raise RecipeError("the video was made from a still, which no recipe holds: give it by --image")
        return None
    opened = open_image(given)
    _same("image", given, opened.sha256, recipe.image_sha256, told, anyway=anyway)
    return replace(opened, image_generation=recipe.image_generation) if opened.sha256 == recipe.image_sha256 else opened


def _drawn_again(
    job: RenderTask, recipe: Recipe, image_model: str | None, machine: Settings, told: Report, *, anyway: bool
) -> RenderTask:
    """The job with its still drawn again, by the recipe's own painter and in its arithmetic."""
    from kinema.cli.render import draw, load_image_pipeline

    assert recipe.image_generation is not None
    identity = recipe.image_generation.model
    name = image_model or _model_of(identity, IMAGE_MODELS, "--image-model")
    image_pipeline = load_image_pipeline(name, machine, told)
    try:
        _same("image model", name, image_pipeline.identity.weights_sha256, identity.weights_sha256, told, anyway=anyway)
        job = draw(image_pipeline, job, told)
    finally:
        image_pipeline.release()
    assert job.image is not None
    if job.image.sha256 != recipe.image_sha256:
        told.tell("warning", "the still that was drawn is not the recipe's to the last pixel: the frames may differ")
    return job


def _model_of(identity: ModelIdentity, known: Mapping[str, CatalogEntry], option: str) -> str:
    """What to load, by the recipe alone.

    Raises:
        RecipeError: when the weights lay in a folder, of which the recipe keeps only the last part.
    """
    name, revision = identity.name, identity.revision
    entry = known.get(name)
    if entry and (entry.repository is None) == (revision is None):
        return name
    if revision and "/" in name:
        return f"{name}@{revision}"
    raise RecipeError(
        f"the weights lay in a folder named {name}, and the recipe keeps no more of its path: give it by {option} "
        "FOLDER"
    )


def _job(
    file: str,
    source: str | None,
    image: InputImage | None,
    recipe: Recipe,
    model: str,
    output: str | None,
    *,
    force: bool,
) -> RenderTask:
    """The video to make, with the decode chunk that was used, which the request may have left open."""
    from kinema.cli.output_paths import keep_apart, video_paths
    from kinema.cli.render_task import RenderTask
    from kinema.models.resolve import resolve

    resolve(model)
    request = recipe.request.changed(decode_chunk_size=recipe.decode_chunk_size)
    video = Path(file)
    [target] = video_paths(output, [f"{video.stem}-remade"], [request], ending=video.suffix)
    keep_apart([target], [file, source] if source else [file], force=force)
    return RenderTask(source or request.prompt or file, image, request, target, recorded=recipe.request)


def _machine(recipe: Recipe, told: Report) -> Settings:
    """The settings of this machine, with the recipe's arithmetic, and its kind of device where it is there."""
    from kinema.models.devices import available_devices, is_hopper, pick_device
    from kinema.settings import read_settings

    kind = recipe.device.split()[0]
    if kind not in available_devices():
        told.tell("warning", f"it was made on {recipe.device}, which is not here: the frames may differ")
        return read_settings(dtype=recipe.dtype)
    precision = recipe.precision
    if precision == "fp8" and not is_hopper(pick_device(kind)):
        told.tell("warning", "it was made in fp8, which this device can't multiply: the frames differ")
        precision = "full"
    return read_settings(device=kind, dtype=recipe.dtype, precision=precision)


def _tell_versions(recipe: Recipe, told: Report) -> None:
    """Say which libraries are not those that made the video."""
    from importlib.metadata import version

    for name, made_by in {"kinema": recipe.kinema, **recipe.versions}.items():
        here = own_version() if name == "kinema" else version(name)
        if here != made_by:
            told.tell("warning", f"it was made by {name} {made_by}, and {here} is here: the frames may differ")


def _compared(original: Path, recipe: Recipe, video: Video, remade: Path, told: Report) -> bool:
    """Whether a video and its remake show the same, told in words; both as the original's kind of file keeps them."""
    from kinema.media.video_writer import probe, read_frames

    kind = probe(original).container
    suffix = "" if kind == "png" else f".{kind}"
    before, _ = read_frames(original)
    if remade.suffix.lower() == suffix:
        after, _ = read_frames(remade)
    else:
        with tempfile.TemporaryDirectory() as folder:
            after, _ = read_frames(video.save(Path(folder) / f"again{suffix}"))
    text, facts = _difference(before, after)
    facts["reasons"] = reasons = [] if facts["identical"] else _reasons(recipe, video.recipe)
    if not facts["identical"]:
        text += f"; not as in the recipe: {', '.join(reasons)}" if reasons else "; all of the recipe is the same"
    told.tell("compared", text, **facts)
    return bool(facts["identical"])


def _reasons(asked: Recipe, made: Recipe) -> list[str]:
    """What of two recipes can explain that the frames differ: "threads 2 instead of 1"."""

    def facts(recipe: Recipe) -> dict[str, Any]:
        names = "device", "dtype", "engine", "precision", "memory_plan", "decode_chunk_size", "threads", "cpu"
        image_generation = recipe.image_generation
        return {
            "image": recipe.image_sha256[:12],
            "weights": recipe.model.weights_sha256[:12],
            **{name: getattr(recipe, name) for name in names},
            **(
                {f"still's {name}": getattr(image_generation, name) for name in ("dtype", "memory_plan")}
                if image_generation
                else {}
            ),
            "events": "; ".join(recipe.events) or "none",
            "kinema": recipe.kinema,
            **recipe.versions,
        }

    theirs, ours = facts(asked), facts(made)
    differing = [name for name in theirs | ours if theirs.get(name) != ours.get(name)]
    return [
        f"{name.replace('_', ' ')} {_known(ours.get(name))} instead of {_known(theirs.get(name))}" for name in differing
    ]


def _known(fact: object) -> object:
    """A fact of a recipe; an older recipe does not hold all of them."""
    return "unknown" if fact is None else fact


def _difference(before: Frames, after: Frames) -> tuple[str, dict[str, Any]]:
    """How far two videos are apart, in words and as facts."""
    import numpy as np

    if before.shape != after.shape:
        (n, h, w, _), (m, g, v, _) = before.shape, after.shape
        text = f"{n} frames of {w}×{h} became {m} frames of {v}×{g}"
        return text, {"identical": False, "frames_differing": None, "max_difference": None}
    apart = np.abs(before.astype(np.int16) - after)
    frames, most = int(apart.any(axis=(1, 2, 3)).sum()), int(apart.max())
    facts = {"identical": most == 0, "frames_differing": frames, "max_difference": most}
    if most == 0:
        return f"all {len(before)} frames are the same, pixel for pixel", facts
    return (
        f"{frames} of {len(before)} frames differ, by {most}/255 at most and {apart.mean():.2f}/255 on average",
        facts,
    )
