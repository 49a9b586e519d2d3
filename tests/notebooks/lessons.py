"""Helpers to read the notebooks and get their outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "notebooks" / "stable_video_diffusion.ipynb"
KOREAN = ROOT / "notebooks" / "stable_video_diffusion.ko.ipynb"


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode, cell_id: str) -> list[NotebookNode]:
    return next(cell for cell in notebook.cells if cell.id == cell_id).outputs


def stream_text(notebook: NotebookNode, cell_id: str, name: str = "stdout") -> str:
    """Return the text that a cell wrote to a stream."""
    return "".join(output.text for output in outputs(notebook, cell_id) if output.get("name") == name)


def displayed(notebook: NotebookNode, cell_id: str, mime_type: str) -> list[str]:
    """Return the data of a MIME type, such as "text/html", that a cell displayed."""
    return [output.data[mime_type] for output in outputs(notebook, cell_id) if mime_type in output.get("data", {})]
