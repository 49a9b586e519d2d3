"""Write the summary of a batch: summary.json, summary.csv and a contact sheet."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter, deque
from typing import TYPE_CHECKING

from kinema.batch.batch_items import SUMMARY_FILES
from kinema.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from kinema.batch.batch_folder import BatchFolder
    from kinema.batch.batch_items import Outcome

MAX_PICTURES = 100
_JSON, _CSV, _SHEET = SUMMARY_FILES
_COLUMNS = ("item", "source", "seed", "status", "file", "seconds", "error_code", "error_message")


def write_summary(outcomes: Sequence[Outcome], folder: BatchFolder) -> None:
    """Write summary.json and summary.csv.

    Raises:
        VideoError, InsufficientDisk: a file can't be written, or is not of this batch.
    """
    rows = [dict(zip(_COLUMNS, _row(outcome), strict=True)) for outcome in outcomes]
    counts = Counter(outcome.status for outcome in outcomes)
    summary = {name: counts[name] for name in ("completed", "failed", "pending")} | {"items": rows}
    folder.write(json.dumps(summary, indent=1).encode(), _JSON, "summary")
    table = io.StringIO()
    writer = csv.DictWriter(table, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    folder.write(table.getvalue().encode("utf-8", "backslashreplace"), _CSV, "summary")


def write_contact_sheet(outcomes: Sequence[Outcome], folder: BatchFolder) -> tuple[int, list[str]]:
    """Write the last frames of the first `MAX_PICTURES` videos; return their number, and files that can't be read.

    Raises:
        VideoError, InsufficientDisk: the file can't be written, or is not of this batch.
    """
    files = [outcome.file for outcome in outcomes if outcome.file is not None][:MAX_PICTURES]
    key = hashlib.sha256(json.dumps([(file, folder.state(file).key) for file in files]).encode()).hexdigest()
    if not files or folder.state(_SHEET).key == key:
        return len(files), []
    from kinema.media.video import make_contact_sheet

    unreadable: list[str] = []
    frames = list(_last_frames([folder.path / file for file in files], unreadable))
    if frames:
        data = io.BytesIO()
        make_contact_sheet(frames, len(frames)).save(data, "PNG")
        folder.write(data.getvalue(), _SHEET, key)
    return len(frames), unreadable


def _last_frames(paths: Sequence[Path], unreadable: list[str]) -> Iterator[np.ndarray]:
    """Yield the last frame of each video at a reduced size, padded to the aspect ratio of the first."""
    import numpy as np
    from PIL import Image, ImageOps

    from kinema.media.video_reader import each_frame

    size: tuple[int, int] | None = None
    for path in paths:
        try:
            image = Image.fromarray(deque(each_frame(path), maxlen=1)[0])
        except (VideoError, IndexError):
            unreadable.append(path.name)
            continue
        if size is None:
            scale = min(1.0, 512 / image.width)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        yield np.asarray(ImageOps.pad(image, size))


def _row(outcome: Outcome) -> tuple[object, ...]:
    error = outcome.error
    seconds = None if outcome.seconds is None else round(outcome.seconds, 2)
    code, message = (None, None) if error is None else (error.code, error.message)
    return outcome.name, outcome.source, outcome.seed, outcome.status, outcome.file, seconds, code, message
