"""docs/gallery.md: each picture is the file of a command on the page, and all of them are small."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from docs.gallery import MAX_BYTES, commands

from kinema.media.video_writer import read_recipe

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "gallery.md").read_text(encoding="utf-8")
COMMANDS = commands(PAGE)
SHOWN = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)


def test_page_shows_the_picture_of_every_command_once():
    assert sorted(f"docs/{path}" for path in SHOWN) == sorted(COMMANDS)
    assert sorted(path.name for path in (DOCS / "gallery").iterdir()) == sorted(Path(path).name for path in COMMANDS)


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in (DOCS / "gallery").iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("path", COMMANDS)
def test_picture_has_the_recipe_of_its_command(path):
    request = read_recipe(DOCS.parent / path).request
    arguments = COMMANDS[path]
    for flag, value in pairwise(arguments):
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--"):
            assert str(getattr(request, name)) in (value, f"{value}.0")


def test_commands_are_read_over_several_lines():
    text = '```bash\nkinema generate --prompt "a b" -o x.webp \\\n    --seed 1\nkinema doctor\n```\n'
    assert commands(text) == {"x.webp": shlex.split('generate --prompt "a b" -o x.webp --seed 1')}
