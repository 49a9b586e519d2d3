"""`kinema remake`: reproduce a video from its recipe and compare the frames."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinema.cli.credentials_option import Credentials, keys_to_sign, on_off, sidecars
from kinema.cli.exit_codes import FRAMES_DIFFER
from kinema.cli.options import OUTPUT_PANEL, Force, Json, Quiet, VideoFile, expanded, to_stdout
from kinema.cli.report import open_report
from kinema.errors import InvalidRequest, RecipeError
from kinema.models.catalog import CATALOG, IMAGE_MODELS
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kinema.cli.render_task import RenderTask
    from kinema.cli.report import Report
    from kinema.media.credentials.signing_keys import SigningKeys
    from kinema.media.image import InputImage
    from kinema.media.source_video import SourceVideo
    from kinema.media.video import Video
    from kinema.media.video_writer import Frames
    from kinema.models.catalog import CatalogEntry
    from kinema.recipe import ModelIdentity, Recipe
    from kinema.settings import Settings


def remake(
    file: VideoFile,
    *,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="Image that the video was made from: path or http(s) URL. For a video made from a prompt it is "
            "optional; unset, the image is generated again.",
        ),
    ] = None,
    last_image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Image at which the video ends, if there was one.")
    ] = None,
    extends: Annotated[
        str | None, typer.Option(metavar="FILE", help="The video that this one was extended from, if it was.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=OUTPUT_PANEL,
            help="Output file; - writes an mp4 to stdout. Unset: STEM-remade with the same extension in the current "
            "folder.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Path of the model, required if it was loaded from a folder (the recipe contains only the folder's "
            "name).",
        ),
    ] = None,
    image_model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Path of the text-to-image model, required if it was loaded from a folder."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Continue even if image or weights differ from the recipe.")
    ] = False,
    credentials: Credentials = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Reproduce a video from its recipe and compare the frames.

    If the video was made from an image, pass the image with --image.

    Image and weights are compared with the recipe before the work starts. The remake uses the recipe's number of CPU
    threads, which affects rounding. The exit code is 0 if the frames are identical and 7 if they differ; the message
    then lists what differs from the recipe: device, dtype, threads, memory plan, library versions.
    """
    from kinema.cli.render import load_video_pipeline, render_video
    from kinema.extension import check_model_name
    from kinema.media.video_writer import read_recipe
    from kinema.settings import read_settings

    file, image = expanded(file), None if image is None else expanded(image)
    with open_report(json_lines=json, quiet=quiet) as report, to_stdout(output, report, json=json) as output_path:
        keys = keys_to_sign(read_settings(credentials=on_off(credentials)))
        recipe = read_recipe(file)
        source = _open_source_video(recipe, extends, report, anyway=anyway)
        opened = _first_frame(recipe, source) if image is None else None
        opened = opened or _open_image(recipe, image, report, anyway=anyway)
        opened_last = _open_last_image(recipe, last_image, report, anyway=anyway)
        name = model or _loadable_name(recipe.model, CATALOG, "--model")
        if not anyway:
            check_model_name(recipe.model, file, name)
        _check_finishing(recipe, report, anyway=anyway)
        settings = _settings(recipe, report)
        task = _task(file, image, opened, recipe, name, output_path, keys, force=force)
        task = replace(task, last_image=opened_last, source_video=source)
        with _cpu_threads(recipe.threads):
            if opened is None:
                task = _with_generated_image(task, recipe, image_model, settings, report, anyway=anyway)
            pipeline = load_video_pipeline(name, settings, report, recipe.engine)
            actual = pipeline.identity.weights_sha256
            _check_sha256("model", name, actual, recipe.model.weights_sha256, report, anyway=anyway)
            _report_versions(recipe, report)
            rendered = render_video(pipeline, task, report)
        if not _compare(Path(file), recipe, rendered.video, rendered.path, report):
            raise typer.Exit(FRAMES_DIFFER)


@contextlib.contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    """Set torch's number of CPU threads inside the block; None leaves it unchanged."""
    import torch

    previous = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def _check_sha256(kind: str, name: str, actual: str, expected: str, report: Report, *, anyway: bool) -> None:
    """Raise RecipeError for an image or weights with another hash than the recipe's; with `anyway`, only warn."""
    if actual == expected:
        return
    message = f"the {kind} {name} differs from the recipe (SHA-256 {actual[:12]}…, expected {expected[:12]}…)"
    if not anyway:
        raise RecipeError(f"{message}; use the original, or --anyway to continue with this one")
    report.emit("warning", message)


def _open_image(recipe: Recipe, path: str | None, report: Report, *, anyway: bool) -> InputImage | None:
    """Open the input image, or return None to generate it again.

    Raises:
        RecipeError: the image is missing or differs from the recipe.
    """
    from kinema.media.image import open_image

    if path is None:
        if recipe.image_generation is None:
            raise RecipeError(
                "the video was made from an image, which its recipe does not contain; pass it with --image"
            )
        return None
    opened = open_image(path)
    _check_sha256("image", path, opened.sha256, recipe.image_sha256, report, anyway=anyway)
    return replace(opened, image_generation=recipe.image_generation) if opened.sha256 == recipe.image_sha256 else opened


def _check_finishing(recipe: Recipe, report: Report, *, anyway: bool) -> None:
    """Check the weights of the networks after decoding.

    Raises:
        RecipeError: they differ from the recipe's.
        InvalidRequest: they are not installed.
    """
    from kinema.models.finishing_weights import finishing_sha256

    for stage, actual in finishing_sha256(recipe.request).items():
        if (expected := recipe.finishing_sha256.get(stage)) is not None:  # recipes had none at first
            _check_sha256("network of", stage, actual, expected, report, anyway=anyway)


def _open_source_video(recipe: Recipe, path: str | None, report: Report, *, anyway: bool) -> SourceVideo | None:
    """Open the video that was extended, if there is one.

    Raises:
        RecipeError: it is missing, differs from the recipe, or was passed for a video that was not extended.
    """
    from kinema.media.source_video import open_source_video

    if recipe.extension is None:
        if path is not None:
            raise RecipeError("the video was not extended from another; remove --extends")
        return None
    if path is None:
        raise RecipeError(
            "the video was extended from another, which its recipe does not contain; pass it with --extends"
        )
    try:
        source = open_source_video(expanded(path))
    except InvalidRequest:  # it can't be extended
        raise RecipeError(f"{path} is not the video from which this one was extended; use that one") from None
    _check_sha256("video", path, source.sha256, recipe.extension.frames_sha256, report, anyway=anyway)
    if source.lengths != recipe.extension.lengths:
        raise RecipeError(
            f"{path} has {source.lengths[-1]} frames, not the {recipe.extension.lengths[-1]} from which the video was "
            "extended; use the original"
        )
    return source


def _first_frame(recipe: Recipe, source: SourceVideo | None) -> InputImage | None:
    """Return the first frame of a video that was extended, if that was its image."""
    from kinema.media.image import open_image

    first = None if source is None else open_image(source.frames[0])
    return first if first and first.sha256 == recipe.image_sha256 else None


def _open_last_image(recipe: Recipe, path: str | None, report: Report, *, anyway: bool) -> InputImage | None:
    """Open the image at which the video ends, if there is one.

    Raises:
        RecipeError: it is missing, differs from the recipe, or was passed for a video that has none.
    """
    from kinema.media.image import open_image

    if recipe.last_image_sha256 is None:
        if path is not None:
            raise RecipeError("the video was made without a last image; remove --last-image")
        return None
    if path is None:
        raise RecipeError("the video ends at an image, which its recipe does not contain; pass it with --last-image")
    opened = open_image(expanded(path))
    _check_sha256("last image", path, opened.sha256, recipe.last_image_sha256, report, anyway=anyway)
    return opened


def _with_generated_image(
    task: RenderTask, recipe: Recipe, image_model: str | None, settings: Settings, report: Report, *, anyway: bool
) -> RenderTask:
    """Return the task with its image generated again by the recipe's text-to-image model and dtype."""
    from kinema.cli.render import generate_task_image, load_image_pipeline

    assert recipe.image_generation is not None
    identity = recipe.image_generation.model
    name = image_model or _loadable_name(identity, IMAGE_MODELS, "--image-model")
    pipeline = load_image_pipeline(name, settings, report)
    try:
        actual = pipeline.identity.weights_sha256
        _check_sha256("text-to-image model", name, actual, identity.weights_sha256, report, anyway=anyway)
        task = generate_task_image(pipeline, task, report)
    finally:
        pipeline.release()
    assert task.image is not None
    if task.image.sha256 != recipe.image_sha256:
        report.emit("warning", "the generated image differs from the recipe's: the frames may differ")
    return task


def _loadable_name(identity: ModelIdentity, known: Mapping[str, CatalogEntry], option: str) -> str:
    """Return the name by which the recipe's model can be loaded.

    Raises:
        RecipeError: the model was loaded from a folder, whose path the recipe does not contain.
    """
    name, revision = identity.name, identity.revision
    entry = known.get(name)
    if entry and (entry.repository is None) == (revision is None):
        return name
    if revision and "/" in name:
        return f"{name}@{revision}"
    raise RecipeError(
        f"the model was loaded from a folder named {name}, whose path the recipe does not contain; pass it with "
        f"{option} FOLDER"
    )


def _task(
    file: str,
    source: str | None,
    image: InputImage | None,
    recipe: Recipe,
    model: str,
    output: str | None,
    keys: SigningKeys | None,
    *,
    force: bool,
) -> RenderTask:
    """Return the task for the remake, with the recipe's encoding and decode chunk size, which the request may lack."""
    from kinema.cli.output_paths import check_conflicts, video_paths
    from kinema.cli.render_task import RenderTask
    from kinema.models.resolve import resolve

    resolve(model)
    request = recipe.request.changed(decode_chunk_size=recipe.decode_chunk_size)
    video = Path(file)
    [path] = video_paths(output, [f"{video.stem}-remade"], [request], extension=video.suffix)
    check_conflicts([path, *sidecars([path], keys)], [file, source] if source else [file], force=force)
    encoding = recipe.encoding
    if path.suffix.lower() != video.suffix.lower():  # its crf is that of another encoder
        encoding = encoding.model_copy(update={"crf": None})
    title = source or request.prompt or file
    return RenderTask(title, image, request, path, recipe_request=recipe.request, encoding=encoding, keys=keys)


def _settings(recipe: Recipe, report: Report) -> Settings:
    """Return the settings with the recipe's dtype and precision, and its device type if available."""
    from kinema.models.devices import available_devices, is_hopper, pick_device
    from kinema.settings import read_settings

    kind = recipe.device.split()[0]
    if kind not in available_devices():
        report.emit("warning", f"made on {recipe.device}, which is not available: the frames may differ")
        return read_settings(dtype=recipe.dtype)
    precision = recipe.precision
    if precision == "fp8" and not is_hopper(pick_device(kind)):
        report.emit("warning", "made with fp8, which this device does not support: the frames will differ")
        precision = "full"
    return read_settings(device=kind, dtype=recipe.dtype, precision=precision)


def _report_versions(recipe: Recipe, report: Report) -> None:
    """Warn about libraries whose versions differ from the recipe's."""
    from importlib.metadata import version

    for name, recorded in {"kinema": recipe.kinema, **recipe.versions}.items():
        installed = own_version() if name == "kinema" else version(name)
        if installed != recorded:
            message = f"made with {name} {recorded}, but {installed} is installed: the frames may differ"
            report.emit("warning", message)


def _compare(original: Path, recipe: Recipe, video: Video, remade: Path, report: Report) -> bool:
    """Compare a video and its remake after encoding in the original's format; report and return whether identical."""
    from kinema.media.video_writer import probe, read_frames, save_video

    container = probe(original).container
    suffix = "" if container == "png" else f".{container}"
    before, _ = read_frames(original)
    if remade.suffix.lower() == suffix:
        after, _ = read_frames(remade)
    else:
        with tempfile.TemporaryDirectory() as folder:
            again = save_video(video.frames, Path(folder) / f"again{suffix}", video.fps, encoding=recipe.encoding)
            after, _ = read_frames(again)
    text, facts = _difference(before, after)
    facts["reasons"] = reasons = [] if facts["identical"] else _reasons(recipe, video.recipe)
    if not facts["identical"]:
        text += f"; differs from the recipe: {', '.join(reasons)}" if reasons else "; everything in the recipe matches"
    report.emit("compared", text, **facts)
    return bool(facts["identical"])


def _reasons(original: Recipe, remade: Recipe) -> list[str]:
    """Return the differences of two recipes that can explain different frames, e.g. "threads 2 instead of 1"."""

    def facts(recipe: Recipe) -> dict[str, Any]:
        names = "device", "dtype", "engine", "precision", "memory_plan", "gpus", "decode_chunk_size", "threads", "cpu"
        image_generation = recipe.image_generation
        return {
            "image": recipe.image_sha256[:12],
            "last image": recipe.last_image_sha256 and recipe.last_image_sha256[:12],
            "extended video": recipe.extension and recipe.extension.frames_sha256[:12],
            "weights": recipe.model.weights_sha256[:12],
            **{f"weights of {stage}": digest[:12] for stage, digest in recipe.finishing_sha256.items()},
            **{name: getattr(recipe, name) for name in names},
            **(
                {f"image {name}": getattr(image_generation, name) for name in ("dtype", "memory_plan")}
                if image_generation
                else {}
            ),
            "events": "; ".join(recipe.events) or "none",
            "kinema": recipe.kinema,
            **recipe.versions,
        }

    before, after = facts(original), facts(remade)
    return [
        f"{name.replace('_', ' ')} {_or_unknown(after.get(name))} instead of {_or_unknown(before.get(name))}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]


def _or_unknown(value: object) -> object:
    """Return "unknown" for None: older recipes do not contain all fields."""
    return "unknown" if value is None else value


def _difference(before: Frames, after: Frames) -> tuple[str, dict[str, Any]]:
    """Return the difference of two videos as text and as event fields. before, after: uint8 [n, height, width, 3]."""
    import numpy as np

    if before.shape != after.shape:
        (n, h, w, _), (m, g, v, _) = before.shape, after.shape
        text = f"{n} frames of {w}×{h} became {m} frames of {v}×{g}"
        return text, {"identical": False, "frames_differing": None, "max_difference": None}
    difference = np.abs(before.astype(np.int16) - after)
    frames, maximum = int(difference.any(axis=(1, 2, 3)).sum()), int(difference.max())
    facts = {"identical": maximum == 0, "frames_differing": frames, "max_difference": maximum}
    if maximum == 0:
        return f"all {len(before)} frames are the same, pixel for pixel", facts
    return (
        f"{frames} of {len(before)} frames differ, by at most {maximum}/255 and on average {difference.mean():.2f}/255",
        facts,
    )
