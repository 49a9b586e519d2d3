"""One still's way through the engine into a file: what `generate` and `remake` share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from kinema.models.catalog import CATALOG, human_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.cli.progress import Report
    from kinema.media.clip import Clip
    from kinema.media.still import Still
    from kinema.models.loading import Models
    from kinema.settings import Settings
    from kinema.values import VideoRequest


@dataclass(frozen=True, eq=False)
class Job:
    """One video to be made; everything in it is checked."""

    source: str
    still: Still
    request: VideoRequest
    target: Path
    sheet: Path | None = None
    place: str = ""
    """"2/3" of several."""
    cautions: tuple[str, ...] = ()
    recorded: VideoRequest | None = None
    """What the recipe is to say was asked, where it is not `request`: a remake's recipe is that of the original."""

    @property
    def headline(self) -> str:
        """What begins, in one line."""
        place = f"{self.place} " if self.place else ""
        request = self.request
        size = f"{request.num_frames} frames of {request.width}×{request.height}"
        return f"{place}{self.source}: {size}, {request.num_inference_steps} steps, seed {request.seed}"


@dataclass(frozen=True, eq=False)
class Made:
    """One video that is there, and how long it took in seconds."""

    job: Job
    clip: Clip
    path: Path
    sheet: Path | None
    seconds: float


def load(model: str, settings: Settings, report: Report) -> Models:
    """A model in memory, told as it comes."""
    from kinema.models import hub, loading

    entry = CATALOG.get(model)
    if entry and entry.repository and hub.cached(entry.repository, entry.revision or "main", half=True) is None:
        size = f"{human_bytes(entry.size_bytes)} " if entry.size_bytes else ""
        report.tell(
            "note", f"{model} is fetched first: {size}from {entry.repository}, {entry.licence} ({entry.licence_url})"
        )
    report.tell("load", f"loading {model}", model=model)
    began = time.monotonic()
    models = loading.load(model, settings=settings, progress=report.download)
    spent = time.monotonic() - began
    dtype = str(models.dtype).removeprefix("torch.")
    report.tell(
        "loaded",
        f"{models.name} on {models.device} in {dtype}, loaded in {spent:.1f} s",
        model=models.name,
        device=str(models.device),
        dtype=dtype,
        seconds=round(spent, 2),
    )
    for note in models.notes:
        report.tell("warning", note)
    return models


def make(models: Models, job: Job, report: Report) -> Made:
    """Make one video; its file is encoded while decoding goes on, and appears whole or not at all.

    Raises:
        KinemaError: one of its kinds; nothing is left of the video then.
    """
    from kinema.engine import generate
    from kinema.media.video import VideoWriter, publish
    from kinema.values import Step

    report.start(job)
    began = time.monotonic()
    clip: Clip | None = None
    with VideoWriter(job.target, job.request.frame_rate) as writer:
        for result in generate(models, job.still, job.request):
            if isinstance(result, Step):
                if result.frames is not None:
                    if result.start == 0:  # the first, or those of a video that is decoded again
                        writer.restart()
                    writer.write(result.frames)
                report.step(result)
            else:
                clip = result
        assert clip is not None, "the engine ends with a clip"
        recipe = clip.recipe
        path = writer.finish(recipe.model_copy(update={"request": job.recorded}) if job.recorded else recipe)
    if job.sheet:
        picture = BytesIO()
        clip.contact_sheet().save(picture, "PNG")
        publish(picture.getvalue(), job.sheet)
    made = Made(job, clip, path, job.sheet, time.monotonic() - began)
    report.done(made)
    return made
