"""Helpers to read the notebooks, execute them in a kernel of their own, and get their outputs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "notebooks" / "stable_video_diffusion.ipynb"
KOREAN = ROOT / "notebooks" / "stable_video_diffusion.ko.ipynb"


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Return the notebook with its outputs, executed in `folder`/notebooks beside a copy of the examples."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "notebooks").mkdir()
    environment = os.environ | {
        "IPYTHONDIR": str(folder / "ipython"),  # ignore the user's IPython start-up files
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads must not occupy the cores of other tests
    }
    environment.pop("OMP_NUM_THREADS", None)  # use all cores, like a user's kernel
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,  # apply "\r", so that an overwritten line counts once
        resources={"metadata": {"path": str(folder / "notebooks")}},
    )
    return client.execute(env=environment)


def outputs(notebook: NotebookNode, cell_id: str) -> list[NotebookNode]:
    return next(cell for cell in notebook.cells if cell.id == cell_id).outputs


def stream_text(notebook: NotebookNode, cell_id: str, name: str = "stdout") -> str:
    """Return the text that a cell wrote to a stream."""
    return "".join(output.text for output in outputs(notebook, cell_id) if output.get("name") == name)


def displayed(notebook: NotebookNode, cell_id: str, mime_type: str) -> list[str]:
    """Return the data of a MIME type, such as "text/html", that a cell displayed."""
    return [output.data[mime_type] for output in outputs(notebook, cell_id) if mime_type in output.get("data", {})]
