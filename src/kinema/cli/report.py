"""How a run is told: bars on a terminal, plain lines elsewhere, JSON lines for programs, or nothing but results."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from kinema.cli.exit_codes import Interrupted, code_of
from kinema.errors import KinemaError
from kinema.models.catalog import human_bytes

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import rich.progress
    from rich.console import Console
    from rich.status import Status

    from kinema.cli.render_task import RenderedVideo, RenderTask
    from kinema.models.hub import Progress
    from kinema.values import Stage, Step

# Kinds of line that stand out: what they begin with, and how it looks where there is colour.
_MARKED = {
    "error": ("error: ", "bold red"),
    "interrupted": ("interrupted: ", "bold red"),
    "warning": ("caution: ", "yellow"),
    "identical": ("identical: ", "bold green"),
    "different": ("different: ", "bold yellow"),
}


def stderr_console() -> Console:
    """A console on stderr; rich reads NO_COLOR, and whether it is a terminal."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False)


def stdout_console() -> Console:
    """A console on stdout, for tables: as wide as they want to be where it is no terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def say(text: str, kind: str = "note", console: Console | None = None) -> None:
    """One line on stderr, as it is: a path may hold what looks like markup."""
    from rich.text import Text

    (console or stderr_console()).print(Text.assemble(_MARKED.get(kind, ""), text))


def seconds_text(seconds: float) -> str:
    """4.2 → "4.2 s", 75 → "1 min 15 s", 3900 → "1 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Pace:
    """How long stages take, and what is left of the present one."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}
        self._stage: Stage | None = None
        self._began = self._last = time.monotonic()

    def left(self, step: Step) -> float:
        """Seconds that are left of the step's stage, at the pace so far; to be asked at each step, once."""
        if step.stage != self._stage:
            self._stage, self._began = step.stage, self._last
        self._last = time.monotonic()
        self.seconds[step.stage] = spent = self._last - self._began
        return spent / step.step * (step.total - step.step)


class Report:
    """Tells nothing but results: the base of the others, and what --quiet asks for."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.writes_video = False
        """Whether the result itself goes to stdout, in place of its path."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is on the screen; errors are told by `kinema.cli.main`, once."""

    def tell(self, kind: str, text: str, **facts: Any) -> None:
        """An event: in words for persons, by its kind and facts for programs."""

    def download(self, progress: Progress) -> None:
        """A piece of a download has come."""

    def generate_image(self, job: RenderTask) -> None:
        """The still of one job begins to be drawn."""
        self.pace = Pace()
        request = job.request
        self.tell(
            "text_to_image",
            job.image_headline,
            prompt=request.prompt,
            image_model=request.image_model,
            seed=request.seed,
        )

    def image_done(self, job: RenderTask) -> None:
        """The still of one job is there."""
        seconds = job.image_seconds or 0
        kept = f", kept as {job.drawn}" if job.drawn else ""
        assert job.image is not None
        assert job.image.image_generation is not None
        for event in job.image.image_generation.events:
            self.tell("warning", event)
        self.tell(
            "image_done",
            f"the still is drawn in {seconds_text(seconds)}{kept}",
            path=str(job.drawn) if job.drawn else None,
            seconds=round(seconds, 2),
        )

    def start(self, job: RenderTask) -> None:
        """Work on one video begins."""
        self.pace = Pace()
        if job.image_seconds is not None:
            self.pace.seconds["text_to_image"] = job.image_seconds
        request = job.request.model_dump()
        path, image = str(job.target), None if job.is_drawn else job.source
        self.tell("start", job.headline, image=image, path=path, seed=job.request.seed, request=request)

    def step(self, step: Step) -> None:
        """A step is done."""
        self._step(step, self.pace.left(step))

    def _step(self, step: Step, left: float) -> None:
        """A step is done, and so many seconds are left of its stage."""

    def done(self, made: RenderedVideo) -> None:
        """One video is there."""
        self.result(
            made.path,
            contact_sheet=str(made.sheet) if made.sheet else None,
            seed=made.video.seed,
            seconds=round(made.seconds, 2),
            warnings=[*made.job.warnings, *made.video.recipe.events],
        )

    def result(self, path: Path, **_facts: Any) -> None:
        """What the run came for is the file `path`."""
        if not self.writes_video:
            print(path, flush=True)  # noqa: T201 - the result
            return
        sys.stdout.buffer.write(path.read_bytes())
        sys.stdout.buffer.flush()


class Json(Report):
    """Each event as a JSON line on stdout."""

    def __init__(self) -> None:
        super().__init__()
        self._percent = -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """An error is an event too; `kinema.cli.main` tells it on stderr besides."""
        if isinstance(error, KinemaError):
            code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
            param = getattr(error, "param", None)
            self._write("error", code=code, message=str(error), param=param, exit_code=code_of(error))
        elif isinstance(error, Interrupted):
            self._write("error", code="interrupted", message="interrupted", param=None, exit_code=error.code)

    def tell(self, kind: str, text: str, **facts: Any) -> None:
        """One line."""
        self._write(kind, **(facts or {"message": text}))

    def download(self, progress: Progress) -> None:
        """One line for each percent."""
        done, total = progress.done_bytes, progress.total_bytes
        if (percent := 100 * done // total) != self._percent:
            self._percent = percent
            self._write("download", file=progress.file, done_bytes=done, total_bytes=total)

    def _step(self, step: Step, left: float) -> None:
        self._write("step", stage=step.stage, step=step.step, total=step.total, eta_seconds=round(left, 1))

    def result(self, path: Path, **facts: Any) -> None:
        """The line that ends well."""
        self._write("done", path=str(path), **facts)

    def _write(self, event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), flush=True)  # noqa: T201 - the result


class Lines(Report):
    """Plain lines on stderr, for files, pipes and simple terminals."""

    def __init__(self) -> None:
        super().__init__()
        self.console = stderr_console()
        self._tenth = -1

    def tell(self, kind: str, text: str, **facts: Any) -> None:
        """One line."""
        if kind == "compared":
            kind = "identical" if facts["identical"] else "different"
        say(text, kind, self.console)

    def download(self, progress: Progress) -> None:
        """One line for each tenth."""
        done, total = progress.done_bytes, progress.total_bytes
        if (tenth := 10 * done // total) != self._tenth:
            self._tenth = tenth
            self.tell("note", f"download {human_bytes(done)} of {human_bytes(total)}")

    def _step(self, step: Step, left: float) -> None:
        after = f", {seconds_text(left)} left" if step.step < step.total else ""
        self.tell("note", f"{step.stage} {step.step}/{step.total}{after}")

    def done(self, made: RenderedVideo) -> None:
        """What came of it, and how long each stage took."""
        for event in made.video.recipe.events:
            self.tell("warning", event)
        count, height, width, _ = made.video.frames.shape
        stages = ", ".join(f"{stage} {seconds_text(spent)}" for stage, spent in self.pace.seconds.items())
        self.tell(
            "note",
            f"{count} frames of {width}×{height} at {made.video.fps}/s, seed {made.video.seed}, "
            f"in {seconds_text(made.seconds)} ({stages})",
        )
        if made.sheet:
            self.tell("note", f"contact sheet: {made.sheet}")
        super().done(made)


class Bars(Lines):
    """Bars on a terminal: one for a download, one for each stage of a video. They vanish when their work is done."""

    def __init__(self) -> None:
        super().__init__()
        self._live: rich.progress.Progress | Status | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bars away."""
        self._show(None)

    def tell(self, kind: str, text: str, **facts: Any) -> None:
        """One line, above what moves; loading itself moves."""
        if kind == "load":
            from rich.text import Text

            self._show(self.console.status(Text(text)))
            return
        if kind in {"loaded", "text_to_image", "image_done", "start"}:
            self._show(None)
        super().tell(kind, text, **facts)

    def download(self, progress: Progress) -> None:
        """The bar of a download."""
        from rich import progress as bars
        from rich.markup import escape

        if "download" not in self._tasks:
            live = bars.Progress(
                "download", bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn(),
                bars.TimeRemainingColumn(), bars.TextColumn("{task.description}", style="dim"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._show(live)
            self._tasks["download"] = live.add_task("", total=progress.total_bytes)
        assert isinstance(self._live, bars.Progress)
        file = escape(progress.file.rpartition("/")[2])
        self._live.update(self._tasks["download"], completed=progress.done_bytes, description=file)

    def generate_image(self, job: RenderTask) -> None:
        """A bar for the still."""
        super().generate_image(job)
        self._stages({"text_to_image": job.request.image_num_inference_steps})

    def start(self, job: RenderTask) -> None:
        """Bars for the three stages of the video."""
        super().start(job)
        self._stages({"encode": None, "denoise": job.request.num_inference_steps, "decode": job.request.num_frames})

    def _stages(self, totals: dict[Stage, int | None]) -> None:
        """A bar for each stage, of which the first is seen; the others appear when their time comes."""
        from rich import progress as bars

        live = bars.Progress(
            bars.TextColumn("{task.description:>8}"), bars.BarColumn(), bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[left]}", style="dim"),
            console=self.console, transient=True,
        )  # fmt: skip
        self._show(live)
        for i, (stage, total) in enumerate(totals.items()):
            self._tasks[stage] = live.add_task(stage, total=total, start=i == 0, visible=i == 0, left="")

    def _step(self, step: Step, left: float) -> None:
        from rich import progress as bars

        assert isinstance(self._live, bars.Progress)
        ended = step.step >= step.total
        after = "" if ended else f"{seconds_text(left)} left"
        self._live.update(self._tasks[step.stage], completed=step.step, total=step.total, left=after)
        following = {"encode": "denoise", "denoise": "decode"}.get(step.stage)
        if ended and following:
            self._live.start_task(self._tasks[following])
            self._live.update(self._tasks[following], visible=True)

    def done(self, made: RenderedVideo) -> None:
        """Lines in the place of the bars."""
        self._show(None)
        super().done(made)

    def _show(self, live: rich.progress.Progress | Status | None) -> None:
        """Let one thing move in the place of what moved before."""
        if self._live is not None:
            self._live.stop()
        self._live, self._tasks = live, {}
        if live is not None:
            live.start()


def report(*, json_lines: bool, quiet: bool) -> Report:
    """The report that suits what was asked for, and where stderr leads."""
    if json_lines:
        return Json()
    if quiet:
        return Report()
    # By the stream itself: FORCE_COLOR makes rich see a terminal where there is a log.
    return Bars() if sys.stderr.isatty() and not stderr_console().is_dumb_terminal else Lines()
