"""Run commands of how-tos with the pocket model, and write frames of their videos as the pages' pictures.

The picture of larger videos needs the extra `upscale`.

python docs/how_to_pictures.py        # all of them
python docs/how_to_pictures.py loops  # that of one page
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from PIL import Image

from kinema.cli import main
from kinema.media.video_reader import read_frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "how-to"
MAX_BYTES = 100_000
GAP = 4  # pixels between two frames


@dataclass(frozen=True)
class Sheet:
    """The frames of a picture, by the file of the command that writes them; none of a file that is only an input."""

    frames: Mapping[str, Sequence[int]]
    columns: int


SHEETS = {
    "extend-a-video": Sheet({"rocket.mp4": (), "rocket-longer.mp4": (0, 4, 9, 13, 14, 23, 32, 41)}, 4),
    "inputs-and-files": Sheet({"rocket.webm": (0, 4, 9, 13, 17, 22)}, 3),
    "longer-videos": Sheet({"long.mp4": (0, 4, 8, 12, 16, 20, 24, 27)}, 4),
    "loops": Sheet({"loop.webp": (0, 2, 5, 8, 11, 13)}, 3),
    "portrait-photos": Sheet({"upright.mp4": (0, 6, 13), "whole.mp4": (0, 6, 13)}, 6),
    "smoother-videos": Sheet({"smooth.mp4": (20, 21, 22, 23, 24)}, 5),
}
DETAIL = 200, 60, 480, 320  # left, top, right and bottom of what the picture of larger videos shows


def commands(text: str) -> dict[str, list[str]]:
    """Return the arguments of each `kinema generate` and `extend` in a page's code, by the file that it writes."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    parsed = [shlex.split(line)[1:] for line in lines if re.match(r"kinema (generate|extend) ", line)]
    return {arguments[arguments.index("-o") + 1]: arguments for arguments in parsed if "-o" in arguments}


def run(arguments: Sequence[str]) -> None:
    """Run a command of Kinema, and exit if it fails."""
    if code := main(list(arguments)):
        sys.exit(code)


def chosen_frames(page: str) -> Iterator[Image.Image]:
    """Run the commands of a page in the current folder, and yield the frames of its sheet."""
    found = commands((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    for file, indices in SHEETS[page].frames.items():
        run(found[file])
        frames, _ = read_frames(Path(file))
        yield from (Image.fromarray(frames[i]) for i in indices)


def details() -> Iterator[Image.Image]:
    """Run the command of larger videos, and yield a detail of the first frame, enlarged by LANCZOS and by upscale."""
    arguments = commands((PAGES / "larger-videos.md").read_text(encoding="utf-8"))["large.mp4"]
    run(arguments)
    run([*arguments, "--upscale", "1", "-o", "plain.mp4"])
    plain, large = (Image.fromarray(read_frames(Path(file))[0][0]) for file in ("plain.mp4", "large.mp4"))
    for image in (plain.resize(large.size, Image.Resampling.LANCZOS), large):
        yield image.crop(DETAIL)


def make_picture(page: str) -> None:
    """Write the picture of a page."""
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("examples").symlink_to(ROOT / "examples")
        frames = list(details() if page == "larger-videos" else chosen_frames(page))
        os.chdir(ROOT)
    width, height = (side + GAP for side in frames[0].size)
    columns = SHEETS[page].columns if page in SHEETS else 2
    sheet = Image.new("RGB", (columns * width - GAP, -(-len(frames) // columns) * height - GAP), "white")
    for i, frame in enumerate(frames):
        sheet.paste(frame, (i % columns * width, i // columns * height))
    path = PAGES / f"{page}.webp"
    sheet.save(path, quality=85, method=6)
    if (size := path.stat().st_size) > MAX_BYTES:
        sys.exit(f"{path} has {size} bytes, more than {MAX_BYTES}")


if __name__ == "__main__":
    os.environ |= {"KINEMA_MODEL": "pocket", "KINEMA_DEVICE": "cpu"}
    for name in sys.argv[1:] or [*SHEETS, "larger-videos"]:
        make_picture(name)
