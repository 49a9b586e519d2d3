"""`kinema batch` on this machine, with stub work: outputs, resuming, failures, summary."""

import csv
import importlib.util
import json
import signal
import subprocess
from pathlib import Path

import pytest
from batch_inputs import write_image
from fake_hub import FakeHub
from PIL import Image

from kinema.media.credentials.credential_check import check_credentials
from kinema.media.video_reader import read_recipe


def started_parts():
    """Return how many parts of jobs were run so far."""
    log = Path("tasks.log")
    return log.read_text().count("started") if log.exists() else 0


def files():
    return sorted(path.name for path in Path("videos").glob("*.mp4"))


def table():
    """Return the rows of summary.csv."""
    with Path("videos/summary.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_videos_are_signed_if_credentials_are_on(batch, folder, monkeypatch):
    monkeypatch.setenv("KINEMA_CREDENTIALS", "on")
    monkeypatch.setenv("KINEMA_DATA_DIR", str(folder / "data"))
    write_image(folder / "photos" / "a.png", 3)
    write_image(folder / "end.png", 4)
    assert batch("photos", "--last-image", "end.png", "--num-frames", "2", "--no-credentials").code == 0
    result = batch("photos", "--last-image", "end.png", "--num-frames", "2")
    assert (result.code, "by an earlier run" in result.err) == (0, False)
    authority = (folder / "data" / "credentials" / "ca.pem").read_text()
    check = check_credentials((folder / "videos" / "a.mp4").read_bytes(), None, authority)
    assert (check.state, len(check.ingredients)) == ("trusted", 2)


@pytest.mark.usefixtures("photos")
def test_folder_gives_a_video_per_image_and_a_summary(batch):
    result = batch("photos", "--seeds", "2", "--seed", "5")
    expected = [f"{name}-seed{seed}.mp4" for name in "abc" for seed in (5, 6)]
    assert (result.code, sorted(result.out.split())) == (0, [f"videos/{file}" for file in expected])
    assert files() == expected
    assert read_recipe("videos/b-seed6.mp4").request.seed == 6
    assert (
        "6 videos completed; videos has summary.json, summary.csv, and contact-sheet.png with 6 of them" in result.err
    )
    summary = json.loads(Path("videos/summary.json").read_text())
    assert (summary["completed"], summary["failed"], summary["pending"]) == (6, 0, 0)
    rows = table()
    assert [row["file"] for row in rows] == expected
    assert rows[3] == {
        "item": "b-seed6", "source": "photos/b.png", "seed": "6", "status": "completed", "file": "b-seed6.mp4",
        "seconds": rows[3]["seconds"], "error_code": "", "error_message": "",
    }  # fmt: skip
    assert float(rows[3]["seconds"]) >= 0, "it is empty if the time is not known; the stub takes milliseconds"
    with Image.open("videos/contact-sheet.png") as sheet:
        assert sheet.size == (3 * 68 + 4, 2 * 68 + 4)
    assert not list(Path("videos/.kinema-batch/queue/jobs").iterdir())


@pytest.mark.usefixtures("photos")
def test_same_command_again_makes_only_what_is_missing(batch, folder):
    assert batch("photos").code == 0
    parts = started_parts()
    modified = {file: (folder / "videos" / file).stat().st_mtime_ns for file in files()}
    result = batch("photos")
    assert (result.code, started_parts()) == (0, parts)
    assert "3 videos completed (3 of them by an earlier run)" in result.err
    write_image(folder / "photos" / "d.png", 4)
    (folder / "videos" / "b.mp4").unlink()
    assert batch("photos").code == 0
    assert files() == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert started_parts() == parts + 4
    assert (folder / "videos" / "a.mp4").stat().st_mtime_ns == modified["a.mp4"]


@pytest.mark.slow
def test_videos_are_made_again_with_a_watermark(batch, folder):
    write_image(folder / "photos" / "a.png", 3)
    assert batch("photos").code == 0
    for _ in range(2):
        assert batch("photos", "--watermark").code == 0
    marks = [line.split()[-1] for line in Path("tasks.log").read_text().splitlines() if " started " in line]
    assert marks == ["watermark=unset"] * 2 + ["watermark=on"] * 2


@pytest.mark.usefixtures("photos")
def test_bad_image_fails_alone_with_exit_code_6_and_is_tried_again(batch, folder):
    good = (folder / "photos" / "b.png").read_bytes()
    (folder / "photos" / "b.png").write_bytes(good[:200])
    result = batch("photos")
    assert (result.code, files()) == (6, ["a.mp4", "c.mp4"])
    assert "failed: b: photos/b.png is damaged or truncated" in result.err
    (row,) = [row for row in table() if row["status"] == "failed"]
    assert (row["item"], row["error_code"]) == ("b", "invalid_image")
    (folder / "photos" / "b.png").write_bytes(good)
    assert batch("photos").code == 0
    assert files() == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.usefixtures("photos")
def test_failed_job_is_reported_and_tried_again(batch, monkeypatch):
    monkeypatch.setenv("KINEMA_WORK", "batch_work:FailsOnce")
    result = batch("photos/a.png", "photos/b.png", "--seed", "13")
    assert result.code == 6
    assert result.err.count("failed: ") == 2
    assert "failed: a: 64 GB are needed and 1 is free; ask for fewer frames" in result.err
    assert batch("photos/a.png", "photos/b.png", "--seed", "13").code == 0


@pytest.mark.usefixtures("photos")
@pytest.mark.slow
def test_changed_image_replaces_its_video(batch, folder):
    assert batch("photos", "--seed", "1").code == 0
    before = {file: (folder / "videos" / file).read_bytes() for file in files()}
    write_image(folder / "photos" / "b.png", 9)
    assert batch("photos", "--seed", "1").code == 0
    after = {file: (folder / "videos" / file).read_bytes() for file in files()}
    assert [file for file in before if before[file] != after[file]] == ["b.mp4"]


@pytest.mark.usefixtures("photos")
@pytest.mark.slow
def test_renamed_or_duplicated_image_is_not_made_again(batch, folder):
    write_image(folder / "photos" / "copy.png", 0)  # the same as a.png
    assert batch("photos").code == 0
    parts = started_parts()
    assert parts == 6
    (folder / "photos" / "b.png").rename(folder / "photos" / "new.png")
    assert batch("photos").code == 0
    assert files() == ["a.mp4", "b.mp4", "c.mp4", "copy.mp4", "new.mp4"]
    assert (started_parts(), (folder / "videos/new.mp4").read_bytes()) == (
        parts,
        (folder / "videos/b.mp4").read_bytes(),
    )


@pytest.mark.usefixtures("photos")
def test_foreign_video_is_not_overwritten(batch, folder):
    write_image(folder / "videos" / "x.png", 1)
    (folder / "videos" / "b.mp4").write_bytes(b"mine")
    result = batch("photos")
    assert (result.code, files()) == (6, ["a.mp4", "b.mp4", "c.mp4"])
    assert "failed: b: videos/b.mp4 was not written by this batch, or was changed since; move it" in result.err
    assert (folder / "videos" / "b.mp4").read_bytes() == b"mine"


@pytest.mark.usefixtures("photos")
def test_foreign_summary_is_an_error_before_work(batch, folder):
    (folder / "videos").mkdir()
    (folder / "videos" / "summary.csv").write_text("mine")
    result = batch("photos")
    assert (result.code, files(), started_parts()) == (2, [], 0)
    assert "videos/summary.csv was not written by this batch" in result.err


@pytest.mark.usefixtures("photos")
def test_videos_of_a_manifest_end_at_their_last_images(batch, folder):
    ends = ({}, {"last_image": "photos/b.png"}, {"last_image": "photos/c.png"}, {"last_image": "d.png"})
    lines = [{"image": "photos/a.png", "seed": 1, "name": str(i)} | each for i, each in enumerate(ends)]
    (folder / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "d.png").write_bytes(b"no image")
    result = batch("m.jsonl", "--seconds", "0.5")
    assert (result.code, result.err.count("failed: ")) == (6, 1)
    videos = [path.read_bytes() for path in sorted((folder / "videos").glob("*.mp4"))]
    assert len(set(videos)) == len(videos) == 3
    assert "failed: 3: d.png is not a supported image" in result.err


@pytest.mark.usefixtures("photos")
def test_last_image_of_the_command_is_that_of_lines_without_one(batch, folder):
    lines = [
        {"image": "photos/a.png", "name": "given"},
        {"image": "photos/a.png", "name": "own", "last_image": "photos/c.png"},
        {"image": "photos/a.png", "name": "same", "last_image": "photos/b.png"},
    ]
    (folder / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    result = batch("m.jsonl", "--last-image", "photos/b.png", "--watermark", "--num-frames", "2")
    assert result.code == 0
    given, own, same = ((folder / "videos" / f"{line['name']}.mp4").read_bytes() for line in lines)
    assert given == same != own
    assert {line.split()[-1] for line in Path("tasks.log").read_text().splitlines()} == {"watermark=on"}


@pytest.mark.usefixtures("photos")
@pytest.mark.slow
def test_prompts_of_a_manifest_become_videos(batch):
    lines = [
        {"prompt": "a red rocket"},
        {"image": "photos/a.png", "name": "first"},
        {"image": "photos/a.png", "fps": 0},
    ]
    Path("list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = batch("list.jsonl", "--json")
    assert (result.code, files()) == (6, ["a-red-rocket.mp4", "first.mp4"])
    events = [json.loads(line) for line in result.out.splitlines()]
    assert {event["path"] for event in events if event["event"] == "done"} == {f"videos/{file}" for file in files()}
    progress = [event for event in events if event["event"] == "progress"][-1]
    assert (progress["completed"], progress["failed"], progress["total"]) == (2, 1, 3)
    (failed,) = [event for event in events if event["event"] == "item_failed"]
    assert failed["source"] == "list.jsonl:3"
    assert failed["message"] == "line 3 of list.jsonl: fps 0 is out of range: 1 to 120"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--width", "1001"], "width 1001 is not a multiple of 8; use 1000 or 1008"),
        (["photos", "--scheduler", "ddim"], "scheduler only applies with a prompt"),
        (["photos", "--seeds", "0"], "--seeds"),
        (["photos", "--server", "gpu:3000"], "server 'gpu:3000' is not an http(s) URL; use one such as http://gpu"),
        (
            ["photos", "--server", "http://gpu", "--device", "cpu"],
            "--device does not apply with --server, which decides it; remove it",
        ),
        (["photos", "--server", "http://gpu", "--no-watermark"], "--watermark does not apply with --server"),
        (["photos", "--last-image", "none.png"], "last image: file none.png not found"),
        (["photos", "--last-image", "photos/a.png", "--loop"], "a loop ends at its first image; remove last_image"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_invalid_usage_is_an_error_before_work(batch_in_process, arguments, message):
    result = batch_in_process(*arguments)
    assert result.code == 2
    assert message in result.err
    assert not Path("videos").exists()


@pytest.mark.usefixtures("photos")
def test_missing_packages_of_the_queue_are_named(batch_in_process, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    result = batch_in_process("photos")
    assert (result.code, Path("videos").exists()) == (2, False)
    assert "the packages of the queue are not installed; use a server with --server, or run in your clone" in result.err
    assert "pip install -e '.[server]' -c constraints.txt" in result.err


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_model_is_downloaded_before_the_first_job(batch, tiny_svd, folder, monkeypatch):
    with FakeHub(tiny_svd, "someone/tiny") as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": folder / "hf", "HF_HUB_OFFLINE": "0"}.items():
            monkeypatch.setenv(name, str(value))
        hub.error = ("GatedRepo", 403)
        result = batch("photos", "--num-frames", "2", model="someone/tiny")
        assert (result.code, started_parts()) == (3, 0)
        assert "0 of 3 videos are completed; run the same command to continue" in result.err
        hub.error = None
        result = batch("photos", "--num-frames", "2", model="someone/tiny")
    assert result.code == 0, result.err
    assert "download " in result.err


@pytest.mark.slow
def test_sigterm_leaves_no_partial_files_and_says_how_to_continue(folder, batch, command):
    for seed in range(30):
        write_image(folder / "photos" / f"{seed}.png", seed)
    with subprocess.Popen(command("photos"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143
    assert "of 30 videos are completed; run the same command to continue" in errors
    summary = json.loads((folder / "videos" / "summary.json").read_text())
    assert summary["completed"] == len(files())
    assert summary["pending"] == 30 - summary["completed"] > 0
    assert not list((folder / "videos").glob(".part-*"))  # those in the queue's folder are deleted by the next run
    assert batch("photos").code == 0
    assert len(files()) == 30
    assert not list(folder.rglob(".part-*"))
