"""The check that data folder and database belong together, and that files of others are kept."""

import contextlib
import sqlite3

import pytest
from queue_helpers import IMAGE, request, wait_finished, wait_until
from queue_work import expected_video

from kinema.errors import InvalidRequest
from kinema.jobs import NewJob, Queue
from kinema.settings import Settings


@pytest.fixture
def completed_video(settings):
    """Path and bytes of the video of a completed job in a closed queue."""
    with Queue(settings, "queue_work:Work") as queue:
        job = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE, pinned=True)))
        return queue.result(job.id), expected_video(job.request, IMAGE)


def open_queue(settings):
    """Return an open queue that has swept its data folder."""
    queue = Queue(settings, "queue_work:Work")
    queue.open()
    wait_until(lambda: queue.ready)
    return contextlib.closing(queue)


def remove_database(settings):
    for path in settings.data_dir.glob("jobs.sqlite3*"):
        path.unlink()


def test_start_with_another_database_names_both_and_deletes_nothing(settings, completed_video, tmp_path):
    video, content = completed_video
    other = settings.model_copy(update={"database_url": Settings(database_url=f"sqlite:///{tmp_path}/o").database_url})
    with pytest.raises(InvalidRequest, match="do not belong together") as refused:
        Queue(other, "queue_work:Work")
    for name in (settings.data_dir, f"sqlite:///{tmp_path}/o", "KINEMA_DATABASE_URL", "KINEMA_DATA_DIR"):
        assert str(name) in str(refused.value)
    assert video.read_bytes() == content
    with open_queue(settings) as queue:
        assert [job.id for job in queue.list().jobs] == [video.parent.name]


def test_start_with_new_database_needs_its_id_in_the_data_folder(settings, completed_video, caplog):
    video, content = completed_video
    remove_database(settings)
    with pytest.raises(InvalidRequest) as refused:
        Queue(settings, "queue_work:Work")
    new_id = str(refused.value).split("write ")[1].split()[0]
    (settings.data_dir / "database-id").write_text(new_id)
    with open_queue(settings) as queue:
        assert queue.unknown_files == 2
        assert "kept: images/" in caplog.text
        assert queue.list().jobs == ()
        wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
    assert video.read_bytes() == content


def test_new_folder_joins_database_with_warning_and_used_folder_is_refused(settings, completed_video, tmp_path, caplog):
    url = f"sqlite:///{settings.data_dir}/jobs.sqlite3"
    new, other = (Settings(data_dir=tmp_path / name, min_free_gb=0) for name in ("new", "other"))
    Queue(new.model_copy(update={"database_url": Settings(database_url=url).database_url})).close()
    assert "contains none of the 2 videos and images of its database" in caplog.text
    Queue(other).close()
    with pytest.raises(InvalidRequest, match="do not belong together"):
        Queue(other.model_copy(update={"database_url": Settings(database_url=url).database_url}))
    assert completed_video[0].read_bytes() == completed_video[1]


def test_folder_without_id_joins_the_database_that_knows_its_files(settings, completed_video):
    (settings.data_dir / "database-id").unlink()
    with Queue(settings) as queue:
        assert queue.result(completed_video[0].parent.name) == completed_video[0]
    remove_database(settings)
    (settings.data_dir / "database-id").unlink()
    with pytest.raises(InvalidRequest, match="of an unknown database"):
        Queue(settings)


def test_empty_folders_share_a_new_database(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    for name in "ab":
        Queue(Settings(data_dir=tmp_path / name, database_url=url)).close()
    first, second = ((tmp_path / name / "database-id").read_text() for name in "ab")
    assert first == second


def test_unknown_files_are_kept_and_counted(settings):
    names = ["jobs/2019-tax-returns", "trash/keepme", "images/holiday.jpg", f"jobs/video_{'a' * 32}"]
    for start in range(2):
        for name in names[start * 3 :][:3]:  # the last one looks like a job, and is added after the folder got its id
            (settings.data_dir / name).mkdir(parents=True)
            (settings.data_dir / name / "file").write_text("precious")
        with open_queue(settings) as queue:
            assert queue.unknown_files == 2 + start
    assert all((settings.data_dir / name / "file").read_text() == "precious" for name in names)


def test_crash_after_removal_of_a_row_deletes_its_files_at_next_start(settings, completed_video):
    video, _ = completed_video
    with Queue(settings) as queue:
        queue._table.remove(video.parent.name)  # and the process dies here
    assert video.exists()
    with open_queue(settings) as queue:
        assert queue.unknown_files == 0
        assert not any((settings.data_dir / "jobs").iterdir())
        assert not any((settings.data_dir / "images").iterdir())
        assert queue._table.deletions() == []


def test_database_without_format_is_refused_and_not_changed(settings, completed_video):
    video, content = completed_video
    path = settings.data_dir / "jobs.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE kinema_database DROP COLUMN format")
    with pytest.raises(InvalidRequest, match=r"has format 1, but this version .* uses format \d+\. .*KINEMA_DATA_DIR"):
        Queue(settings, "queue_work:Work")
    assert video.read_bytes() == content
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM kinema_jobs").fetchone() == (1,)
