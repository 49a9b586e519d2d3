"""Folders, stdin, several seeds, the sheet of motions and seeds, failures of single videos, and options of the file."""

import importlib
import json
import os
import pty
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from cli_inputs import SMALL, write_image
from PIL import Image

from kinema.errors import GenerationFailed
from kinema.media.video_writer import probe, read_frames, read_recipe
from kinema.media.watermark import embed, payload_of
from kinema.recipe import FileEncoding


@pytest.fixture
def photos(folder):
    """Write a folder of two images and other files, and return its name."""
    (folder / "photos" / "more").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "more/c.png", ".hidden.png"):
        write_image(folder / "photos" / name, seed=len(name))
    (folder / "photos" / "notes.txt").write_text("no image")
    return "photos"


# Inputs


def test_folder_gives_a_video_of_each_image_directly_in_it(generate, photos):
    result = generate(images=(photos, "rocket.png"))
    assert (result.code, result.out.splitlines()) == (0, ["a.mp4", "b.mp4", "rocket.mp4"])


def test_image_from_stdin_gives_the_frames_of_the_file(generate, image, monkeypatch):
    with image.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert generate(images=("-",)).out == "stdin.mp4\n"
    assert generate().code == 0
    assert np.array_equal(read_frames("stdin.mp4")[0], read_frames("rocket.mp4")[0])


@pytest.mark.slow
def test_image_is_piped_in_and_video_is_piped_out(image, folder, tiny_svd):
    command = [sys.executable, "-m", "kinema", "generate", "-", "-o", "-", "--model", str(tiny_svd), *SMALL]
    result = subprocess.run(command, input=image.read_bytes(), capture_output=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    (folder / "a.mp4").write_bytes(result.stdout)
    assert probe("a.mp4").frames == 2


def test_terminal_as_stdin_is_rejected(kinema, monkeypatch):
    reader, writer = pty.openpty()
    with os.fdopen(writer) as terminal, os.fdopen(reader):
        monkeypatch.setattr("sys.stdin", terminal)
        result = kinema("generate", "-", "--model", "pocket")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: - reads the image from stdin, which is a terminal; redirect a file to it")


@pytest.mark.parametrize(("size", "message"), [(0, "stdin is empty"), (1_000_000, "stdin has more than 0.0001 MB")])
def test_empty_or_too_large_stdin_is_rejected_and_not_read_completely(kinema, folder, monkeypatch, size, message):
    monkeypatch.setattr("kinema.media.image.MAX_BYTES", 100)
    (folder / "data").write_bytes(b"x" * size)
    with (folder / "data").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        result = kinema("generate", "-", "--model", "pocket")
        assert file.buffer.raw.tell() < 100_000
    assert result.code == 2
    assert message in result.err
    assert [path.name for path in folder.iterdir()] == ["data"]


# Seeds


def test_num_videos_gives_consecutive_seeds_in_the_names(generate, folder):
    write_image(folder / "cat.png", seed=1)
    result = generate("--num-videos=2", "--seed=11", "--contact-sheet=sheets/", images=("rocket.png", "cat.png"))
    names = ["rocket-seed11", "rocket-seed12", "cat-seed11", "cat-seed12"]
    assert (result.code, result.out.splitlines()) == (0, [f"{name}.mp4" for name in names])
    assert sorted(path.stem for path in (folder / "sheets").iterdir()) == sorted(names)
    assert [read_recipe(f"{name}.mp4").request.seed for name in names] == [11, 12, 11, 12]
    assert generate("-o", "one.mp4", "--seed=12").code == 0
    assert np.array_equal(read_frames("one.mp4")[0], read_frames("rocket-seed12.mp4")[0])


def test_unset_seed_is_drawn_once_for_all_images(kinema, image, folder, tiny_svd):
    write_image(folder / "cat.png", seed=1)
    result = kinema(
        "generate",
        "rocket.png",
        "cat.png",
        "--model",
        tiny_svd,
        *SMALL[:-1],
        "--num-videos=2",
        "-o",
        "{stem}-{index}.gif",
    )
    first, second, third, fourth = (read_recipe(path).request.seed for path in result.out.splitlines())
    assert (first, second) == (third, fourth) == (first, first + 1)


# Sheet


def test_sheet_has_a_row_per_motion_and_a_column_per_seed(generate, folder):
    result = generate("--sheet=all.png", "--motions=127,0", "--num-videos=2", "-o", "{stem}-{motion}-{seed}", "--json")
    assert result.code == 0
    names = [f"rocket-{motion}-{seed}" for motion in (0, 127) for seed in (7, 8)]
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [event["path"] for event in events if event["event"] == "done"] == names
    assert events[-1] == {"event": "sheet", "path": "all.png"}
    assert [read_recipe(name).request.motion_bucket_id for name in names] == [0, 0, 127, 127]
    with Image.open("all.png") as sheet:
        shown = np.asarray(sheet)
    assert shown.shape == (2 * 64, 2 * 2 * 64, 3)
    for index, name in enumerate(names):
        y, x = 64 * (index // 2), 128 * (index % 2)
        last = read_frames(name)[0][-1]
        assert np.array_equal(shown[y + 20 : y + 64, x : x + 64], last[20:])  # below the label


def test_default_sheet_has_three_motions_around_that_of_the_request(generate, folder):
    result = generate("--sheet=all.png", "--motion-bucket-id=40", "--num-videos=1", "--num-inference-steps=1")
    assert result.out.splitlines() == [f"rocket-motion{motion}.mp4" for motion in (20, 40, 60)]
    assert (folder / "all.png").exists()


# Failures


@pytest.fixture
def fail_seed_8(monkeypatch):
    """Make the generation with seed 8 fail."""
    generate_video = importlib.import_module("kinema.engine").generate

    def generate(pipeline, image, request, *_):
        if request.seed == 8:
            raise GenerationFailed("all frames are one constant colour; use another seed")
        return generate_video(pipeline, image, request)

    monkeypatch.setattr("kinema.engine.generate", generate)


def test_failures_are_named_at_the_end_and_other_videos_are_made(generate, folder, photos, fail_seed_8):
    (folder / "photos" / "a.JPG").write_bytes(b"no image")
    result = generate("--num-videos=2", "--seed=7", images=(photos, "nope.png"))
    assert (result.code, result.out.splitlines()) == (6, ["b-seed7.mp4"])
    assert result.err.splitlines()[-3:] == [
        "failed: photos/a.JPG is not a supported image; use a JPEG, PNG, WebP, HEIC or AVIF",
        "failed: nope.png: file nope.png not found; check the name and the folder",
        "failed: photos/b.png, seed 8: all frames are one constant colour; use another seed",
    ]
    assert not list(folder.glob("*seed8*"))


def test_quiet_prints_failures_too(generate, fail_seed_8):
    result = generate("--num-videos=2", "--seed=7", "--quiet")
    assert (result.code, result.out) == (6, "rocket-seed7.mp4\n")
    assert result.err == "failed: rocket.png, seed 8: all frames are one constant colour; use another seed\n"


def test_failures_are_json_events(generate, fail_seed_8):
    result = generate("--num-videos=2", "--json")
    assert result.code == 6
    assert json.loads(result.out.splitlines()[-1]) == {
        "event": "item_failed",
        "name": "rocket.png, seed 8",
        "source": "rocket.png",
        "seed": 8,
        "code": "generation_failed",
        "message": "all frames are one constant colour; use another seed",
    }


def test_on_error_stop_ends_at_the_first_failure(generate, folder, fail_seed_8):
    result = generate("--num-videos=3", "--on-error=stop", "--sheet=all.png", "--motions=40")
    assert (result.code, result.out.splitlines()) == (5, ["rocket-motion40-seed7.mp4"])
    assert (folder / "all.png").exists()
    assert result.err.splitlines()[-1] == "error: all frames are one constant colour; use another seed"


def test_failure_of_the_only_video_keeps_its_exit_code(generate, fail_seed_8):
    assert generate("--seed=8").code == 5
    assert generate("--num-videos=2", images=("nope.png",)).code == 2


def test_only_invalid_images_load_no_model(generate):
    result = generate(images=("nope.png", "no.png"))
    assert result.code == 6
    assert "loading" not in result.err
    assert result.err.count("failed: ") == 2


def test_existing_output_stops_several_videos_before_any_work(generate, folder):
    (folder / "rocket-seed8.mp4").write_text("old")
    result = generate("--num-videos=2")
    assert (result.code, result.out) == (2, "")
    assert "rocket-seed8.mp4 already exists" in result.err


# Options of the file


def test_crf_boomerang_and_fractional_rate_are_in_file_recipe_and_remake(generate, kinema, folder, tiny_svd):
    options = ("--crf=35", "--boomerang", "--playback-fps=30000/1001", "--num-frames=4")
    assert generate(*options, "-o", "a.webm").code == 0
    info = probe("a.webm")
    assert (info.frames, info.fps) == (6, Fraction(30000, 1001))
    assert read_recipe("a.webm").encoding == FileEncoding(crf=35, boomerang=True)
    assert "crf 35, boomerang (frames forward, then backward)" in kinema("inspect", "a.webm").out
    remake = ("remake", "a.webm", "--image", "rocket.png", "--model", tiny_svd)
    assert kinema(*remake).code == 0
    assert (folder / "a-remade.webm").read_bytes() == (folder / "a.webm").read_bytes()
    assert kinema(*remake, "-o", "a.gif").code == 0  # compared after encoding like the original
    assert read_recipe("a.gif").encoding == FileEncoding(boomerang=True)
    assert probe("a.gif").frames == 6


def test_watermark_is_in_file_recipe_and_remake(generate, kinema, folder, tiny_svd, monkeypatch):
    assert generate("--watermark", "-o", "a").code == 0
    monkeypatch.setenv("KINEMA_WATERMARK", "on")
    assert generate("--no-watermark", "-o", "plain").code == 0
    assert read_recipe("plain").encoding.watermark is None
    recipe = read_recipe("a")
    payload = payload_of(recipe.request, recipe.image_sha256)
    assert np.array_equal(read_frames("a")[0], embed(read_frames("plain")[0], payload))
    assert f"invisible watermark {payload:08x}" in kinema("inspect", "a").out
    assert kinema("remake", "a", "--image", "rocket.png", "--model", tiny_svd).code == 0
    assert read_recipe("a-remade").encoding == recipe.encoding


def test_watermark_goes_on_in_an_extended_video_and_its_remake(generate, kinema, folder, tiny_svd):
    assert generate("--watermark", "-o", "a").code == 0
    watermark = read_recipe("a").encoding.watermark
    sources = ("--image", "rocket.png", "--model", tiny_svd)
    assert kinema("extend", "a", "--num-frames=1", *sources, "-o", "longer").code == 0
    assert np.array_equal(read_frames("longer")[0][:2], read_frames("a")[0])
    assert read_recipe("longer").encoding == FileEncoding(watermark=watermark, watermarked_before=2)
    assert kinema("remake", "longer", "--extends", "a", *sources).code == 0


def test_watermarked_video_is_not_extended_without_its_watermark(generate, kinema, folder, tiny_svd):
    assert generate("--watermark", "-o", "a").code == 0
    watermark = read_recipe("a").encoding.watermark
    refused = kinema("extend", "a", "--num-frames=1", "--no-watermark", "--model", tiny_svd)
    reason = f"a has the invisible watermark {watermark}, which the new frames get too; remove --no-watermark"
    assert (refused.code, refused.err) == (2, f"error: {reason}\n")


def test_remake_of_a_file_that_a_server_encoded_again_is_identical(generate, kinema, folder, tiny_svd):
    from kinema.media.reencode import reencode

    assert generate("--num-frames=3").code == 0
    (folder / "small.mp4").write_bytes(reencode(folder / "rocket.mp4", 40, boomerang=True))
    assert "encoded again from a server's mp4" in kinema("inspect", "small.mp4").out
    assert kinema("remake", "small.mp4", "--image", "rocket.png", "--model", tiny_svd).code == 0
    assert (folder / "small-remade.mp4").read_bytes() == (folder / "small.mp4").read_bytes()
