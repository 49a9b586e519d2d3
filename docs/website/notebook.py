"""Convert a notebook with its outputs to a Markdown page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def as_markdown(notebook: Path, page: Path) -> str:
    """Return the notebook as Markdown, and write its images into a folder beside the page, named after it."""
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    exporter = MarkdownExporter()
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # of progress, keep the last line
    folder = page.with_suffix("")
    text, resources = exporter.from_filename(
        str(notebook), resources={"output_files_dir": folder.name, "unique_key": "output"}
    )
    for name, data in resources["outputs"].items():
        (page.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (page.parent / name).write_bytes(data)
    return str(text)
