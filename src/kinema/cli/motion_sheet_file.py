"""The file of `kinema generate --sheet`."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kinema.cli.render_task import RenderTask
    from kinema.cli.report import Report
    from kinema.media.motion_sheet import MotionSheet
    from kinema.media.video import Video


@dataclass(frozen=True, slots=True)
class MotionSheetFile:
    """A sheet of the videos of one image, and its path."""

    sheet: MotionSheet
    path: Path

    @classmethod
    def planned(cls, output: str | None, tasks: Sequence[RenderTask], *, force: bool) -> MotionSheetFile | None:
        """Return the sheet for the videos of the tasks; None without `output`, which is a path ending in .png.

        Raises:
            VideoError: the path can't be written, or is that of another file.
        """
        from kinema.cli.output_paths import check_conflicts, png_paths
        from kinema.media.motion_sheet import MotionSheet

        stems = [task.checked_image.name or "video" for task in tasks[:1] if task.checked_image]
        requests = [task.request for task in tasks]
        [path] = png_paths(output, stems, requests[:1], kind="sheet") if output is not None else [None]
        if path is None:
            return None
        others = [path for task in tasks for path in (task.output_path, task.contact_sheet_path)]
        sources = [str(task.checked_image.path) for task in tasks if task.checked_image]
        check_conflicts([path, *others], sources, force=force)
        motions = list(dict.fromkeys(request.motion_bucket_id for request in requests))
        return cls(MotionSheet(motions, list(dict.fromkeys(request.seed for request in requests))), path)

    def add(self, video: Video) -> None:
        """Draw the tile of a video."""
        self.sheet.add(video.recipe.request.motion_bucket_id, video.seed, video.frames)

    def write(self, report: Report) -> None:
        """Write and report the file, if a video was drawn.

        Raises:
            VideoError, InsufficientDisk: it can't be written.
        """
        from kinema.cli.output_paths import make_folders
        from kinema.media.video_writer import publish

        if self.sheet.image is None:
            return
        data = BytesIO()
        self.sheet.image.save(data, "PNG")
        make_folders([self.path])
        publish(data.getvalue(), self.path)
        report.emit("sheet", f"sheet: {self.path}", path=str(self.path))
