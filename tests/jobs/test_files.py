"""Files are there whole or not at all, and only as long as they are needed."""

import errno
import os
import time

import pytest

from kinema.errors import InsufficientDisk
from kinema.jobs.files import Files, appearing, write
from kinema.jobs.workers import devices_for
from kinema.settings import Settings

DAY = 86_400


def test_a_file_appears_only_when_its_writer_is_done(tmp_path):
    target = tmp_path / "video.mp4"
    with appearing(target) as aside:
        aside.write_bytes(b"a vid")
        assert not target.exists()
        assert aside.suffix == ".mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "video.mp4"
    write(target, b"the first")
    with pytest.raises(TypeError), appearing(target) as aside, aside.open("wb") as file:
        file.writelines([b"half of the sec", "ond"])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the first"]


def test_a_full_disk_is_told_as_one(tmp_path):
    with pytest.raises(InsufficientDisk, match=r"the disk is full: video.mp4"), appearing(tmp_path / "video.mp4"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_still_is_found_by_its_content(tmp_path):
    files = Files(tmp_path)
    assert files.add_still(b"one") == files.add_still(b"one") != files.add_still(b"other")
    assert files.still(files.add_still(b"one")).read_bytes() == b"one"


def test_a_sweep_clears_what_no_job_knows_and_old_stills_that_none_wants(tmp_path):
    files = Files(tmp_path)
    wanted, unwanted, fresh = (files.add_still(name) for name in (b"wanted", b"unwanted", b"fresh"))
    for sha256 in (wanted, unwanted):
        os.utime(files.still(sha256), (time.time() - 3 * DAY,) * 2)
    known, unknown = (files.job(f"video_{digit * 32}") for digit in "ab")
    for folder in (known, unknown, files.trash / "x"):
        folder.mkdir()
    files.sweep({known.name}, {wanted}, 2 * DAY)
    assert {path.name for path in files.stills.iterdir()} == {wanted, fresh}
    assert list(files.jobs.iterdir()) == [known]
    assert list(files.trash.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "video_..", "", "video_" + "a" * 31, f"video_{'a' * 32}/.."])
def test_no_id_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="is no job's id"):
        Files(tmp_path).job(name)


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        ({"device": "cpu"}, ("cpu",)),
        ({"device": "cuda:1", "workers": 2}, ("cuda:1", "cuda:1")),
        ({"workers": 3}, ("auto", "auto", "auto")),
        ({}, ("auto",)),
    ],
)
def test_workers_are_as_many_as_the_settings_say(monkeypatch, settings, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine without GPUs
    assert devices_for(Settings(**settings)) == devices
