"""The notebook in two languages: same code, small outputs in git, runs from top to bottom."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING

import pytest
from lessons import ENGLISH, KOREAN, code_cells, displayed, outputs, read, stream_text
from notebooks.execute import MAX_BYTES, execute
from PIL import Image

from kinema.media.video_writer import probe, read_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from nbformat import NotebookNode

BOTH = pytest.mark.parametrize("path", [ENGLISH, KOREAN], ids=["en", "ko"])
REMEDY = "store the outputs again: make notebooks"
MODEL_LINE = 'lesson = tutorial.load("pocket")'


# The files in git


@BOTH
def test_stored_notebooks_have_small_outputs_of_every_cell(path: Path) -> None:
    notebook = read(path)
    assert path.stat().st_size <= MAX_BYTES
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), REMEDY
    assert [cell.id for cell in cells if not cell.outputs] == ["load"], REMEDY
    for cell in cells:
        assert set(cell.metadata) <= {"tags"}, REMEDY
        assert {output.output_type for output in cell.outputs} <= {"stream", "display_data", "execute_result"}
        assert stream_text(notebook, cell.id, "stderr") == ""
        for html in displayed(notebook, cell.id, "text/html"):  # frames, for viewers that do not play the video
            assert re.fullmatch(
                r'<video [^>]+><img alt="Frames of the video" src="data:image/jpeg;[^>]+"></video>', html
            )
    assert set(notebook.metadata.language_info) == {"name"}, "versions of a machine"


@BOTH
def test_stored_outputs_contain_no_absolute_path(path: Path) -> None:
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            data = output.get("data", {})
            texts = [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
            plain = re.sub(r"base64,[\w+/=]+", "", "\n".join(texts))
            assert not re.search(r"(?<![\w.</])/\w+/|[A-Z]:\\", plain), plain


@BOTH
def test_stored_text_is_that_of_a_new_run(executed: NotebookNode, path: Path) -> None:
    stored = read(path)
    for cell in code_cells(stored):
        if cell.id != "remake":  # prints a hash of the weights
            assert stream_text(stored, cell.id) == stream_text(executed, cell.id), REMEDY
        kinds = [{*output.get("data", {})} - {"image/png"} for output in outputs(executed, cell.id)]
        assert [{*output.get("data", {})} for output in outputs(stored, cell.id)] == kinds, REMEDY


def test_korean_notebook_has_the_same_cells_and_code() -> None:
    english, korean = read(ENGLISH), read(KOREAN)
    assert [(cell.id, cell.cell_type) for cell in korean.cells] == [(cell.id, cell.cell_type) for cell in english.cells]
    assert [(cell.source, cell.metadata) for cell in code_cells(korean)] == [
        (cell.source, cell.metadata) for cell in code_cells(english)
    ]


def code_in(markdown: str) -> list[str]:
    """Return the fenced blocks and the sorted code spans of a markdown cell."""
    fence = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    return fence.findall(markdown) + sorted(re.findall(r"`[^`]+`", fence.sub("", markdown)))


def test_korean_notebook_translates_every_markdown_cell() -> None:
    for english, korean in zip(read(ENGLISH).cells, read(KOREAN).cells, strict=True):
        if english.cell_type == "markdown":
            assert re.search("[가-힣]", korean.source)
            assert english.source.count("\n| ") == korean.source.count("\n| ")
            assert code_in(english.source) == code_in(korean.source)


@BOTH
def test_notebook_links_and_paths_stay_inside_the_repository(path: Path) -> None:
    for cell in read(path).cells:
        assert not re.findall(r"""["'(`](?:/|~|[A-Z]:\\)[^"'`)]*""", cell.source)
        for link in re.findall(r"\]\((?!https://)([^)]+)\)", cell.source):
            assert (path.parent / link).is_file()


def test_pocket_models_are_selected_in_a_single_line() -> None:
    lines = [line for cell in code_cells(read(ENGLISH)) for line in cell.source.splitlines()]
    assert lines.count(MODEL_LINE) == 1
    assert [line for line in lines if "pocket" in line] == [MODEL_LINE]
    assert lines[lines.index(MODEL_LINE) + 1] == '# lesson = tutorial.load("svd", image_model="sd-2.1-base")'


# Executed with the pocket models


def test_generate_video_saves_and_displays_10_frames(executed: NotebookNode, run_folder: Path) -> None:
    for name in ("rocket", "cat"):
        video = probe(run_folder / "notebooks" / f"{name}.mp4")
        assert (video.frames, video.width, video.height, video.fps) == (10, 288, 160, 7)
        assert stream_text(executed, f"{name}-video").split() == ["seed", "42"]
        (html,) = displayed(executed, f"{name}-video", "text/html")
        assert "data:video/mp4;base64," in html


def test_executed_notebook_writes_nothing_to_stderr(executed: NotebookNode) -> None:
    for cell in code_cells(executed):
        assert stream_text(executed, cell.id, "stderr") == ""


def test_motion_by_seed_displays_three_rows_and_two_columns(executed: NotebookNode) -> None:
    (image,) = displayed(executed, "motion-by-seed", "image/png")
    assert Image.open(io.BytesIO(base64.b64decode(image))).size == (2 * 2 * 288, 3 * 160)


def test_saved_recipe_reproduces_identical_frames(executed: NotebookNode, run_folder: Path) -> None:
    assert "identical: True" in stream_text(executed, "remake")
    assert read_recipe(run_folder / "notebooks" / "calm.mp4").request.motion_bucket_id == 10


def test_generate_text2video_saves_and_displays_image_and_12_frames(executed: NotebookNode, run_folder: Path) -> None:
    for name, seed in (("horse", 1972088094), ("city", 3815670667)):
        video = run_folder / "notebooks" / f"{name}.mp4"
        assert probe(video).frames == 12
        assert read_recipe(video).request.seed == seed
        assert len(displayed(executed, f"{name}-video", "image/png")) == 1
        assert len(displayed(executed, f"{name}-video", "text/html")) == 1
    with Image.open(run_folder / "notebooks" / "horse.png") as image:
        assert image.size == (288, 160)


# Executed with other models


@pytest.mark.slow
def test_korean_notebook_runs_with_other_models_after_changing_the_model_line(
    tiny_svd: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    notebook = read(KOREAN)
    parameters = "width=64, height=64, num_inference_steps=1, image_num_inference_steps=1"
    new_line = f"lesson = tutorial.load({str(tiny_svd)!r}, image_model={str(tiny_sd)!r}, {parameters})"
    for cell in code_cells(notebook):
        cell.source = cell.source.replace(MODEL_LINE, new_line)
    executed = execute(notebook, tmp_path)
    assert probe(tmp_path / "notebooks" / "cat.mp4").width == 64
    assert "identical: True" in stream_text(executed, "remake")
    assert probe(tmp_path / "notebooks" / "city.mp4").frames == 12
    assert len(displayed(executed, "horse-video", "image/png")) == 1
