"""Atomic writes, private permissions and deletion of unused files."""

import contextlib
import errno
import os
import stat
import subprocess
import sys

import pytest
from queue_helpers import IMAGE, request, wait_finished, wait_until

from kinema.errors import InsufficientDisk, InvalidRequest
from kinema.jobs import NewJob, Queue, worker_devices
from kinema.jobs.job_files import JobFiles, atomic_file, delete_partial_files, write_atomically
from kinema.jobs.worker_devices import devices_for
from kinema.settings import Settings


def test_atomic_file_appears_at_the_end(tmp_path):
    target = tmp_path / "video.mp4"
    with atomic_file(target) as partial:
        partial.write_bytes(b"a vid")
        assert not target.exists()
        assert partial.suffix == ".mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_failed_write_keeps_existing_file(tmp_path):
    target = tmp_path / "video.mp4"
    write_atomically(target, b"the first")
    with pytest.raises(TypeError), atomic_file(target) as partial, partial.open("wb") as file:
        file.writelines([b"half of the sec", "ond"])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the first"]


def test_full_disk_raises_insufficient_disk(tmp_path):
    with pytest.raises(InsufficientDisk, match=r"the disk is full: video.mp4"), atomic_file(tmp_path / "video.mp4"):
        raise OSError(errno.ENOSPC, "No space left on device")


JOB = f"video_{'0' * 32}"


def add(files, data):
    with files.add_images(JOB, data) as (sha256, _):
        return sha256


def test_images_are_stored_by_content_hash(tmp_path):
    files = JobFiles(tmp_path)
    assert add(files, b"one") == add(files, b"one") != add(files, b"other")
    assert files.image(add(files, b"one")).read_bytes() == b"one"


def test_sweep_deletes_marked_files_and_returns_unknown_ones(tmp_path):
    files = JobFiles(tmp_path)
    used, unknown_image = add(files, b"used"), add(files, b"unknown")
    with pytest.raises(ZeroDivisionError), files.add_images(JOB, b"never stored"):
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), files.add_images(JOB, b"used"):
        _ = 1 / 0
    known, unknown = (files.job(f"video_{digit * 32}") for digit in "ab")
    half_deleted, foreign = files.jobs / f".deleted-0123abcd-video_{'c' * 32}", files.jobs / ".deleted"
    for folder in (known, unknown, half_deleted, foreign):
        folder.mkdir()
    (files.images / ".part-0123abcd-x").touch()
    kept = sorted([f"jobs/{unknown.name}", "jobs/.deleted", f"images/{unknown_image}"])
    assert files.sweep({known.name}, {used}) == kept
    assert {path.name for path in files.images.iterdir()} == {used, unknown_image}
    assert set(files.jobs.iterdir()) == {known, unknown, foreign}


def modes(folder):
    found = {}
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a partial file
            found[path] = stat.S_IMODE(path.stat().st_mode)
    return found


def test_all_files_are_private_with_any_umask(tmp_path, task_log):
    before = os.umask(0)
    try:
        with Queue(Settings(data_dir=tmp_path / "data", min_free_gb=0), "queue_work:Work") as queue:
            job = queue.submit(NewJob(request(motion_bucket_id=50, num_inference_steps=60, prompt="a fox")))
            wait_until(lambda: queue.preview(job.id))
            found = modes(tmp_path / "data")
            queue.cancel(job.id)
            wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
            found |= modes(tmp_path / "data")
    finally:
        os.umask(before)
    files = {path.name for path in found if not path.is_dir()}
    assert {".lock", ".scheduler", "jobs.sqlite3-wal", "jobs.sqlite3-shm", "jobs.sqlite3.workflows"} <= files
    assert {path: oct(mode) for path, mode in found.items() if mode not in (0o700, 0o600)} == {}


def test_start_makes_existing_files_private(tmp_path):
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
    assert others == {"jobs/2019"}  # an unknown file, in a folder that others can't enter


@pytest.mark.parametrize("name", ["images", "jobs", "drafts", "gradio"])
@pytest.mark.parametrize("obstacle", [None, "other files", "owner"])
def test_target_of_symlink_becomes_private_if_it_has_only_own_files(tmp_path, monkeypatch, name, obstacle):
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    (target / ("a" * 64)).touch(0o644)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).symlink_to(target)
    if obstacle == "other files":
        (target / "letters").touch()
    elif obstacle == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: target.stat().st_uid + 1)
    JobFiles(tmp_path / "data").make_private()
    assert stat.S_IMODE(target.stat().st_mode) == (0o755 if obstacle else 0o700)
    assert stat.S_IMODE((target / ("a" * 64)).stat().st_mode) == 0o600


def test_data_folder_may_be_a_symlink(tmp_path):
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    (tmp_path / "data").symlink_to(target)
    JobFiles(tmp_path / "data").make_private()
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


@pytest.mark.parametrize("other_name", ["letters", None])
def test_folder_with_other_files_keeps_its_mode(tmp_path, other_name):
    tmp_path.chmod(0o755)
    if other_name:
        (tmp_path / other_name).mkdir()
    Queue(Settings(data_dir=tmp_path)).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == (0o755 if other_name else 0o700)
    assert stat.S_IMODE((tmp_path / "jobs.sqlite3").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["../x", "video_..", "", "video_" + "a" * 31, f"video_{'a' * 32}/.."])
def test_invalid_job_id_raises_value_error(tmp_path, name):
    with pytest.raises(ValueError, match="is not a job id"):
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
def test_devices_follow_the_settings(monkeypatch, settings, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine without GPUs
    assert devices_for(Settings(**settings)) == devices


def test_workers_of_groups_have_the_first_gpu_of_each(monkeypatch):
    monkeypatch.setattr(worker_devices, "count_gpus", lambda: 5)
    assert devices_for(Settings(gpus_per_video=2)) == ("cuda:0", "cuda:2")
    assert devices_for(Settings(gpus_per_video=2, workers=3)) == ("cuda:0", "cuda:2", "cuda:0")
    monkeypatch.setattr(worker_devices, "count_gpus", lambda: 1)
    with pytest.raises(InvalidRequest, match="KINEMA_GPUS_PER_VIDEO is 2, but this machine has 1 GPU"):
        Queue(Settings(gpus_per_video=2), "queue_work:Work")


def test_partial_file_of_killed_video_writer_is_deleted_before_next_attempt(tmp_path):
    script = """
import os, sys
from pathlib import Path
from kinema.media import video_writer
video_writer._write = lambda path, data: (path.write_bytes(data), os._exit(9))
video_writer.publish(b"a video", Path(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "video.mp4"], check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    delete_partial_files(tmp_path)
    assert not list(tmp_path.iterdir())
