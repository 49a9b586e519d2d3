"""The pictures of how-tos: each is made of the files of commands on its page, is shown there, and is small."""

import pytest
from docs.how_to_pictures import GAP, MAX_BYTES, PAGES, SHEETS, commands
from PIL import Image


@pytest.mark.parametrize("page", SHEETS)
def test_picture_is_shown_once_and_its_files_are_those_of_commands_with_a_seed(page):
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    assert text.count(f"]({page}.webp)") == 1
    found = commands(text)
    for file in SHEETS[page].frames:
        assert "--seed" in found[file] or found[file][0] == "extend"
        assert "--motion-bucket-id" not in found[file]


@pytest.mark.parametrize("page", SHEETS)
def test_picture_is_small_and_has_a_cell_for_each_frame(page):
    path, sheet = PAGES / f"{page}.webp", SHEETS[page]
    assert path.stat().st_size <= MAX_BYTES
    rows = -(-sum(map(len, sheet.frames.values())) // sheet.columns)
    with Image.open(path) as picture:
        assert ((picture.width + GAP) % sheet.columns, (picture.height + GAP) % rows) == (0, 0)
        assert (picture.width + GAP) // sheet.columns - GAP in (288, 160)


def test_commands_are_read_by_the_file_that_they_write():
    lines = "kinema generate a.png --loop \\", "    -o b.webp", "kinema extend b.mp4 -o c.mp4", "kinema inspect c.mp4"
    text = "\n".join(["```bash", *lines, "```\n"])
    assert commands(text) == {
        "b.webp": ["generate", "a.png", "--loop", "-o", "b.webp"],
        "c.mp4": ["extend", "b.mp4", "-o", "c.mp4"],
    }
