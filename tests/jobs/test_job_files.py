"""Files are there whole or not at all, and only as long as they are needed."""

import contextlib
import errno
import os
import stat

import pytest
from queue_helpers import IMAGE, finished, request, until

from kinema.errors import InsufficientDisk
from kinema.jobs import Queue
from kinema.jobs.job_files import JobFiles, appearing, write
from kinema.jobs.worker_pool import devices_for
from kinema.settings import Settings


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


def add(files, data):
    with files.adding(data) as sha256:
        return sha256


def test_a_still_is_found_by_its_content(tmp_path):
    files = JobFiles(tmp_path)
    assert add(files, b"one") == add(files, b"one") != add(files, b"other")
    assert files.image(add(files, b"one")).read_bytes() == b"one"


def test_a_sweep_deletes_what_was_marked_and_reports_what_no_record_names(tmp_path):
    files = JobFiles(tmp_path)
    wanted, unknown_image = add(files, b"wanted"), add(files, b"unknown")
    with pytest.raises(ZeroDivisionError), files.adding(b"never recorded"):
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), files.adding(b"wanted"):
        _ = 1 / 0
    known, unknown = (files.job(f"video_{digit * 32}") for digit in "ab")
    half_deleted, foreign = files.jobs / f".deleted-0123abcd-video_{'c' * 32}", files.jobs / ".deleted"
    for folder in (known, unknown, half_deleted, foreign):
        folder.mkdir()
    (files.images / ".part-0123abcd-x").touch()
    kept = sorted([f"jobs/{unknown.name}", "jobs/.deleted", f"images/{unknown_image}"])
    assert files.sweep({known.name}, {wanted}) == kept
    assert {path.name for path in files.images.iterdir()} == {wanted, unknown_image}
    assert set(files.jobs.iterdir()) == {known, unknown, foreign}


def modes(folder):
    found = {}
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # what is being written
            found[path] = stat.S_IMODE(path.stat().st_mode)
    return found


def test_everything_is_readable_by_its_owner_alone_whatever_the_umask(tmp_path, notes):
    before = os.umask(0)
    try:
        with Queue(Settings(data_dir=tmp_path / "data", min_free_gb=0), "queue_work:Work") as queue:
            job = queue.submit(request(motion_bucket_id=50, num_inference_steps=60, prompt="a fox"))
            until(lambda: queue.preview(job.id))
            found = modes(tmp_path / "data")
            queue.cancel(job.id)
            finished(queue, queue.submit(request(), image=IMAGE))
            found |= modes(tmp_path / "data")
    finally:
        os.umask(before)
    files = {path.name for path in found if not path.is_dir()}
    assert {".lock", ".runner", "jobs.sqlite3-wal", "jobs.sqlite3-shm", "jobs.sqlite3.workflows"} <= files
    assert {path: oct(mode) for path, mode in found.items() if mode not in (0o700, 0o600)} == {}


def test_a_folder_that_others_could_read_is_closed_to_them(tmp_path):
    data = tmp_path / "data"
    queue = Queue(Settings(data_dir=data))
    for name in (f"jobs/video_{'a' * 32}", "drafts", "jobs/2019"):
        (data / name).mkdir()
    (data / f"jobs/video_{'a' * 32}/video.mp4").touch()
    (data / "images" / ("b" * 64)).touch()
    queue.close()
    for path in (data, *data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    Queue(Settings(data_dir=data)).close()
    others = {path.relative_to(data).as_posix() for path, mode in modes(data).items() if mode & 0o077}
    assert others == {"jobs/2019"}  # not Kinema's, and in a folder that no one else can enter


@pytest.mark.parametrize("name", ["images", "jobs", "drafts", "gradio"])
@pytest.mark.parametrize("why_not", [None, "beside", "owner"])
def test_a_folder_that_a_link_leads_to_is_closed_where_it_is_kinemas_alone(tmp_path, monkeypatch, name, why_not):
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    (there / ("a" * 64)).touch(0o644)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).symlink_to(there)
    if why_not == "beside":
        (there / "letters").touch()
    elif why_not == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: there.stat().st_uid + 1)
    JobFiles(tmp_path / "data").make_private()
    assert stat.S_IMODE(there.stat().st_mode) == (0o755 if why_not else 0o700)
    assert stat.S_IMODE((there / ("a" * 64)).stat().st_mode) == 0o600


def test_a_data_folder_may_be_a_link(tmp_path):
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    (tmp_path / "data").symlink_to(there)
    JobFiles(tmp_path / "data").make_private()
    assert stat.S_IMODE(there.stat().st_mode) == 0o700


@pytest.mark.parametrize("beside", ["letters", None])
def test_a_folder_that_holds_more_than_kinemas_files_keeps_its_mode(tmp_path, beside):
    tmp_path.chmod(0o755)
    if beside:
        (tmp_path / beside).mkdir()
    Queue(Settings(data_dir=tmp_path)).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == (0o755 if beside else 0o700)
    assert stat.S_IMODE((tmp_path / "jobs.sqlite3").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["../x", "video_..", "", "video_" + "a" * 31, f"video_{'a' * 32}/.."])
def test_no_id_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="is no job's id"):
        JobFiles(tmp_path).job(name)


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
