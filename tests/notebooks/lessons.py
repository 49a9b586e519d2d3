"""The notebooks as a reader meets them: files with cells, run from top to bottom in a kernel of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

from kinema.models.catalog import POCKET_FOLDER

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "notebooks" / "stable_video_diffusion.ipynb"
KOREAN = ROOT / "notebooks" / "stable_video_diffusion.ko.ipynb"

HAS_PAINTER = (POCKET_FOLDER.parent / "image_model" / "model_index.json").is_file()
NO_PAINTER = "this package has no painter yet, so the cells tagged text-to-video are left out"


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: NotebookNode, folder: Path, *, text: bool = HAS_PAINTER) -> NotebookNode:
    """The notebook with its outputs, run beside a copy of the examples, below `folder`.

    `text` tells whether the cells tagged text-to-video are among them.
    """
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "notebooks").mkdir()
    if not text:
        notebook.cells = [cell for cell in notebook.cells if "text-to-video" not in cell.metadata.get("tags", [])]
    environment = os.environ | {
        "IPYTHONDIR": str(folder / "ipython"),  # nothing of the person's own start-up files
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave the cores to others
    }
    environment.pop("OMP_NUM_THREADS", None)  # all cores, as a reader's kernel has them
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        coalesce_streams=True,  # a line that is written over is one line, as on a reader's screen
        resources={"metadata": {"path": str(folder / "notebooks")}},
    )
    return client.execute(env=environment)


def outputs(notebook: NotebookNode, cell_id: str) -> list[NotebookNode]:
    return next(cell for cell in notebook.cells if cell.id == cell_id).outputs


def printed(notebook: NotebookNode, cell_id: str, name: str = "stdout") -> str:
    """What a cell printed."""
    return "".join(output.text for output in outputs(notebook, cell_id) if output.get("name") == name)


def shown(notebook: NotebookNode, cell_id: str, kind: str) -> list[str]:
    """What a cell showed of a kind such as "text/html"."""
    return [output.data[kind] for output in outputs(notebook, cell_id) if kind in output.get("data", {})]
