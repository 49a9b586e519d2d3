"""Execute the notebooks and store their outputs in them, small enough for git: `make notebooks`.

python notebooks/execute.py notebooks/*.ipynb

A notebook runs in a folder of its own, so that its files do not appear here. Images become JPEG. Viewers that do not
play a video show some of its frames instead.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient
from PIL import Image

from kinema.media.video import make_contact_sheet
from kinema.media.video_writer import read_frames

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
MAX_BYTES = 1_500_000
FRAMES_SHOWN = 4
VIDEO = re.compile(r"<video ([^>]*)src=\"data:video/mp4;base64,([^\"]+)\"([^>]*)></video>")


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
        record_timing=False,
        resources={"metadata": {"path": str(folder / "notebooks")}},
    )
    return client.execute(env=environment)


def shrink(notebook: NotebookNode) -> None:
    """Replace PNG images by JPEG, and give each video some of its frames to show where it does not play."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                with Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))) as image:
                    data["image/jpeg"] = jpeg(image)
            if "text/html" in data:
                data["text/html"] = VIDEO.sub(with_frames, data["text/html"])


def with_frames(video: re.Match[str]) -> str:
    """Return the HTML of a video with a strip of its frames inside, which a viewer without video shows."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(base64.b64decode(video[2]))
        file.flush()
        frames, _ = read_frames(file.name)
    shown = [frames[round(i * (len(frames) - 1) / (FRAMES_SHOWN - 1))] for i in range(FRAMES_SHOWN)]
    strip = jpeg(make_contact_sheet(shown, FRAMES_SHOWN, FRAMES_SHOWN))
    frames_html = f'<img alt="Frames of the video" src="data:image/jpeg;base64,{strip}">'
    return video[0].removesuffix("</video>") + frames_html + "</video>"


def jpeg(image: Image.Image) -> str:
    """Return an image as JPEG in base64."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def store(path: Path) -> None:
    """Execute a notebook and replace its outputs.

    Raises:
        ValueError: a cell wrote to stderr, or the file would be too large.
    """
    notebook = nbformat.read(path, as_version=4)
    before = nbformat.from_dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    notebook.metadata = before  # without the versions of this machine
    shrink(notebook)
    for cell in notebook.cells:
        if any(output.get("name") == "stderr" for output in cell.get("outputs", ())):
            raise ValueError(f"{path.name}: cell {cell.id} wrote to stderr: {cell.outputs}")
    text = nbformat.writes(notebook) + "\n"
    if len(text) > MAX_BYTES:
        raise ValueError(f"{path.name}: {len(text)} bytes are more than {MAX_BYTES}")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(Path(name))
