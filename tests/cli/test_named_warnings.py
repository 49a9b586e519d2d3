"""Warnings about several videos."""

from pathlib import Path

from kinema.cli.named_warnings import named_warnings
from kinema.cli.render_task import RenderTask
from kinema.recipe import FileEncoding
from kinema.values import VideoRequest


def task(source, *warnings, loop=False, **options):
    return RenderTask(source, None, VideoRequest(seed=7, loop=loop), Path("a.mp4"), warnings=warnings, **options)


def test_warning_about_some_images_names_them_and_one_about_all_is_printed_once():
    tasks = [task(f"{i}.png", "fps 3 is low", *(["the image is enlarged"] if i % 2 else [])) for i in range(12)]
    tasks += [task("0.png", "fps 3 is low")]  # another seed
    assert named_warnings(tasks) == [
        "fps 3 is low",
        "1.png, 3.png, 5.png and 3 more: the image is enlarged",
    ]
    assert named_warnings(tasks[1:2]) == ["fps 3 is low", "the image is enlarged"]


def test_boomerang_of_a_loop_is_warned_about():
    boomerang = FileEncoding(boomerang=True)
    assert named_warnings([task("a.png", loop=True), task("a.png", encoding=boomerang)]) == []
    (warning,) = named_warnings([task("a.png", loop=True, encoding=boomerang)])
    assert "already plays without end" in warning


def test_video_of_a_sheet_is_named_by_its_motion():
    of_sheet = task("a.png", position="2/9", is_of_sheet=True)
    assert of_sheet.headline.endswith("25 steps, motion 127, seed 7")
    assert of_sheet.name == "a.png, motion 127, seed 7"
    assert task("a.png").headline.endswith("25 steps, seed 7")
