"""Run commands of how-tos with the pocket model, and write their videos and sheets as the pages' pictures, WebP files.

The picture of larger videos needs the extra `upscale`.

python docs/how_to_pictures.py        # all of them
python docs/how_to_pictures.py loops  # one
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

from PIL import Image, ImageDraw, ImageFont, ImageOps

from kinema.cli import main
from kinema.media.video_reader import read_frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kinema.media.video_reader import Frames

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "how-to"
QUALITY = 86
MAX_BYTES = 1_000_000
GAP = 4  # pixels between two videos
CAPTION = 18  # height of the line above a video


@dataclass(frozen=True)
class Picture:
    """Videos of a page, side by side, or a sheet."""

    page: str
    files: tuple[str, ...]
    """Written by the page's commands."""
    without: str | None = None
    """An option of the only command, whose effect is shown: on the left is its video without this option."""
    part: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of what is shown, twice as large; None for all."""
    captions: tuple[Mapping[int, str], ...] = ()
    """Of each video: the captions by the frame at which they begin."""


PICTURES = {
    "extend-a-video": Picture(
        "extend-a-video", ("beach-longer.mp4",), captions=({0: "the video from the file", 14: "the new frames"},)
    ),
    "boomerang": Picture("inputs-and-files", ("beach.webm",), captions=({0: "forward", 14: "backward"},)),
    "last-image": Picture("loops", ("evening.mp4",), captions=({0: "the image", 1: " ", 13: "the last image"},)),
    "larger-videos": Picture(
        "larger-videos",
        ("large.mp4",),
        without="--upscale",
        part=(190, 108, 414, 340),
        captions=({0: "enlarged by Lanczos"}, {0: "upscale 2"}),
    ),
    "longer-videos": Picture("longer-videos", ("long.mp4",)),
    "loops": Picture("loops", ("loop.webp",)),
    "portrait-photos": Picture(
        "portrait-photos", ("upright.mp4", "whole.mp4"), captions=({0: "upright.mp4"}, {0: "whole.mp4"})
    ),
    "several-seeds": Picture("several-seeds", ("sheet.png",)),
    "smoother-videos": Picture(
        "smoother-videos",
        ("smooth.mp4",),
        without="--interpolate",
        captions=({0: "7 frames per second"}, {0: "28 frames per second"}),
    ),
}


def commands(text: str) -> dict[str, list[str]]:
    """Return the arguments of each `kinema generate` and `extend` in a page's code, by the file or sheet it writes."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    parsed = [shlex.split(line)[1:] for line in lines if re.match(r"kinema (generate|extend) ", line)]
    options = [(arguments, option) for arguments in parsed for option in ("-o", "--sheet") if option in arguments]
    return {arguments[arguments.index(option) + 1]: arguments for arguments, option in options}


def run(arguments: list[str]) -> None:
    """Run a command of Kinema, and exit if it fails."""
    if code := main(arguments):
        sys.exit(code)


def make_videos(picture: Picture) -> list[Path]:
    """Run the page's code in the current folder; return the videos to show, from left to right."""
    text = (PAGES / f"{picture.page}.md").read_text(encoding="utf-8")
    found = commands(text)
    for file in picture.files:
        if found[file][0] == "extend":
            run(found[found[file][1]])
        run(found[file])
    if picture.without is None:
        return [Path(file) for file in picture.files]
    (file,) = picture.files
    plain = found[file].copy()
    option = plain.index(picture.without)
    del plain[option : option + 2]
    plain[plain.index(file)] = "plain.mp4"
    run(plain)
    return [Path("plain.mp4"), Path(file)]


def side_by_side(picture: Picture, paths: list[Path]) -> tuple[list[Image.Image], float]:
    """Return the frames of the picture, and its rate, the highest of the videos; smaller ones are enlarged."""
    videos = [read_frames(path) for path in paths]
    rate = max(fps for _, fps in videos)
    height, width = max(frames.shape[1:3] for frames, _ in videos)

    def shown(frames: Frames, fps: float, captions: Mapping[int, str]) -> Iterator[Image.Image]:
        for i in range(round(len(frames) * rate / fps)):
            index = min(int(i * fps / rate + 1e-6), len(frames) - 1)
            frame = Image.fromarray(frames[index]).resize((width, height), Image.Resampling.LANCZOS)
            if picture.part is not None:
                frame = frame.crop(picture.part)
                frame = frame.resize((2 * frame.width, 2 * frame.height), Image.Resampling.NEAREST)
            if captions:
                frame = ImageOps.expand(frame, (0, CAPTION, 0, 0), "white")
                text = captions[max(first for first in captions if first <= index)]
                ImageDraw.Draw(frame).text((2, 1), text, "black", ImageFont.load_default(13))
            yield frame

    images = []
    captions = picture.captions or ({},) * len(videos)
    sides = [shown(*video, each) for video, each in zip(videos, captions, strict=True)]
    for row in zip(*sides, strict=False):
        (width_shown, height_shown), count = row[0].size, len(row)
        images.append(Image.new("RGB", (count * (width_shown + GAP) - GAP, height_shown), "white"))
        for x, frame in enumerate(row):
            images[-1].paste(frame, (x * (width_shown + GAP), 0))
    return images, rate


def make_picture(name: str) -> None:
    """Write a picture."""
    picture = PICTURES[name]
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("examples").symlink_to(ROOT / "examples")
        paths = make_videos(picture)
        images, rate = ([Image.open(paths[0])], 1) if paths[0].suffix == ".png" else side_by_side(picture, paths)
        images[0].load()
        os.chdir(ROOT)
    path = PAGES / f"{name}.webp"
    first, *others = images
    # Only key frames: others look different, which would seem to be a flicker of the video.
    options = {"duration": 1000 / rate, "quality": QUALITY, "method": 6, "kmin": 0, "kmax": 1}
    first.save(path, save_all=True, append_images=others, **options)
    if (size := path.stat().st_size) > MAX_BYTES:
        sys.exit(f"{path} has {size} bytes, more than {MAX_BYTES}")


if __name__ == "__main__":
    os.environ |= {"KINEMA_MODEL": "pocket", "KINEMA_DEVICE": "cpu"}
    for name in sys.argv[1:] or PICTURES:
        make_picture(name)
