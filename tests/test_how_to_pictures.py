"""The pictures of how-tos: each is made of the files of commands on its page, is shown there, and is small."""

import pytest
from docs.how_to_pictures import MAX_BYTES, PAGES, PICTURES, commands
from PIL import Image


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_shown_once_and_its_files_are_those_of_commands_with_a_seed(name):
    picture = PICTURES[name]
    text = (PAGES / f"{picture.page}.md").read_text(encoding="utf-8")
    assert text.count(f"]({name}.webp)") == 1
    found = commands(text)
    for file in picture.files:
        assert "--seed" in found[file] or found[file][0] == "extend"
        assert picture.without is None or picture.without in found[file]


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_small_and_moves_unless_it_is_a_sheet(name):
    path = PAGES / f"{name}.webp"
    assert path.stat().st_size <= MAX_BYTES
    with Image.open(path) as image:
        assert image.n_frames >= 14 or PICTURES[name].files == ("sheet.png",)


def test_every_picture_of_a_how_to_is_made_by_the_script():
    assert {path.stem for path in PAGES.glob("*.webp")} == set(PICTURES)


def test_commands_are_read_by_the_file_that_they_write():
    lines = "kinema generate a.png --loop \\", "    -o b.webp", "kinema extend b.mp4 -o c.mp4", "kinema inspect c.mp4"
    lines += ("kinema generate a.png --sheet d.png",)
    text = "\n".join(["```bash", *lines, "```\n"])
    assert commands(text) == {
        "b.webp": ["generate", "a.png", "--loop", "-o", "b.webp"],
        "c.mp4": ["extend", "b.mp4", "-o", "c.mp4"],
        "d.png": ["generate", "a.png", "--sheet", "d.png"],
    }
