"""The lesson in two languages: the same code, clean in git, and running from top to bottom."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING

import pytest
from lessons import ENGLISH, HAS_PAINTER, KOREAN, NO_PAINTER, code, execute, printed, read, shown
from PIL import Image

from kinema.media.video_writer import probe, read_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from nbformat import NotebookNode

BOTH = pytest.mark.parametrize("path", [ENGLISH, KOREAN], ids=["en", "ko"])
IMAGE_PIPELINE = pytest.mark.skipif(not HAS_PAINTER, reason=NO_PAINTER)
CHOICE = 'lesson = tutorial.load("pocket")'


# As they lie in git


@BOTH
def test_no_outputs_are_kept(path: Path) -> None:
    remedy = "clear them by: jupyter nbconvert --clear-output --inplace notebooks/*.ipynb"
    for cell in code(read(path)):
        assert not cell.outputs, remedy
        assert cell.execution_count is None, remedy
        assert set(cell.metadata) <= {"tags"}, remedy


def test_both_languages_have_the_same_cells_and_code() -> None:
    english, korean = read(ENGLISH), read(KOREAN)
    assert [(cell.id, cell.cell_type) for cell in korean.cells] == [(cell.id, cell.cell_type) for cell in english.cells]
    assert [(cell.source, cell.metadata) for cell in code(korean)] == [
        (cell.source, cell.metadata) for cell in code(english)
    ]


def test_each_paragraph_is_translated() -> None:
    for english, korean in zip(read(ENGLISH).cells, read(KOREAN).cells, strict=True):
        if english.cell_type == "markdown":
            assert re.search("[가-힣]", korean.source)
            assert english.source.count("\n| ") == korean.source.count("\n| ")
            assert sorted(re.findall(r"`[^`]+`", english.source)) == sorted(re.findall(r"`[^`]+`", korean.source))


@BOTH
def test_no_path_leads_out_of_the_repository(path: Path) -> None:
    for cell in read(path).cells:
        assert not re.findall(r"""["'(`](?:/|~|[A-Z]:\\)[^"'`)]*""", cell.source)
        for link in re.findall(r"\]\((?!https://)([^)]+)\)", cell.source):
            assert (path.parent / link).is_file()


def test_the_models_are_chosen_on_one_line() -> None:
    lines = [line for cell in code(read(ENGLISH)) for line in cell.source.splitlines()]
    assert lines.count(CHOICE) == 1
    assert [line for line in lines if "pocket" in line] == [CHOICE]
    assert lines[lines.index(CHOICE) + 1] == '# lesson = tutorial.load("svd", image_model="sd-2.1-base")'


# On the pocket models, as they stand


def test_a_picture_becomes_a_video_that_plays_in_the_notebook(executed: NotebookNode, place: Path) -> None:
    for name in ("rocket", "cat"):
        video = probe(place / "notebooks" / f"{name}.mp4")
        assert (video.frames, video.width, video.height, video.fps) == (10, 288, 160, 7)
        assert printed(executed, f"{name}-video").split() == ["seed", "42"]
        (html,) = shown(executed, f"{name}-video", "text/html")
        assert "data:video/mp4;base64," in html


def test_nothing_complains(executed: NotebookNode) -> None:
    for cell in code(executed):
        assert printed(executed, cell.id, "stderr") == ""


def test_the_sheet_has_three_motions_and_two_seeds(executed: NotebookNode) -> None:
    (image,) = shown(executed, "motion-by-seed", "image/png")
    assert Image.open(io.BytesIO(base64.b64decode(image))).size == (2 * 2 * 288, 3 * 160)


def test_the_recipe_makes_the_same_video_again(executed: NotebookNode, place: Path) -> None:
    assert "identical: True" in printed(executed, "remake")
    assert read_recipe(place / "notebooks" / "calm.mp4").request.motion_bucket_id == 10


@IMAGE_PIPELINE
def test_a_sentence_becomes_a_still_and_a_video(executed: NotebookNode, place: Path) -> None:
    for name, seed in (("horse", 1972088094), ("city", 3815670667)):
        video = place / "notebooks" / f"{name}.mp4"
        assert probe(video).frames == 12
        assert read_recipe(video).request.seed == seed
        assert len(shown(executed, f"{name}-video", "image/png")) == 1
        assert len(shown(executed, f"{name}-video", "text/html")) == 1
    with Image.open(place / "notebooks" / "horse.png") as image:
        assert image.size == (288, 160)


# On other models, by changing one line


def test_the_korean_one_runs_on_other_models_by_changing_one_line(
    tiny_svd: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    notebook = read(KOREAN)
    small = "width=64, height=64, num_inference_steps=1, image_num_inference_steps=1"
    other = f"lesson = tutorial.load({str(tiny_svd)!r}, image_model={str(tiny_sd)!r}, {small})"
    for cell in code(notebook):
        cell.source = cell.source.replace(CHOICE, other)
    done = execute(notebook, tmp_path, text=True)
    assert probe(tmp_path / "notebooks" / "cat.mp4").width == 64
    assert "identical: True" in printed(done, "remake")
    assert probe(tmp_path / "notebooks" / "city.mp4").frames == 12
    assert len(shown(done, "horse-video", "image/png")) == 1
