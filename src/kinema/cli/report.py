"""Output of a run: progress bars on a terminal, plain lines elsewhere, JSON lines for programs, or only the result.

With --json, stdout has one JSON object per line. Its "event" is one of:

    model          the default model that was chosen: model, reason
    note, warning  message
    download       progress of a download: file, done_bytes, total_bytes
    load, loaded   a model is being loaded, or is loaded: model; then device, dtype, seconds, or size_bytes after `pull`
    text_to_image  the text-to-image stage starts: prompt, image_model, seed
    image_done     the image is generated: path, seconds
    start          a video starts: image, path, seed, request
    step           a step is done: stage, step, total, eta_seconds (of this stage)
    restart        a stage begins again: stage, reason; its earlier steps are void
    done           a result is written: path; for a video contact_sheet, seed, seconds, warnings; for an item of a batch
                   seed, seconds, earlier (made by an earlier run)
    progress       of a batch: completed (earlier of them by earlier runs), failed, total, per_minute, eta_seconds
    sheet          the sheet of `generate --sheet` is written: path
    item_failed    one of several videos failed: name, source, seed, code, message
    batch_done     all items of a batch are completed or failed: completed, failed, path
    compared       result of `remake`: identical, frames_differing, max_difference, reasons
    error          the run failed: code (as in the HTTP API, or "interrupted"), message, param, exit_code
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from kinema.cli.exit_codes import Interrupted, exit_code_for
from kinema.errors import KinemaError
from kinema.messages import printable
from kinema.models.catalog import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import rich.progress
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table

    from kinema.batch.batch_progress import BatchProgress
    from kinema.cli.render_task import RenderedVideo, RenderTask
    from kinema.models.hub import Progress
    from kinema.steps import Restart, Stage, Step

MAX_LINE = 20_000  # characters
# Seconds between the lines about the progress of a batch.
PROGRESS_SECONDS = 10.0
# Prefix and style of lines by kind.
_PREFIXES = {
    "error": ("error: ", "bold red"),
    "interrupted": ("interrupted: ", "bold red"),
    "item_failed": ("failed: ", "bold red"),
    "warning": ("warning: ", "yellow"),
    "identical": ("identical: ", "bold green"),
    "different": ("different: ", "bold yellow"),
}


def stderr_console() -> Console:
    """Return a console on stderr; rich detects NO_COLOR and terminals."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False)


def stdout_console() -> Console:
    """Return a console on stdout for tables, 200 columns wide if stdout is not a terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def print_table(table: Table) -> None:
    """Print a table to stdout, without the spaces that fill its lines."""
    console = stdout_console()
    with console.capture() as captured:
        console.print(table)
    console.out("\n".join(line.rstrip() for line in captured.get().splitlines()), highlight=False)


def print_line(text: str, kind: str = "note", console: Console | None = None) -> None:
    """Print a line to stderr, without interpreting markup and control characters, which a path may contain."""
    from rich.text import Text

    shown = "\n".join(printable(line, MAX_LINE) for line in text.split("\n"))
    (console or stderr_console()).print(Text.assemble(_PREFIXES.get(kind, ""), shown))


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


class StageTimer:
    """Measures the duration of each stage and estimates the remaining time of the current one."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}
        self._stage: Stage | None = None
        self._began = self._last = time.monotonic()

    def eta(self, step: Step) -> float:
        """Return the estimated seconds left of the step's stage. Call it exactly once per step."""
        if step.stage != self._stage:
            self._stage, self._began = step.stage, self._last
        self._last = time.monotonic()
        self.seconds[step.stage] = elapsed = self._last - self._began
        return elapsed / step.step * (step.total - step.step)


class Report:
    """Prints only results, and which of several videos failed: the base class, used for --quiet."""

    def __init__(self) -> None:
        self.timer = StageTimer()
        self.writes_video = False
        """Whether to write the video itself to stdout instead of its path."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clean up the screen. `kinema.cli.main` prints the error."""

    def emit(self, kind: str, text: str, **facts: Any) -> None:  # noqa: ARG002 - for programs, in a subclass
        """Show an event: `text` to people, `kind` and `facts` to programs."""
        if kind == "item_failed":
            print_line(text, kind)

    def download(self, progress: Progress) -> None:
        """Show the progress of a download."""

    def image_started(self, task: RenderTask) -> None:
        """Show that the text-to-image stage of a task starts."""
        self.timer = StageTimer()
        request = task.request
        self.emit(
            "text_to_image",
            task.image_headline,
            prompt=request.prompt,
            image_model=request.image_model,
            seed=request.seed,
        )

    def image_done(self, task: RenderTask) -> None:
        """Show that the image of a task is generated."""
        seconds = task.image_seconds or 0
        saved = f", saved as {task.image_path}" if task.image_path else ""
        assert task.image is not None
        assert task.image.image_generation is not None
        for event in task.image.image_generation.events:
            self.emit("warning", event)
        self.emit(
            "image_done",
            f"image generated in {seconds_text(seconds)}{saved}",
            path=str(task.image_path) if task.image_path else None,
            seconds=round(seconds, 2),
        )

    def video_started(self, task: RenderTask) -> None:
        """Show that a video starts."""
        self.timer = StageTimer()
        if task.image_seconds is not None:
            self.timer.seconds["text_to_image"] = task.image_seconds
        request = task.request.model_dump()
        path, image = str(task.output_path), None if task.is_from_prompt else task.source
        self.emit("start", task.headline, image=image, path=path, seed=task.request.seed, request=request)

    def step(self, step: Step) -> None:
        """Show that a step is done."""
        self._step(step, self.timer.eta(step))

    def restart(self, restart: Restart) -> None:
        """Show that a stage begins again."""
        self.emit(
            "restart", f"{restart.stage} begins again: {restart.reason}", stage=restart.stage, reason=restart.reason
        )

    def _step(self, step: Step, eta: float) -> None:
        """Show that a step is done; `eta` is the remaining time of its stage in seconds."""

    def video_done(self, rendered: RenderedVideo) -> None:
        """Show that a video is finished."""
        self.result(
            rendered.path,
            contact_sheet=str(rendered.contact_sheet_path) if rendered.contact_sheet_path else None,
            seed=rendered.video.seed,
            seconds=round(rendered.seconds, 2),
            warnings=[*rendered.task.warnings, *rendered.video.recipe.events],
        )

    def batch_progress(self, progress: BatchProgress) -> None:
        """Show the progress of a batch."""

    def batch_done(self, progress: BatchProgress, folder: Path, *, pictures: int) -> None:
        """Show that all items of a batch are completed or failed, and where the summary is."""
        failed = f", {progress.failed} failed" if progress.failed else ""
        earlier = f" ({progress.earlier} of them by an earlier run)" if progress.earlier else ""
        sheet = f", and contact-sheet.png with {pictures} of them" if pictures else ""
        self.emit(
            "batch_done",
            f"{progress.completed} videos completed{earlier}{failed}; {folder} has summary.json, summary.csv{sheet}",
            completed=progress.completed,
            failed=progress.failed,
            path=str(folder),
        )

    def result(self, path: Path, **_facts: Any) -> None:
        """Write a result to stdout: its path, or the video itself."""
        if not self.writes_video:
            print(path, flush=True)  # noqa: T201 - the result
            return
        sys.stdout.buffer.write(path.read_bytes())
        sys.stdout.buffer.flush()


class JsonReport(Report):
    """Prints each event as a JSON line to stdout."""

    def __init__(self) -> None:
        super().__init__()
        self._percent = -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print an error as an event; `kinema.cli.main` also prints it to stderr."""
        if isinstance(error, KinemaError):
            param = getattr(error, "param", None)
            self._write("error", code=error.code, message=str(error), param=param, exit_code=exit_code_for(error))
        elif isinstance(error, Interrupted):
            self._write("error", code="interrupted", message="interrupted", param=None, exit_code=error.code)

    def emit(self, kind: str, text: str, **facts: Any) -> None:
        """Print one JSON line."""
        self._write(kind, **(facts or {"message": text}))

    def download(self, progress: Progress) -> None:
        """Print one line per percent."""
        done, total = progress.done_bytes, progress.total_bytes
        if (percent := 100 * done // total) != self._percent:
            self._percent = percent
            self._write("download", file=progress.file, done_bytes=done, total_bytes=total)

    def _step(self, step: Step, eta: float) -> None:
        self._write("step", stage=step.stage, step=step.step, total=step.total, eta_seconds=round(eta, 1))

    def batch_progress(self, progress: BatchProgress) -> None:
        """Print the counts of a batch."""
        rate, eta = progress.per_minute, progress.eta
        self._write(
            "progress",
            completed=progress.completed,
            earlier=progress.earlier,
            failed=progress.failed,
            total=progress.total,
            per_minute=None if rate is None else round(rate, 2),
            eta_seconds=None if eta is None else round(eta, 1),
        )

    def result(self, path: Path, **facts: Any) -> None:
        """Print the "done" event."""
        self._write("done", path=str(path), **facts)

    def _write(self, event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), flush=True)  # noqa: T201 - the result


class TextReport(Report):
    """Prints plain lines to stderr, for files, pipes and simple terminals."""

    def __init__(self) -> None:
        super().__init__()
        self.console = stderr_console()
        self._tenth = -1
        self._next_progress = 0.0

    def emit(self, kind: str, text: str, **facts: Any) -> None:
        """Print one line."""
        if kind == "compared":
            kind = "identical" if facts["identical"] else "different"
        print_line(text, kind, self.console)

    def download(self, progress: Progress) -> None:
        """Print one line per ten percent."""
        done, total = progress.done_bytes, progress.total_bytes
        if (tenth := 10 * done // total) != self._tenth:
            self._tenth = tenth
            self.emit("note", f"download {human_bytes(done)} of {human_bytes(total)}")

    def _step(self, step: Step, eta: float) -> None:
        remaining = f", {seconds_text(eta)} left" if step.step < step.total else ""
        self.emit("note", f"{step.stage} {step.step}/{step.total}{remaining}")

    def batch_progress(self, progress: BatchProgress) -> None:
        """Print one line per `PROGRESS_SECONDS`."""
        if time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS_SECONDS
            self.emit("note", f"{progress.finished}/{progress.total} videos{_batch_facts(progress)}")

    def video_done(self, rendered: RenderedVideo) -> None:
        """Print size, seed and the duration of each stage."""
        for event in rendered.video.recipe.events:
            self.emit("warning", event)
        count, height, width, _ = rendered.video.frames.shape
        stages = ", ".join(f"{stage} {seconds_text(seconds)}" for stage, seconds in self.timer.seconds.items())
        self.emit(
            "note",
            f"{count} frames of {width}×{height} at {rendered.video.fps:g} fps, seed {rendered.video.seed}, "
            f"in {seconds_text(rendered.seconds)} ({stages})",
        )
        if rendered.contact_sheet_path:
            self.emit("note", f"contact sheet: {rendered.contact_sheet_path}")
        super().video_done(rendered)


class ProgressBarReport(TextReport):
    """Shows transient progress bars on a terminal: one per download and one per stage of a video."""

    def __init__(self) -> None:
        super().__init__()
        self._live: rich.progress.Progress | Status | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bars."""
        self._show(None)

    def emit(self, kind: str, text: str, **facts: Any) -> None:
        """Print one line above the bars; show loading as a spinner."""
        if kind == "load":
            from rich.text import Text

            self._show(self.console.status(Text(text)))
            return
        if kind in {"loaded", "text_to_image", "image_done", "start", "batch_done"}:
            self._show(None)
        super().emit(kind, text, **facts)

    def download(self, progress: Progress) -> None:
        """Show the bar of a download."""
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

    def batch_progress(self, progress: BatchProgress) -> None:
        """Show the bar of a batch."""
        from rich import progress as bars

        if "batch" not in self._tasks:
            live = bars.Progress(
                "videos", bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(),
                bars.TextColumn("{task.description}", style="dim"), console=self.console, transient=True,
                redirect_stdout=sys.stdout.isatty(),  # else rich would write piped results to the terminal
            )  # fmt: skip
            self._show(live)
            self._tasks["batch"] = live.add_task("", total=progress.total)
        assert isinstance(self._live, bars.Progress)
        description = _batch_facts(progress).removeprefix(", ")
        self._live.update(self._tasks["batch"], completed=progress.finished, description=description)

    def image_started(self, task: RenderTask) -> None:
        """Show the bar of the text-to-image stage."""
        super().image_started(task)
        self._show_stages({"text_to_image": task.request.image_num_inference_steps})

    def video_started(self, task: RenderTask) -> None:
        """Show the bars of the stages of a video."""
        super().video_started(task)
        request = task.request
        stages = {"encode": None, "denoise": request.num_inference_steps, "decode": request.num_frames}
        self._show_stages(stages | dict.fromkeys(request.finishing, request.output_frames))

    def _show_stages(self, totals: Mapping[str, int | None]) -> None:
        """Show one bar per stage; those after the first stay hidden until their stage starts."""
        from rich import progress as bars

        longest = max(8, *map(len, totals))
        live = bars.Progress(
            bars.TextColumn(f"{{task.description:>{longest}}}"), bars.BarColumn(), bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[left]}", style="dim"),
            console=self.console, transient=True,
        )  # fmt: skip
        self._show(live)
        for i, (stage, total) in enumerate(totals.items()):
            self._tasks[stage] = live.add_task(stage, total=total, start=i == 0, visible=i == 0, left="")

    def _step(self, step: Step, eta: float) -> None:
        from rich import progress as bars

        assert isinstance(self._live, bars.Progress)
        is_last = step.step >= step.total
        remaining = "" if is_last else f"{seconds_text(eta)} left"
        self._live.update(self._tasks[step.stage], completed=step.step, total=step.total, left=remaining)
        later = list(self._tasks.values())[list(self._tasks).index(step.stage) + 1 :]
        if is_last and later:
            self._live.start_task(later[0])
            self._live.update(later[0], visible=True)

    def video_done(self, rendered: RenderedVideo) -> None:
        """Replace the bars by lines."""
        self._show(None)
        super().video_done(rendered)

    def _show(self, live: rich.progress.Progress | Status | None) -> None:
        """Replace what is shown now by `live`; None shows nothing."""
        if self._live is not None:
            self._live.stop()
        self._live, self._tasks = live, {}
        if live is not None:
            live.start()


def _batch_facts(progress: BatchProgress) -> str:
    """Return failures, rate and remaining time of a batch, as far as they are known."""
    parts = [f"{progress.failed} failed"] if progress.failed else []
    if progress.per_minute is not None and progress.eta is not None:
        parts += [f"{progress.per_minute:.3g} per minute"]
        parts += [f"{seconds_text(progress.eta)} left"] if progress.eta else []
    return "".join(f", {part}" for part in parts)


def open_report(*, json_lines: bool, quiet: bool) -> Report:
    """Return the report for the options of a command and the kind of stderr."""
    if json_lines:
        return JsonReport()
    if quiet:
        return Report()
    # Not rich's is_terminal: FORCE_COLOR makes it true for log files.
    return ProgressBarReport() if sys.stderr.isatty() and not stderr_console().is_dumb_terminal else TextReport()
